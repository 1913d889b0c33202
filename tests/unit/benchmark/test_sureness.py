"""Confidences are held against the truth by kind, and junk is told apart by rank, not by calibration."""

import json

import pytest
from support.sure_rows import ANGLES, NUMBER, SureRows

from cesped_stream.benchmark.sureness import how_sure
from cesped_stream.calibration.metrics import probability_figures


def test_a_calibrated_confidence_has_the_figures_of_its_particles() -> None:
    answers = SureRows()
    (figures,) = answers.measured().confidence
    own = ~answers.junk
    assert figures.kind == "calibrated"
    assert figures.particles == probability_figures(answers.confidence[own], answers.right[own])
    assert figures.particles is not None and figures.with_junk is not None and figures.curve is not None
    assert figures.particles.expected_calibration_error < 3 * figures.particles.expected_noise
    assert figures.curve.count.sum() == own.sum()
    assert [len(values) for values in figures.values] == [
        answers.right.sum(), (own & ~answers.right).sum(), answers.junk.sum()
    ]  # fmt: skip
    assert figures.with_junk.num_particles == NUMBER
    assert figures.with_junk.expected_calibration_error > 0.02, "junk is wrong, whatever its confidence"


def test_junk_is_told_by_rank_of_confidence_and_of_fit() -> None:
    answers = SureRows()
    found = answers.measured()
    assert (found.num_junk, found.num_particles) == (answers.junk.sum(), (~answers.junk).sum())
    assert found.above_noise_auc is not None and found.above_noise_auc > 0.98
    junk_auc = found.confidence[0].junk_auc
    assert junk_auc is not None and 0.9 < junk_auc < found.above_noise_auc
    assert [len(values) for values in found.above_noise] == [found.num_particles, found.num_junk]


def test_without_stated_junk_nothing_is_said_of_it() -> None:
    found = SureRows(junk=False).measured()
    assert found.above_noise_auc is None
    assert found.num_junk == 0
    assert (found.confidence[0].with_junk, found.confidence[0].junk_auc) == (None, None)


def test_each_kind_has_figures_of_its_own_rows() -> None:
    found = SureRows(["mass"] * 1000 + ["calibrated"] * (NUMBER - 1000)).measured()
    assert [figures.kind for figures in found.confidence] == ["calibrated", "mass"]
    assert [figures.to_json()["calibrated"] for figures in found.confidence] == [True, False]
    numbers = [figures.with_junk.num_particles for figures in found.confidence if figures.with_junk]
    assert numbers == [NUMBER - 1000, 1000]


def test_the_figures_are_json_and_count_what_clipped() -> None:
    content = json.loads(json.dumps(SureRows().measured().to_json(), allow_nan=False))
    assert content["clipped"] == {"num_refined": NUMBER, "angle": 0, "shift": NUMBER // 4, "both": 0, "share": 0.25}
    assert content["confidence"]["calibrated"]["reliability"]["count"]


def test_a_pose_is_right_within_the_degrees_that_were_asked() -> None:
    answers = SureRows(junk=False)
    wide = how_sure(answers.rows, answers.truth, "C1", within_deg=45.0)
    assert wide is not None and wide.confidence[0].particles is not None
    assert wide.confidence[0].particles.base_rate == 1.0


def test_rows_that_are_given_unposed_foreign_or_doubled_are_not_measured() -> None:
    answers = SureRows(junk=False)
    status = ["given"] * 10 + ["nan"] * 10 + ["predicted"] * (NUMBER - 20)
    rows = answers.rows.with_columns({"cestreamStatus": status}).select([*range(NUMBER), *range(NUMBER)])
    found = how_sure(rows, answers.truth.select(range(NUMBER - 5)), "C1")
    assert found is not None and found.num_particles == NUMBER - 25
    assert sum(found.tally.by_proposer.values()) == NUMBER - 25
    assert how_sure(rows.select(range(20)), answers.truth, "C1") is None


def test_a_truth_without_poses_leaves_junk_and_edges() -> None:
    answers = SureRows()
    found = how_sure(answers.rows, answers.truth.without(list(ANGLES)), "C1")
    assert found is not None and found.confidence[0].particles is None
    assert found.confidence[0].junk_auc == pytest.approx(answers.measured().confidence[0].junk_auc)


def test_rows_of_another_tool_say_nothing() -> None:
    answers = SureRows()
    assert how_sure(answers.rows.without(["cestreamConfidenceKind"]), answers.truth, "C1") is None
