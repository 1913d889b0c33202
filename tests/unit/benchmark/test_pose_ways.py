"""Each way of making poses has its own figures, and none that another way made."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cesped_stream.benchmark.compare import Comparison, compare
from cesped_stream.benchmark.plan import ROLE_LABEL
from cesped_stream.benchmark.pose_ways import errors_of_ways, inferred_rows, limit_of_noise, proposers_of
from cesped_stream.conventions import euler_deg_to_rotation, rotation_to_euler_deg
from cesped_stream.inference import PoseBatch
from cesped_stream.particles.table import OpticsGroup, ParticleTable

NUMBER, REFINED_DEG, GALLERY_DEG = 12, 2.0, 6.0
ORIGINS = ("rlnOriginXAngst", "rlnOriginYAngst")
OPTICS = OpticsGroup((("rlnOpticsGroupName", "a"), ("rlnImagePixelSize", "4.0")))


def turned(rotations: np.ndarray, degrees: float) -> np.ndarray:
    return rotations @ euler_deg_to_rotation(np.full(len(rotations), degrees), 0, 0)


def table(rotations: np.ndarray, **columns: list[str]) -> ParticleTable:
    angles = rotation_to_euler_deg(rotations)
    rows = [
        (f"{k + 1:06d}@s.mrcs", *(f"{a:.9f}" for a in angles[k]), *(values[k] for values in columns.values()))
        for k in range(len(rotations))
    ]
    labels = ("rlnImageName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", *columns)
    return ParticleTable(labels, rows, (OPTICS,), np.zeros(len(rows), np.int64))


@pytest.fixture
def truth() -> ParticleTable:
    rotations = Rotation.random(NUMBER, random_state=np.random.default_rng(5)).as_matrix()
    roles = {ROLE_LABEL: ["aligned"] * 2 + ["streamed"] * (NUMBER - 2)}
    origins = dict.fromkeys(ORIGINS, ["1.0"] * NUMBER)
    return table(rotations, rlnRandomSubset=["1", "2"] * (NUMBER // 2), **origins, **roles)


def exported(truth: ParticleTable, proposer: str, origin: str = "4.0") -> ParticleTable:
    """The truth in another order, refined 2 deg off, the gallery's first mode 6 deg off, both shifts 3 A off."""
    rotations = truth.rotations()
    modes = rotation_to_euler_deg(turned(rotations, GALLERY_DEG))
    status = ["given"] * 2 + ["predicted"] * (NUMBER - 2)
    made = table(
        turned(rotations, REFINED_DEG),
        **dict.fromkeys(ORIGINS, [origin] * NUMBER),
        cestreamStatus=status,
        cestreamProposer=[proposer if word == "predicted" else "given" for word in status],
        cestreamTopPoses=[f"[{a:.6f},{b:.6f},{c:.6f},0.9,1,2,3,0.1]" for a, b, c in modes],
    )
    return made.select(np.random.default_rng(1).permutation(NUMBER))


def compared(truth: ParticleTable, proposer: str) -> tuple[Comparison, ParticleTable | None]:
    found = exported(truth, proposer)
    comparison = compare([found], truth, "C1")
    return comparison, inferred_rows(comparison, [found])


def test_rows_of_references_have_refined_and_gallery_figures(truth: ParticleTable) -> None:
    comparison, rows = compared(truth, "gallery+refinement")
    assert rows is not None and proposers_of(rows) == "gallery+refinement"
    assert rows.column("rlnImageName") == truth.column("rlnImageName")[2:]
    figures = errors_of_ways(comparison, rows)
    assert figures["refined_median_angular_error_deg"] == pytest.approx(REFINED_DEG, abs=1e-4)
    assert figures["refined_mean_angular_error_deg"] == pytest.approx(REFINED_DEG, abs=1e-4)
    assert figures["gallery_median_angular_error_deg"] == pytest.approx(GALLERY_DEG, abs=1e-4)
    assert figures["refined_fraction_within_5_deg"] == 1.0
    assert figures["refined_shift_error_angstrom"] == pytest.approx(3 * 2**0.5)
    assert figures["network_median_angular_error_deg"] is None


def test_rows_of_networks_have_the_networks_figure_alone(truth: ParticleTable) -> None:
    figures = errors_of_ways(*compared(truth, "image2sphere"))
    assert figures.pop("network_median_angular_error_deg") == pytest.approx(REFINED_DEG, abs=1e-4)
    assert set(figures.values()) == {None}


def test_nothing_is_told_of_rows_that_are_not_there(truth: ParticleTable) -> None:
    comparison, _ = compared(truth, "image2sphere")
    assert inferred_rows(comparison, []) is None
    assert proposers_of(None) == ""
    assert set(errors_of_ways(comparison, None).values()) == {None}


def test_the_limit_starts_from_the_true_poses(truth: ParticleTable) -> None:
    comparison, _ = compared(truth, "gallery+refinement")
    seen: list[ParticleTable] = []

    def refined(rows: ParticleTable) -> PoseBatch:
        seen.append(rows)
        poses = PoseBatch.empty(len(rows), 1)
        poses.rotation[:] = turned(rows.rotations(), 1.0)
        poses.flag[0] = 1
        return poses

    figures = limit_of_noise(comparison, refined, comparison.truth)
    np.testing.assert_allclose(seen[0].rotations(), comparison.true_rotations, atol=1e-6)
    assert figures["limit_median_angular_error_deg"] == pytest.approx(1.0, abs=1e-4)
    assert figures["limit_fraction_within_5_deg"] == 1.0
