"""Where a data set's star lies: an entry's half-set, downloaded where it is missing, or any star."""

import os
from dataclasses import dataclass
from pathlib import Path

from cesped_stream.benchmark.catalogue import CATALOGUE, DEFAULT_ROOT, DEMO_NAME
from cesped_stream.benchmark.entry_check import read_symmetry
from cesped_stream.benchmark.entry_folder import (
    EntryState,
    entry_folder,
    half_state,
    local_entries,
    name_hint,
)
from cesped_stream.conventions import HALVES
from cesped_stream.errors import InvalidSettingsError, UnreachableFileError

Root = str | os.PathLike[str] | None


@dataclass(frozen=True)
class Source:
    """A star, where its stacks are looked for, and the point group of what it shows."""

    star: Path
    symmetry: str
    image_root: Path | None = None
    target: str = ""
    """The entry's name; empty of a star that is none's."""
    half_set: int | None = None


def star_source(star: Path, symmetry: str, image_root: Path | None) -> Source:
    """Return the source of any star; UnreachableFileError where it is not there."""
    if not star.is_file():
        raise UnreachableFileError(f"{star}: no such star file; is the path right?")
    return Source(star, symmetry.strip().upper(), image_root)


def entry_source(target: str, half_set: int, root: Root) -> Source:
    """Return the source of an entry's half-set under `root`. A published one that is not whole is downloaded, the
    embedded one made: where several processes open it, let `entries download` come first.

    Raises BusyEntryError where another process downloads it now, InvalidSettingsError for a half-set other than 0 and 1
    and for a name that is neither there nor published.
    """
    if half_set not in HALVES:
        raise InvalidSettingsError(f"halfset is {half_set!r}; an entry has half-sets 0 and 1")
    folder = entry_folder(target, _root(root))
    if half_state(folder, half_set) is not EntryState.COMPLETE:
        _fetch(target, half_set, _root(root))
    symmetry = read_symmetry(folder / f"info_{half_set}.json")
    return Source(folder / f"particles_{half_set}.star", symmetry, target=folder.name, half_set=half_set)


def published_halves() -> list[tuple[str, int]]:
    """Return (name, half-set) of all published entries."""
    return [(name, half) for name in CATALOGUE for half in HALVES]


def usable_halves() -> list[tuple[str, int]]:
    """Return (name, half-set) of all published entries, the embedded one before them where the first of them is neither
    on disk nor to be had: nobody answers where the entries are downloaded from."""
    halves = published_halves()
    name, half = halves[0]
    if half_state(_root(None) / name, half) is EntryState.COMPLETE:
        return halves
    from cesped_stream.benchmark.download import server_answers

    return halves if server_answers() else [*((DEMO_NAME, half) for half in HALVES), *halves]


def local_halves(root: Root) -> list[tuple[str, int]]:
    """Return (name, half-set) of the entries under `root` that are whole."""
    base = _root(root)
    whole = EntryState.COMPLETE
    return [(name, half) for name in local_entries(base) for half in HALVES if half_state(base / name, half) is whole]


def add_half(star: Path, particles_root: Path, target: str, half_set: int, symmetry: str, root: Root) -> None:
    """Add one half-set of own data as an entry, its images copied; errors as `add_entry`."""
    from cesped_stream.benchmark.add_entry import NewEntry, add_entry

    add_entry(star, half_set, NewEntry(target, symmetry, particles_root, _root(root), copy=True))


def _fetch(target: str, half_set: int, root: Path) -> None:
    if target == DEMO_NAME:
        from cesped_stream.benchmark.demo_entry import make_demo_entry

        make_demo_entry(root)
        return
    if target not in CATALOGUE:
        raise InvalidSettingsError(
            f"target {target!r}: no particles_{half_set}.star in {root / target}, nor is it a published entry's name; "
            f"{name_hint(target, root)}"
        )
    from cesped_stream.benchmark.download_entry import download_entry

    download_entry(target, root, half_sets=(half_set,))


def _root(root: Root) -> Path:
    return Path(DEFAULT_ROOT if root is None else root).expanduser()
