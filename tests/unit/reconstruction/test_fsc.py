"""Fourier shell correlation."""

import numpy as np
import pytest
from support.imaging import blobs

from cesped_stream.reconstruction.fsc import fsc, resolution_angstrom


def test_a_map_agrees_with_itself_at_any_scale() -> None:
    np.testing.assert_allclose(fsc(blobs(24), 3.5 * blobs(24)), 1.0, atol=1e-6)


def test_independent_noise_does_not_agree() -> None:
    rng = np.random.default_rng(0)
    curve = fsc(rng.normal(size=(32, 32, 32)), rng.normal(size=(32, 32, 32)))
    assert curve.shape == (17,)
    assert np.abs(curve[3:]).max() < 0.3


def test_opposite_maps_anticorrelate_and_shell_0_is_1() -> None:
    volume = np.random.default_rng(1).normal(size=(16, 16, 16))
    curve = fsc(volume, -volume)
    assert curve[0] == 1
    np.testing.assert_allclose(curve[1:], -1)


def test_it_falls_where_the_noise_is() -> None:
    rng = np.random.default_rng(2)
    noise = np.fft.rfftn(rng.normal(size=(32, 32, 32)))
    z, x = np.fft.fftfreq(32, 1 / 32), np.arange(17)
    radius = np.sqrt(z[:, None, None] ** 2 + z[:, None] ** 2 + x**2)
    signal = np.random.default_rng(3).normal(size=(32, 32, 32))
    curve = fsc(signal, signal + np.fft.irfftn(np.where(radius > 9.5, 50 * noise, 0), s=(32, 32, 32), axes=(0, 1, 2)))
    np.testing.assert_allclose(curve[:9], 1, atol=1e-6)
    assert np.abs(curve[11:]).max() < 0.2


def test_a_shell_without_power_is_0() -> None:
    assert (fsc(np.ones((8, 8, 8)), blobs(8))[1:] == 0).all()


def test_unequal_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="cubic and equal"):
        fsc(np.zeros((8, 8, 8)), np.zeros((10, 10, 10)))


def test_resolution_is_interpolated_at_the_crossing() -> None:
    curve = [1.0, 0.9, 0.5, 0.1, 0.4, 0.0]
    assert resolution_angstrom(curve, 10, 2.0, threshold=0.3) == pytest.approx(20.0 / 2.5)
    assert resolution_angstrom(curve, 10, 2.0, threshold=0.5) == pytest.approx(20.0 / 2.0)


def test_a_curve_that_never_falls_gives_nyquist_and_one_that_starts_low_no_resolution() -> None:
    assert resolution_angstrom(np.ones(6), 10, 2.0) == 4.0
    assert resolution_angstrom([1.0, 0.1, 0.9, 0.9], 6, 2.0) == np.inf
