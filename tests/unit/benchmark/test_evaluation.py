"""One evaluator: errors of the predicted particles alone, and of the maps that they give."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from support.scored import BOX, small_entry, truth_of, turned

from cesped_stream.benchmark.evaluation import Evaluation, PredictionType, evaluate_poses
from cesped_stream.benchmark.evaluation_report import _own_notes
from cesped_stream.benchmark.truth_maps import truth_maps
from cesped_stream.errors import InvalidSettingsError, InvalidStarError
from cesped_stream.particles.table import ParticleTable
from cesped_stream.reconstruction.engine import BuiltinEngine

ENGINE = BuiltinEngine()


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> ParticleTable:
    return truth_of(small_entry(tmp_path_factory.mktemp("entry")))


@pytest.fixture(scope="module")
def confident(truth: ParticleTable) -> ParticleTable:
    """Every third particle is off by 60 degrees with a confidence of 0.02, the others by 3 with 0.98."""
    lost = np.arange(len(truth)) % 3 == 0
    confidence = {"rlnParticleFigureOfMerit": ["0.02" if wrong else "0.98" for wrong in lost]}
    return turned(truth, np.where(lost, 60.0, 3.0)).with_columns(confidence)


@pytest.fixture(scope="module")
def scored(truth: ParticleTable, confident: ParticleTable) -> Evaluation:
    return evaluate_poses(truth, confident, symmetry="C1", engine=ENGINE, mask=round_mask())


def round_mask() -> np.ndarray:
    axis = np.arange(BOX) - BOX // 2
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    return np.clip(BOX / 2.5 - radius, 0, 1).astype(np.float32)


def test_the_truths_own_poses_lose_nothing(truth: ParticleTable) -> None:
    perfect = evaluate_poses(truth, truth, symmetry="C1", engine=ENGINE)
    assert perfect.poses is not None and perfect.maps is not None
    assert perfect.poses.together.mean_deg < 1e-5
    scores = perfect.maps.unweighted
    assert scores.to_truth.unmasked.pearson == pytest.approx(1.0)
    assert scores.deltas_unmasked.pearson < 0
    assert scores.half_to_half is not None
    assert scores.half_to_half.unmasked.pearson == perfect.maps.truth_half_to_half.unmasked.pearson
    assert scores.halves_to_other_truth[0] is not None
    np.testing.assert_allclose(
        scores.halves_to_other_truth[0].unmasked.fsc, perfect.maps.truth_half_to_half.unmasked.fsc, atol=1e-9
    )


def test_worse_poses_make_worse_maps(truth: ParticleTable) -> None:
    known = truth_maps(truth, "C1", ENGINE)
    previous = -1.0
    for degrees in (2.0, 15.0, 50.0):
        result = evaluate_poses(truth, turned(truth, degrees), symmetry="C1", engine=ENGINE, truth_maps=known)
        assert result.poses is not None and result.maps is not None
        assert result.poses.together.mean_deg == pytest.approx(degrees, abs=1e-4)
        assert result.maps.unweighted.deltas_unmasked.pearson > previous
        previous = result.maps.unweighted.deltas_unmasked.pearson
        assert result.maps.truth is known
    assert previous > 0.02


def test_errors_grow_with_radius(scored: Evaluation) -> None:
    assert scored.maps is not None
    block = scored.to_json()["maps"]["unweighted"]["radial"]
    moved, radius = np.array(block["rms_displacement_angstrom"]), np.array(block["radius_angstrom"])
    chords = 2 * np.sin(np.deg2rad(scored.errors_deg) / 2)
    np.testing.assert_allclose(moved, radius * np.sqrt(2 / 3 * (chords**2).mean()))
    profile = scored.maps.unweighted.radial
    inner, outer = profile.pearson_to_truth[:2], profile.pearson_to_truth[-2:]
    assert inner.mean() > outer.mean()


def test_weighting_by_a_good_confidence_saves_the_map_and_both_maps_are_told_apart(scored: Evaluation) -> None:
    assert scored.maps is not None and scored.maps.weighted is not None and scored.confidence is not None
    plain, weighted = scored.maps.unweighted, scored.maps.weighted
    assert (plain.weighted_by, weighted.weighted_by) == ("", "rlnParticleFigureOfMerit")
    assert weighted.to_truth.unmasked.pearson > plain.to_truth.unmasked.pearson + 0.01
    assert plain.effective_number == 120
    assert weighted.effective_number == pytest.approx((80 * 0.98 + 40 * 0.02) ** 2 / (80 * 0.98**2 + 40 * 0.02**2))
    assert scored.confidence.within_15_deg_auc == 1.0
    assert scored.maps.as_cesped is weighted


def test_confidence_is_not_used_where_it_is_not_wanted(truth: ParticleTable, confident: ParticleTable) -> None:
    known = truth_maps(truth, "C1", ENGINE)
    result = evaluate_poses(truth, confident, symmetry="C1", engine=ENGINE, use_confidence=False, truth_maps=known)
    assert result.confidence is None and result.maps is not None
    assert result.maps.weighted is None
    assert result.maps.as_cesped is result.maps.unweighted


def test_a_confidence_that_tells_nothing_apart_makes_no_second_map(truth: ParticleTable) -> None:
    flat = truth.with_columns({"cestreamConfidence": ["0.5"] * len(truth)})
    result = evaluate_poses(truth, flat, symmetry="C1", engine=ENGINE)
    assert result.maps is not None and result.confidence is not None
    assert result.maps.weighted is None
    assert result.confidence.effective_number == pytest.approx(120)


def test_a_half_without_confidence_is_told(truth: ParticleTable, scored: Evaluation) -> None:
    merit = {"rlnParticleFigureOfMerit": ["0" if half == 0 else "0.5" for half in truth.half_sets()]}
    known = truth_maps(truth, "C1", ENGINE)
    result = evaluate_poses(truth, truth.with_columns(merit), symmetry="C1", engine=ENGINE, truth_maps=known)
    assert result.maps is not None and result.maps.weighted is None
    words = "No weighted map: in a half-set the confidences are all 0"
    assert any(words in note for note in _own_notes(result))
    assert not any(words in note for note in _own_notes(scored))


def test_wmane_is_weighted_by_the_truths_confidence_alone(truth: ParticleTable, confident: ParticleTable) -> None:
    result = evaluate_poses(truth, confident, symmetry="C1")
    lost = np.arange(120) % 3 == 0
    weights = truth.numbers("rlnMaxValueProbDistribution")
    expected = (weights * np.where(lost, 60.0, 3.0)).sum() / weights.sum()
    assert result.poses is not None
    assert result.poses.together.weighted_mean_deg == pytest.approx(expected, abs=1e-4)
    assert result.maps is None


def test_cespeds_keys_are_all_there_and_combine_the_halves_as_it_does(scored: Evaluation) -> None:
    metrics = scored.cesped_metrics()
    assert list(metrics) == [
        *("meanAngularError", "wMeanAngularError", "shiftsRMSE"),
        *("GT_correlation", "GT_resolution0143", "GT_resolution05"),
        *("half2half_resolution", "half2half_resolution05", "half2half_correlation"),
        *("mapVsGT_correlaton_masked", "mapVsGT_correlaton_unmasked"),
        *("mapVsGT_resolution", "mapVsGT_resolution05"),
        *("mapVsGT_correlaton_diff_masked", "mapVsGT_correlaton_diff"),
    ]
    halves = [scored.half_sets == half for half in (0, 1)]
    means = [scored.errors_deg[half].mean() for half in halves]
    totals = [scored.truth_confidences[half].sum() for half in halves]
    weighted = [np.average(scored.errors_deg[half], weights=scored.truth_confidences[half]) for half in halves]
    assert metrics["meanAngularError"] == pytest.approx(np.mean(means))
    assert metrics["wMeanAngularError"] == pytest.approx(np.average(weighted, weights=totals))
    assert metrics["shiftsRMSE"] == 0.0


def test_masked_and_unmasked_figures_are_not_mixed_in_our_block(scored: Evaluation) -> None:
    assert scored.maps is not None and scored.maps.weighted is not None
    truth, weighted, metrics = scored.maps.truth_half_to_half, scored.maps.weighted, scored.cesped_metrics()
    assert truth.masked is not None and weighted.to_truth.masked is not None and weighted.deltas_masked is not None
    assert truth.masked.pearson != pytest.approx(truth.unmasked.pearson, abs=1e-3)
    assert weighted.deltas_masked.pearson == truth.masked.pearson - weighted.to_truth.masked.pearson
    assert weighted.deltas_unmasked.pearson == truth.unmasked.pearson - weighted.to_truth.unmasked.pearson
    assert metrics["GT_correlation"] == truth.masked.pearson
    assert metrics["mapVsGT_correlaton_diff"] == truth.masked.pearson - weighted.to_truth.unmasked.pearson


def test_a_half_without_predictions_is_scored_with_one_map(truth: ParticleTable) -> None:
    some = truth.select(np.flatnonzero(truth.half_sets() == 0)[:40])
    result = evaluate_poses(truth, turned(some, 5.0), symmetry="C1", engine=ENGINE)
    assert result.maps is not None
    assert result.maps.unweighted.half_to_half is None
    assert result.maps.unweighted.halves[1] is None
    assert [one.share for one in result.coverage] == [pytest.approx(40 / 60), 0.0, pytest.approx(40 / 120)]
    metrics = result.cesped_metrics()
    assert math.isnan(metrics["half2half_resolution"])
    assert metrics["meanAngularError"] == pytest.approx(5.0, abs=1e-4)


def test_nothing_predicted_is_coverage_zero_and_no_error(truth: ParticleTable) -> None:
    unset = truth.with_columns({"rlnAngleRot": ["-999"] * len(truth)})
    result = evaluate_poses(truth, unset, symmetry="C1", engine=ENGINE)
    assert (result.poses, result.maps, result.coverage[2].share) == (None, None, 0.0)
    assert all(math.isnan(value) for value in result.cesped_metrics().values())


def test_junk_has_no_error_but_stands_in_the_map_and_is_told_by_confidence(truth: ParticleTable) -> None:
    kinds = ["ice" if k % 4 == 0 else "particle" for k in range(len(truth))]
    known = truth.with_columns({"cestreamKind": kinds})
    confidence = ["0.9" if kind == "particle" else "0.1" for kind in kinds]
    degrees = np.where(np.arange(len(truth)) % 4 == 0, 90.0, 4.0)
    above = ["3.1" if kind == "particle" else "-8" for kind in kinds]
    predicted = turned(truth, degrees).with_columns({"cestreamConfidence": confidence, "cestreamAboveNoise": above})
    result = evaluate_poses(known, predicted, symmetry="C1", engine=ENGINE)
    assert result.poses is not None and result.confidence is not None and result.maps is not None
    assert result.poses.together.mean_deg == pytest.approx(4.0, abs=1e-4)
    assert result.confidence.junk_auc == result.confidence.above_noise_junk_auc == 1.0
    partly = predicted.with_columns({"cestreamAboveNoise": ["none", *above[1:]]})
    other = evaluate_poses(known, partly, symmetry="C1", engine=ENGINE).confidence
    assert other is not None and other.above_noise_junk_auc is None
    assert result.num_junk_in_maps == 30
    assert sum(result.maps.truth.num_particles) == 90
    assert result.maps.weighted is not None
    better = result.maps.weighted.to_truth.unmasked.pearson
    assert better > result.maps.unweighted.to_truth.unmasked.pearson


def test_views_alone_are_scored_as_views(truth: ParticleTable) -> None:
    predicted = truth.with_columns({"rlnAnglePsi": ["0"] * len(truth)})
    views = evaluate_poses(truth, predicted, symmetry="C1", prediction_type=PredictionType.S2)
    whole = evaluate_poses(truth, predicted, symmetry="C1", prediction_type=PredictionType.SO3)
    assert views.poses is not None and whole.poses is not None
    assert views.poses.together.mean_deg < 1e-5
    assert whole.poses.together.mean_deg > 60


def test_predicted_shifts_move_the_map_only_where_they_are_predicted(truth: ParticleTable) -> None:
    known = truth_maps(truth, "C1", ENGINE)
    away = [f"{float(x) + 16:.6f}" for x in truth.column("rlnOriginXAngst")]
    predicted = truth.with_columns({"rlnOriginXAngst": away})
    results = {
        kind: evaluate_poses(truth, predicted, symmetry="C1", prediction_type=kind, engine=ENGINE, truth_maps=known)
        for kind in (PredictionType.SO3, PredictionType.SO3xR2)
    }
    correlation = {}
    for kind, result in results.items():
        assert result.maps is not None and result.shifts is not None
        assert result.shifts.together_angstrom == pytest.approx(16.0, abs=1e-4)
        correlation[kind] = result.maps.unweighted.to_truth.unmasked.pearson
    assert correlation[PredictionType.SO3] == pytest.approx(1.0)
    assert correlation[PredictionType.SO3xR2] < 0.9


def test_symmetry_is_of_errors_and_of_maps(truth: ParticleTable) -> None:
    result = evaluate_poses(truth, truth, symmetry="c2", engine=ENGINE)
    assert result.maps is not None and result.symmetry == "C2"
    volume = result.maps.unweighted.combined
    core = volume[:, 1:, 1:]
    np.testing.assert_allclose(core[:, ::-1, ::-1], core, atol=1e-3 * float(volume.std()))


def test_json_holds_everything_but_the_maps_and_no_number_that_json_lacks(scored: Evaluation) -> None:
    text = json.dumps(scored.to_json(), allow_nan=False)
    block = json.loads(text)
    assert len(text) < 40_000
    assert block["coverage"]["half_1"]["num_predicted"] == 60
    assert block["maps"]["as_cesped"] == "weighted"
    assert len(block["maps"]["weighted"]["to_truth"]["masked"]["fsc"]) == BOX // 2 + 1
    assert block["poses"]["half_0"]["mean_deg"] == pytest.approx(22.0, abs=1e-4)


def test_a_mask_of_another_box_is_refused(truth: ParticleTable) -> None:
    with pytest.raises(InvalidSettingsError, match=r"mask: .*the maps have \(24, 24, 24\)"):
        evaluate_poses(truth, truth, symmetry="C1", engine=ENGINE, mask=np.ones((20, 20, 20), np.float32))


def test_a_truth_of_one_half_is_refused(truth: ParticleTable) -> None:
    half = truth.select(np.flatnonzero(truth.half_sets() == 1))
    with pytest.raises(InvalidStarError, match="no particles of half-set 0"):
        evaluate_poses(half, half, symmetry="C1", engine=ENGINE)


def test_progress_counts_every_map(truth: ParticleTable, confident: ParticleTable) -> None:
    told: dict[str, list[int]] = {}
    evaluate_poses(
        truth,
        confident,
        symmetry="C1",
        engine=ENGINE,
        on_progress=lambda what, done, total: told.setdefault(what, []).append(done),
    )
    assert {what: done[-1] for what, done in told.items()} == {
        "maps of the truth": 120,
        "maps of the predictions": 120,
        "weighted maps of the predictions": 120,
    }
    assert all(done == sorted(done) for done in told.values())


def test_the_truth_is_read_from_an_entry_folder(tmp_path: Path) -> None:
    folder = small_entry(tmp_path, num_particles=20)
    truth = truth_of(folder)
    assert evaluate_poses(truth, truth, symmetry="C1").coverage[2].num_predicted == 20
