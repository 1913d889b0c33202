"""When scores no longer look like those of the fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from support.answers import held_out_answers

from cesped_stream.calibration.calibrator import fit_calibrator
from cesped_stream.calibration.drift import DriftState, drift_of
from cesped_stream.settings import CalibrationSettings

LEVELS = np.linspace(0, 1, 101)


def drift(scores: np.ndarray, fitted: np.ndarray):  # type: ignore[no-untyped-def]
    return drift_of(scores, np.quantile(fitted, LEVELS), len(fitted), stale_index=0.2, min_particles=200)


@pytest.mark.parametrize("count", [200, 500, 4000])
def test_scores_of_the_same_kind_are_steady(count: int) -> None:
    rng = np.random.default_rng(0)
    found = [drift(rng.normal(size=count), rng.normal(size=2000)) for _ in range(200)]
    assert all(one.state is DriftState.STEADY for one in found)
    assert np.mean([one.stability_index for one in found]) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(("moved", "stretched"), [(-0.7, 1.0), (0.7, 1.0), (0.0, 2.0), (0.0, 0.4)])
def test_scores_that_move_or_spread_are_stale(moved: float, stretched: float) -> None:
    rng = np.random.default_rng(1)
    found = drift(moved + stretched * rng.normal(size=1000), rng.normal(size=2000))
    assert found.state is DriftState.STALE
    assert found.largest_gap > 0.1


def test_few_scores_say_nothing() -> None:
    rng = np.random.default_rng(2)
    assert drift(rng.normal(size=199) + 9, rng.normal(size=2000)).state is DriftState.TOO_FEW
    assert drift(np.full(500, np.nan), rng.normal(size=2000)).state is DriftState.TOO_FEW


def test_largest_gap_is_scipys_within_the_quantiles_step() -> None:
    rng = np.random.default_rng(3)
    scores, fitted = rng.normal(size=700) + 0.4, rng.normal(size=900)
    assert drift(scores, fitted).largest_gap == pytest.approx(stats.ks_2samp(scores, fitted).statistic, abs=0.015)


def test_scores_that_repeat_do_not_drift_from_themselves() -> None:
    fitted = np.repeat([0.0, 1.0, 5.0], [1500, 300, 200])
    same = drift(fitted, fitted)
    assert same.state is DriftState.STEADY
    assert same.largest_gap < 0.015
    assert drift(np.repeat([0.0, 1.0, 5.0], [300, 300, 1400]), fitted).state is DriftState.STALE


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.1, 50), st.floats(-100, 100))
def test_drift_does_not_depend_on_order_nor_on_the_scores_scale(seed: int, scale: float, offset: float) -> None:
    rng = np.random.default_rng(seed)
    scores, fitted = rng.normal(size=400) + 0.3, rng.normal(size=800)
    plain, other = drift(scores, fitted), drift(rng.permutation(scores) * scale + offset, fitted * scale + offset)
    assert other.stability_index == pytest.approx(plain.stability_index, abs=0.02)
    assert other.state is plain.state or abs(plain.stability_index - 0.2) < 0.02


def test_a_calibrator_is_stale_once_images_get_worse() -> None:
    chosen = CalibrationSettings()
    answers, _ = held_out_answers(1500, 40)
    fresh, _ = held_out_answers(600, 41)
    calibrator = fit_calibrator(answers, half_set=0, seen=(), settings=chosen)
    assert not calibrator.is_stale(calibrator.scores(fresh.features), chosen)
    worse, _ = held_out_answers(600, 42, quality=-0.4)
    assert calibrator.is_stale(calibrator.scores(worse.features), chosen)
