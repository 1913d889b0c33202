"""A stack is found where its star means it, and nowhere else."""

import os
from pathlib import Path

import pytest

from cesped_stream.errors import ForbiddenPathError, UnreachableFileError
from cesped_stream.particles.stack_paths import resolve_stack


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """project/Extract/job010/particles.star and its stack Movies/a.mrcs; a secret beside the project."""
    (tmp_path / "project" / "Extract" / "job010" / "Movies").mkdir(parents=True)
    (tmp_path / "project" / "Extract" / "job010" / "Movies" / "a.mrcs").write_bytes(b"a")
    (tmp_path / "secret.mrcs").write_bytes(b"secret")
    return tmp_path / "project"


def _resolve(
    name: str, project: Path, *, image_root: Path | None = None, roots: tuple[Path, ...] | None = None
) -> Path:
    star = project / "Extract" / "job010" / "particles.star"
    return resolve_stack(name, star=star, image_root=image_root, allowed_roots=(project,) if roots is None else roots)


def test_name_under_the_stars_folder_is_found(project: Path) -> None:
    assert _resolve("Movies/a.mrcs", project) == project / "Extract/job010/Movies/a.mrcs"


def test_name_relative_to_the_project_is_found_from_a_star_inside_it(project: Path) -> None:
    assert _resolve("Extract/job010/Movies/a.mrcs", project) == project / "Extract/job010/Movies/a.mrcs"


def test_stars_folder_comes_before_its_parents(project: Path) -> None:
    (project / "Movies").mkdir()
    (project / "Movies" / "a.mrcs").write_bytes(b"other")
    assert _resolve("Movies/a.mrcs", project) == project / "Extract/job010/Movies/a.mrcs"


def test_name_in_two_parents_is_refused_naming_both(project: Path) -> None:
    for folder in (project, project / "Extract"):
        (folder / "b.mrcs").write_bytes(b"b")
    with pytest.raises(ForbiddenPathError, match=r"Extract/b\.mrcs or .*project/b\.mrcs; set image_root"):
        _resolve("b.mrcs", project)


def test_image_root_is_the_only_place_where_it_is_set(project: Path) -> None:
    assert _resolve("Movies/a.mrcs", project, image_root=project / "Extract/job010").name == "a.mrcs"
    with pytest.raises(UnreachableFileError, match="is not at"):
        _resolve("Movies/a.mrcs", project, image_root=project)


def test_missing_stack_is_unreachable_saying_where_it_was_sought(project: Path) -> None:
    with pytest.raises(UnreachableFileError, match=r"Movies/late\.mrcs is not at .*job010/Movies/late\.mrcs; has it"):
        _resolve("Movies/late.mrcs", project)


def test_same_name_outside_the_roots_is_not_taken_for_a_late_stack(project: Path) -> None:
    with pytest.raises(UnreachableFileError, match="has it landed"):
        _resolve("secret.mrcs", project)


@pytest.mark.parametrize("name", ["../../../secret.mrcs", "../../../../../../../../etc/passwd", "/etc/passwd", "/"])
def test_name_that_leaves_the_roots_is_refused(name: str, project: Path) -> None:
    with pytest.raises(ForbiddenPathError, match="outside of"):
        _resolve(name, project)


def test_absolute_name_inside_the_roots_is_taken(project: Path) -> None:
    stack = project / "Extract/job010/Movies/a.mrcs"
    assert _resolve(str(stack), project) == stack


def test_link_out_of_the_roots_is_refused_and_link_inside_is_followed(project: Path) -> None:
    folder = project / "Extract/job010/Movies"
    (folder / "out.mrcs").symlink_to("../../../../secret.mrcs")
    (folder / "in.mrcs").symlink_to("a.mrcs")
    assert _resolve("Movies/in.mrcs", project) == folder / "a.mrcs"
    with pytest.raises(ForbiddenPathError, match="outside of"):
        _resolve("Movies/out.mrcs", project)


def test_linked_folder_out_of_the_roots_is_refused(project: Path, tmp_path: Path) -> None:
    (project / "Extract/job010/Linked").symlink_to(tmp_path)
    with pytest.raises(ForbiddenPathError, match="outside of"):
        _resolve("Linked/secret.mrcs", project)


def test_root_named_like_another_does_not_hold_its_files(project: Path, tmp_path: Path) -> None:
    (tmp_path / "project2").mkdir()
    (tmp_path / "project2" / "x.mrcs").write_bytes(b"x")
    with pytest.raises(ForbiddenPathError, match="outside of"):
        _resolve(str(tmp_path / "project2" / "x.mrcs"), project)


def test_roots_may_be_links_themselves(project: Path, tmp_path: Path) -> None:
    (tmp_path / "mount").symlink_to(project)
    assert _resolve("Movies/a.mrcs", tmp_path / "mount") == project / "Extract/job010/Movies/a.mrcs"


def test_without_roots_the_stars_folder_is_the_root(project: Path) -> None:
    assert _resolve("Movies/a.mrcs", project, roots=()).name == "a.mrcs"
    with pytest.raises(ForbiddenPathError, match="outside of"):
        _resolve("../../../secret.mrcs", project, roots=())


def test_fifo_and_folder_are_refused(project: Path) -> None:
    os.mkfifo(project / "Extract/job010/pipe.mrcs")
    for name in ("pipe.mrcs", "Movies"):
        with pytest.raises(ForbiddenPathError, match="no regular file"):
            _resolve(name, project)


def test_link_ring_is_unreachable(project: Path) -> None:
    folder = project / "Extract/job010"
    (folder / "ring.mrcs").symlink_to("ring.mrcs")
    with pytest.raises(UnreachableFileError, match=r"ring\.mrcs"):
        _resolve("ring.mrcs", project)
