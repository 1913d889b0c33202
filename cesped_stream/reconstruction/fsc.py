"""Fourier shell correlation of two maps and the resolution it gives."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]


def fsc(a: ArrayLike, b: ArrayLike) -> Float64:
    """Return the Fourier shell correlation `(box // 2 + 1,)` of two maps `(box, box, box)`; shell k is k cycles a box.

    As RELION does it: every element of the half transform counts once, an element at radius r is in shell
    floor(r + 0.5), and shell 0 is 1. A shell in which a map has no power is 0. ValueError for unequal shapes.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape or first.ndim != 3 or len(set(first.shape)) != 1:
        raise ValueError(f"maps of {first.shape} and {second.shape}; both must be cubic and equal")
    box = first.shape[0]
    shells = shell_of_half_transform(box).ravel()
    one, two = np.fft.rfftn(first).ravel(), np.fft.rfftn(second).ravel()

    def shell_sums(values: Float64) -> Float64:
        return np.asarray(np.bincount(shells, values, box)[: box // 2 + 1], np.float64)

    cross = shell_sums((one * two.conj()).real)
    power = np.sqrt(shell_sums(np.abs(one) ** 2) * shell_sums(np.abs(two) ** 2))
    correlation = np.divide(cross, power, out=np.zeros_like(cross), where=power > 0)
    correlation[0] = 1.0
    return correlation


def shell_of_half_transform(box_size: int) -> NDArray[np.int64]:
    """Return the shell of each element of `rfftn` of a map `(box, box, box)`."""
    full = np.fft.fftfreq(box_size, 1 / box_size)
    half = np.arange(box_size // 2 + 1)
    radius = np.sqrt(full[:, None, None] ** 2 + full[:, None] ** 2 + half**2)
    return np.floor(radius + 0.5).astype(np.int64)


def resolution_angstrom(
    correlation: ArrayLike, box_size: int, pixel_size_angstrom: float, threshold: float = 0.143
) -> float:
    """Return the resolution at which the curve first falls below `threshold`, linearly interpolated between shells.

    Twice the pixel size where it never does; infinite where shell 1 is already below.
    """
    curve = np.asarray(correlation, np.float64)
    below = np.flatnonzero(curve[1:] < threshold) + 1
    if len(below) == 0:
        return 2 * pixel_size_angstrom
    shell = int(below[0])
    if shell == 1:
        return float("inf")
    crossing = shell - 1 + (curve[shell - 1] - threshold) / (curve[shell - 1] - curve[shell])
    return float(box_size * pixel_size_angstrom / crossing)
