"""The top of a fitted parabola."""

import numpy as np
import pytest
import torch

from cesped_stream.refinement.peak import quadratic_peak

GRID = np.stack(np.meshgrid(*[[-1.0, 0.0, 1.0]] * 3, indexing="ij"), -1).reshape(-1, 3) * 0.5


def quadratic(places: np.ndarray, top: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    off = places - top
    return 7.0 - np.einsum("pi,ij,pj->p", off, curvature, off)


def test_a_quadratics_top_is_exact_whatever_its_axes() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 3, 3))
    curvatures = root @ root.transpose(0, 2, 1) + np.eye(3)
    tops = rng.uniform(-0.4, 0.4, (5, 3))
    values = np.stack([quadratic(GRID, t, c) for t, c in zip(tops, curvatures, strict=True)])
    place, height = quadratic_peak(GRID, torch.from_numpy(values))
    np.testing.assert_allclose(place.numpy(), tops, atol=1e-9)
    np.testing.assert_allclose(height.numpy(), 7.0, atol=1e-9)


def test_the_place_stays_within_the_samples() -> None:
    values = quadratic(GRID, np.array([2.0, 0.0, -3.0]), np.eye(3))
    place, height = quadratic_peak(GRID, torch.from_numpy(values[None]))
    np.testing.assert_allclose(place.numpy(), [[0.5, 0.0, -0.5]], atol=1e-9)
    assert float(height) == pytest.approx(values.max())


def test_without_a_top_it_is_the_best_sample() -> None:
    values = GRID[:, 0] ** 2 - GRID[:, 1] ** 2 - GRID[:, 2] ** 2 + 0.1 * GRID[:, 0]
    place, height = quadratic_peak(GRID, torch.from_numpy(values[None]))
    assert place.tolist() == [[0.5, 0.0, 0.0]]
    assert float(height) == pytest.approx(values.max())


def test_a_rows_bits_do_not_depend_on_the_others() -> None:
    values = torch.randn(9, len(GRID), dtype=torch.float64)
    together = quadratic_peak(GRID, values)
    for k in (0, 4, 8):
        place, height = quadratic_peak(GRID, values[k : k + 1])
        assert torch.equal(place[0], together[0][k]) and torch.equal(height[0], together[1][k])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_no_number_fails_no_other(value: float) -> None:
    offsets = np.stack(np.meshgrid([-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0], indexing="ij"), -1).reshape(-1, 2)
    values = -torch.from_numpy((offsets**2).sum(1)).repeat(3, 1)
    place, height = quadratic_peak(offsets, values)
    values[1, 4] = value
    spoilt_place, spoilt_height = quadratic_peak(offsets, values)
    assert torch.equal(spoilt_place[[0, 2]], place[[0, 2]]) and torch.equal(spoilt_height[[0, 2]], height[[0, 2]])
    assert not torch.isfinite(spoilt_height[1])
