"""Maps of the particles of a table, by any engine: one interface for our own backprojection and for RELION."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from cesped_stream.errors import InvalidSettingsError, InvalidStarError
from cesped_stream.particles.stacks import StackReader, read_images
from cesped_stream.particles.table import ParticleTable
from cesped_stream.reconstruction.backproject import Backprojector
from cesped_stream.reconstruction.memory import warn_of_memory
from cesped_stream.reconstruction.particles import Float64, Reconstruction, check_particles
from cesped_stream.reconstruction.relion import RelionEngine
from cesped_stream.settings import EngineSettings
from cesped_stream.so3.symmetry import group_rotations

__all__ = ["BuiltinEngine", "Engine", "Reconstruction", "RelionEngine", "engine_from"]

ROWS_AT_ONCE = 256


class Engine(Protocol):
    """Makes a map of the particles of a table at the poses, shifts and CTFs that stand in it."""

    @property
    def name(self) -> str:
        """What reports call it: it tells two engines, or two settings of one, apart."""
        ...

    @property
    def identity(self) -> str:
        """The name, and of an external program which one it is: what a cache of maps tells two versions apart by."""
        ...

    def reconstruct(
        self,
        table: ParticleTable,
        symmetry: str,
        *,
        weights: Float64 | None = None,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> Reconstruction:
        """Return the map of all rows; `cestreamStack` names each row's stack, `weights` `(n,)` weigh the particles.

        Raises InvalidStarError where columns that a right map needs are missing, a row has no pose, or boxes or pixel
        sizes differ; ValueError for weights that are not finite, below 0 or all 0.
        """
        ...


class BuiltinEngine:
    """Our own backprojection, in bounded memory: equal to `relion_reconstruct --ctf --pad 2 --skip_gridding`."""

    def __init__(self, *, device: str = "cpu") -> None:
        self._device = device
        self._warned = set[int]()

    @property
    def name(self) -> str:
        """See `Engine.name`."""
        return "builtin"

    @property
    def identity(self) -> str:
        """See `Engine.identity`."""
        return self.name

    def reconstruct(
        self,
        table: ParticleTable,
        symmetry: str,
        *,
        weights: Float64 | None = None,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> Reconstruction:
        """See `Engine.reconstruct`."""
        pixel_size = check_particles(table, weights)
        group, reader = group_rotations(symmetry), StackReader()
        rotations, shifts, ctf = table.rotations(), table.shifts_angstrom(), table.ctf_parameters()
        backprojector: Backprojector | None = None
        for start in range(0, len(table), ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, len(table)))
            for images in read_images(table.select(rows), reader):
                index, box = rows[images.index], images.images.shape[-1]
                if backprojector is None:
                    self._warn_once(box, len(group) > 1)
                    backprojector = Backprojector(box, pixel_size, device=self._device)
                if box != backprojector.box_size:
                    raise InvalidStarError(
                        f"{table.source or 'particles'}: boxes of {backprojector.box_size} and {box} pixels; "
                        "a map is made of particles of one box"
                    )
                backprojector.add(
                    images.images,
                    ctf.select(index),
                    rotations[index],
                    shifts[index],
                    weights=None if weights is None else weights[index],
                )
            on_progress(int(rows[-1]) + 1)
        assert backprojector is not None
        return Reconstruction(backprojector.map(group=group), pixel_size, len(table), self.name)

    def _warn_once(self, box_size: int, symmetric: bool) -> None:
        if box_size not in self._warned:
            self._warned.add(box_size)
            warn_of_memory(box_size, symmetric=symmetric)


def engine_from(settings: EngineSettings) -> Engine:
    """Return the engine of these settings. InvalidSettingsError where its device or its programs are not there."""
    if settings.kind == "relion":
        return RelionEngine(settings)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise InvalidSettingsError("device is cuda, and this machine has no usable CUDA GPU; set it to auto or cpu")
    wants_gpu = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
    return BuiltinEngine(device="cuda" if wants_gpu else "cpu")
