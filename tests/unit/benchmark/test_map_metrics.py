"""Agreement of maps: by region, in shells of radius, and what is lost against the truth's own level."""

import math

import numpy as np
import pytest
from support.imaging import blobs
from support.masks import spherical_mask

from cesped_stream.benchmark.evaluation_page import angstrom
from cesped_stream.benchmark.map_metrics import (
    compare_maps,
    delta_pearson,
    delta_resolution_angstrom,
    deltas,
    radial_profile,
)
from cesped_stream.reconstruction.fsc import resolution_angstrom

BOX, PIXEL_SIZE = 32, 3.0


def noisy(seed: int, sigma: float = 0.2) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, (BOX,) * 3)
    return (blobs(BOX) + noise).astype(np.float32)


def test_each_region_is_measured_by_itself() -> None:
    mask = spherical_mask(BOX, 8, 4)
    both = compare_maps(noisy(1), noisy(2), PIXEL_SIZE, mask)
    assert both.masked is not None
    assert both.masked.pearson == pytest.approx(np.corrcoef((noisy(1) * mask).ravel(), (noisy(2) * mask).ravel())[0, 1])
    assert both.unmasked.pearson == pytest.approx(np.corrcoef(noisy(1).ravel(), noisy(2).ravel())[0, 1], abs=1e-6)
    assert both.masked.pearson > both.unmasked.pearson + 0.05
    assert both.unmasked.resolution_05_angstrom == resolution_angstrom(both.unmasked.fsc, BOX, PIXEL_SIZE, 0.5)
    assert both.unmasked.resolution_05_angstrom > both.unmasked.resolution_0143_angstrom
    assert compare_maps(noisy(1), noisy(2), PIXEL_SIZE).masked is None


def test_only_half_maps_are_corrected_for_the_mask() -> None:
    mask = spherical_mask(BOX, 8, 2)
    plain = compare_maps(noisy(1), noisy(2), PIXEL_SIZE, mask)
    halves = compare_maps(noisy(1), noisy(2), PIXEL_SIZE, mask, halves=True)
    assert plain.corrected_fsc is None and plain.corrected_resolution_0143_angstrom is None
    assert halves.masked is not None and halves.corrected_fsc is not None
    assert halves.corrected_fsc[-4:].mean() < halves.masked.fsc[-4:].mean()
    assert halves.corrected_resolution_0143_angstrom is not None


def test_worse_is_positive() -> None:
    worse, better = compare_maps(noisy(1, 0.6), noisy(2, 0.6), PIXEL_SIZE), compare_maps(noisy(1), noisy(2), PIXEL_SIZE)
    lost = deltas(better.unmasked, worse.unmasked)
    assert lost.pearson > 0 and lost.resolution_05_angstrom > 0 and lost.resolution_0143_angstrom > 0
    assert deltas(worse.unmasked, better.unmasked).pearson == -lost.pearson


def test_a_map_without_any_resolution_has_lost_all_of_it() -> None:
    assert delta_resolution_angstrom(4.0, math.inf) == math.inf
    assert math.isnan(delta_resolution_angstrom(math.inf, math.inf))
    assert delta_resolution_angstrom(3.5, 4.6) == pytest.approx(1.1)
    assert delta_pearson(0.98, 0.95) == pytest.approx(0.03)


def test_a_map_that_is_wrong_outside_a_radius_disagrees_there_only() -> None:
    truth = noisy(3)
    half_maps = (noisy(4), noisy(5))
    inner = spherical_mask(BOX, 8, 0)
    wrong = np.where(inner > 0, truth, noisy(6)).astype(np.float32)
    profile = radial_profile(wrong, truth, half_maps, PIXEL_SIZE)
    width = BOX / 2 / len(profile.radius_angstrom) * PIXEL_SIZE
    np.testing.assert_allclose(np.diff(profile.radius_angstrom), width)
    within = profile.radius_angstrom < 8 * PIXEL_SIZE - width
    np.testing.assert_allclose(profile.pearson_to_truth[within], 1.0)
    assert profile.pearson_to_truth[profile.radius_angstrom > 9 * PIXEL_SIZE].max() < 0.95
    assert profile.truth_rms[0] > profile.truth_rms[-1]


def test_a_shell_is_correlated_over_its_own_voxels() -> None:
    first, second = noisy(7), noisy(8)
    profile = radial_profile(first, second, (first, second), PIXEL_SIZE)
    count = len(profile.radius_angstrom)
    axis = np.arange(BOX) - BOX // 2
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    for shell in (0, count // 2, count - 1):
        own = (radius >= shell * BOX / 2 / count) & (radius < (shell + 1) * BOX / 2 / count)
        assert profile.pearson_to_truth[shell] == pytest.approx(np.corrcoef(first[own], second[own])[0, 1], abs=1e-6)


def test_a_curve_that_never_falls_below_its_threshold_is_marked_as_limited_by_nyquist() -> None:
    volume = np.random.default_rng(0).standard_normal((BOX, BOX, BOX)).astype(np.float32)
    other = np.random.default_rng(1).standard_normal((BOX, BOX, BOX)).astype(np.float32)
    same, unlike = (compare_maps(volume, one, PIXEL_SIZE).unmasked for one in (volume, other))
    assert same.resolution_05_at_nyquist and same.resolution_0143_at_nyquist
    assert not unlike.resolution_05_at_nyquist
    words = angstrom(same.resolution_05_angstrom, at_nyquist=same.resolution_05_at_nyquist)
    assert words == f"<= {2 * PIXEL_SIZE:.1f} Å (Nyquist)"
