"""Coloured noise has the power law that is asked for."""

import numpy as np
import pytest

from cesped_stream.imaging.noise import coloured_noise, filtered, phase_randomised, power_law

BOX = 64


def radial_power(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean periodogram against frequency (cycles a pixel), with a window against leakage from the edges."""
    window = np.hanning(images.shape[-1])
    power = (np.abs(np.fft.rfft2(images * window[:, None] * window)) ** 2).mean(0)
    y, x = np.fft.fftfreq(BOX), np.fft.rfftfreq(BOX)
    shell = np.rint(np.hypot(y[:, None], x) * BOX).astype(int)
    sums = np.bincount(shell.ravel(), power.ravel()) / np.bincount(shell.ravel())
    shells = np.arange(6, 28)
    return shells / BOX, sums[shells]


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_the_power_spectrum_falls_with_the_asked_exponent(exponent: float) -> None:
    noise = coloured_noise(400, BOX, exponent, 1000.0, np.random.default_rng(0))
    frequency, power = radial_power(noise)
    slope = np.polyfit(np.log(frequency), np.log(power), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.06)
    assert noise.dtype == np.float32


def test_its_variance_is_1_and_opposite_edges_do_not_match() -> None:
    noise = coloured_noise(800, BOX, 2.0, 30.0, np.random.default_rng(1))
    assert noise.var() == pytest.approx(1.0, rel=0.03)

    def likeness(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])

    assert likeness(noise[:, 0], noise[:, 1]) > 0.5
    assert likeness(noise[:, 0], noise[:, -1]) < 0.3


def test_below_the_corner_the_spectrum_is_flat() -> None:
    amplitude = power_law(BOX, 2.0, 8.0)
    assert amplitude[0, 1] / amplitude[0, 2] < 1.05
    assert amplitude[0, 16] / amplitude[0, 32] == pytest.approx(2, rel=0.15)
    assert amplitude[0, 0] == 0


def test_randomised_phases_keep_each_images_spectrum_and_nothing_else() -> None:
    rng = np.random.default_rng(2)
    images = filtered(rng.standard_normal((5, BOX, BOX), dtype=np.float32), power_law(BOX, 1.0, 20.0)) + np.float32(3)
    other = phase_randomised(images, rng)
    ours, theirs = (np.abs(np.fft.rfft2(part))[:, 1:31, 1:31] for part in (images, other))
    np.testing.assert_allclose(theirs, ours, rtol=1e-3)
    np.testing.assert_allclose(other.mean((1, 2)), images.mean((1, 2)), rtol=1e-4)
    assert all(abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.1 for a, b in zip(images, other, strict=True))
