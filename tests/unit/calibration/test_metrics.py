"""Figures of probabilities against their direct definitions."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cesped_stream.calibration.metrics import (
    area_under_curve,
    brier_score,
    expected_calibration_error,
    expected_noise,
    probability_figures,
    reliability_curve,
    wilson_interval,
)

scores_and_kinds = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=40)


def pairs_won(scores: np.ndarray, positive: np.ndarray) -> float:
    """The definition: all pairs of a positive and a negative, ties half."""
    above = scores[positive][:, None] - scores[~positive][None, :]
    return float(np.mean((above > 0) + 0.5 * (above == 0)))


@settings(max_examples=80, deadline=None)
@given(scores_and_kinds)
def test_area_is_the_share_of_pairs_in_the_right_order(cases: list[tuple[int, bool]]) -> None:
    scores, positive = np.array([c[0] for c in cases], float), np.array([c[1] for c in cases])
    found = area_under_curve(scores, positive)
    if positive.all() or not positive.any():
        assert found is None
    else:
        assert found == pytest.approx(pairs_won(scores, positive))


@settings(max_examples=40, deadline=None)
@given(scores_and_kinds.filter(lambda cases: len({c[1] for c in cases}) == 2))
def test_area_knows_only_the_order_and_turns_round_with_it(cases: list[tuple[int, bool]]) -> None:
    scores, positive = np.array([c[0] for c in cases], float), np.array([c[1] for c in cases])
    area = area_under_curve(scores, positive)
    assert area is not None
    assert area_under_curve(np.exp(scores / 3) - 7, positive) == pytest.approx(area)
    assert area_under_curve(-scores, positive) == pytest.approx(1 - area)
    assert area_under_curve(scores, ~positive) == pytest.approx(1 - area)


def test_area_is_scipys_rank_sum() -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(500) < 0.3
    scores = np.round(rng.normal(size=500) + positive, 1)
    statistic = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    expected = statistic / (positive.sum() * (~positive).sum())
    assert area_under_curve(scores, positive) == pytest.approx(expected)


def test_brier_score_of_known_cases() -> None:
    assert brier_score([1.0, 0.0, 0.5], [1, 0, 1]) == pytest.approx(0.25 / 3)
    assert brier_score(np.full(10, 0.3), np.arange(10) < 3) == pytest.approx(0.21)


def test_calibration_error_of_known_bins() -> None:
    probabilities, outcomes = [0.1] * 10 + [0.9] * 10, [1] * 3 + [0] * 7 + [1] * 5 + [0] * 5
    curve = reliability_curve(probabilities, outcomes, 2)
    np.testing.assert_allclose(curve.mean_probability, [0.1, 0.9])
    np.testing.assert_allclose(curve.observed_share, [0.3, 0.5])
    assert expected_calibration_error(probabilities, outcomes, 2) == pytest.approx(0.3)


def test_bins_hold_equal_numbers() -> None:
    rng = np.random.default_rng(1)
    curve = reliability_curve(rng.random(1003) ** 4, rng.random(1003) < 0.5, 10)
    assert curve.count.sum() == 1003
    assert set(curve.count) <= {100, 101}
    assert (np.diff(curve.mean_probability) > 0).all()


def test_equal_probabilities_are_never_parted() -> None:
    probabilities = np.repeat([0.2, 0.5, 0.8], [400, 30, 570])
    curve = reliability_curve(probabilities, np.random.default_rng(2).random(1000) < probabilities, 10)
    np.testing.assert_array_equal(curve.count, [400, 30, 570])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 20))
def test_figures_do_not_depend_on_the_order_of_cases(seed: int, count: int, bins: int) -> None:
    rng = np.random.default_rng(seed)
    p, y, order = rng.random(count).round(1), rng.random(count) < 0.5, rng.permutation(count)
    assert expected_calibration_error(p[order], y[order], bins) == pytest.approx(expected_calibration_error(p, y, bins))
    assert brier_score(p[order], y[order]) == pytest.approx(brier_score(p, y))
    assert 0 <= expected_calibration_error(p, y, bins) <= 1


def test_the_base_rate_for_everyone_is_calibrated_and_tells_nothing_apart() -> None:
    outcomes = np.random.default_rng(3).random(4000) < 0.7
    figures = probability_figures(np.full(4000, outcomes.mean()), outcomes)
    assert figures.expected_calibration_error < 1e-9
    assert figures.area_under_curve == 0.5
    assert figures.brier_score == pytest.approx(figures.base_rate * (1 - figures.base_rate))


def test_expected_noise_is_what_calibrated_probabilities_get_on_average() -> None:
    rng = np.random.default_rng(4)
    probabilities = rng.beta(2, 1, 2000)
    drawn = [expected_calibration_error(probabilities, rng.random(2000) < probabilities) for _ in range(60)]
    assert expected_noise(probabilities) == pytest.approx(np.mean(drawn), rel=0.12)
    assert expected_noise(probabilities) > 2 * expected_noise(rng.beta(2, 1, 20_000))


def test_interval_is_scipys_wilson_interval() -> None:
    low, high = wilson_interval(np.array([0.0, 0.3, 1.0]), np.array([10, 50, 7]), stats.norm.ppf(0.975))
    for k, (hits, count) in enumerate([(0, 10), (15, 50), (7, 7)]):
        expected = stats.binomtest(hits, count).proportion_ci(method="wilson")
        assert (low[k], high[k]) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(
    ("probabilities", "outcomes", "message"),
    [
        ([], [], "n >= 1"),
        ([0.1], [1, 0], "two equal"),
        ([0.5, 1.2], [1, 0], "row 1"),
        ([np.nan], [1], "row 0"),
        ([0.5], [0.5], "outcome"),
    ],
)
def test_what_is_no_probability_or_outcome_is_refused(probabilities: list, outcomes: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probability_figures(probabilities, outcomes)


def test_scores_of_nan_are_refused_by_their_row() -> None:
    with pytest.raises(ValueError, match="row 1"):
        area_under_curve([0.0, np.nan], [True, False])


def test_metrics_import_without_torch() -> None:
    code = "import sys, cesped_stream.calibration.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
