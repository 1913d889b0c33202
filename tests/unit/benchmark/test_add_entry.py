"""Own particles become an entry by links or by copy, whole or not at all, and leave their sources alone."""

import json
import os
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from samples.record_server import table_of
from samples.stars import relion30

from cesped_stream.benchmark import add_entry as adding
from cesped_stream.benchmark.add_entry import (
    AddedEntry,
    NewEntry,
    add_entry,
    add_entry_of_one_star,
    add_entry_of_two_stars,
)
from cesped_stream.benchmark.entries import find_entry
from cesped_stream.benchmark.verify_entry import verify_entry
from cesped_stream.errors import (
    FullDiskError,
    InvalidEntryError,
    InvalidSettingsError,
    InvalidStarError,
    NotSettledError,
)
from cesped_stream.particles.stacks import STACK_LABEL, StackReader, read_images, write_stack
from cesped_stream.particles.star import read_star, write_star
from cesped_stream.particles.table import ParticleTable

BOX = 16


def stack(path: Path, count: int, *, seed: int = 0, box: int = BOX, mode: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(seed).standard_normal((count, box, box)).astype(np.float32)
    write_stack(path, images, 1.5, mode=mode)
    return path


def images_of(table: ParticleTable) -> np.ndarray:
    with StackReader() as reader:
        (group,) = read_images(table, reader)
    return group.images


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A RELION project: particles of both half-sets mixed in two stacks, rows out of order, one star."""
    folder = tmp_path / "project"
    for k, name in enumerate(("mic a.mrcs", "mic_b.mrcs")):
        stack(folder / "Extract" / "job1" / name, 8, seed=k)
    rows = table_of(0, 8, BOX, "Extract/job1/mic_b.mrcs")
    names = [f"{k + 1:06d}@Extract/job1/{'mic a' if k % 3 else 'mic_b'}.mrcs" for k in (6, 1, 0, 5, 3, 7, 2, 4)]
    subsets = ["1", "2", "2", "1", "2", "1", "1", "2"]
    table = rows.with_columns({"rlnImageName": names, "rlnRandomSubset": subsets, "cestreamNote": list("abcdefgh")})
    (folder / "Refine3D").mkdir()
    write_star(folder / "Refine3D" / "run_data.star", table)
    return folder


def added(project: Path, root: Path, **options: bool) -> AddedEntry:
    return add_entry_of_one_star(
        project / "Refine3D" / "run_data.star", NewEntry("mine", "C2", project, root, **options)
    )


@pytest.mark.parametrize("copy", [False, True])
def test_one_star_is_split_by_its_subsets_and_every_image_and_column_is_kept(
    project: Path, tmp_path: Path, copy: bool
) -> None:
    entry = added(project, tmp_path / "root", copy=copy)
    assert entry.num_particles == {0: 4, 1: 4}
    source = read_star(project / "Refine3D" / "run_data.star")
    order = [k for half in "12" for k, subset in enumerate(source.column("rlnRandomSubset")) if subset == half]
    expected = source.select(order)
    table = find_entry("mine", tmp_path / "root").particles()
    for label in set(source.labels) - {"rlnImageName"}:
        assert table.column(label) == expected.column(label), label
    assert table.column("rlnImageOriginalName") == expected.column("rlnImageName")
    stacks = [str(project / name.partition("@")[2]).replace(" ", "%20") for name in expected.column("rlnImageName")]
    np.testing.assert_array_equal(images_of(table), images_of(expected.with_columns({STACK_LABEL: stacks})))
    assert verify_entry(find_entry("mine", tmp_path / "root"), images=True).ok
    assert json.loads((entry.folder / "info_1.json").read_text()) == {"symmetry": "C2"}
    assert (entry.folder / "SUCCESSFUL_DOWNLOAD_0.txt").read_text() == "mine\n"


def test_links_take_no_disk_and_a_copy_needs_no_source(project: Path, tmp_path: Path) -> None:
    linked = added(project, tmp_path / "links").folder
    assert all(path.is_symlink() for path in linked.glob("stacks_?/*"))
    copied = added(project, tmp_path / "copies", copy=True).folder
    assert not [path for path in copied.rglob("*") if path.is_symlink()]
    assert read_star(copied / "particles_1.star").column("rlnImageName") == [
        f"{k:06d}@particles_1.mrcs" for k in range(1, 5)
    ]


def test_one_stack_is_linked_under_the_name_of_its_half_and_rows_keep_their_index(tmp_path: Path) -> None:
    stack(tmp_path / "all.mrcs", 9)
    whole = table_of(0, 9, BOX, "all.mrcs")
    for half, rows in enumerate(([7, 2, 3], [0, 8])):
        part = whole.select(rows).without(["rlnRandomSubset"])
        write_star(tmp_path / f"half{half}.star", part)
    stars = (tmp_path / "half0.star", tmp_path / "half1.star")
    folder = add_entry_of_two_stars(stars, NewEntry("mine", "D2", None, tmp_path / "root")).folder
    assert (folder / "particles_0.mrcs").readlink() == (folder / "particles_1.mrcs").readlink() == tmp_path / "all.mrcs"
    table = find_entry("mine", tmp_path / "root").particles()
    assert table.column("rlnImageName")[:2] == ["000008@particles_0.mrcs", "000003@particles_0.mrcs"]
    assert table.column("rlnRandomSubset") == ["1"] * 3 + ["2"] * 2
    with mrcfile.open(tmp_path / "all.mrcs") as file:
        np.testing.assert_array_equal(images_of(table), file.data[[7, 2, 3, 0, 8]])


def test_a_relion_30_star_becomes_31_with_its_origins_in_angstrom(tmp_path: Path) -> None:
    (tmp_path / "old.star").write_bytes(relion30(5))
    stack(tmp_path / "particles.mrcs", 5)
    folder = add_entry(tmp_path / "old.star", 0, NewEntry("mine", "C1", None, tmp_path / "root")).folder
    text = (folder / "particles_0.star").read_text()
    assert "data_optics" in text
    assert "_rlnImageSize" in text
    table = read_star(folder / "particles_0.star")
    assert table.shifts_angstrom()[1, 0] == pytest.approx(2.25 * 1.5)


def test_halves_are_added_one_by_one_as_cesped_does(tmp_path: Path) -> None:
    for half in (0, 1):
        stack(tmp_path / f"h{half}.mrcs", 3, seed=half)
        write_star(tmp_path / f"h{half}.star", table_of(half, 3, BOX, f"h{half}.mrcs"))
        add_entry(tmp_path / f"h{half}.star", half, NewEntry("mine", "c1", tmp_path, tmp_path / "root", copy=True))
    assert len(find_entry("mine", tmp_path / "root").particles()) == 6
    with pytest.raises(InvalidEntryError, match="half-set 1 is there"):
        add_entry(tmp_path / "h1.star", 1, NewEntry("mine", "C1", tmp_path, tmp_path / "root"))


def test_without_subsets_micrographs_stay_whole(tmp_path: Path) -> None:
    stack(tmp_path / "all.mrcs", 30)
    table = table_of(0, 30, BOX, "all.mrcs").without(["rlnRandomSubset"])
    write_star(tmp_path / "all.star", table.with_columns({"rlnMicrographName": [f"m{k // 3}" for k in range(30)]}))
    add_entry_of_one_star(tmp_path / "all.star", NewEntry("mine", "C1", None, tmp_path / "root"))
    entry = find_entry("mine", tmp_path / "root")
    halves = [set(read_star(star).column("rlnMicrographName")) for star in entry.stars]
    assert halves[0] and halves[1] and not halves[0] & halves[1]


def refused(tmp_path: Path, table: ParticleTable, kind: type[Exception], words: str) -> None:
    write_star(tmp_path / "x.star", table)
    with pytest.raises(kind, match=words):
        add_entry(tmp_path / "x.star", 0, NewEntry("mine", "C1", None, tmp_path / "root"))
    assert [path.name for path in (tmp_path / "root").glob("*") if path.name != ".mine.lock"] == []


def test_rows_that_would_flatter_or_fail_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    stack(tmp_path / "a.mrcs", 3)
    good = table_of(0, 3, BOX, "a.mrcs")
    refused(tmp_path, table_of(0, 4, BOX, "a.mrcs"), NotSettledError, "3 images, .*row 4\\) asks for 4")
    refused(tmp_path, good.select([0, 1, 0]), InvalidStarError, r"row 3\): image 1 of .* stands in two rows")
    other = good.with_columns({"rlnRandomSubset": ["1", "2", "1"]})
    refused(tmp_path, other, InvalidStarError, "1 of 3 rows for half-set 0 .* the first is row 2")
    refused(tmp_path, table_of(0, 3, 32, "a.mrcs"), InvalidStarError, "rlnImageSize 32, the image 16")


@pytest.mark.parametrize(
    ("rows", "without", "words"),
    [
        (3, [], "x.star: all 3 rows have rlnRandomSubset 1 and none 2"),
        (3, ["rlnRandomSubset"], "x.star: all 3 rows are of one micrograph"),
        (0, [], "x.star: no rows"),
    ],
)
def test_one_star_whose_rows_are_all_of_one_half_set_is_refused_with_the_remedy(
    tmp_path: Path, rows: int, without: list[str], words: str
) -> None:
    stack(tmp_path / "a.mrcs", 3)
    table = table_of(0, 3, BOX, "a.mrcs").select(range(rows)).without(without)
    write_star(tmp_path / "x.star", table.with_columns({"rlnMicrographName": ["m.mrc"] * rows}))
    with pytest.raises(InvalidStarError, match=words):
        add_entry_of_one_star(tmp_path / "x.star", NewEntry("mine", "C1", None, tmp_path / "root"))


def test_the_same_image_in_both_half_sets_is_refused(tmp_path: Path) -> None:
    stack(tmp_path / "a.mrcs", 3)
    for half in (0, 1):
        write_star(tmp_path / f"h{half}.star", table_of(half, 3, BOX, "a.mrcs"))
    with pytest.raises(InvalidStarError, match=r"half-set 1, row 1\): image 1 of .*a\.mrcs stands in two rows"):
        add_entry_of_two_stars(
            (tmp_path / "h0.star", tmp_path / "h1.star"), NewEntry("mine", "C1", None, tmp_path / "root")
        )


@pytest.mark.parametrize("name", ["TEST", "10166", "DEMO", "a/b", "..", ".hidden", ""])
def test_names_that_are_taken_or_none_are_refused(tmp_path: Path, name: str) -> None:
    stack(tmp_path / "a.mrcs", 3)
    star = tmp_path / "x.star"
    write_star(star, table_of(0, 3, BOX, "a.mrcs"))
    with pytest.raises(InvalidSettingsError, match="target: "):
        add_entry(star, 0, NewEntry(name, "C1", None, tmp_path / "root"))


def test_what_cesped_cannot_read_is_said(tmp_path: Path) -> None:
    stack(tmp_path / "half.mrcs", 3, mode=12)
    table = table_of(0, 3, BOX, "half.mrcs").without(["rlnAngleRot"])
    write_star(tmp_path / "x.star", table)
    said = add_entry(tmp_path / "x.star", 0, NewEntry("mine", "C1", None, tmp_path / "root")).warnings
    assert [text for text in said if "mode 12" in text and "a copy can be" in text]
    assert [text for text in said if "3 rows have no pose" in text]
    said = add_entry(tmp_path / "x.star", 0, NewEntry("copied", "C1", None, tmp_path / "root", copy=True)).warnings
    assert not [text for text in said if "mode 12" in text]


def test_a_failure_while_copying_leaves_nothing(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def full(path: Path, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(28, "No space left on device")
        path.write_bytes(data)

    monkeypatch.setattr(adding, "write_whole", full)
    with pytest.raises(FullDiskError, match="no space left"):
        added(project, tmp_path / "root", copy=True)
    assert os.listdir(tmp_path / "root") == [".mine.lock"]


def test_sources_are_not_touched(project: Path, tmp_path: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in project.rglob("*") if path.is_file()}
    added(project, tmp_path / "root")
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before}


def test_a_half_set_that_shares_an_image_with_the_one_added_before_is_refused(tmp_path: Path) -> None:
    stack(tmp_path / "a.mrcs", 6)
    rows = table_of(0, 6, BOX, "a.mrcs").without(["rlnRandomSubset"])
    for name, index in (("h0", [0, 1, 2]), ("h1", [3, 2]), ("apart", [3, 4])):
        write_star(tmp_path / f"{name}.star", rows.select(index))
    add_entry(tmp_path / "h0.star", 0, NewEntry("mine", "C1", None, tmp_path / "root"))
    with pytest.raises(InvalidStarError, match=r"half-set 1, row 2\): image 3 of .*a\.mrcs stands in two rows"):
        add_entry(tmp_path / "h1.star", 1, NewEntry("mine", "C1", None, tmp_path / "root"))
    add_entry(tmp_path / "apart.star", 1, NewEntry("mine", "C1", None, tmp_path / "root"))
    assert len(find_entry("mine", tmp_path / "root").particles()) == 5


def test_a_half_set_whose_adding_was_killed_can_be_added_again(tmp_path: Path) -> None:
    for name in "abc":
        stack(tmp_path / f"{name}.mrcs", 3)
    rows = table_of(1, 3, BOX, "b.mrcs").with_columns({"rlnImageName": ["1@b.mrcs", "1@c.mrcs", "2@c.mrcs"]})
    write_star(tmp_path / "h1.star", rows)
    write_star(tmp_path / "h0.star", table_of(0, 3, BOX, "a.mrcs"))
    folder = add_entry(tmp_path / "h0.star", 0, NewEntry("mine", "C1", None, tmp_path / "root")).folder
    (folder / "stacks_1").mkdir()
    (folder / "stacks_1" / "000001_b.mrcs").symlink_to(tmp_path / "b.mrcs")
    add_entry(tmp_path / "h1.star", 1, NewEntry("mine", "C1", None, tmp_path / "root"))
    assert verify_entry(find_entry("mine", tmp_path / "root")).ok


def test_own_predictions_become_no_truth_unless_asked_for_and_are_then_named(project: Path, tmp_path: Path) -> None:
    star = project / "Refine3D" / "run_data.star"
    table = read_star(star)
    write_star(star, table.with_columns({"cestreamStatus": ["given"] * 5 + ["predicted"] * 3}))
    with pytest.raises(InvalidStarError, match=r"of \d rows have a pose that this program predicted.*--allow-own"):
        added(project, tmp_path)
    assert not (tmp_path / "mine").exists()
    said = added(project, tmp_path, allow_own_predictions=True).warnings
    assert any("poses are predictions of this program" in warning for warning in said)
