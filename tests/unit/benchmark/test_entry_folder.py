"""Entries are found by name, listed, described, verified and merged."""

from pathlib import Path

import numpy as np
import pytest
from samples.record_server import half_files, table_of

from cesped_stream.benchmark.catalogue import CATALOGUE
from cesped_stream.benchmark.demo_entry import DEMO_SETTINGS, make_demo_entry
from cesped_stream.benchmark.entries import find_entry, open_entry
from cesped_stream.benchmark.entry_check import Severity
from cesped_stream.benchmark.entry_folder import EntryState, entry_lock
from cesped_stream.benchmark.entry_info import entry_info, list_entries
from cesped_stream.benchmark.merge_entry import merge_entry
from cesped_stream.benchmark.verify_entry import verify_entry
from cesped_stream.errors import (
    BusyEntryError,
    ForbiddenPathError,
    InvalidSettingsError,
    InvalidStarError,
    UnreachableFileError,
)
from cesped_stream.particles.stacks import write_stack
from cesped_stream.particles.star import read_star, write_star
from cesped_stream.particles.table import OpticsGroup


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with one complete entry of one's own, `mine`."""
    folder = tmp_path / "root" / "mine"
    folder.mkdir(parents=True)
    for half in (0, 1):
        for name, data in half_files(folder, half, piece=None).items():
            (folder / name).write_bytes(data)
    return tmp_path / "root"


def test_the_catalogue_says_truly_what_the_paper_has() -> None:
    in_paper = {name for name, entry in CATALOGUE.items() if entry.in_paper}
    assert in_paper == {"10166", "10786", "10280", "11120", "10409", "10374"}, "10647 is not published any more"
    assert CATALOGUE["10648"].in_paper_words == "as 10647"
    assert CATALOGUE["10399"].in_paper_words == "no"
    assert CATALOGUE["10399"].symmetry is None, "not stated in public"


def test_an_entry_is_found_by_name_then_by_path(root: Path, tmp_path: Path) -> None:
    assert find_entry("mine", root).folder == root / "mine"
    assert find_entry(str(root / "mine"), tmp_path).folder == root / "mine"
    assert find_entry(str(root / "mine" / "particles_0.star"), tmp_path).stars == (root / "mine" / "particles_0.star",)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("10166", "`cesped-stream entries download 10166` fetches it"),
        ("mien", "did you mean mine?"),
        ("1016", "did you mean 10166?"),
        ("zzz", "`cesped-stream entries list` shows"),
        ("away/mine", "away/mine: no such entry; is the path right"),
    ],
)
def test_what_is_not_there_is_told_what_to_do(root: Path, target: str, words: str) -> None:
    with pytest.raises(UnreachableFileError if target == "10166" or "/" in target else InvalidSettingsError) as caught:
        find_entry(target, root)
    assert words in str(caught.value)


def test_a_link_in_the_entry_may_lead_out_but_a_name_may_not(root: Path, tmp_path: Path) -> None:
    folder = root / "mine"
    outside = tmp_path / "outside.mrcs"
    (folder / "particles_0.mrcs").rename(outside)
    (folder / "particles_0.mrcs").symlink_to(outside)
    assert len(open_entry(folder).particles()) == 12
    star = folder / "particles_0.star"
    star.write_text(star.read_text().replace("@particles_0", "@../../outside"))
    with pytest.raises(ForbiddenPathError, match="outside"):
        open_entry(folder).particles()


def test_the_embedded_entry_is_made_once_and_whole(tmp_path: Path) -> None:
    few = DEMO_SETTINGS.model_copy(update={"num_particles": 60})
    done: list[int] = []
    folder = make_demo_entry(tmp_path, settings=few, on_progress=done.append)
    assert done[-1] == 60
    assert verify_entry(open_entry(folder), images=True).ok
    assert find_entry("DEMO", tmp_path).symmetry == "C1"
    make_demo_entry(tmp_path, settings=few, on_progress=done.append)
    assert len(done) == 1, "it was there"
    with entry_lock("DEMO", tmp_path / "other"), pytest.raises(BusyEntryError):
        make_demo_entry(tmp_path / "other", settings=few)
    assert list((tmp_path / "other").glob("[!.]*")) == []


def test_the_list_has_published_and_own_entries_with_their_state(root: Path) -> None:
    (root / "10166").mkdir()
    (root / "10166" / ".particles_0.mrcs.part").write_bytes(b"123")
    lines = {line.name: line for line in list_entries(root)}
    assert list(lines) == [*CATALOGUE, "DEMO", "mine"]
    assert (lines["mine"].state, lines["mine"].symmetry, lines["mine"].in_paper) == (EntryState.COMPLETE, "C1", "no")
    assert (lines["10166"].state, lines["10166"].num_particles) == (EntryState.PARTIAL, 238_631)
    assert lines["TEST"].state is EntryState.ABSENT
    assert entry_info("10166", root).bytes_on_disk == 3


def test_info_reads_what_the_stars_say(root: Path) -> None:
    info = entry_info("mine", root)
    half = info.halves[1]
    assert (half.num_particles, half.num_with_poses, half.num_micrographs) == (6, 6, 3)
    assert (half.box_sizes, half.pixel_sizes_angstrom, half.voltages_kv) == ((16,), (1.5,), (300.0,))
    assert half.defocus_range_angstrom == (12000.0, 12050.0)
    assert info.to_json()["halves"][0]["labels"][0] == "rlnImageName"
    with pytest.raises(InvalidSettingsError, match="no such entry"):
        entry_info("nothing", root)


def test_a_good_entry_verifies_and_each_damage_is_found(root: Path) -> None:
    folder = root / "mine"
    assert verify_entry(open_entry(folder), images=True).all_findings() == []
    star, stack = folder / "particles_0.star", folder / "particles_0.mrcs"
    good_star, good_stack = star.read_bytes(), stack.read_bytes()

    def texts(severity: Severity) -> str:
        report = verify_entry(open_entry(folder), images=True)
        assert report.ok is (severity is not Severity.ERROR)
        return "\n".join(finding.text for finding in report.all_findings() if finding.severity is severity)

    stack.write_bytes(good_stack[:-1])
    assert "its header means 7,168" in texts(Severity.ERROR)
    stack.write_bytes(good_stack)
    star.write_bytes(good_star.rstrip(b"\n")[:-3])
    assert "is it being written?" in texts(Severity.ERROR)
    write_star(star, table_of(0, 6, 16, "particles_0.mrcs").select([0, 1, 2, 3, 3, 4]))
    assert "image 4 of particles_0.mrcs stands twice" in texts(Severity.ERROR)
    write_star(star, table_of(0, 6, 16, "particles_0.mrcs").select([0, 1]))
    assert "4 of 6 images are in no row" in texts(Severity.NOTE)
    write_star(star, table_of(1, 6, 16, "particles_0.mrcs"))
    assert "rows of the other half-set" in texts(Severity.WARNING)
    write_star(star, table_of(0, 6, 16, "particles_0.mrcs").without(["rlnAnglePsi"]))
    assert "6 of 6 rows have no pose" in "\n".join(f.text for f in verify_entry(open_entry(folder)).all_findings())
    star.write_bytes(good_star)
    (folder / "info_1.json").write_text('{"symmetry": "X9"}')
    assert "no point group" in texts(Severity.ERROR)


def test_images_that_are_no_images_are_counted(root: Path) -> None:
    images = np.random.default_rng(0).standard_normal((6, 16, 16)).astype(np.float32)
    images[1, 3, 3] = np.nan
    images[4] = 2.0
    write_stack(root / "mine" / "particles_0.mrcs", images, 1.5)
    report = verify_entry(open_entry(root / "mine"), images=True)
    assert report.images is not None
    assert (report.images.num_images, report.images.num_not_finite, report.images.num_constant) == (12, 1, 1)
    assert report.images.largest == pytest.approx(float(np.nanmax([images[k].max() for k in (0, 2, 3, 5)])), abs=2.0)
    assert report.ok, "such rows get no pose, the rest go on"
    assert report.to_json()["images"]["num_constant"] == 1


def test_merging_unites_columns_and_gives_equal_optics_one_group(root: Path) -> None:
    folder = root / "mine"
    table = table_of(1, 6, 16, "particles_1.mrcs").without(["rlnRandomSubset"])
    other = OpticsGroup((*table.optics[0].values[:-1], ("rlnBeamTiltX", "0.5")))
    index = np.array([0, 1, 0, 1, 0, 1])
    more = table.with_columns({"rlnCtfBfactor": ["12.5"] * 6})
    mixed = type(more)(more.labels, more.rows, (table.optics[0], other), index)
    write_star(folder / "particles_1.star", mixed)
    merged = read_star(merge_entry(open_entry(folder)))
    assert merged.column("rlnRandomSubset") == ["1"] * 6 + ["2"] * 6
    assert merged.column("rlnCtfBfactor") == ["0.000000"] * 6 + ["12.5"] * 6
    assert [group.text("rlnBeamTiltX") for group in merged.optics] == ["0.000000", "0.5"]
    assert merged.optics_index.tolist() == [0] * 6 + index.tolist()
    assert merged.column("rlnImageName")[6] == "000001@particles_1.mrcs"
    assert "cestreamStack" not in merged
    assert open_entry(folder).stars == (folder / "particles_0.star", folder / "particles_1.star")


def test_merging_says_which_columns_only_one_half_has_and_relion_knows_no_value_for(root: Path) -> None:
    star = root / "mine" / "particles_1.star"
    table = read_star(star)
    write_star(star, table.with_columns({"rlnCoordinateX": ["7.0"] * len(table)}))
    said: list[tuple[str, tuple[str, ...]]] = []
    path = merge_entry(open_entry(root / "mine"), on_left_out=lambda path, labels: said.append((path.name, labels)))
    assert said == [("particles_merged.star", ("rlnCoordinateX",))]
    assert "rlnCoordinateX" not in read_star(path)


def test_merging_does_not_invent_angles(root: Path) -> None:
    star = root / "mine" / "particles_1.star"
    write_star(star, read_star(star).without(["rlnAnglePsi"]))
    with pytest.raises(InvalidStarError, match="no column rlnAnglePsi"):
        merge_entry(open_entry(root / "mine"))


def test_a_root_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UnreachableFileError, match=r"file/\.mine\.lock: (File exists|Not a directory)"),
        entry_lock("mine", tmp_path / "file"),
    ):
        pass
    assert list_entries(tmp_path / "file")[0].state is EntryState.ABSENT
