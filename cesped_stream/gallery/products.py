"""Products of images with views, in the pieces that are fastest, and the shifts that they are taken at."""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

VIEWS_AT_ONCE: Final = 256
"""Views of which products are held at a time: as many as stay in a core's cache."""

Float64 = NDArray[np.float64]


def shift_grid(range_angstrom: float, step_angstrom: float) -> Float64:
    """Return shifts `(s, 2)` (x, y) on a square grid within a circle, 0 among them."""
    reach = int(range_angstrom / step_angstrom + 1e-6)
    axis = np.arange(-reach, reach + 1)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    inside = x**2 + y**2 <= (range_angstrom / step_angstrom + 1e-6) ** 2
    return np.asarray(np.stack([x[inside], y[inside]], -1) * step_angstrom, np.float64)


def products(real: Tensor, imaginary: Tensor, image_real: Tensor, image_imaginary: Tensor) -> Tensor:
    """Return real and imaginary parts of conj(S) times images `(t, 1 or f, m)`, side by side `(t, f, 2 m)`."""
    count = real.shape[2]
    both = real.new_empty(*real.shape[:2], 2 * count)
    torch.mul(real, image_real, out=both[..., :count])
    both[..., :count] += imaginary * image_imaginary
    torch.mul(real, image_imaginary, out=both[..., count:])
    both[..., count:] -= imaginary * image_real
    return both


def blocks(count: int) -> list[slice]:
    """Return slices of at most `VIEWS_AT_ONCE` of so many views."""
    return [slice(start, start + VIEWS_AT_ONCE) for start in range(0, count, VIEWS_AT_ONCE)]


def waves(phases: Tensor) -> Tensor:
    """Return factors `(2 m, shifts)` that make `products` the scores of images moved by phases `(shifts, m)`."""
    return torch.cat([phases.real, -phases.imag], 1).T.contiguous()


def taken(matrix: Tensor, index: Tensor) -> Tensor:
    """Return rows `(t, f, m)` of a matrix `(h, m)` at indices `(t, f)`."""
    return torch.index_select(matrix, 0, index.flatten()).view(*index.shape, -1)


def matrix(values: Tensor, precision: str) -> Tensor:
    """Return a `(m, shifts, t)` part as the right factor `(m, shifts t)`."""
    flat = values.reshape(len(values), -1)
    return flat.bfloat16() if precision == "bfloat16" else flat


def product(left: Tensor, right: Tensor, precision: str) -> Tensor:
    """Return the matrix product, float32, of factors in `precision`."""
    return (left.bfloat16() @ right).float() if precision == "bfloat16" else left @ right
