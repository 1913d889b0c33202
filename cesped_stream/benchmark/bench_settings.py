"""Settings of the benchmarks. No torch."""

from typing import Annotated, Literal

from pydantic import Field

from cesped_stream.settings import Device, Precision, Settings, Symmetry

DEVICE_TEXT = "auto takes CUDA where there is one."

BoxPixels = Annotated[int, Field(ge=16, le=1024)]


class InferBench(Settings):
    """`cesped-stream bench infer`."""

    preset: tuple[Literal["paper", "small"], ...] = Field(("small", "paper"), description="Network presets.")
    device: Device = Field("auto", description=DEVICE_TEXT)
    precision: Precision = Field("float32", description="bfloat16 runs the backbone in bfloat16.")
    batch_size: int = Field(32, ge=1, le=4096, description="Images per forward pass.")
    particles: int = Field(256, ge=1, le=1_000_000, description="Images per measurement.")


class DatasetBench(Settings):
    """`cesped-stream bench dataset`."""

    particles: int = Field(1024, ge=1, le=1_000_000, description="Images of the stack.")
    box: BoxPixels = Field(232, description="Their side in pixels.")
    image_size: BoxPixels = Field(256, description="Side of the items' images in pixels.")
    batch_size: int = Field(64, ge=1, le=4096, description="Images of one batch.")
    workers: int = Field(0, ge=0, le=512, description="Also measured with so many worker processes.")
    device: Device = Field("auto", description=DEVICE_TEXT)


class ReconstructBench(Settings):
    """`cesped-stream bench reconstruct`."""

    particles: int = Field(4000, ge=2, le=1_000_000, description="Particles of the half-set.")
    box_size: BoxPixels = Field(64, description="Side of their images in pixels.")
    symmetry: Symmetry = Field("C1", description="Point group, as RELION names it.")
    device: Device = Field("auto", description=DEVICE_TEXT)
    repeats: int = Field(3, ge=1, le=100, description="The best of so many is taken.")


class PosesBench(Settings):
    """`cesped-stream bench poses`."""

    boxes: tuple[BoxPixels, ...] = Field((64, 128, 256), description="Acquired boxes in pixels.")
    symmetries: tuple[Symmetry, ...] = Field(("C1", "D2"), description="Point groups.")
    particles: int = Field(256, ge=2, le=1_000_000, description="Particles of each measurement.")
    device: Device = Field("auto", description=DEVICE_TEXT)
    threads: int = Field(0, ge=0, le=512, description="CPU threads; 0: all cores.")
    box_angstrom: float = Field(
        384.0,
        ge=50,
        le=2000,
        description="Side of the box in angstrom, whatever its pixels. The ribosome is scaled with it: 192 for a small "
        "particle.",
    )
    resolution_angstrom: float = Field(
        10.0, ge=2, le=100, description="Resolution of the reference; never beyond what the pixels allow."
    )
    snr: float = Field(
        0.1,
        ge=1e-4,
        le=1000,
        description="SNR in the inscribed circle at 64 pixels; at other boxes the noise of an angstrom is the same. "
        "With less of it more proposals are refined.",
    )
    disk_mib: int = Field(256, ge=1, le=65536, description="Size of the file that gives the disk's own rate.")
