"""Noise whose power falls with frequency."""

import numpy as np
import scipy.fft
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_BORDER = 1.25
"""Coloured noise is cut from a field this much wider than the box, so that opposite edges do not match."""


def coloured_noise(
    count: int,
    box_size: int,
    exponent: float,
    corner_pixels: float,
    generator: np.random.Generator,
) -> Float32:
    """Return noise images `(count, box, box)` of mean 0 and variance 1 (over the ensemble).

    Their power is proportional to (s^2 + 1 / corner^2)^(-exponent / 2), s in cycles a pixel and `corner_pixels` the
    period below whose frequency it is flat; exponent 0 is white, and then the mean of an image is not held at 0.
    """
    if exponent == 0:
        return generator.standard_normal((count, box_size, box_size), dtype=np.float32)
    wide = scipy.fft.next_fast_len(int(np.ceil(box_size * _BORDER)), real=True)
    white = generator.standard_normal((count, wide, wide), dtype=np.float32)
    return filtered(white, power_law(wide, exponent, corner_pixels))[:, :box_size, :box_size]


def power_law(size: int, exponent: float, corner_pixels: float) -> Float32:
    """Return amplitudes `(size, size // 2 + 1)` of an rfft2 that give white noise that power law and variance 1."""
    square = frequency_squared(size) + corner_pixels**-2.0
    amplitude = square ** (-exponent / 4)
    amplitude[0, 0] = 0.0
    return np.asarray(amplitude / np.sqrt(mean_power(amplitude)), np.float32)


def frequency_squared(size: int) -> Float64:
    """Return s^2 in (cycles a pixel)^2 on the half plane `(size, size // 2 + 1)` of an rfft2."""
    y, x = np.fft.fftfreq(size), np.fft.rfftfreq(size)
    return np.asarray(y[:, None] ** 2 + x**2, np.float64)


def mean_power(amplitude: NDArray[np.floating]) -> float:
    """Return the mean of `amplitude`^2 over the whole plane of an rfft2 half plane `(n, n // 2 + 1)`."""
    size = amplitude.shape[0]
    weight = np.full(amplitude.shape[1], 2.0)
    weight[0] = 1.0
    if size % 2 == 0:
        weight[-1] = 1.0
    return float((np.square(amplitude, dtype=np.float64) * weight).sum() / size**2)


def filtered(images: Float32, amplitude: NDArray[np.floating] | Float32) -> Float32:
    """Return images `(n, size, size)` with their rfft2 multiplied by `amplitude` `(size, size // 2 + 1)`."""
    transform = scipy.fft.rfft2(images) * amplitude
    return np.asarray(scipy.fft.irfft2(transform, s=images.shape[-2:], overwrite_x=True), np.float32)


def phase_randomised(images: Float32, generator: np.random.Generator) -> Float32:
    """Return noise with the power spectrum of each image `(n, box, box)` and its mean, and nothing else of it."""
    box = images.shape[-1]
    white = scipy.fft.rfft2(generator.standard_normal(images.shape, dtype=np.float32))
    transform = scipy.fft.rfft2(images)
    turn = white / np.maximum(np.abs(white), np.float32(1e-20))
    turn[:, 0, 0] = 1.0
    return np.asarray(scipy.fft.irfft2(np.abs(transform) * turn, s=(box, box), overwrite_x=True), np.float32)
