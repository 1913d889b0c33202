"""Predictions are matched by image, never by order; what is not there is counted, what is foreign is named."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.scored import turned, with_rotations

from cesped_stream.benchmark.predictions import (
    PredictionType,
    complete_views,
    completed_table,
    match_predictions,
    predicted_rotations,
    prediction_confidence,
    read_predictions,
)
from cesped_stream.errors import InvalidSettingsError, InvalidStarError
from cesped_stream.particles.star import write_star
from cesped_stream.particles.table import OpticsGroup, ParticleTable
from cesped_stream.so3.distance import angular_error_deg, view_error_deg
from cesped_stream.so3.symmetry import group_rotations

OPTICS = OpticsGroup((("rlnOpticsGroupName", "a"), ("rlnImagePixelSize", "2.0"), ("rlnVoltage", "300")))
SO3, S2 = PredictionType.SO3, PredictionType.S2


def truth(count: int = 8) -> ParticleTable:
    labels = ("rlnImageName", "rlnOriginXAngst", "rlnOriginYAngst", "rlnRandomSubset", "rlnParticleFigureOfMerit")
    rows = [
        (f"{k // 2 + 1:06d}@Extract/particles_{k % 2}.mrcs", f"{k}.5", "-1.0", str(k % 2 + 1), "0.9")
        for k in range(count)
    ]
    table = ParticleTable(labels, rows, (OPTICS,), np.zeros(count, np.int64), "truth.star")
    poses = Rotation.random(count, random_state=np.random.default_rng(1)).as_matrix()
    return with_rotations(table.with_columns({label: ["0"] * count for label in ("rlnAngleRot",)}), poses)


def renamed(table: ParticleTable, old: str, new: str) -> ParticleTable:
    return table.with_columns({"rlnImageName": [n.replace(old, new) for n in table.column("rlnImageName")]})


def test_order_does_not_matter() -> None:
    known = truth()
    order = np.random.default_rng(0).permutation(len(known))
    matched = match_predictions(known, turned(known, 7.0).select(order), SO3)
    errors = angular_error_deg(matched.truth.rotations(), matched.predicted.rotations(), group_rotations("C1"))
    np.testing.assert_allclose(errors, 7.0, atol=1e-4)
    assert matched.rows.tolist() == list(range(8))


def test_partial_predictions_are_counted_per_half() -> None:
    known = truth()
    matched = match_predictions(known, known.select([0, 2, 4, 5]), SO3)
    assert [(one.half_set, one.num_particles, one.num_predicted) for one in matched.coverage] == [
        (0, 4, 3),
        (1, 4, 1),
        (None, 8, 4),
    ]
    assert [one.share for one in matched.coverage] == [0.75, 0.25, 0.5]
    assert matched.truth.column("rlnImageName") == [known.column("rlnImageName")[k] for k in (0, 2, 4, 5)]


def test_unset_angles_are_no_prediction() -> None:
    known = truth()
    unset = known.with_columns({"rlnAngleTilt": ["-999.0" if k == 3 else "10" for k in range(8)]})
    assert match_predictions(known, unset, SO3).rows.tolist() == [0, 1, 2, 4, 5, 6, 7]


def test_given_poses_are_no_prediction() -> None:
    known = truth()
    status = known.with_columns({"cestreamStatus": ["given"] * 3 + ["predicted"] * 5})
    coverage = match_predictions(known, status, SO3).coverage[2]
    assert (coverage.num_particles, coverage.num_predicted, coverage.num_given) == (5, 5, 3)


def test_junk_is_counted_apart() -> None:
    known = truth().with_columns({"cestreamKind": ["particle"] * 6 + ["ice", "edge"]})
    matched = match_predictions(known, known.select(range(7)), SO3)
    coverage = matched.coverage[2]
    assert (coverage.num_particles, coverage.num_predicted) == (6, 6)
    assert (coverage.num_junk, coverage.num_junk_predicted) == (2, 1)
    assert matched.is_particle.tolist() == [True] * 6 + [False]


def test_foreign_particles_are_an_error_that_names_them() -> None:
    known = truth()
    foreign = known.with_columns(
        {"rlnImageName": [*known.column("rlnImageName")[:7], "000077@Extract/particles_1.mrcs"]}
    )
    with pytest.raises(InvalidStarError, match=r"1 row \('000077@Extract/particles_1.mrcs'\) not in the truth"):
        match_predictions(known, foreign, SO3)


def test_doubled_predictions_are_an_error_that_names_them() -> None:
    known = truth()
    with pytest.raises(InvalidStarError, match=r"2 rows \('000002@.*predicted more than once"):
        match_predictions(known, known.select([0, 1, 2, 2]), SO3)


@pytest.mark.parametrize("folder", ["./Extract/", "/data/session/", ""])
def test_another_folder_is_the_same_stack_where_its_file_name_is_unique(folder: str) -> None:
    known = truth()
    assert len(match_predictions(known, renamed(known, "Extract/", folder), SO3).rows) == 8


def test_another_folder_is_no_stack_of_the_truth_where_its_file_name_is_not_unique() -> None:
    known = truth()
    twice = renamed(known, "particles_1", "other/particles_0")
    with pytest.raises(InvalidStarError, match="not in the truth"):
        match_predictions(twice, renamed(twice, "Extract/particles_0", "moved/particles_0"), SO3)
    with pytest.raises(InvalidStarError, match="not in the truth"):
        mixed = [f"{name.split('@')[0]}@{k}/particles_0.mrcs" for k, name in enumerate(known.column("rlnImageName"))]
        match_predictions(known, known.with_columns({"rlnImageName": mixed}), SO3)


def test_columns_that_the_type_needs_are_asked_for() -> None:
    known = truth()
    bare = known.without(["rlnOriginXAngst", "rlnOriginYAngst"])
    assert len(match_predictions(known, bare, SO3).rows) == 8
    with pytest.raises(InvalidStarError, match=r"rlnOriginXAngst, rlnOriginYAngst.*SO3xR2"):
        match_predictions(known, bare, PredictionType.SO3xR2)
    with pytest.raises(InvalidStarError, match="rlnAnglePsi"):
        match_predictions(known, known.without(["rlnAnglePsi"]), SO3)
    assert len(match_predictions(known, known.without(["rlnAnglePsi"]), S2).rows) == 8


def test_a_truth_without_a_pose_is_refused() -> None:
    known = truth()
    holed = known.with_columns({"rlnAngleRot": ["999", *known.column("rlnAngleRot")[1:]]})
    with pytest.raises(InvalidStarError, match=r"truth.star: 1 row .* without a pose"):
        match_predictions(holed, known, SO3)


@pytest.mark.parametrize("symmetry", ["C1", "D2"])
def test_a_completed_view_is_off_by_its_view_alone(symmetry: str) -> None:
    group = group_rotations(symmetry)
    rng = np.random.default_rng(2)
    true = Rotation.random(200, random_state=rng).as_matrix()
    predicted = group[rng.integers(len(group), size=200)] @ true
    views = (Rotation.from_rotvec(rng.normal(0, 0.1, (200, 3))).as_matrix() @ predicted)[:, :, 2]
    views[0], views[1] = true[0, :, 2], -true[1, :, 2]
    completed = complete_views(true, views, group)
    np.testing.assert_allclose(completed[:, :, 2], views, atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(completed), 1.0)
    error, view = angular_error_deg(true, completed, group), view_error_deg(true, completed, group)
    np.testing.assert_allclose(error[2:], view[2:], atol=1e-6)
    assert error[0] < 1e-6
    assert 1.0 < np.median(error) < 15.0


def test_views_take_their_in_plane_angle_from_the_truth() -> None:
    known = truth()
    predicted = known.with_columns({"rlnAnglePsi": ["33.0"] * 8})
    matched = match_predictions(known, predicted, S2)
    rotations = predicted_rotations(matched, S2, group_rotations("C1"))
    np.testing.assert_allclose(rotations, known.rotations(), atol=1e-9)
    np.testing.assert_allclose(completed_table(matched, rotations, S2).rotations(), known.rotations(), atol=1e-7)


def test_shifts_are_the_truths_unless_they_were_predicted() -> None:
    known = truth()
    predicted = turned(known, 3.0).with_columns({"rlnOriginXAngst": ["9.25"] * 8})
    for kind, expected in ((SO3, "0.5"), (PredictionType.SO3xR2, "9.25")):
        matched = match_predictions(known, predicted, kind)
        table = completed_table(matched, predicted.rotations(), kind)
        assert table.column("rlnOriginXAngst")[0] == expected
        assert table.column("rlnAngleRot") == predicted.column("rlnAngleRot")
        assert "rlnParticleFigureOfMerit" not in table


def test_our_confidence_goes_before_a_figure_of_merit() -> None:
    table = truth().with_columns({"cestreamConfidence": ["0.25"] * 8})
    found, bare = prediction_confidence(table), truth().without(["rlnParticleFigureOfMerit"])
    assert found is not None
    assert (found[1], found[0][0]) == ("cestreamConfidence", 0.25)
    merit = prediction_confidence(truth())
    assert merit is not None
    assert merit[1] == "rlnParticleFigureOfMerit"
    assert prediction_confidence(bare) is None


def test_a_negative_figure_of_merit_is_no_confidence() -> None:
    with pytest.raises(InvalidStarError, match="rlnParticleFigureOfMerit has values that are negative"):
        prediction_confidence(truth().with_columns({"rlnParticleFigureOfMerit": ["-2.0"] * 8}))


def test_two_stars_of_the_halves_are_read_as_one(tmp_path: Path) -> None:
    known = truth()
    write_star(tmp_path / "one.star", known)
    for half in (0, 1):
        write_star(tmp_path / f"{half}.star", known.select(range(half, 8, 2)))
    both = read_predictions([tmp_path / "0.star", tmp_path / "1.star"])
    assert sorted(both.rows) == sorted(read_predictions([tmp_path / "one.star"]).rows)


def test_one_star_given_as_both_halves_is_told(tmp_path: Path) -> None:
    write_star(tmp_path / "0.star", truth())
    (tmp_path / "link.star").symlink_to("0.star")
    for second in ("0.star", "link.star", "../" + tmp_path.name + "/0.star"):
        with pytest.raises(InvalidSettingsError, match="the same star is given twice"):
            read_predictions([tmp_path / "0.star", tmp_path / second])


def test_a_half_without_shifts_beside_one_with_them_is_refused(tmp_path: Path) -> None:
    known = truth()
    write_star(tmp_path / "0.star", known.select([0, 2]))
    write_star(tmp_path / "1.star", known.select([1, 3]).without(["rlnOriginXAngst"]))
    with pytest.raises(InvalidStarError, match=r"1.star: no column rlnOriginXAngst"):
        read_predictions([tmp_path / "0.star", tmp_path / "1.star"])


def test_relion_30_predictions_are_read_in_angstrom(tmp_path: Path) -> None:
    star = tmp_path / "old.star"
    labels = ("rlnImageName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginX", "rlnOriginY")
    labels += ("rlnVoltage", "rlnMagnification", "rlnDetectorPixelSize")
    header = "\n".join(["", "data_", "", "loop_", *(f"_{label}" for label in labels), ""])
    star.write_text(header + "000001@Extract/particles_0.mrcs 10 20 30 2.0 -1.0 300 10000 1.5\n\n")
    table = read_predictions([star])
    assert table.shifts_angstrom().tolist() == [[3.0, -1.5]]
    assert len(match_predictions(truth(), table, PredictionType.SO3xR2).rows) == 1
