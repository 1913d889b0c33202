"""Confidence fitted on held-out answers, judged on fresh ones."""

import dataclasses

import numpy as np
import pytest
from support.answers import held_out_answers

from cesped_stream.calibration.answers import Feature
from cesped_stream.calibration.calibrator import HeldOutAnswers, fit_calibrator, ids_sha256
from cesped_stream.calibration.confidence_model import fit_confidence_model
from cesped_stream.calibration.metrics import expected_calibration_error, probability_figures
from cesped_stream.errors import InvalidCheckpointError
from cesped_stream.settings import CalibrationSettings

SETTINGS = CalibrationSettings()


def fit(answers: HeldOutAnswers, **changes):  # type: ignore[no-untyped-def]
    return fit_calibrator(answers, half_set=0, seen=(), settings=SETTINGS.model_copy(update=changes))


def confidence(calibrator, answers: HeldOutAnswers) -> np.ndarray:  # type: ignore[no-untyped-def]
    return calibrator.confidence(answers.features, answers.optics_groups, half_set=0)


def right(answers: HeldOutAnswers) -> np.ndarray:
    return answers.errors_deg <= 5


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("claim", [0.3, 5.0])
def test_an_overconfident_and_a_modest_model_are_calibrated_on_fresh_particles(seed: int, claim: float) -> None:
    answers, _ = held_out_answers(2500, 2 * seed, claim=claim)
    fresh, _ = held_out_answers(5000, 2 * seed + 1, claim=claim)
    calibrated = confidence(fit(answers), fresh)
    assert expected_calibration_error(calibrated, right(fresh)) <= 0.05
    if claim > 1:
        claimed = 1 / (1 + np.exp(-fresh.features[Feature.MASS]))
        assert expected_calibration_error(claimed, right(fresh)) > 0.15


def test_calibration_is_no_base_rate_for_everyone() -> None:
    answers, _ = held_out_answers(2500, 20)
    fresh, chance = held_out_answers(5000, 21)
    figures = probability_figures(confidence(fit(answers), fresh), right(fresh))
    best = probability_figures(chance, right(fresh))
    assert figures.area_under_curve is not None
    assert best.area_under_curve is not None
    assert figures.area_under_curve > best.area_under_curve - 0.03
    assert figures.brier_score < best.brier_score + 0.01 < figures.base_rate * (1 - figures.base_rate)


def test_figures_of_the_fit_are_those_of_fresh_particles_within_chance() -> None:
    answers, _ = held_out_answers(3000, 22)
    fresh, _ = held_out_answers(20_000, 23)
    calibrator = fit(answers)
    found = probability_figures(confidence(calibrator, fresh), right(fresh))
    assert calibrator.figures.brier_score == pytest.approx(found.brier_score, abs=0.012)
    assert calibrator.figures.area_under_curve == pytest.approx(found.area_under_curve, abs=0.025)
    assert calibrator.figures.num_particles == 3000


def test_an_optics_group_that_is_worse_has_scores_of_its_own() -> None:
    groups = ("good", "bad")
    answers, _ = held_out_answers(4000, 24, offset=2.5, groups=groups)
    fresh, _ = held_out_answers(8000, 25, offset=2.5, groups=groups)
    together = fit(answers, min_group_particles=10**6)
    apart = fit(answers)
    assert set(apart.model.groups) == set(groups)
    assert together.model.groups == {}
    names = np.array(fresh.optics_groups)
    for name in groups:
        here = names == name
        assert expected_calibration_error(confidence(apart, fresh)[here], right(fresh)[here]) <= 0.05
        assert expected_calibration_error(confidence(together, fresh)[here], right(fresh)[here]) > 0.1
        assert apart.group_figures[name].num_particles == sum(g == name for g in answers.optics_groups)


def test_an_optics_group_never_seen_has_the_confidence_of_all() -> None:
    answers, _ = held_out_answers(2500, 26, groups=("a", "b"))
    calibrator = fit(answers)
    unknown = calibrator.confidence(answers.features, ["c"] * 2500, half_set=0)
    np.testing.assert_array_equal(unknown, calibrator.model.curve(calibrator.scores(answers.features)))


def test_more_of_a_feature_is_never_less_sure() -> None:
    answers, _ = held_out_answers(1500, 27)
    calibrator = fit(answers)
    for feature in Feature:
        features = {name: np.full(200, float(np.median(values))) for name, values in answers.features.items()}
        features[feature] = np.linspace(-40, 40, 200)
        found = calibrator.confidence(features, ["g"] * 200, half_set=0)
        assert (np.diff(found) >= 0).all()
        assert ((found > 0) & (found < 1)).all()


def test_a_useless_feature_takes_no_part_however_it_is_scaled() -> None:
    rng = np.random.default_rng(28)
    quality = rng.normal(size=3000)
    outcome = (rng.random(3000) < 1 / (1 + np.exp(-quality))).astype(float)
    features = {"good": quality, "constant": np.full(3000, 7.0), "backwards": -1e6 * quality}
    model = fit_confidence_model(features, outcome, np.full(3000, "g"), min_group_particles=10**6)
    assert model.features["good"].coefficient > 0.8
    assert model.features["constant"].coefficient == model.features["backwards"].coefficient == 0.0


def test_without_any_sign_of_certainty_confidence_is_the_base_rate() -> None:
    answers, _ = held_out_answers(1000, 36)
    nothing = dataclasses.replace(answers, features={Feature.MASS: np.full(1000, 2.0)})
    np.testing.assert_allclose(confidence(fit(nothing), nothing), right(answers).mean(), atol=1e-3)


def test_confidence_keeps_the_order_of_the_scores() -> None:
    answers, _ = held_out_answers(2500, 37)
    calibrator = fit(answers)
    knots = np.array(calibrator.model.curve.scores)
    between = np.linspace(knots[0], knots[-1], 500)
    assert (np.diff(calibrator.model.curve(between)) > 0).all()


@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_where_all_or_none_are_right_confidence_is_near_that_and_never_certain(outcome: float) -> None:
    answers, _ = held_out_answers(800, 29)
    errors = np.full(800, 1.0 if outcome else 50.0)
    calibrator = fit(dataclasses.replace(answers, errors_deg=errors))
    found = confidence(calibrator, answers)
    assert (np.abs(found - outcome) < 0.05).all()
    assert ((found > 0) & (found < 1)).all()
    assert calibrator.figures.area_under_curve is None


def test_an_answer_without_a_feature_has_no_confidence_and_one_without_all_is_refused() -> None:
    answers, _ = held_out_answers(600, 30)
    calibrator = fit(answers)
    features = {name: values.copy() for name, values in answers.features.items()}
    features[Feature.AGREEMENT][3] = np.nan
    found = calibrator.confidence(features, answers.optics_groups, half_set=0)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(found)), [3])
    del features[Feature.MARGIN]
    with pytest.raises(ValueError, match="margin"):
        calibrator.confidence(features, answers.optics_groups, half_set=0)


def test_a_feature_that_no_particle_has_is_not_fitted_on() -> None:
    answers, _ = held_out_answers(600, 31)
    without = {**answers.features, Feature.AGREEMENT: np.full(600, np.nan)}
    calibrator = fit(dataclasses.replace(answers, features=without))
    assert Feature.AGREEMENT not in calibrator.model.features
    assert np.isfinite(confidence(calibrator, answers)).all()


def test_halves_share_no_calibrator() -> None:
    answers, _ = held_out_answers(600, 32)
    with pytest.raises(InvalidCheckpointError, match="half-set 0, answers of half-set 1"):
        fit(answers).confidence(answers.features, answers.optics_groups, half_set=1)


def test_particles_of_the_reference_or_the_training_are_refused_by_name() -> None:
    answers, _ = held_out_answers(600, 33)
    with pytest.raises(ValueError, match=r"1 held-out particles are in the half's .* 33_000007@stack.mrcs"):
        fit_calibrator(answers, half_set=0, seen=["33_000007@stack.mrcs", "other"], settings=SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"particle_ids": ["a"] * 600}, "twice"),
        ({"errors_deg": np.ones(599)}, "one length"),
        ({"errors_deg": np.where(np.arange(600) < 150, np.nan, 1.0)}, "450 held-out particles with all features"),
        ({"micrographs": ["one.mrc"] * 600}, "one micrograph"),
    ],
)
def test_held_out_answers_that_cannot_be_fitted_are_refused(change: dict, message: str) -> None:
    answers, _ = held_out_answers(600, 34)
    with pytest.raises(ValueError, match=message):
        fit(dataclasses.replace(answers, **change))


def test_the_fit_does_not_depend_on_the_order_of_particles() -> None:
    answers, _ = held_out_answers(900, 35)
    order = np.random.default_rng(0).permutation(900)
    mixed = HeldOutAnswers(
        particle_ids=[answers.particle_ids[k] for k in order],
        features={name: values[order] for name, values in answers.features.items()},
        errors_deg=answers.errors_deg[order],
        optics_groups=[answers.optics_groups[k] for k in order],
        micrographs=[answers.micrographs[k] for k in order],
    )
    one, other = fit(answers), fit(mixed)
    assert one.particles_sha256 == other.particles_sha256 == ids_sha256(mixed.particle_ids)
    np.testing.assert_allclose(confidence(other, answers), confidence(one, answers), atol=1e-4)
