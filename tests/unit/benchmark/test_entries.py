"""Entries are found in CESPED's layout or as one star, and refused with a reason otherwise."""

from functools import partial
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from cesped_stream.benchmark.dataset_source import entry_source
from cesped_stream.benchmark.download_entry import download_entry
from cesped_stream.benchmark.entries import find_entry, open_entry
from cesped_stream.benchmark.entry_info import entry_info
from cesped_stream.errors import ForbiddenPathError, InvalidSettingsError, InvalidStarError, UnreachableFileError
from cesped_stream.particles.stacks import STACK_LABEL, write_stack
from cesped_stream.particles.star import write_star
from cesped_stream.particles.table import OpticsGroup, ParticleTable

OPTICS = OpticsGroup((("rlnOpticsGroupName", "a"), ("rlnImagePixelSize", "4.0"), ("rlnImageSize", "16")))


def write_half(folder: Path, half: int, *, extra: dict[str, str] | None = None, stack: str | None = None) -> None:
    stack = stack or f"particles_{half}.mrcs"
    labels = ("rlnImageName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", *(extra or {}))
    rows = [(f"{k + 1:06d}@{stack}", f"{half}", f"{k}", "3", *(extra or {}).values()) for k in range(3)]
    write_star(folder / f"particles_{half}.star", ParticleTable(labels, rows, (OPTICS,), np.zeros(3, np.int64)))
    if "/" not in stack:
        write_stack(folder / stack, np.zeros((3, 16, 16), np.float32), 4.0)


def test_cesped_layout_gives_both_halves_their_random_subset(tmp_path: Path) -> None:
    for half in (0, 1):
        write_half(tmp_path, half)
    (tmp_path / "info_0.json").write_text('{"symmetry": "c2"}')
    entry = open_entry(tmp_path)
    table = entry.particles()
    assert entry.symmetry == "C2"
    assert table.column("rlnRandomSubset") == ["1"] * 3 + ["2"] * 3
    assert table.half_sets().tolist() == [0] * 3 + [1] * 3
    stacks = [Path(unquote(text)) for text in table.column(STACK_LABEL)]
    assert stacks == [tmp_path / "particles_0.mrcs"] * 3 + [tmp_path / "particles_1.mrcs"] * 3


def test_a_given_random_subset_is_kept(tmp_path: Path) -> None:
    for half in (0, 1):
        write_half(tmp_path, half, extra={"rlnRandomSubset": "2"})
    assert open_entry(tmp_path).particles().column("rlnRandomSubset") == ["2"] * 6


def test_a_column_of_one_half_is_neutral_in_the_other(tmp_path: Path) -> None:
    write_half(tmp_path, 0)
    write_half(tmp_path, 1, extra={"rlnClassNumber": "4"})
    assert open_entry(tmp_path).particles().column("rlnClassNumber") == ["1"] * 3 + ["4"] * 3


def test_angles_in_one_half_only_are_refused(tmp_path: Path) -> None:
    write_half(tmp_path, 0)
    write_half(tmp_path, 1, extra={"rlnAngleTiltPrior": "90"})
    with pytest.raises(InvalidStarError, match=r"particles_0\.star: no column rlnAngleTiltPrior"):
        open_entry(tmp_path).particles()


def test_a_single_star_is_an_entry_with_its_own_rows(tmp_path: Path) -> None:
    write_half(tmp_path, 0)
    entry = open_entry(tmp_path / "particles_0.star")
    assert (entry.name, entry.symmetry, len(entry.particles())) == ("particles_0", None, 3)
    assert "rlnRandomSubset" not in entry.particles()


@pytest.mark.parametrize("half", [0, 1])
def test_a_halfs_star_has_the_symmetry_of_its_own_info(tmp_path: Path, half: int) -> None:
    write_half(tmp_path, half)
    (tmp_path / f"info_{half}.json").write_text('{"symmetry": "D2"}')
    (tmp_path / f"info_{1 - half}.json").write_text('{"symmetry": "C2"}')
    assert open_entry(tmp_path / f"particles_{half}.star").symmetry == "D2"
    (tmp_path / "other.star").write_bytes((tmp_path / f"particles_{half}.star").read_bytes())
    assert open_entry(tmp_path / "other.star").symmetry is None


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("10647", "10647 was published as 10648"),
        ("demo", "did you mean DEMO"),
        ("MyOwn", "did you mean myown"),
        ("11210", "did you mean 11120"),
        ("zzz", "entries list"),
    ],
)
def test_an_unknown_name_is_told_the_nearest_one_everywhere(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / "myown").mkdir()
    write_half(tmp_path / "myown", 0)
    asked = [partial(find_entry, name, tmp_path), partial(entry_source, name, 0, tmp_path)]
    asked += [partial(entry_info, name, tmp_path)]
    asked += [] if name == "MyOwn" else [partial(download_entry, name, tmp_path)]
    for ask in asked:
        with pytest.raises(InvalidSettingsError, match=hint):
            ask()


def test_what_is_no_entry_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnreachableFileError, match="no such entry"):
        open_entry(tmp_path / "absent")
    with pytest.raises(UnreachableFileError, match="0 found"):
        open_entry(tmp_path)
    write_half(tmp_path, 1)
    with pytest.raises(UnreachableFileError, match=r"particles_0\.star is missing"):
        open_entry(tmp_path)


def test_a_broken_info_file_is_refused(tmp_path: Path) -> None:
    for half in (0, 1):
        write_half(tmp_path, half)
    (tmp_path / "info_0.json").write_text('{"sym": "C2"}')
    with pytest.raises(InvalidStarError, match=r"info_0\.json"):
        open_entry(tmp_path)


def test_a_stack_outside_the_entry_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "entry"
    folder.mkdir()
    write_half(folder, 0, stack="../elsewhere.mrcs")
    with pytest.raises(ForbiddenPathError, match=r"elsewhere\.mrcs"):
        open_entry(folder / "particles_0.star").particles()
