"""Lost, doubled and foreign particles are found by identity; errors are those of the streamed particles only."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cesped_stream.benchmark.compare import Comparison, compare
from cesped_stream.benchmark.plan import ROLE_LABEL
from cesped_stream.conventions import euler_deg_to_rotation, rotation_to_euler_deg
from cesped_stream.particles.table import OpticsGroup, ParticleTable

OPTICS = OpticsGroup((("rlnOpticsGroupName", "a"), ("rlnImagePixelSize", "4.0")))
ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
ALIGNED, STREAMED = 4, 12


def table(names: list[str], rotations: np.ndarray, **columns: list[str]) -> ParticleTable:
    angles = rotation_to_euler_deg(rotations)
    rows = [
        (name, *(f"{angle:.9f}" for angle in angles[k]), *(values[k] for values in columns.values()))
        for k, name in enumerate(names)
    ]
    return ParticleTable(("rlnImageName", *ANGLES, *columns), rows, (OPTICS,), np.zeros(len(rows), np.int64))


@pytest.fixture
def truth() -> ParticleTable:
    number = ALIGNED + STREAMED
    return table(
        [f"{k + 1:06d}@stack.mrcs" for k in range(number)],
        Rotation.random(number, random_state=np.random.default_rng(5)).as_matrix(),
        rlnRandomSubset=["1", "2"] * (number // 2),
        rlnMaxValueProbDistribution=["0.25" if k < ALIGNED + 6 else "0.75" for k in range(number)],
        **{ROLE_LABEL: ["aligned"] * ALIGNED + ["streamed"] * STREAMED},
    )


def exported(truth: ParticleTable, turn_deg: float = 0.0) -> ParticleTable:
    """All rows; streamed ones turned in plane by `turn_deg`, the last six of them by three times that."""
    turns = np.where(np.arange(len(truth)) < ALIGNED, 0.0, turn_deg)
    turns[ALIGNED + 6 :] *= 3
    rotations = truth.rotations() @ euler_deg_to_rotation(turns, 0, 0)
    names = [name.lstrip("0") for name in truth.column("rlnImageName")]
    status = ["given"] * ALIGNED + ["predicted"] * STREAMED
    return table(names, rotations, cestreamStatus=status)


def counts(comparison: Comparison) -> dict[str, int]:
    return {key: value for key, value in vars(comparison.counts).items() if value}


def test_a_perfect_session_has_nothing_lost_or_doubled_and_no_error(truth: ParticleTable) -> None:
    comparison = compare([exported(truth)], truth, "C1")
    assert counts(comparison) == {"landed": 16, "aligned": 4, "streamed": 12, "inferred": 12}
    assert comparison.errors_deg.max() < 1e-5


def test_errors_are_measured_per_half_and_weighted_by_the_truths_confidence(truth: ParticleTable) -> None:
    comparison = compare([exported(truth, 10.0)], truth, "C1")
    assert comparison.metrics is not None
    together = comparison.metrics.together
    assert together.mean_deg == pytest.approx(20.0)
    assert together.weighted_mean_deg == pytest.approx((0.25 * 10 + 0.75 * 30) / 1.0)
    assert together.num_particles == 12
    assert [len(errors) for errors in comparison.errors_by_half_deg()] == [6, 6]
    assert np.allclose(comparison.view_errors_deg, 0, atol=1e-4)
    assert np.allclose(comparison.in_plane_errors_deg, comparison.errors_deg, atol=1e-4)


def test_a_symmetry_mate_is_no_error(truth: ParticleTable) -> None:
    half_turn = euler_deg_to_rotation(180, 0, 0)
    mates = exported(truth)
    turned = table(
        mates.column("rlnImageName"), half_turn @ mates.rotations(), cestreamStatus=mates.column("cestreamStatus")
    )
    assert compare([turned], truth, "C2").errors_deg.max() < 1e-5
    assert compare([turned], truth, "C1").errors_deg.min() > 1.0


def test_lost_doubled_and_foreign_particles_are_counted_by_identity(truth: ParticleTable) -> None:
    whole = exported(truth)
    twice = whole.select([*range(2, 16), 5, 5])
    stranger = table(["000001@other.mrcs"], whole.rotations()[:1], cestreamStatus=["predicted"])
    comparison = compare([twice, stranger], truth, "C1")
    assert counts(comparison) == {
        "landed": 16, "aligned": 4, "streamed": 12, "inferred": 12, "lost": 2, "doubled": 2, "foreign": 1,
    }  # fmt: skip


def test_a_row_without_a_pose_is_neither_inferred_nor_lost(truth: ParticleTable) -> None:
    whole = exported(truth)
    posed, flagged = whole.select(range(15)), whole.select([15]).without(ANGLES)
    flagged = flagged.with_columns({"cestreamStatus": ["nan"]})
    comparison = compare([posed, flagged], truth, "C1")
    assert counts(comparison) == {"landed": 16, "aligned": 4, "streamed": 12, "inferred": 11, "unposed": 1}


def test_an_aligned_row_that_comes_out_predicted_is_not_counted_as_inferred(truth: ParticleTable) -> None:
    whole = exported(truth).with_columns({"cestreamStatus": ["predicted"] * 16})
    assert compare([whole], truth, "C1").counts.inferred == STREAMED


def test_a_session_that_inferred_nothing_has_counts_and_no_metrics(truth: ParticleTable) -> None:
    comparison = compare([exported(truth).select(range(ALIGNED))], truth, "C1")
    assert counts(comparison) == {"landed": 16, "aligned": 4, "streamed": 12, "lost": 12}
    assert comparison.metrics is None


def test_junk_is_counted_and_its_pose_is_not_measured(truth: ParticleTable) -> None:
    kinds = ["particle"] * (ALIGNED + 6) + ["ice"] * 6
    comparison = compare([exported(truth, 10.0)], truth.with_columns({"cestreamKind": kinds}), "C1")
    assert comparison.counts.inferred == STREAMED
    np.testing.assert_allclose(comparison.errors_deg, 10.0, atol=1e-4)  # the last six are 30 degrees off
    assert comparison.metrics is not None
    assert comparison.metrics.together.num_particles == 6
