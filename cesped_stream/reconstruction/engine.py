"""Maps of the particles of a table, by any engine: one interface for our own backprojection and for RELION."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cesped_stream.errors import InvalidStarError
from cesped_stream.particles.stacks import StackReader, read_images
from cesped_stream.particles.table import ParticleTable
from cesped_stream.reconstruction.backproject import Backprojector
from cesped_stream.so3.symmetry import group_rotations

ROWS_AT_ONCE = 256

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A map `(box, box, box)` (z, y, x) of so many particles, by the engine named."""

    volume: Float32
    pixel_size_angstrom: float
    num_particles: int
    engine: str


class Engine(Protocol):
    """Makes a map of the particles of a table at the poses, shifts and CTFs that stand in it."""

    @property
    def name(self) -> str:
        """What reports call it: it tells two engines, or two settings of one, apart."""
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

        Raises InvalidStarError where columns that a right map needs are missing, or boxes or pixel sizes differ.
        """
        ...


class BuiltinEngine:
    """Our own backprojection, in bounded memory: equal to `relion_reconstruct --ctf --pad 2 --skip_gridding`."""

    def __init__(self, *, device: str = "cpu") -> None:
        self._device = device

    @property
    def name(self) -> str:
        return "builtin"

    def reconstruct(
        self,
        table: ParticleTable,
        symmetry: str,
        *,
        weights: Float64 | None = None,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> Reconstruction:
        """See `Engine.reconstruct`."""
        pixel_sizes = np.unique(table.pixel_sizes_angstrom())
        if len(pixel_sizes) != 1:
            raise InvalidStarError(
                f"{table.source or 'particles'}: pixel sizes {', '.join(f'{p:g}' for p in pixel_sizes)} A; "
                "a map is made of particles of one pixel size, reconstruct each by itself"
            )
        group, reader = group_rotations(symmetry), StackReader()
        rotations, shifts, ctf = table.rotations(), table.shifts_angstrom(), table.ctf_parameters()
        backprojector: Backprojector | None = None
        for start in range(0, len(table), ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, len(table)))
            for images in read_images(table.select(rows), reader):
                index, box = rows[images.index], images.images.shape[-1]
                if backprojector is None:
                    backprojector = Backprojector(box, float(pixel_sizes[0]), device=self._device)
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
                    group=group,
                )
            on_progress(int(rows[-1]) + 1)
        if backprojector is None:
            raise InvalidStarError(f"{table.source or 'particles'}: no particles; a map needs at least one")
        return Reconstruction(backprojector.map(), float(pixel_sizes[0]), len(table), self.name)
