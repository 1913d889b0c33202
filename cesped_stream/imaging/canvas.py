"""Particles on a field wider than their box: off-centre ones leave it at its edge, neighbours reach into it."""

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from cesped_stream.imaging.ctf import ctf
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.particles.table import CtfParameters

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

CANVAS_BOXES = 2
"""Side of the field over the box: half a box of surroundings on each side."""

_EDGE = 0.88
"""Where a projection's soft edge begins, in half boxes: a map's solvent must not end at a step."""


class Canvas:
    """Draws projections of a map at whole-pixel places and cuts the box out after the CTF. Centre: pixel size // 2."""

    def __init__(self, projector: MapProjector) -> None:
        self._projector = projector
        self.box_size = projector.box_size
        self.size = CANVAS_BOXES * self.box_size
        self._first = self.size // 2 - self.box_size // 2
        self._window, self._ring = _soft_edge(self.box_size)

    def blank(self, count: int) -> Float32:
        """Return empty fields `(count, size, size)`."""
        return np.zeros((count, self.size, self.size), np.float32)

    def add_particles(self, fields: Float32, rows: Int64, rotations: Float64, shifts_angstrom: Float64) -> None:
        """Add a projection to each field of `rows` `(n,)`; poses `(n, 3, 3)` and `(n, 2)` as everywhere.

        A shift may be of any size: only its part within a pixel is made in Fourier space, where it would wrap.
        """
        if len(rows) == 0:
            return
        pixel = self._projector.pixel_size_angstrom
        moves = np.rint(-shifts_angstrom / pixel).astype(np.int64)
        rest = shifts_angstrom + moves * pixel
        images = np.asarray(self._projector.project(rotations, rest).cpu().numpy())
        level = (images * self._ring).sum((1, 2), keepdims=True) / self._ring.sum()
        images = (images - level) * self._window
        for row, image, (dx, dy) in zip(rows, images, moves, strict=True):
            self._add(fields[row], image, int(dx), int(dy))

    def cut(self, fields: Float32, parameters: CtfParameters) -> Float32:
        """Return the boxes `(n, box, box)` in the middle of the fields, after each one's CTF and envelope."""
        transfer = ctf(parameters, self.size, device="cpu").numpy()
        transform = scipy.fft.rfft2(fields) * transfer
        wide = scipy.fft.irfft2(transform, s=fields.shape[-2:], overwrite_x=True)
        part = slice(self._first, self._first + self.box_size)
        return np.ascontiguousarray(wide[:, part, part], np.float32)

    def _add(self, field: Float32, image: Float32, dx: int, dy: int) -> None:
        y, x = self._first + dy, self._first + dx
        top, left = max(0, -y), max(0, -x)
        bottom, right = min(self.box_size, self.size - y), min(self.box_size, self.size - x)
        if top < bottom and left < right:
            field[y + top : y + bottom, x + left : x + right] += image[top:bottom, left:right]


def measured_diameter_angstrom(projector: MapProjector, *, num_views: int = 24) -> float:
    """Return the diameter within which the map's projections rise above 5 % of their strongest ring, in angstrom."""
    from cesped_stream.imaging.simulate import random_rotations

    box = projector.box_size
    views = random_rotations(num_views, np.random.default_rng(0))
    images = np.asarray(projector.project(views).cpu().numpy(), np.float64)
    _, ring = _soft_edge(box)
    images -= (images * ring).sum((1, 2), keepdims=True) / ring.sum()
    axis = np.arange(box) - box // 2
    shell = np.rint(np.hypot(axis[:, None], axis)).astype(np.int64).ravel()
    strength = np.sqrt(np.bincount(shell, np.square(images).mean(0).ravel()) / np.bincount(shell))[: box // 2]
    outermost = int(np.flatnonzero(strength > 0.05 * strength.max())[-1])
    return (2 * outermost + 1) * projector.pixel_size_angstrom


def _soft_edge(box: int) -> tuple[Float32, Float32]:
    """Window `(box, box)` that falls to 0 at the inscribed circle, and the ring in which it falls."""
    axis = np.arange(box) - box // 2
    radius = np.hypot(axis[:, None], axis) / (box / 2)
    falling = np.clip((radius - _EDGE) / (1 - _EDGE), 0, 1)
    window = 0.5 + 0.5 * np.cos(np.pi * falling)
    return window.astype(np.float32), ((radius > _EDGE) & (radius <= 1)).astype(np.float32)
