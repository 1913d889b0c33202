"""Predictions written over a data set's poses come back from the star that is saved."""

from pathlib import Path

import numpy as np
import pytest
import starfile
import torch
from samples.particle_entries import simulated_entry
from scipy.spatial.transform import Rotation

from cesped_stream import ParticlesDataset
from cesped_stream.errors import InvalidSettingsError, InvalidStarError, UnreachableFileError
from cesped_stream.particles.star import read_star, write_star
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations


@pytest.fixture
def dataset(tmp_path: Path) -> ParticlesDataset:
    simulated_entry(tmp_path, "own")
    return ParticlesDataset("own", 0, benchmarkDir=tmp_path)


ROTATIONS = Rotation.random(12, random_state=5).as_matrix()


def ids_of(dataset: ParticlesDataset) -> list[str]:
    return [item[0] for item in dataset]


@pytest.mark.parametrize("kind", ["numpy", "torch", "half", "with gradient"])
def test_saved_predictions_are_those_given(tmp_path: Path, dataset: ParticlesDataset, kind: str) -> None:
    make = {
        "numpy": np.asarray,
        "torch": torch.from_numpy,
        "half": lambda a: torch.from_numpy(a).half(),
        "with gradient": lambda a: torch.from_numpy(a).requires_grad_(),
    }[kind]
    shifts, confidence = np.arange(24.0).reshape(12, 2), np.linspace(0, 1, 12)[:, None]
    ids = ids_of(dataset)[::-1]
    dataset.updateMd(ids=ids, angles=make(ROTATIONS), shifts=make(shifts), confidence=make(confidence))
    dataset.saveMd(str(tmp_path / "predictions.star"))
    table = read_star(tmp_path / "predictions.star")
    error = angular_error_deg(table.rotations()[::-1], ROTATIONS, group_rotations("C1"))
    assert error.max() < (0.2 if kind == "half" else 1e-4)
    np.testing.assert_allclose(table.shifts_angstrom()[::-1], shifts, atol=1e-2 if kind == "half" else 1e-6)
    figures = table.numbers("rlnParticleFigureOfMerit")[::-1]
    np.testing.assert_allclose(figures, confidence[:, 0], atol=1e-3 if kind == "half" else 1e-6)
    assert "cestreamStack" not in table


def test_starfile_reads_what_is_saved_and_untouched_columns_are_as_they_were(
    tmp_path: Path, dataset: ParticlesDataset
) -> None:
    before = read_star(Path(dataset.starFname))
    dataset.updateMd(ids_of(dataset)[:1], angles=np.array([[10.0, 20.0, 30.0]]), angles_format="zyzEulerDegs")
    dataset.saveMd(tmp_path / "p.star")
    blocks = starfile.read(tmp_path / "p.star")
    assert set(blocks) == {"optics", "particles"}
    assert blocks["particles"].loc[0, ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]].tolist() == [10, 20, 30]
    after = read_star(tmp_path / "p.star")
    assert after.rows[1:] == before.rows[1:]
    assert after.column("rlnDefocusU") == before.column("rlnDefocusU")
    assert after.optics == before.optics


def test_items_show_what_was_updated(dataset: ParticlesDataset) -> None:
    dataset.update_poses(ids_of(dataset)[2:3], angles=ROTATIONS[:1], shifts=np.array([[3.0, -4.0]]), confidence=[0.5])
    _, _, (rotation, shift, _), metadata = dataset[2]
    np.testing.assert_allclose(rotation, ROTATIONS[0], atol=1e-5)
    assert shift.tolist() == [3.0, -4.0]
    assert metadata["rlnParticleFigureOfMerit"] == 0.5
    assert dataset[1][3]["rlnParticleFigureOfMerit"] == 0.0


def test_zeros_before_an_index_do_not_matter(dataset: ParticlesDataset) -> None:
    dataset.update_poses(["3@particles_0.mrcs"], shifts=np.array([[1.0, 2.0]]))
    assert dataset[2][2][1].tolist() == [1.0, 2.0]


def test_unknown_ids_are_named_and_nothing_is_written(dataset: ParticlesDataset) -> None:
    known = ids_of(dataset)[0]
    with pytest.raises(InvalidStarError, match=r"1 of 2 ids .*'000099@particles_0\.mrcs'"):
        dataset.update_poses([known, "000099@particles_0.mrcs"], shifts=np.ones((2, 2)))
    assert not dataset.md.updated.any()


def test_only_updated_rows_are_saved_where_asked(tmp_path: Path, dataset: ParticlesDataset) -> None:
    ids = ids_of(dataset)
    dataset.update_poses([ids[4], ids[1]], angles=ROTATIONS[:2])
    dataset.save_poses(tmp_path / "some.star", only_updated=True)
    assert read_star(tmp_path / "some.star").column("rlnImageName") == [ids[1], ids[4]]
    dataset.save_poses(tmp_path / "all.star")
    assert read_star(tmp_path / "all.star").column("rlnImageName") == ids


def test_the_pickers_figure_of_merit_is_kept_under_another_name(tmp_path: Path, dataset: ParticlesDataset) -> None:
    table = read_star(Path(dataset.starFname)).with_columns({"rlnParticleFigureOfMerit": ["7.25"] * 12})
    write_star(tmp_path / "own" / "picked.star", table)
    picked = ParticlesDataset.from_star(tmp_path / "own" / "picked.star")
    picked.update_poses(ids_of(picked)[:1], confidence=torch.tensor([[0.25]]))
    picked.save_poses(tmp_path / "p.star")
    saved = read_star(tmp_path / "p.star")
    assert saved.numbers("rlnParticleFigureOfMerit").tolist() == [0.25] + [0.0] * 11
    assert saved.column("cestreamGivenFigureOfMerit") == ["7.25"] * 12


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"angles": np.eye(3)[None] * 2}, "no rotation"),
        ({"angles": np.diag([1.0, 1.0, -1.0])[None]}, "no rotation"),
        ({"angles": np.full((1, 3, 3), np.nan)}, "not finite"),
        ({"angles": np.zeros((1, 3))}, r"angles is \(1, 3\)"),
        ({"shifts": np.zeros((2, 2))}, r"must be \(1, 2\)"),
        ({"confidence": np.zeros((1, 2))}, "one a particle"),
        ({"confidence": np.array([1.5])}, "0 to 1"),
        ({"confidence": np.array([-0.1])}, "0 to 1"),
        ({}, "nothing to update"),
        ({"angles": np.eye(3)[None], "angles_format": "quaternions"}, "rotmat or zyzEulerDegs"),
        ({"shifts": np.zeros((1, 2)), "shifts_format": "pixels"}, "only be Angst"),
    ],
)
def test_what_is_no_prediction_is_refused(dataset: ParticlesDataset, given: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataset.updateMd(ids_of(dataset)[:1], **given)  # type: ignore[arg-type]
    assert not dataset.md.updated.any()


def test_a_star_that_cannot_be_written_is_an_error_of_ours(dataset: ParticlesDataset, tmp_path: Path) -> None:
    dataset.updateMd(ids_of(dataset)[:1], shifts=np.zeros((1, 2)))
    with pytest.raises(UnreachableFileError, match=r"absent/p\.star: .*may this user write there"):
        dataset.saveMd(tmp_path / "absent" / "p.star")


def test_an_id_that_is_given_twice_is_refused(dataset: ParticlesDataset) -> None:
    ids = ids_of(dataset)
    same = [ids[0], ids[1], ids[0].lstrip("0")]
    with pytest.raises(ValueError, match=r"1 of 3 ids .*1@particles_0\.mrcs"):
        dataset.updateMd(same, shifts=np.zeros((3, 2)))
    assert not dataset.md.updated.any()


def test_own_star_other_suffixes_and_present_files_are_not_written(tmp_path: Path, dataset: ParticlesDataset) -> None:
    before = Path(dataset.starFname).read_bytes()
    for path, words in ((dataset.starFname, "own star"), (tmp_path / "p.txt", r"end in \.star")):
        with pytest.raises(InvalidSettingsError, match=words):
            dataset.saveMd(path)
    assert Path(dataset.starFname).read_bytes() == before
    (tmp_path / "there.star").write_text("mine\n")
    with pytest.raises(InvalidSettingsError, match="exists"):
        dataset.saveMd(tmp_path / "there.star", overwrite=False)
    assert (tmp_path / "there.star").read_text() == "mine\n"


def test_an_image_that_stands_in_two_rows_takes_no_prediction(tmp_path: Path, dataset: ParticlesDataset) -> None:
    star = read_star(Path(dataset.starFname))
    expanded = tmp_path / "own" / "expanded.star"
    write_star(expanded, star.select([*range(len(star)), 3, 4]))
    twice = ParticlesDataset.from_star(expanded)
    ids = ids_of(twice)
    with pytest.raises(InvalidStarError, match=r"stands in rows 4, 13.*symmetry-expanded"):
        twice.updateMd(ids=[ids[0], ids[3]], angles=ROTATIONS[:2])
    assert not twice.md.updated.any()
    twice.updateMd(ids=ids[:2], angles=ROTATIONS[:2])
    with pytest.raises(InvalidStarError, match="rows 4, 13"):  # these rows would be saved with their true poses
        twice.saveMd(tmp_path / "predictions.star")
    assert not (tmp_path / "predictions.star").exists()
    twice.save_poses(tmp_path / "updated.star", only_updated=True)
    assert len(read_star(tmp_path / "updated.star")) == 2
