"""Folders that are links: never twice, never round in a ring, and never left without a word."""

from pathlib import Path

import pytest

from cesped_stream_service.landing_tree import LandingTree
from cesped_stream_service.settings import LandingSettings


@pytest.fixture
def landing(tmp_path: Path) -> Path:
    (tmp_path / "landing/Refine3D/job010").mkdir(parents=True)
    (tmp_path / "landing/Refine3D/job010/run_data.star").write_text("data_")
    (tmp_path / "scratch/Extract/job005").mkdir(parents=True)
    (tmp_path / "scratch/Extract/job005/particles.star").write_text("data_")
    return tmp_path / "landing"


def names(tree: LandingTree, landing: Path, now: float = 0.0) -> list[str]:
    return [str(Path(name).relative_to(landing)) for name in tree.files(now)]


def test_the_alias_of_a_job_shows_its_stars_once(landing: Path) -> None:
    (landing / "Refine3D/alias").symlink_to(landing / "Refine3D/job010")
    tree = LandingTree(LandingSettings(folder=landing))
    assert names(tree, landing) == ["Refine3D/job010/run_data.star"]
    assert tree.linked_folders == () and tree.problem == ""


def test_a_linked_folder_elsewhere_with_stars_is_told_with_its_remedy(landing: Path, tmp_path: Path) -> None:
    (landing / "Extract").symlink_to(tmp_path / "scratch/Extract")
    tree = LandingTree(LandingSettings(folder=landing))
    assert names(tree, landing) == ["Refine3D/job010/run_data.star"]
    (told,) = tree.linked_folders
    assert told.startswith(f"{landing}/Extract: a link to the folder {tmp_path}/scratch/Extract")
    assert "job005/particles.star" in told and "landing.allowed_roots" in told


def test_a_linked_folder_under_the_allowed_roots_is_followed(landing: Path, tmp_path: Path) -> None:
    (landing / "Extract").symlink_to(tmp_path / "scratch/Extract")
    tree = LandingTree(LandingSettings(folder=landing, allowed_roots=(landing, tmp_path / "scratch")))
    assert "Extract/job005/particles.star" in names(tree, landing)
    assert tree.linked_folders == ()


def test_links_that_form_a_ring_are_walked_once(landing: Path, tmp_path: Path) -> None:
    (landing / "Extract").symlink_to(tmp_path / "scratch")
    (tmp_path / "scratch/again").symlink_to(tmp_path / "scratch")
    (tmp_path / "scratch/back").symlink_to(landing)
    (landing / "up").symlink_to(tmp_path)
    (landing / "self").symlink_to(landing)
    tree = LandingTree(LandingSettings(folder=landing, allowed_roots=(tmp_path,)))
    assert sorted(names(tree, landing)) == ["Extract/Extract/job005/particles.star", "Refine3D/job010/run_data.star"]


def test_a_linked_folder_without_stars_is_no_matter(landing: Path, tmp_path: Path) -> None:
    (tmp_path / "movies").mkdir()
    for k in range(3000):
        (tmp_path / f"movies/m{k}.tiff").touch()
    (landing / "Movies").symlink_to(tmp_path / "movies")
    tree = LandingTree(LandingSettings(folder=landing))
    names(tree, landing)
    assert tree.linked_folders == ()


def test_a_linked_folder_is_searched_again_after_a_minute(landing: Path, tmp_path: Path) -> None:
    (tmp_path / "later").mkdir()
    (landing / "later").symlink_to(tmp_path / "later")
    tree = LandingTree(LandingSettings(folder=landing))
    names(tree, landing, 0.0)
    (tmp_path / "later/a.star").touch()
    names(tree, landing, 30.0)
    assert tree.linked_folders == ()
    names(tree, landing, 60.0)
    assert len(tree.linked_folders) == 1


def test_the_folder_of_any_session_holds_no_inputs(landing: Path) -> None:
    (landing / "session1/poses").mkdir(parents=True)
    (landing / "session1/batches").mkdir()
    (landing / "session1/session.toml").touch()
    (landing / "session1/poses/poses.star").write_text("data_")
    (landing / "poses").mkdir()
    (landing / "poses/poses.star").write_text("data_")
    found = names(LandingTree(LandingSettings(folder=landing)), landing)
    assert found == ["Refine3D/job010/run_data.star", "poses/poses.star"]
