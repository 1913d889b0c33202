"""How fast inference is on this machine and how much memory it takes, stage by stage, for each preset.

Random weights and noise images: the arithmetic is the same. Every preset is measured in a process of its own, since
peak memory is a process's.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from cesped_stream.inference import Predictor
from cesped_stream.model.checkpoint import CheckpointManifest, HalfRecord, publish_checkpoint
from cesped_stream.model.image2sphere import Image2Sphere
from cesped_stream.particles.stacks import StackReader, write_stack
from cesped_stream.particles.table import OpticsGroup, ParticleTable
from cesped_stream.pipeline import infer_table
from cesped_stream.settings import MODEL_PRESETS, InferenceSettings, TrainingSettings

FIELD_OF_VIEW_ANGSTROM = 480.0
BOX_PIXELS = {"paper": 320, "small": 160}
"""Acquired boxes of one field of view: 1.5 angstrom a pixel as in CESPED, and binned twice."""


class InferenceFigures(BaseModel):
    """What one preset reached. Rates are particles a second over `num_particles`, after one batch of warm-up."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str
    device: str
    precision: str
    batch_size: int
    threads: int
    num_particles: int
    box_pixels: int
    image_pixels: int
    build_cpu_seconds: float
    """Building one model, as a worker does twice at a new checkpoint; CPU time."""
    backbone_per_second: float
    head_per_second: float
    predict_per_second: float
    """Network inputs in memory to poses: backbone, head and the choice of distinct poses."""
    pipeline_per_second: float
    """Star rows to poses, reading a stack that is not in the page cache and preprocessing included."""
    peak_memory_bytes: int
    """Of the whole process (VmHWM), both half-models loaded."""
    peak_device_memory_bytes: int
    """Allocated by torch on the GPU; 0 on a CPU."""


def bench_infer(presets: Sequence[str], settings: InferenceSettings, num_particles: int) -> Iterator[InferenceFigures]:
    """Yield the figures of each preset as it is done; RuntimeError where a measuring process fails."""
    for preset in presets:
        arguments = [preset, settings.model_dump_json(), str(num_particles)]
        done = subprocess.run(
            [sys.executable, "-m", __name__, *arguments], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"measuring preset {preset} ended with exit status {done.returncode}")
        yield InferenceFigures.model_validate_json(done.stdout.splitlines()[-1])


def figures_table(figures: Sequence[InferenceFigures]) -> str:
    """Return the figures as text, a column a preset."""
    rows: list[tuple[str, Callable[[InferenceFigures], str]]] = [
        ("preset", lambda f: f.preset),
        ("device, precision", lambda f: f"{f.device}, {f.precision}"),
        ("batch, CPU threads", lambda f: f"{f.batch_size}, {f.threads}"),
        ("box -> network, pixels", lambda f: f"{f.box_pixels} -> {f.image_pixels}"),
        ("build, CPU s", lambda f: f"{f.build_cpu_seconds:.2f}"),
        ("backbone, particles/s", lambda f: f"{f.backbone_per_second:.1f}"),
        ("head, particles/s", lambda f: f"{f.head_per_second:.1f}"),
        ("without disk, particles/s", lambda f: f"{f.predict_per_second:.1f}"),
        ("with disk, particles/s", lambda f: f"{f.pipeline_per_second:.1f}"),
        ("peak memory, GB", lambda f: f"{f.peak_memory_bytes / 1e9:.2f}"),
        ("peak GPU memory, GB", lambda f: f"{f.peak_device_memory_bytes / 1e9:.2f}"),
    ]
    return "\n".join(f"{name:<26}" + "".join(f"{cell(f):>20}" for f in figures) for name, cell in rows)


def measure_preset(preset: str, settings: InferenceSettings, num_particles: int) -> InferenceFigures:
    """Return the figures of one preset, measured in this process (whose peak memory so far counts)."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with tempfile.TemporaryDirectory(prefix="cesped-stream-bench-") as name:
        folder = Path(name)
        table = _noise_star(folder, num_particles, BOX_PIXELS[preset])
        checkpoint, build_cpu_seconds = untrained_checkpoint(folder, preset, FIELD_OF_VIEW_ANGSTROM)
        predictor = Predictor(checkpoint, settings)
        rates = _rates(predictor, table, folder)
    on_gpu = predictor.device.type == "cuda"
    return InferenceFigures(
        preset=preset,
        device=torch.cuda.get_device_name(predictor.device) if on_gpu else "cpu",
        precision=settings.precision,
        batch_size=predictor.batch_size,
        threads=torch.get_num_threads(),
        num_particles=num_particles,
        box_pixels=BOX_PIXELS[preset],
        image_pixels=predictor.manifest.preprocess.image_size,
        build_cpu_seconds=build_cpu_seconds,
        peak_memory_bytes=peak_memory_bytes(),
        peak_device_memory_bytes=torch.cuda.max_memory_allocated() if on_gpu else 0,
        **rates,
    )


def _rates(predictor: Predictor, table: ParticleTable, root: Path) -> dict[str, float]:
    pace = _Pace(predictor.device, len(table), predictor.batch_size)
    model = predictor.model_for(0)
    side = predictor.manifest.preprocess.image_size
    batch = torch.randn(predictor.batch_size, 1, side, side, device=predictor.device)
    images = batch.repeat(-(-len(table) // len(batch)), 1, 1, 1)[: len(table)]
    bfloat16 = predictor.settings.precision == "bfloat16"
    with torch.no_grad():
        with torch.autocast(predictor.device.type, torch.bfloat16, enabled=bfloat16):
            backbone = pace.of_batches(lambda: model.encoder(batch))
            features = model.encoder(batch).float()
        head = pace.of_batches(lambda: model.head(features))
    with StackReader() as reader:
        return {
            "backbone_per_second": backbone,
            "head_per_second": head,
            "predict_per_second": pace.of_all(lambda: predictor.predict(images, np.zeros(len(table), np.int64))),
            "pipeline_per_second": pace.of_all(lambda: infer_table(predictor, table, reader, root=root)),
        }


def peak_memory_bytes() -> int:
    """Return the largest resident memory this process has had.

    VmHWM, since ru_maxrss of a process begins with that of the one that started it.
    """
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found.group(1)) * 1024


class _Pace:
    """Times work on a device."""

    def __init__(self, device: torch.device, num_particles: int, batch_size: int) -> None:
        self._device = device
        self._num_particles = num_particles
        self._batches = -(-num_particles // batch_size)
        self._batch_size = batch_size

    def of_batches(self, work: Callable[[], object]) -> float:
        """Return particles a second of `work`, one batch a call, after one call of warm-up."""
        work()
        return self._batches * self._batch_size / self._seconds(lambda: [work() for _ in range(self._batches)])

    def of_all(self, work: Callable[[], object]) -> float:
        """Return particles a second of `work` over all particles."""
        return self._num_particles / self._seconds(work)

    def _seconds(self, work: Callable[[], object]) -> float:
        self._wait()
        started = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def untrained_checkpoint(
    folder: Path, preset: str, field_of_view_angstrom: float, symmetry: str = "C1"
) -> tuple[Path, float]:
    """Publish a checkpoint with random weights; return its folder, and the CPU seconds that one model took to build.

    The network's images have `field_of_view_angstrom` to a side.
    """
    model_settings, preprocess = MODEL_PRESETS[preset]
    started = time.process_time()
    state = Image2Sphere(model_settings).state_dict()
    build_cpu_seconds = time.process_time() - started
    manifest = CheckpointManifest(
        preset=preset,
        model=model_settings,
        preprocess=preprocess,
        network_pixel_size_angstrom=field_of_view_angstrom / preprocess.image_size,
        symmetry=symmetry,
        halves={half: HalfRecord(num_training=0, num_validation=0, steps=0) for half in (0, 1)},
        origin="random",
        independence="unknown",
        stopped_by="steps",
        training=TrainingSettings(),
    )
    return publish_checkpoint(folder, manifest, {0: state, 1: state})[0], build_cpu_seconds


def _noise_star(folder: Path, num_particles: int, box: int) -> ParticleTable:
    """Write a stack of noise, drop it from the page cache, and return rows of half-set 0 that name it."""
    noise = np.random.default_rng(0).normal(size=(16, box, box)).astype(np.float32)
    pixel_size = FIELD_OF_VIEW_ANGSTROM / box
    path = folder / "noise.mrcs"
    write_stack(path, np.resize(noise, (num_particles, box, box)), pixel_size)
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    optics = {"rlnVoltage": "300", "rlnSphericalAberration": "2.7", "rlnAmplitudeContrast": "0.1"}
    optics |= {"rlnImagePixelSize": str(pixel_size), "rlnImageSize": str(box)}
    labels = ("rlnImageName", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnRandomSubset")
    rows: list[tuple[str, ...]] = [
        (f"{i + 1:06d}@noise.mrcs", "15000", "14500", "30", "1") for i in range(num_particles)
    ]
    group = OpticsGroup(tuple(optics.items()))
    return ParticleTable(labels, rows, (group,), np.zeros(num_particles, np.int64))


if __name__ == "__main__":
    figures = measure_preset(sys.argv[1], InferenceSettings.model_validate(json.loads(sys.argv[2])), int(sys.argv[3]))
    print(figures.model_dump_json())
