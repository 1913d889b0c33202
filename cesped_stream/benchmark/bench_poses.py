"""How many particles a second get a pose on this machine, stage by stage, beside what its disk and its products allow.

Simulated particles of the embedded ribosome, laid over its symmetry mates where there is a symmetry. The reference is
its map, low-passed, with a noise model fitted to the particles: the checkpoint that a session makes of a given map.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, computed_field
from torch.utils.flop_counter import FlopCounterMode

from cesped_stream.benchmark.bench_infer import untrained_checkpoint
from cesped_stream.benchmark.bench_limits import Limits, Rate, drop_from_page_cache, rate_of
from cesped_stream.benchmark.bench_settings import PosesBench
from cesped_stream.imaging.band_rows import images_in_bands, read_band_images, usable_images
from cesped_stream.imaging.entry import write_entry
from cesped_stream.imaging.preprocess import Preprocessor
from cesped_stream.imaging.reference import load_reference
from cesped_stream.imaging.simulate import embedded_ribosome, molecule_to_map
from cesped_stream.inference import Predictor
from cesped_stream.matching import ReferenceMatcher
from cesped_stream.model.device import pick_device
from cesped_stream.particles.stack_writer import StackWriter
from cesped_stream.particles.stacks import DIGEST_BYTES, StackReader, read_images
from cesped_stream.particles.star import concatenated, read_star, write_star
from cesped_stream.particles.table import ParticleTable
from cesped_stream.pipeline import infer_table
from cesped_stream.reference_pair import MatchingSettings, publish_map
from cesped_stream.reference_proposer import ReferenceProposer
from cesped_stream.settings import (
    GallerySettings,
    InferenceSettings,
    ReferenceSettings,
    RefinementSettings,
    SimulationSettings,
    TrainingSettings,
)
from cesped_stream.so3.symmetry import group_rotations

RIBOSOME_BOX_ANGSTROM = 384.0
SNR_BOX_PIXELS = 64
DISTINCT = 128
"""Particles that are simulated; more are the same ones again, from places of their own on the disk."""
NOISE_ROWS = 32
ROWS_AT_ONCE = 512
HALF: Literal[0] = 0


class PoseFigures(BaseModel):
    """What one box size and symmetry reached, after a first call with a few rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    box_pixels: int
    pixel_size_angstrom: float
    symmetry: str
    device: str
    threads: int
    num_particles: int
    resolution_angstrom: float
    """Of the reference."""
    num_views: int
    """Of the asymmetric unit at the result's grid order."""
    num_coefficients: int
    """Of an image in the gallery's fine search."""
    gallery_mflop: float
    """Of a particle's products in the gallery, counted from the sizes of those that were done; padding included."""
    cached_share: float
    """Of the stack's pages that were in the page cache before it was read, 0 to 1."""
    read: Rate
    """Images from the stack into memory, each with its digest."""
    transform: Rate
    """Raw images in memory to coefficients for gallery and refinement."""
    gallery: Rate
    refinement: Rate
    poses: Rate
    """All of it, from the stack on the disk to refined poses, as a worker with references does."""
    network: Rate
    """Raw images in memory to poses by the network `small`: its preprocessing and both of its parts."""
    network_poses: Rate
    """From the stack on the disk, as a worker with networks does."""
    disk_bytes_per_second: float
    """The disk's own, sequential, from a file that was not in the page cache."""
    product_flop_per_second: float
    """The machine's own, of a large float32 matrix product."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def bytes_per_second(self) -> float:
        """Bytes of images that become refined poses in a second."""
        return self.poses.per_second * self.box_pixels**2 * np.dtype(np.float32).itemsize

    @computed_field  # type: ignore[prop-decorator]
    @property
    def disk_share(self) -> float:
        """Those over what the disk could give: 1 is the physical limit."""
        return self.bytes_per_second / self.disk_bytes_per_second

    @computed_field  # type: ignore[prop-decorator]
    @property
    def product_share(self) -> float:
        """The gallery's operations in a second over those of a large product."""
        return self.gallery.per_second * self.gallery_mflop * 1e6 / self.product_flop_per_second


@dataclass(frozen=True)
class _Case:
    """One box and symmetry on the disk: rows of half-set 0, and checkpoints that they may be scored with."""

    folder: Path
    table: ParticleTable
    references: Path
    network: Path
    pixel_size_angstrom: float

    @property
    def stack(self) -> Path:
        return self.folder / "stack.mrcs"


def bench_poses(settings: PosesBench, limits: Limits, folder: Path) -> Iterator[PoseFigures]:
    """Yield the figures of each box, at each symmetry, as they are done. What is written goes into `folder`.

    On torch's present threads. ValueError where CUDA is asked for and there is none, InvalidSettingsError where the
    ribosome does not fit a box.
    """
    for symmetry in settings.symmetries:
        for box in settings.boxes:
            place = folder / f"{symmetry}_{box}"
            yield _measured(_prepared(place, box, symmetry, settings), box, symmetry, settings, limits)


def poses_table(figures: Sequence[PoseFigures]) -> str:
    """Return the figures as text, a column for each box and symmetry; at least one."""
    first = figures[0]
    rows: list[tuple[str, Callable[[PoseFigures], str]]] = [
        ("symmetry", lambda f: f.symmetry),
        ("acquired box, pixels", lambda f: str(f.box_pixels)),
        ("pixel, A; reference to, A", lambda f: f"{f.pixel_size_angstrom:.3g}; {f.resolution_angstrom:.3g}"),
        ("views; coefficients", lambda f: f"{f.num_views}; {f.num_coefficients}"),
        ("read", lambda f: _cell(f.read)),
        ("band transform", lambda f: _cell(f.transform)),
        ("gallery", lambda f: _cell(f.gallery)),
        ("refinement", lambda f: _cell(f.refinement)),
        ("all of these", lambda f: _cell(f.poses)),
        ("network, in memory", lambda f: _cell(f.network)),
        ("network, from the disk", lambda f: _cell(f.network_poses)),
        ("gallery, MFLOP a particle", lambda f: f"{f.gallery_mflop:.0f}"),
        ("  of a large product's rate", lambda f: f"{f.product_share:.0%}"),
        ("read into poses, MB/s", lambda f: f"{f.bytes_per_second / 1e6:.1f}"),
        ("  of the disk's own rate", lambda f: f"{f.disk_share:.2%}"),
    ]
    where = "CPU" if first.device == "cpu" else first.device
    cached = max(f.cached_share for f in figures)
    head = [
        f"{first.num_particles} particles a measurement; {where}, {first.threads} threads",
        f"disk {first.disk_bytes_per_second / 1e6:.0f} MB/s sequential; product "
        f"{first.product_flop_per_second / 1e9:.0f} GFLOP/s float32",
        "stacks were dropped from the page cache before they were read"
        if cached == 0
        else f"up to {cached:.0%} of a stack stayed in the page cache: reading is not the disk's",
        "particles/s of wall time; CPU ms a particle of all threads",
    ]
    return "\n".join(head + [f"{name:<28}" + "".join(f"{cell(f):>16}" for f in figures) for name, cell in rows])


def _cell(rate: Rate) -> str:
    return f"{rate.per_second:.0f}; {rate.cpu_ms:.2f}"


def _prepared(folder: Path, box: int, symmetry: str, settings: PosesBench) -> _Case:
    pixel_size = settings.box_angstrom / box
    resolution = max(settings.resolution_angstrom, 2 * pixel_size)
    volume = molecule_to_map(*_symmetric_ribosome(symmetry, settings.box_angstrom), box, pixel_size, resolution)
    simulation = SimulationSettings(
        num_particles=2 * max(NOISE_ROWS, min(DISTINCT, settings.particles)),
        snr=settings.snr * (SNR_BOX_PIXELS / box) ** 2,
        symmetry=symmetry,
    )
    write_entry(folder, volume, pixel_size, simulation)
    halves = [read_star(folder / f"particles_{half}.star") for half in (0, 1)]
    noise_rows = concatenated([half.select(np.arange(NOISE_ROWS)) for half in halves])
    references, _ = publish_map(
        volume,
        pixel_size,
        noise_rows,
        StackReader(),
        TrainingSettings(symmetry=symmetry),
        _matching(settings),
        work_folder=folder / "work",
        checkpoints_folder=folder,
    )
    network, _ = untrained_checkpoint(folder, "small", settings.box_angstrom, symmetry)
    table = _repeated(folder, halves[HALF], settings.particles, box, pixel_size)
    return _Case(folder, table, references, network, pixel_size)


def _symmetric_ribosome(symmetry: str, box_angstrom: float) -> tuple[np.ndarray, np.ndarray]:
    """The ribosome scaled to the box, its residues dealt out among the mates, so that there are never more points."""
    xyz, mass = embedded_ribosome()
    mates = group_rotations(symmetry)
    xyz, mass = xyz[:: len(mates)] * (box_angstrom / RIBOSOME_BOX_ANGSTROM), mass[:: len(mates)]
    return np.concatenate([xyz @ mate.T for mate in mates]), np.tile(mass, len(mates))


def _repeated(folder: Path, rows: ParticleTable, count: int, box: int, pixel_size: float) -> ParticleTable:
    """Write `count` images, those of `rows` again and again, as one stack; return rows that name them."""
    images = read_images(rows, StackReader())[0].images
    with StackWriter(folder / "stack.mrcs", box, pixel_size) as stack:
        for start in range(0, count, len(images)):
            stack.append(images[: count - start])
    table = rows.select(np.arange(count) % len(rows))
    write_star(
        folder / "rows.star", table.with_columns({"rlnImageName": [f"{i + 1:06d}@stack.mrcs" for i in range(count)]})
    )
    return read_star(folder / "rows.star")


def _matching(settings: PosesBench) -> MatchingSettings:
    referencing = ReferenceSettings(
        map_lowpass_angstrom=settings.resolution_angstrom,
        finest_angstrom=min(6.0, settings.resolution_angstrom),
    )
    return MatchingSettings(referencing, GallerySettings(), RefinementSettings(), device=settings.device)


def _measured(case: _Case, box: int, symmetry: str, settings: PosesBench, limits: Limits) -> PoseFigures:
    device = pick_device(settings.device)
    count = len(case.table)
    proposer = ReferenceProposer(case.references, _matching(settings))
    predictor = Predictor(case.network, InferenceSettings(device=settings.device))
    matcher = _matcher(case, settings, device)
    cold = [
        _from_disk(case, work, device)
        for work in (
            _read,
            lambda rows: proposer.poses(rows, StackReader()),
            lambda rows: infer_table(predictor, rows, StackReader()),
        )
    ]
    (read, cached), (poses, _), (network_poses, _) = cold
    mflop, stages = _of_stages(case, matcher, device)
    return PoseFigures(
        box_pixels=box,
        pixel_size_angstrom=case.pixel_size_angstrom,
        symmetry=symmetry,
        device="cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        threads=torch.get_num_threads(),
        num_particles=count,
        resolution_angstrom=matcher.reference.resolution_angstrom,
        num_views=len(matcher.gallery),
        num_coefficients=len(matcher.gallery.band),
        cached_share=cached,
        read=read,
        poses=poses,
        network=_of_network(case, predictor),
        network_poses=network_poses,
        disk_bytes_per_second=limits.disk_bytes_per_second,
        product_flop_per_second=limits.product_flop_per_second,
        gallery_mflop=mflop,
        **stages,
    )


def _matcher(case: _Case, settings: PosesBench, device: torch.device) -> ReferenceMatcher:
    matching = _matching(settings)
    return ReferenceMatcher(load_reference(case.references, HALF), matching.gallery, matching.refinement, device=device)


def _read(rows: ParticleTable) -> None:
    flag, digest = np.zeros(len(rows), np.uint8), np.zeros((len(rows), DIGEST_BYTES), np.uint8)
    for _ in usable_images(rows, StackReader(), flag, digest):
        pass


def _from_disk(case: _Case, work: Callable[[ParticleTable], object], device: torch.device) -> tuple[Rate, float]:
    """Rate of `work` on all rows, as many at a time as a worker gives, after a few; and what the page cache held."""
    count = len(case.table)
    work(case.table.select(np.arange(min(NOISE_ROWS, count))))
    cached = drop_from_page_cache(case.stack)
    starts = range(0, count, ROWS_AT_ONCE)
    parts = [case.table.select(np.arange(start, min(start + ROWS_AT_ONCE, count))) for start in starts]
    return rate_of(lambda: [work(part) for part in parts], count, device), cached


def _of_stages(case: _Case, matcher: ReferenceMatcher, device: torch.device) -> tuple[float, dict[str, Rate]]:
    """MFLOP a particle of the gallery; rates of the stages on data in memory. `_from_disk` has run each before."""
    rows = case.table.select(np.arange(min(ROWS_AT_ONCE, len(case.table))))
    bands = [matcher.gallery.band, matcher.refiner.band]
    raw = torch.from_numpy(read_images(rows, StackReader())[0].images)
    ctf, noise = rows.ctf_parameters(), matcher.noise
    assert noise is not None, "the references were published with one"
    found = read_band_images(rows, bands, StackReader(), device=device)
    groups = noise.rows_of(rows)
    with FlopCounterMode(display=False) as counter:
        proposals = matcher.gallery.propose(found.images[0], noise, groups)

    def rate(work: Callable[[], object]) -> Rate:
        repeats = -(-len(case.table) // len(rows))
        return rate_of(lambda: [work() for _ in range(repeats)], repeats * len(rows), device)

    return counter.get_total_flops() / len(rows) / 1e6, {
        "transform": rate(lambda: images_in_bands(raw.to(device), ctf, bands)),
        "gallery": rate(lambda: matcher.gallery.propose(found.images[0], noise, groups)),
        "refinement": rate(
            lambda: matcher.refiner.refine(
                found.images[1],
                noise,
                groups,
                proposals.mode_rotations,
                proposals.mode_shifts_angstrom,
                weights=proposals.mode_weights,
            )
        ),
    }


def _of_network(case: _Case, predictor: Predictor) -> Rate:
    rows = case.table.select(np.arange(min(ROWS_AT_ONCE, len(case.table))))
    raw, ctf = torch.from_numpy(read_images(rows, StackReader())[0].images), rows.ctf_parameters()
    preprocessor = Preprocessor(predictor.manifest.preprocess, predictor.manifest.network_pixel_size_angstrom)

    def work() -> object:
        return predictor.predict(preprocessor(raw.to(predictor.device), ctf), np.full(len(rows), HALF))

    repeats = -(-len(case.table) // len(rows))
    return rate_of(lambda: [work() for _ in range(repeats)], repeats * len(rows), predictor.device)
