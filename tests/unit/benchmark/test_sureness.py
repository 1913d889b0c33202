"""Confidences are held against the truth by kind, and junk is told apart by rank, not by calibration."""

import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cesped_stream.benchmark.sureness import Sureness, how_sure
from cesped_stream.calibration.metrics import probability_figures
from cesped_stream.conventions import rotation_to_euler_deg
from cesped_stream.particles.table import OpticsGroup, ParticleTable

NUMBER = 3000
ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
OPTICS = OpticsGroup((("rlnOpticsGroupName", "a"), ("rlnImagePixelSize", "4.0")))


def table(rotations: np.ndarray, **columns: list[str]) -> ParticleTable:
    angles = rotation_to_euler_deg(rotations)
    names = [f"{k + 1:06d}@s.mrcs" for k in range(len(rotations))]
    rows = [
        (names[k], *(f"{a:.6f}" for a in angles[k]), *(v[k] for v in columns.values())) for k in range(len(rotations))
    ]
    return ParticleTable(("rlnImageName", *ANGLES, *columns), rows, (OPTICS,), np.zeros(len(rows), np.int64))


class Answers:
    """Rows whose confidence is their true chance of lying 2 deg off; the others lie 40 deg off. A fifth is junk."""

    def __init__(self, kind: list[str] | None = None, *, junk: bool = True) -> None:
        rng = np.random.default_rng(4)
        rotations = Rotation.random(NUMBER, random_state=rng).as_matrix()
        self.junk = rng.random(NUMBER) < (0.2 if junk else 0)
        self.confidence = np.where(self.junk, rng.beta(1, 4, NUMBER), rng.beta(3, 1, NUMBER)).round(6)
        self.right = (rng.random(NUMBER) < self.confidence) & ~self.junk
        turns = Rotation.from_rotvec(np.deg2rad(np.where(self.right, 2.0, 40.0))[:, None] * [[0, 1, 0]]).as_matrix()
        self.above = np.where(self.junk, rng.normal(0, 1, NUMBER), rng.normal(6, 2, NUMBER))
        names = {"cestreamKind": ["ice" if j else "particle" for j in self.junk]} if junk else {}
        self.truth = table(rotations, **names)
        self.rows = table(
            rotations @ turns,
            cestreamStatus=["predicted"] * NUMBER,
            cestreamProposer=["gallery+refinement"] * NUMBER,
            cestreamConfidence=[f"{c:.6f}" for c in self.confidence],
            cestreamConfidenceKind=kind or ["calibrated"] * NUMBER,
            cestreamAboveNoise=[f"{a:.4f}" for a in self.above],
            cestreamClipped=["shift", "no", "no", "no"] * (NUMBER // 4),
        )

    def measured(self) -> Sureness:
        found = how_sure(self.rows, self.truth, "C1")
        assert found is not None
        return found


def test_a_calibrated_confidence_has_the_figures_of_its_particles() -> None:
    answers = Answers()
    (figures,) = answers.measured().confidence
    own = ~answers.junk
    assert figures.kind == "calibrated"
    assert figures.particles == probability_figures(answers.confidence[own], answers.right[own])
    assert figures.particles is not None and figures.with_junk is not None and figures.curve is not None
    assert figures.particles.expected_calibration_error < 3 * figures.particles.expected_noise
    assert figures.curve.count.sum() == own.sum()
    assert figures.with_junk.num_particles == NUMBER
    assert figures.with_junk.expected_calibration_error > 0.02, "junk is wrong, whatever its confidence"


def test_junk_is_told_by_rank_of_confidence_and_of_fit() -> None:
    answers = Answers()
    found = answers.measured()
    assert (found.num_junk, found.num_particles) == (answers.junk.sum(), (~answers.junk).sum())
    assert found.above_noise_auc is not None and found.above_noise_auc > 0.98
    junk_auc = found.confidence[0].junk_auc
    assert junk_auc is not None and 0.9 < junk_auc < found.above_noise_auc
    assert [len(values) for values in found.above_noise] == [found.num_particles, found.num_junk]


def test_without_stated_junk_nothing_is_said_of_it() -> None:
    found = Answers(junk=False).measured()
    assert found.above_noise_auc is None
    assert found.num_junk == 0
    assert (found.confidence[0].with_junk, found.confidence[0].junk_auc) == (None, None)


def test_each_kind_has_figures_of_its_own_rows() -> None:
    found = Answers(["mass"] * 1000 + ["calibrated"] * (NUMBER - 1000)).measured()
    assert [figures.kind for figures in found.confidence] == ["calibrated", "mass"]
    assert [figures.to_json()["calibrated"] for figures in found.confidence] == [True, False]
    numbers = [figures.with_junk.num_particles for figures in found.confidence if figures.with_junk]
    assert numbers == [NUMBER - 1000, 1000]


def test_the_figures_are_json_and_count_what_clipped() -> None:
    content = json.loads(json.dumps(Answers().measured().to_json(), allow_nan=False))
    assert content["clipped"] == {"num_refined": NUMBER, "angle": 0, "shift": NUMBER // 4, "both": 0, "share": 0.25}
    assert content["confidence"]["calibrated"]["reliability"]["count"]


def test_a_pose_is_right_within_the_degrees_that_were_asked() -> None:
    answers = Answers(junk=False)
    wide = how_sure(answers.rows, answers.truth, "C1", within_deg=45.0)
    assert wide is not None and wide.confidence[0].particles is not None
    assert wide.confidence[0].particles.base_rate == 1.0


def test_rows_that_are_given_unposed_foreign_or_doubled_are_not_measured() -> None:
    answers = Answers(junk=False)
    status = ["given"] * 10 + ["nan"] * 10 + ["predicted"] * (NUMBER - 20)
    rows = answers.rows.with_columns({"cestreamStatus": status}).select([*range(NUMBER), *range(NUMBER)])
    found = how_sure(rows, answers.truth.select(range(NUMBER - 5)), "C1")
    assert found is not None and found.num_particles == NUMBER - 25
    assert sum(found.tally.by_proposer.values()) == NUMBER - 25
    assert how_sure(rows.select(range(20)), answers.truth, "C1") is None


def test_a_truth_without_poses_leaves_junk_and_edges() -> None:
    answers = Answers()
    found = how_sure(answers.rows, answers.truth.without(list(ANGLES)), "C1")
    assert found is not None and found.confidence[0].particles is None
    assert found.confidence[0].junk_auc == pytest.approx(answers.measured().confidence[0].junk_auc)


def test_rows_of_another_tool_say_nothing() -> None:
    answers = Answers()
    assert how_sure(answers.rows.without(["cestreamConfidenceKind"]), answers.truth, "C1") is None
