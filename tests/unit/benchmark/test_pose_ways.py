"""Each way of making poses has its own figures, and none that another way made."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cesped_stream.benchmark.compare import Comparison, compare
from cesped_stream.benchmark.plan import ROLE_LABEL
from cesped_stream.benchmark.pose_ways import (
    errors_of_ways,
    inferred_rows,
    limit_of_noise,
    proposers_of,
    references_of,
)
from cesped_stream.conventions import euler_deg_to_rotation, rotation_to_euler_deg
from cesped_stream.inference import PoseBatch
from cesped_stream.particles.own_columns import list_cell
from cesped_stream.particles.table import OpticsGroup, ParticleTable

NUMBER, STREAMED = 12, 10
REFINED_DEG, GALLERY_DEG, NETWORK_DEG = 2.0, 6.0, 10.0
NETWORK, GALLERY, BOTH = "image2sphere", "gallery+refinement", "network+gallery+refinement"
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


def exported(truth: ParticleTable, proposers: Sequence[str], origin: str = "4.0") -> ParticleTable:
    """The truth in another order: refined 2 deg off, the gallery's own pose 6, the network's 10, shifts 3 A off in x
    and y. `proposers` are of the streamed rows; a network alone answers 10 deg off."""
    rotations, made = truth.rotations(), ["given"] * 2 + list(proposers)
    answered = turned(rotations, REFINED_DEG)
    alone = np.array([name == NETWORK for name in made])
    answered[alone] = turned(rotations, NETWORK_DEG)[alone]
    table_ = table(
        answered,
        **dict.fromkeys(ORIGINS, [origin] * NUMBER),
        cestreamStatus=["given"] * 2 + ["predicted"] * (NUMBER - 2),
        cestreamProposer=made,
        cestreamNetworkPose=cells(turned(rotations, NETWORK_DEG), [name == BOTH for name in made]),
        cestreamGalleryPose=cells(turned(rotations, GALLERY_DEG), [name in (BOTH, GALLERY) for name in made]),
    )
    return table_.select(np.random.default_rng(1).permutation(NUMBER))


def cells(rotations: np.ndarray, asked: Sequence[bool]) -> list[str]:
    angles = rotation_to_euler_deg(rotations)
    return [list_cell(angles[k]) if told else "[]" for k, told in enumerate(asked)]


def compared(truth: ParticleTable, proposers: Sequence[str]) -> tuple[Comparison, ParticleTable | None]:
    found = exported(truth, proposers)
    comparison = compare([found], truth, "C1")
    return comparison, inferred_rows(comparison, [found])


def test_rows_of_references_have_refined_and_gallery_figures(truth: ParticleTable) -> None:
    comparison, rows = compared(truth, [GALLERY] * STREAMED)
    assert rows is not None and proposers_of(rows) == GALLERY
    assert rows.column("rlnImageName") == truth.column("rlnImageName")[2:]
    figures = errors_of_ways(comparison, rows)
    assert figures["refined_median_angular_error_deg"] == pytest.approx(REFINED_DEG, abs=1e-4)
    assert figures["refined_mean_angular_error_deg"] == pytest.approx(REFINED_DEG, abs=1e-4)
    assert figures["gallery_median_angular_error_deg"] == pytest.approx(GALLERY_DEG, abs=1e-4)
    assert (figures["refined_fraction_within_5_deg"], figures["gallery_fraction_within_5_deg"]) == (1.0, 0.0)
    assert figures["refined_shift_error_angstrom"] == pytest.approx(3 * 2**0.5)
    assert figures["network_median_angular_error_deg"] is None


def test_rows_of_networks_have_the_networks_figures_alone(truth: ParticleTable) -> None:
    figures = errors_of_ways(*compared(truth, [NETWORK] * STREAMED))
    assert figures["network_median_angular_error_deg"] == pytest.approx(NETWORK_DEG, abs=1e-4)
    assert {value for key, value in figures.items() if key.startswith(("gallery_", "refined_"))} == {None, 0}


def test_one_run_has_the_figures_of_every_way_and_of_each_proposers_rows(truth: ParticleTable) -> None:
    """First the gallery alone, later both: the network's figures are of the later rows, and it is said of how many."""
    figures = errors_of_ways(*compared(truth, [GALLERY] * 4 + [BOTH] * (STREAMED - 4)))
    for way, degrees, number in (
        ("network", NETWORK_DEG, STREAMED - 4),
        ("gallery", GALLERY_DEG, STREAMED),
        ("refined", REFINED_DEG, STREAMED),
    ):
        assert figures[f"{way}_median_angular_error_deg"] == pytest.approx(degrees, abs=1e-4)
        assert figures[f"{way}_num_particles"] == number
    alone, both = (figures["poses_by_proposer"][name] for name in (GALLERY, BOTH))
    assert (alone["num_particles"], alone["network_num_particles"]) == (4, 0)
    assert (both["num_particles"], both["network_num_particles"], both["gallery_num_particles"]) == (6, 6, 6)
    assert both["median_angular_error_deg"] == pytest.approx(REFINED_DEG, abs=1e-4)


def test_rows_that_had_an_earlier_pose_are_counted(truth: ParticleTable) -> None:
    comparison, rows = compared(truth, [GALLERY] * STREAMED)
    assert rows is not None and errors_of_ways(comparison, rows)["num_redone"] == 0
    redone = rows.with_columns({"cestreamRevision": ["0"] * (STREAMED - 3) + ["1", "1", "2"]})
    assert errors_of_ways(comparison, redone)["num_redone"] == 3


def test_rows_without_columns_of_own_poses_tell_their_answer_alone(truth: ParticleTable) -> None:
    comparison, rows = compared(truth, [BOTH] * STREAMED)
    assert rows is not None
    figures = errors_of_ways(comparison, rows.without(["cestreamNetworkPose", "cestreamGalleryPose"]))
    assert (figures["network_num_particles"], figures["gallery_num_particles"]) == (0, 0)
    assert figures["refined_num_particles"] == STREAMED


def test_nothing_is_told_of_rows_that_are_not_there(truth: ParticleTable) -> None:
    comparison, _ = compared(truth, [NETWORK] * STREAMED)
    assert inferred_rows(comparison, []) is None
    assert proposers_of(None) == ""
    figures = errors_of_ways(comparison, None)
    assert figures.pop("poses_by_proposer") == {}
    assert set(figures.values()) == {None, 0}


def test_the_limit_starts_from_the_true_poses(truth: ParticleTable) -> None:
    comparison, _ = compared(truth, [GALLERY] * STREAMED)
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
    assert figures["limit_num_particles"] == STREAMED - 1
    assert limit_of_noise(comparison, None, comparison.truth)["limit_median_angular_error_deg"] is None


def test_references_are_found_where_a_checkpoint_is_one_or_holds_one(tmp_path: Path) -> None:
    kinds = {"refs": "reference", "net": "network", "both": "fused", "both/references": "reference"}
    for folder, kind in kinds.items():
        (tmp_path / folder).mkdir(parents=True)
        listing = {"kind": kind, "checkpoint_id": "x", "halves": {"0": {}, "1": {}}}
        (tmp_path / folder / "manifest.json").write_text(json.dumps(listing))
    assert references_of(tmp_path / "refs") == tmp_path / "refs"
    assert references_of(tmp_path / "net") is None
    assert references_of(tmp_path / "both") == tmp_path / "both" / "references"
