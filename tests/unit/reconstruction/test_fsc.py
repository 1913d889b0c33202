"""Fourier shell correlation."""

import numpy as np
import pytest
from support.imaging import blobs
from support.masks import spherical_mask

from cesped_stream.reconstruction.fsc import (
    fsc,
    masked_fsc,
    postprocess_fsc,
    resolution_angstrom,
    with_random_phases,
)
from cesped_stream.reconstruction.mask import lowpassed


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


def noisy_halves(scale: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    first, second = (blobs(32) + rng.normal(scale=scale, size=(32, 32, 32)) for _ in range(2))
    return first, second


def test_masked_fsc_is_that_of_the_masked_maps() -> None:
    first, second = noisy_halves()
    mask = spherical_mask(32, 9, 4)
    np.testing.assert_allclose(masked_fsc(first, second, mask), fsc(first * mask, second * mask))
    assert (masked_fsc(first, second, mask)[4:10] > fsc(first, second)[4:10]).all()
    with pytest.raises(ValueError, match=r"mask of \(8, 8, 8\)"):
        masked_fsc(first, second, np.ones((8, 8, 8)))


def test_random_phases_keep_amplitudes_and_what_is_coarser() -> None:
    volume, _ = noisy_halves()
    randomised = with_random_phases(volume, 6, np.random.default_rng(0))
    before, after = np.fft.fftn(volume), np.fft.fftn(randomised)
    full = np.fft.fftfreq(32, 1 / 32)
    radius = np.sqrt(full[:, None, None] ** 2 + full[:, None] ** 2 + full**2)
    np.testing.assert_allclose(np.abs(after), np.abs(before), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(after[radius < 6], before[radius < 6], rtol=1e-9, atol=1e-9)
    turned = np.angle(after / before)[(radius >= 6) & (radius < 16)]
    assert abs(np.exp(1j * turned).mean()) < 0.02


def test_correction_leaves_nothing_where_only_the_mask_correlates() -> None:
    """A hard mask smears the maps' common core over shells in which they have nothing but noise of their own."""
    rng = np.random.default_rng(5)
    core = lowpassed(blobs(32), 1.0, 32 / 5)
    first, second = (core + rng.normal(scale=0.3, size=core.shape) for _ in range(2))
    curves = postprocess_fsc(first, second, spherical_mask(32, 7, 1))
    assert curves.randomise_from == 5
    assert curves.masked[7:9].min() > 0.5
    assert 0 <= curves.corrected[7:].min() <= curves.corrected[7:].max() < 0.25
    np.testing.assert_array_equal(curves.corrected[:7], curves.masked[:7])


def test_same_seed_gives_the_same_curves_and_another_seed_others() -> None:
    mask = spherical_mask(32, 8, 3)
    one, same, other = (postprocess_fsc(*noisy_halves(), mask, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.corrected, same.corrected)
    assert (one.phase_randomised != other.phase_randomised).any()
    np.testing.assert_array_equal(one.masked, other.masked)


def test_maps_whose_fsc_never_falls_are_not_corrected() -> None:
    curves = postprocess_fsc(blobs(24), blobs(24), spherical_mask(24, 8, 3))
    assert curves.randomise_from == 13
    np.testing.assert_array_equal(curves.corrected, curves.masked)
