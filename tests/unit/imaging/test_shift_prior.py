"""The density of shifts: what the aligned rows say, smeared, and never nothing."""

import numpy as np
import pytest

from cesped_stream.errors import PermanentError
from cesped_stream.imaging.shift_prior import LEAST_RANGE_ANGSTROM, ShiftPrior, fit_shift_prior


def ring_and_middle() -> np.ndarray:
    rng = np.random.default_rng(0)
    angle, middle = rng.uniform(0, 2 * np.pi, 250), rng.uniform(-5, 5, (750, 2))
    ring = rng.uniform(40, 60, 250)[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    return np.concatenate([middle, ring])


def mass_between(prior: ShiftPrior, low: float, high: float) -> float:
    radius = np.linspace(low, high, 4001)
    density = np.exp(prior.log_density_at(np.stack([radius, np.zeros_like(radius)], -1)))
    return float(np.trapezoid(2 * np.pi * radius * density, radius))


def test_it_is_a_density_with_the_mass_where_the_rows_have_it() -> None:
    prior = fit_shift_prior(ring_and_middle(), 4.0, 96.0)
    assert 60 < prior.range_angstrom < 66
    assert mass_between(prior, 0, prior.range_angstrom) == pytest.approx(1.0, abs=0.03)
    assert mass_between(prior, 0, 15) == pytest.approx(0.75, abs=0.05)
    middle, gap, ring = prior.log_density_at(np.array([[0.0, 0.0], [25.0, 0.0], [0.0, 50.0]]))
    assert middle > ring + 3 > gap + 3


def test_it_is_the_same_in_all_directions_and_never_nothing() -> None:
    prior = fit_shift_prior(np.tile([[30.0, 0.0]], (50, 1)), 4.0, 96.0)
    around = prior.log_density_at(np.array([[30.0, 0.0], [0.0, -30.0], [18.0, 24.0]]))
    np.testing.assert_allclose(around, around[0])
    even = prior.even_log_density
    assert (prior.log_density >= even + np.log(0.05) - 1e-9).all()
    assert np.isfinite(prior.log_density_at([500.0, 0.0]))


def test_its_range_has_a_floor_and_a_ceiling() -> None:
    assert fit_shift_prior(np.zeros((9, 2)), 2.0, 96.0).range_angstrom == LEAST_RANGE_ANGSTROM
    assert fit_shift_prior(np.full((9, 2), 80.0), 2.0, 50.0).range_angstrom == 50.0
    nothing = fit_shift_prior(np.empty((0, 2)), 2.0, 50.0)
    np.testing.assert_allclose(nothing.log_density, nothing.even_log_density)


def test_it_comes_back_from_plain_values() -> None:
    prior = fit_shift_prior(ring_and_middle(), 4.0, 96.0)
    again = ShiftPrior.from_json(prior.to_json())
    np.testing.assert_array_equal(again.log_density, prior.log_density)
    with pytest.raises(PermanentError, match="shift prior"):
        ShiftPrior.from_json({"radii_angstrom": [0.0, 1.0], "log_density": [0.0]})
    with pytest.raises(PermanentError, match="log_density"):
        ShiftPrior.from_json({"radii_angstrom": [0.0, 1.0]})
