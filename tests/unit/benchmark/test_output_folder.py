"""An output that cannot be written is said before the work, in one line."""

import errno
from pathlib import Path

import pytest

from cesped_stream.benchmark.output_folder import output_folder
from cesped_stream.errors import FullDiskError, InvalidSettingsError, UnreachableFileError


def test_a_folder_is_made_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    assert list(output_folder(tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "a" / "b" / "mine").write_text("kept")
    assert [path.name for path in output_folder(tmp_path / "a" / "b").iterdir()] == ["mine"]


@pytest.mark.parametrize("where", ["file", "file/below/it"])
def test_a_file_in_the_way_is_named(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidSettingsError, match=r"file is a file; give another folder"):
        output_folder(tmp_path / where)


def test_what_this_user_cannot_make_is_named() -> None:
    with pytest.raises(UnreachableFileError, match=r"/proc/results: .*may this user write there"):
        output_folder(Path("/proc/results"))


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, FullDiskError), (errno.EROFS, UnreachableFileError)])
def test_a_full_or_read_only_disk_is_met_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(number, "said by the kernel", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(kind, match="results"):
        output_folder(tmp_path / "results")
