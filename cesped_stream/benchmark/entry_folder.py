"""An entry's folder under the benchmark root: its name, whether it is whole, and who works on it now."""

import difflib
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Final

from cesped_stream.benchmark.catalogue import CATALOGUE, DEMO_NAME
from cesped_stream.conventions import HALVES
from cesped_stream.durable import write_whole
from cesped_stream.errors import BusyEntryError, FullDiskError, InvalidSettingsError, UnreachableFileError

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class EntryState(StrEnum):
    """How much of an entry, or of a half-set of it, is on disk."""

    ABSENT = "absent"
    PARTIAL = "partial"
    COMPLETE = "complete"


def is_entry_name(name: str) -> bool:
    """Return whether `name` can be an entry's: letters, digits, dot, dash and underscore, no path."""
    return _NAME.fullmatch(name) is not None


def entry_folder(target: str, root: Path) -> Path:
    """Return where the entry of that name lies under `root` (`~` expanded). InvalidSettingsError for no name."""
    if not is_entry_name(target):
        raise InvalidSettingsError(
            f"target: {target!r} is no entry name; it takes letters, digits, dot, dash and underscore, and no folder"
        )
    return root.expanduser() / target


def check_new_name(target: str) -> None:
    """Raise InvalidSettingsError where a new entry may not have this name: no name, or a published entry's."""
    entry_folder(target, Path())
    if target in CATALOGUE or target == DEMO_NAME:
        raise InvalidSettingsError(f"target: {target} is the name of a published entry; give your own another name")


def done_path(folder: Path, half_set: int) -> Path:
    """Return the marker that says a half-set is whole: under the record's id, or the half-set where there is none."""
    known = CATALOGUE.get(folder.name)
    return folder / f"SUCCESSFUL_DOWNLOAD_{known.records[half_set] if known else half_set}.txt"


def mark_downloaded(folder: Path, half_set: int, stack_bytes: int) -> None:
    """Write a published entry's marker as cesped writes it: the record's id, then the size of its stack (0: none)."""
    write_whole(done_path(folder, half_set), f"{CATALOGUE[folder.name].records[half_set]}\n{stack_bytes}\n".encode())


def mark_added(folder: Path, half_set: int, target: str) -> None:
    """Write the marker of an entry of one's own as cesped writes it: the entry's name."""
    write_whole(folder / f"SUCCESSFUL_DOWNLOAD_{half_set}.txt", f"{target}\n".encode())


def mask_path(folder: Path) -> Path:
    """Return where the mask of the entry in `folder` lies once it is downloaded."""
    return folder / f"{folder.name}_mask.mrc"


def half_state(folder: Path, half_set: int) -> EntryState:
    """Return how much of a half-set is there. A published one needs star, stack and marker, any other one its star."""
    star = folder / f"particles_{half_set}.star"
    published = (star.with_suffix(".mrcs"), done_path(folder, half_set)) if folder.name in CATALOGUE else ()
    if star.is_file() and all(path.is_file() for path in published):
        return EntryState.COMPLETE
    some = [path for path in _names(folder) if f"particles_{half_set}" in path or f"info_{half_set}" in path]
    return EntryState.PARTIAL if some else EntryState.ABSENT


def entry_state(folder: Path) -> EntryState:
    """Return how much of an entry is there: complete with both half-sets, absent with nothing of either."""
    states = {half_state(folder, half) for half in HALVES}
    return states.pop() if len(states) == 1 else EntryState.PARTIAL


def bytes_in(folder: Path) -> int:
    """Return the bytes of the files in a folder, parts of a download included, links not followed."""
    return sum((folder / name).lstat().st_size for name in _names(folder) if not (folder / name).is_dir())


def local_entries(root: Path) -> list[str]:
    """Return the names of the folders under `root` that hold an entry or a part of one, sorted."""
    base = root.expanduser()
    return [
        name
        for name in sorted(_names(base))
        if is_entry_name(name) and (base / name).is_dir() and entry_state(base / name) is not EntryState.ABSENT
    ]


def name_hint(target: str, root: Path | None = None) -> str:
    """Return what to do about a name that is no entry's: the nearest published or (under `root`) local one, whatever
    its case; the one in whose place it stands in the paper; else where the names are listed."""
    taken = next((entry.name for entry in CATALOGUE.values() if entry.paper_name == target != entry.name), None)
    if taken is not None:
        return f"the paper's {target} was published as {taken}"
    names = [*CATALOGUE, DEMO_NAME, *(local_entries(root) if root is not None else [])]
    folded = {name.casefold(): name for name in names}
    close = difflib.get_close_matches(target.casefold(), folded, n=1)
    return f"did you mean {folded[close[0]]}?" if close else "`cesped-stream entries list` shows what there is"


@contextmanager
def entry_lock(target: str, root: Path) -> Iterator[Path]:
    """Hold an entry for this process as `folder_lock` does; give its folder."""
    with folder_lock(entry_folder(target, root)) as folder:
        yield folder


@contextmanager
def folder_lock(folder: Path) -> Iterator[Path]:
    """Hold a folder for this process, to its end however it ends; give the folder, which need not exist yet.

    The lock is a file beside it, `.<name>.lock`. BusyEntryError where another process holds it, UnreachableFileError
    where the folder above cannot be made or written.
    """
    path = folder.with_name(f".{folder.name}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UnreachableFileError(
            f"{path}: {error.strerror}; may this user write there, is its mount there?"
        ) from None
    try:
        _take(descriptor, folder)
        yield folder
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the file system says of `path` meanwhile into FullDiskError or UnreachableFileError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FullDiskError(f"{path}: no space left; make room and start again") from None
        reason = error.strerror or str(error)
        raise UnreachableFileError(f"{path}: {reason}; may this user write there, is its mount there?") from None


def _take(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
        raise BusyEntryError(f"{folder}: process {holder} is at work on it; wait for it, or stop it first") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UnreachableFileError(f"{folder}: {error.strerror}; may this user read it, is its mount there?") from None
