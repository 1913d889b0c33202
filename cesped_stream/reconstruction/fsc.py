"""Fourier shell correlation of two maps and the resolution it gives, with a mask and what the mask itself adds."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RANDOMISE_BELOW = 0.8
CORRECT_AFTER_SHELLS = 2
"""RELION's: phases are random from the first shell whose unmasked FSC is lower, and the correction starts after."""

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PostprocessFsc:
    """The four curves `(box // 2 + 1,)` that `relion_postprocess --mask` gives; shell k is k cycles a box."""

    unmasked: Float64
    masked: Float64
    phase_randomised: Float64
    """Of the masked maps after their phases were replaced from `randomise_from` on: what the mask alone correlates."""
    corrected: Float64
    """(masked - randomised) / (1 - randomised) from two shells after `randomise_from`, the masked curve before."""
    randomise_from: int
    """First shell of random phases; box // 2 + 1 where the unmasked curve never falls so low: nothing is corrected."""


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


def masked_fsc(a: ArrayLike, b: ArrayLike, mask: ArrayLike) -> Float64:
    """Return the FSC `(box // 2 + 1,)` of two maps multiplied by `mask` `(box, box, box)`, 0 to 1 with a soft edge.

    A mask correlates what it cuts out: `postprocess_fsc` says how much. ValueError for unequal shapes.
    """
    first, second, weight = (np.asarray(volume, np.float64) for volume in (a, b, mask))
    if weight.shape != first.shape:
        raise ValueError(f"mask of {weight.shape} for maps of {first.shape}; make it for this box")
    return fsc(first * weight, second * weight)


def postprocess_fsc(
    a: ArrayLike, b: ArrayLike, mask: ArrayLike, *, randomise_below: float = RANDOMISE_BELOW, seed: int = 0
) -> PostprocessFsc:
    """Return the FSC of two half maps unmasked, masked, and corrected for the mask by random phases.

    The rules are `relion_postprocess --mask`'s, the random phases our own: fixed by `seed`, another draw for each map.
    Source: Chen et al. 2013, Ultramicroscopy 135, 24-35. ValueError for unequal shapes.
    """
    unmasked, masked = fsc(a, b), masked_fsc(a, b, mask)
    lower = np.flatnonzero(unmasked[1:] < randomise_below) + 1
    if len(lower) == 0:
        return PostprocessFsc(unmasked, masked, masked.copy(), masked.copy(), len(unmasked))
    start = int(lower[0])
    random = np.random.default_rng(seed)
    first, second = (with_random_phases(volume, start, random) for volume in (a, b))
    randomised = masked_fsc(first, second, mask)
    return PostprocessFsc(unmasked, masked, randomised, _corrected(masked, randomised, start), start)


def _corrected(masked: Float64, randomised: Float64, start: int) -> Float64:
    corrected = masked.copy()
    after = slice(start + CORRECT_AFTER_SHELLS, None)
    signal, chance = masked[after], randomised[after]
    # Where chance explains all of it nothing is left; so also where both are 1 and the quotient has no value.
    better = signal > chance
    corrected[after] = np.divide(signal - chance, 1 - chance, out=np.zeros_like(signal), where=better)
    return corrected


def with_random_phases(volume: ArrayLike, from_shell: int, random: np.random.Generator) -> Float64:
    """Return a map `(box, box, box)` whose transform keeps its amplitudes, and its phases below `from_shell` only.

    Beyond, at radii of at least `from_shell` cycles a box, phases are uniform and Hermitian: those of white noise.
    """
    density = np.asarray(volume, np.float64)
    transform = np.fft.rfftn(density)
    noise = np.fft.rfftn(random.standard_normal(density.shape))
    size = np.abs(noise)
    phases = np.divide(noise, size, out=np.ones_like(noise), where=size > 0)
    beyond = radius_of_half_transform(density.shape[0]) >= from_shell
    return np.fft.irfftn(np.where(beyond, np.abs(transform) * phases, transform), s=density.shape, axes=(0, 1, 2))


def shell_of_half_transform(box_size: int) -> NDArray[np.int64]:
    """Return the shell of each element of `rfftn` of a map `(box, box, box)`: its radius rounded, a half upwards."""
    return np.floor(radius_of_half_transform(box_size) + 0.5).astype(np.int64)


def radius_of_half_transform(box_size: int) -> Float64:
    """Return the radius, in cycles a box, of each element of `rfftn` of a map `(box, box, box)`."""
    full = np.fft.fftfreq(box_size, 1 / box_size)
    half = np.arange(box_size // 2 + 1)
    return np.asarray(np.sqrt(full[:, None, None] ** 2 + full[:, None] ** 2 + half**2), np.float64)


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
