"""A published entry, or its mask, from the server to disk; it gets its names only when it is whole and checked."""

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from cesped_stream.benchmark.catalogue import CATALOGUE, DEFAULT_ROOT, DEMO_NAME, MASK_RECORD, CatalogueEntry
from cesped_stream.benchmark.download import RecordServer
from cesped_stream.benchmark.entry_check import HalfCheck, check_half
from cesped_stream.benchmark.entry_folder import (
    EntryState,
    entry_folder,
    entry_lock,
    half_state,
    mark_downloaded,
    mask_path,
    name_hint,
)
from cesped_stream.benchmark.fetch import bytes_on_disk, fetch, forget_journal, is_same_file, part_path
from cesped_stream.benchmark.records import Assembly, HalfFiles, half_files
from cesped_stream.conventions import HALVES
from cesped_stream.durable import fsync_folder, rename_durably
from cesped_stream.errors import (
    FullDiskError,
    InvalidEntryError,
    InvalidRecordError,
    InvalidSettingsError,
    UnreachableFileError,
)
from cesped_stream.particles.stacks import StackReader

SPARE_BYTES: Final = 64 << 20
"""Free disk that a download leaves at least."""

OnProgress = Callable[[str, int, int], None]
"""Called with what is done ("10166 half 0"), the bytes of it on disk, and the bytes of it in all."""


@dataclass(frozen=True)
class Downloaded:
    """What a call left on disk."""

    folder: Path
    checks: tuple[HalfCheck, ...]
    """Of the half-sets that this call fetched; none for those that were there."""


def published(target: str) -> CatalogueEntry:
    """Return the catalogue's entry; InvalidSettingsError names the known ones."""
    if target not in CATALOGUE:
        raise InvalidSettingsError(
            f"target: {target!r} is no published entry; {name_hint(target)} ({DEMO_NAME} is made here)"
        )
    return CATALOGUE[target]


def download_entry(
    target: str,
    root: Path = DEFAULT_ROOT,
    *,
    half_sets: Sequence[int] = HALVES,
    server: RecordServer | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Downloaded:
    """Download half-sets of a published entry to `<root>/<target>`, as far as they are not there.

    Free disk is looked at first. Pieces are checked by md5 and written at their place in `.<name>.part` files, which a
    later call takes up at the byte; star, stack and info are checked against each other, and only then get their names
    and, last, the marker SUCCESSFUL_DOWNLOAD_<record>.txt. An entry that has only stars gets links to the stacks of the
    entry that has the images, which is downloaded too. Memory is bounded. Raises UnreachableHostError,
    InvalidRecordError, BusyEntryError (another process downloads it), FullDiskError, InvalidEntryError (files of
    others in the way, or star and stack that do not agree).
    """
    entry = published(target)
    if all(_is_done(entry, half, root) for half in half_sets):
        return Downloaded(entry_folder(target, root), ())
    with _line(server) as line:
        if entry.images_of is not None and any(not _is_done(entry, half, root) for half in half_sets):
            download_entry(entry.images_of, root, half_sets=half_sets, server=line, on_progress=on_progress)
        with entry_lock(target, root) as folder:
            missing = [half for half in half_sets if half_state(folder, half) is not EntryState.COMPLETE]
            plans = {half: _planned(entry, half, line) for half in missing}
            _make(folder)
            _check_disk(folder, plans.values())
            checks = [_fetch_half(entry, half, plans[half], folder, line, on_progress) for half in missing]
    return Downloaded(folder, tuple(checks))


def download_mask(target: str, root: Path = DEFAULT_ROOT, *, server: RecordServer | None = None) -> Path:
    """Return the entry's mask, `<root>/<target>/<target>_mask.mrc`, downloaded where it is not there.

    It is the mask that the authors evaluate with: TEST has 11120's, the *_10648 have 10648's. Errors as
    `download_entry`.
    """
    entry = published(target)
    path = mask_path(entry_folder(target, root))
    if path.is_file():
        return path
    with entry_lock(target, root) as folder:
        _make(folder)
        with _line(server) as line:
            listed = {file.name: file for file in line.files(MASK_RECORD)}
            if entry.mask_name not in listed:
                raise InvalidRecordError(f"record {MASK_RECORD}: no {entry.mask_name} in it; give a mask of your own")
            mask = Assembly(path.name, (listed[entry.mask_name],))
            _fetch_file(mask, folder, line, lambda done: None)
        _publish(mask, folder)
    return path


def _line(server: RecordServer | None) -> AbstractContextManager[RecordServer]:
    """Return the caller's server, which stays open, or one of our own."""
    return RecordServer() if server is None else nullcontext(server)


def _is_done(entry: CatalogueEntry, half: int, root: Path) -> bool:
    return half_state(entry_folder(entry.name, root), half) is EntryState.COMPLETE


def _planned(entry: CatalogueEntry, half: int, line: RecordServer) -> HalfFiles:
    record = entry.records[half]
    files = half_files(line.files(record), half, f"record {record} of {line.base_url}")
    if files.stack is None and entry.images_of is None:
        raise InvalidRecordError(f"record {record} of {line.base_url}: no particles_{half}.mrcs in it")
    return files


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnreachableFileError(f"{folder}: {error.strerror}; may this user write there?") from None


def _check_disk(folder: Path, plans: Iterable[HalfFiles]) -> None:
    files = [file for plan in plans for file in plan.assemblies()]
    missing = sum(file.size - bytes_on_disk(folder, file) for file in files)
    free = shutil.disk_usage(folder).free
    if missing and missing + SPARE_BYTES > free:
        raise FullDiskError(
            f"{folder}: {missing / 1e9:.1f} GB are to come, {free / 1e9:.1f} GB are free; give another root"
        )


def _fetch_half(
    entry: CatalogueEntry,
    half: int,
    plan: HalfFiles,
    folder: Path,
    line: RecordServer,
    on_progress: OnProgress,
) -> HalfCheck:
    files = plan.assemblies()
    total, before = sum(file.size for file in files), 0
    for file in files:
        report = partial(_report, on_progress, f"{entry.name} half {half}", before, total)
        _fetch_file(file, folder, line, report)
        before += file.size
    if plan.stack is None:
        _link_stack(entry, half, folder)
    check = _checked(half, folder)
    check.raise_errors()
    for file in reversed(files):
        _publish(file, folder)
    mark_downloaded(folder, half, plan.stack.size if plan.stack else 0)
    return check


def _report(on_progress: OnProgress, what: str, before: int, total: int, done: int) -> None:
    on_progress(what, before + done, total)


def _fetch_file(file: Assembly, folder: Path, line: RecordServer, on_bytes: Callable[[int], None]) -> None:
    """Fetch a file into its part, or accept the one that has its name already and is the same to the byte."""
    path = folder / file.name
    if not os.path.lexists(path):
        fetch(file, folder, line.read, on_bytes=on_bytes)
        return
    other = is_same_file(path, file, on_bytes=on_bytes) if path.is_file() and not path.is_symlink() else "no plain file"
    if other is not None:
        raise InvalidEntryError(
            f"{path}: is there and is not the record's ({other}), left by another program or changed since; move it "
            "away, then download again"
        )


def _link_stack(entry: CatalogueEntry, half: int, folder: Path) -> None:
    assert entry.images_of is not None
    link = folder / f"particles_{half}.mrcs"
    target = Path("..") / entry.images_of / link.name
    if os.path.lexists(link) and not link.is_symlink():
        raise InvalidEntryError(f"{link}: is there and no link to the stack of {entry.images_of}; move it away")
    if not link.is_symlink():
        link.symlink_to(target)
        fsync_folder(folder)


def _checked(half: int, folder: Path) -> HalfCheck:
    """Check the files of a half-set, each under its name or as the part that will get it."""

    def present(name: str) -> Path:
        final = folder / name
        return final if final.exists() else part_path(folder, name)

    def stack_of(name: str) -> Path:
        if name != f"particles_{half}.mrcs":
            raise InvalidEntryError(f"particles_{half}.star: names the stack {name}, which is none of this record")
        return present(name)

    star, info = present(f"particles_{half}.star"), present(f"info_{half}.json")
    with StackReader() as reader:
        return check_half(star, info, stack_of, half, reader)


def _publish(file: Assembly, folder: Path) -> None:
    part = part_path(folder, file.name)
    if part.exists():
        rename_durably(part, folder / file.name)
    forget_journal(folder, file.name)
