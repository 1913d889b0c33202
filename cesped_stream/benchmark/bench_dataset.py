"""How many particles a second a data set gives on this machine, by each way of asking."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch.utils.data import DataLoader

from cesped_stream.benchmark.dataset import ParticlesDataset
from cesped_stream.conventions import ANGLE_LABELS, SHIFT_LABELS
from cesped_stream.model.device import pick_device
from cesped_stream.particles.stacks import write_stack
from cesped_stream.particles.star import write_star
from cesped_stream.particles.table import OpticsGroup, ParticleTable
from cesped_stream.settings import Device


class DatasetFigures(BaseModel):
    """Particles a second, one pass over `num_particles` after a first batch; the stack is in the page cache."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    compatible: str
    device: str
    num_particles: int
    box_pixels: int
    image_pixels: int
    batch_size: int
    threads: int
    workers: int
    items_per_second: float
    """`dataset[i]`, one by one."""
    loader_per_second: float
    """A DataLoader in this process, which asks for whole batches."""
    workers_per_second: float
    """A DataLoader with `workers` processes, their start included; 0 where none were asked for."""
    batches_per_second: float
    """`dataset.batches`, preprocessing on `device`."""


def bench_dataset(
    num_particles: int,
    *,
    box_pixels: int = 232,
    image_pixels: int = 256,
    batch_size: int = 64,
    workers: int = 0,
    device: Device = "auto",
) -> Iterator[DatasetFigures]:
    """Yield the figures of `cesped`'s steps and of this project's, on noise images with CTF."""
    with tempfile.TemporaryDirectory(prefix="cesped-stream-bench-") as name:
        star = write_noise_star(Path(name), num_particles, box_pixels)
        for compatible in ("cesped", None):
            dataset = ParticlesDataset.from_star(star, image_size=image_pixels, compatible=compatible)
            yield _measured(dataset, str(compatible), box_pixels, batch_size, workers, device)


def dataset_table(figures: list[DatasetFigures]) -> str:
    """Return the figures as text, a column for each kind of steps."""
    first = figures[0]
    rows: list[tuple[str, Callable[[DatasetFigures], str]]] = [
        ("steps", lambda f: "cesped's" if f.compatible == "cesped" else "this project's"),
        ("one by one, particles/s", lambda f: f"{f.items_per_second:.0f}"),
        ("DataLoader, particles/s", lambda f: f"{f.loader_per_second:.0f}"),
        (f"DataLoader, {first.workers} workers", lambda f: f"{f.workers_per_second:.0f}" if f.workers else "-"),
        (f"batches on {first.device}", lambda f: f"{f.batches_per_second:.0f}"),
    ]
    head = f"{first.num_particles} images, {first.box_pixels} -> {first.image_pixels} px, {first.threads} threads\n"
    return head + "\n".join(f"{name:<26}" + "".join(f"{cell(f):>18}" for f in figures) for name, cell in rows)


def write_noise_star(folder: Path, num_particles: int, box: int) -> Path:
    """Write a stack of noise and a star of it with poses and CTF, as an entry's half-set 0; return the star."""
    noise = np.random.default_rng(0).normal(size=(16, box, box)).astype(np.float32)
    write_stack(folder / "particles_0.mrcs", np.resize(noise, (num_particles, box, box)), 1.5)
    optics = {"rlnOpticsGroupName": "noise", "rlnVoltage": "300", "rlnSphericalAberration": "2.7"}
    optics |= {"rlnAmplitudeContrast": "0.1", "rlnImagePixelSize": "1.5", "rlnImageSize": str(box)}
    ctf_labels = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
    labels: tuple[str, ...] = ("rlnImageName", *ctf_labels, *ANGLE_LABELS, *SHIFT_LABELS)
    rows: list[tuple[str, ...]] = [
        (f"{i + 1:06d}@particles_0.mrcs", "15000.5", "15000.5", "30.5", f"{i % 360}.5", "40.5", "10.5", "1.5", "-2.5")
        for i in range(num_particles)
    ]
    group = OpticsGroup(tuple(optics.items()))
    write_star(folder / "particles_0.star", ParticleTable(labels, rows, (group,), np.zeros(num_particles, np.int64)))
    return folder / "particles_0.star"


def _measured(
    dataset: ParticlesDataset, compatible: str, box: int, batch_size: int, workers: int, device: Device
) -> DatasetFigures:
    target = pick_device(device)

    def loader(processes: int) -> Iterator[object]:
        return iter(DataLoader(dataset, batch_size=batch_size, num_workers=processes))

    next(dataset.batches(batch_size, device=device))
    count = len(dataset)
    return DatasetFigures(
        compatible=compatible,
        device=str(target),
        num_particles=count,
        box_pixels=box,
        image_pixels=dataset.image_size,
        batch_size=batch_size,
        threads=torch.get_num_threads(),
        workers=workers,
        items_per_second=_rate(count, lambda: iter(dataset[i] for i in range(count)), target),
        loader_per_second=_rate(count, lambda: loader(0), target),
        workers_per_second=_rate(count, lambda: loader(workers), target) if workers else 0.0,
        batches_per_second=_rate(count, lambda: dataset.batches(batch_size, device=device), target),
    )


def _rate(count: int, items: Callable[[], Iterator[object]], device: torch.device) -> float:
    started = time.perf_counter()
    for _ in items():
        pass
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return count / (time.perf_counter() - started)
