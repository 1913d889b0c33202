"""A preprocessed copy of an entry: smaller images that every later reading need not correct, cut and resize again."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from cesped_stream.benchmark.dataset_images import BoxImages, ImageSteps, read_boxes
from cesped_stream.benchmark.entries import Entry
from cesped_stream.benchmark.entry_folder import done_path, folder_lock
from cesped_stream.benchmark.output_folder import output_folder
from cesped_stream.conventions import HALVES
from cesped_stream.durable import rename_durably, write_whole
from cesped_stream.errors import InvalidSettingsError, InvalidStarError
from cesped_stream.particles.stack_writer import StackWriter
from cesped_stream.particles.stacks import STACK_LABEL, StackReader
from cesped_stream.particles.star import write_star
from cesped_stream.particles.table import Int64, OpticsGroup, ParticleTable
from cesped_stream.settings import Settings

CHUNK: Final = 256
"""Particles in memory at a time."""

ORIGINAL_LABEL: Final = "rlnImageOriginalName"


class PreparationSettings(Settings):
    """What is done to the images of an entry's copy, in this order."""

    normalise: bool = Field(True, description="Background to mean 0 and std 1.")
    ctf_correction: Literal["none", "phase_flip", "multiply"] = Field(
        "phase_flip",
        description="On the full box; the copy's star says what was done (rlnCtfDataArePhaseFlipped, "
        "rlnCtfDataAreCtfPremultiplied). Of a Wiener correction no star can: it is done when the images are read.",
    )
    crop_fraction: float = Field(0.25, ge=0, le=0.5, description="Share of the box's side that is cut away.")
    image_size: int = Field(
        0, ge=0, le=1024, description="Side in pixels that what is kept is resized to; 0: as it is, no resize."
    )


@dataclass(frozen=True)
class Prepared:
    """What was written."""

    folder: Path
    num_particles: int
    num_unusable: int
    """Images with NaN, infinite or all equal pixels: their rows are kept, their images are 0."""
    image_size: int
    pixel_size_angstrom: float


def preprocess_entry(
    entry: Entry,
    output: Path,
    settings: PreparationSettings,
    *,
    half_sets: Sequence[int] = HALVES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
    """Write a preprocessed copy of an entry as the entry `output`; it appears whole or not at all.

    Images get one side and one pixel size (the first particle's field of view), by Fourier resampling about pixel
    N // 2, so that poses and shifts in angstrom stay what they are. The star has the true pixel size, rlnImageSize and
    what the data carry; every other column is kept, the old image name as rlnImageOriginalName. Memory does not grow
    with the images. `on_progress` gets the particles done and their number. Raises InvalidSettingsError where `output`
    exists, BusyEntryError where another process is making it, InvalidStarError for a half-set without rows, and what
    reading raises.
    """
    output = output.absolute()
    output_folder(output.parent)
    with folder_lock(output):
        if output.exists():
            raise InvalidSettingsError(f"{output}: exists; give the copy a folder of its own")
        # Ours alone while the lock is held; what lies there was left by a process that was killed.
        temporary = output.with_name(f".{output.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            prepared = _Preparation(entry, settings).write(temporary, output, half_sets, on_progress)
            rename_durably(temporary, output)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return prepared


class _Preparation:
    def __init__(self, entry: Entry, settings: PreparationSettings) -> None:
        self._entry = entry
        self._settings = settings
        self._table = entry.particles()
        self._with_ctf = settings.ctf_correction != "none"
        self._reader = StackReader()
        self._unusable = 0

    def write(
        self, folder: Path, output: Path, half_sets: Sequence[int], on_progress: Callable[[int, int], None]
    ) -> Prepared:
        half_of_row = self._table.half_sets()
        rows = {half: np.flatnonzero(half_of_row == half) for half in half_sets}
        for half, index in rows.items():
            if len(index) == 0:
                raise InvalidStarError(f"{self._entry.folder}: no row of half-set {half}; name the other one alone")
        total = sum(map(len, rows.values()))
        self._steps = _steps(read_boxes(self._table.select([0]), self._reader, with_ctf=False)[0], self._settings)
        done = 0
        with self._reader:
            for half, index in rows.items():
                self._write_half(folder, half, index, lambda count, before=done: on_progress(before + count, total))  # type: ignore[misc]
                write_whole(folder / done_path(output, half).name, f"{output.name}\n".encode())
                done += len(index)
        return Prepared(output, total, self._unusable, self._steps.image_size, self._steps.pixel_size_angstrom)

    def _write_half(self, folder: Path, half: int, rows: Int64, on_done: Callable[[int], None]) -> None:
        stack = folder / f"particles_{half}.mrcs"
        with StackWriter(stack, self._steps.image_size, self._steps.pixel_size_angstrom) as writer:
            for start in range(0, len(rows), CHUNK):
                writer.append(self._images(rows[start : start + CHUNK]))
                on_done(writer.num_images)
        table = self._described(self._table.select(rows), stack.name)
        write_star(folder / f"particles_{half}.star", table)
        info = json.dumps({"symmetry": self._entry.symmetry or "C1"})
        write_whole(folder / f"info_{half}.json", info.encode() + b"\n")

    def _images(self, rows: Int64) -> NDArray[np.float32]:
        boxes = read_boxes(self._table.select(rows), self._reader, with_ctf=self._with_ctf)
        images, good, _ = self._steps(boxes, torch.device("cpu"))
        self._unusable += int((~good).sum())
        return np.asarray(images[:, 0].numpy())

    def _described(self, table: ParticleTable, stack: str) -> ParticleTable:
        names = {"rlnImageName": [f"{number:06d}@{stack}" for number in range(1, len(table) + 1)]}
        if ORIGINAL_LABEL not in table:
            names[ORIGINAL_LABEL] = table.column("rlnImageName")
        optics = tuple(self._group(group) for group in table.optics)
        return replace(table.without([STACK_LABEL]).with_columns(dict(names)), optics=optics)

    def _group(self, group: OpticsGroup) -> OpticsGroup:
        """Return the optics group that says what the copy's images are."""
        values = dict(group.values) | {
            "rlnImagePixelSize": f"{self._steps.pixel_size_angstrom:.6f}",
            "rlnImageSize": str(self._steps.image_size),
            "rlnImageDimensionality": "2",
        }
        if self._settings.ctf_correction == "multiply":
            values |= {"rlnCtfDataAreCtfPremultiplied": "1", "rlnCtfDataArePhaseFlipped": "0"}
        elif self._settings.ctf_correction == "phase_flip" and not group.ctf_premultiplied:
            values |= {"rlnCtfDataArePhaseFlipped": "1"}
        return OpticsGroup(tuple(values.items()))


def _steps(first: BoxImages, settings: PreparationSettings) -> ImageSteps:
    kept = int(first.images.shape[-1] * (1 - settings.crop_fraction))
    return ImageSteps(
        first,
        image_size=settings.image_size or kept,
        normalise=settings.normalise,
        ctf_correction=settings.ctf_correction,
        crop_fraction=settings.crop_fraction,
        compatible=None,
        wiener_regulariser=0.1,
    )
