"""Where a data set's star lies: an entry's half-set, downloaded where it is missing, or any star."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from cesped_stream.benchmark.catalogue import CATALOGUE, DEFAULT_ROOT
from cesped_stream.errors import InvalidSettingsError, InvalidStarError, UnreachableFileError

Root = str | os.PathLike[str] | None


@dataclass(frozen=True)
class Source:
    """A star, where its stacks are looked for, and the point group of what it shows."""

    star: Path
    symmetry: str
    image_root: Path | None = None


def star_source(star: Path, symmetry: str, image_root: Path | None) -> Source:
    """Return the source of any star; UnreachableFileError where it is not there."""
    if not star.is_file():
        raise UnreachableFileError(f"{star}: no such star file; is the path right?")
    return Source(star, symmetry.strip().upper(), image_root)


def entry_source(target: str, half_set: int, root: Root) -> Source:
    """Return the source of an entry's half-set under `root`, downloading a published entry that is not there.

    Raises InvalidSettingsError for a half-set other than 0 and 1 and for a name that is neither there nor published.
    """
    if half_set not in (0, 1):
        raise InvalidSettingsError(f"halfset is {half_set!r}; an entry has half-sets 0 and 1")
    folder = _root(root) / target
    star = folder / f"particles_{half_set}.star"
    if not star.is_file():
        _fetch(target, half_set, _root(root))
    return Source(star, _symmetry(folder, half_set))


def published_halves() -> list[tuple[str, int]]:
    """Return (name, half-set) of all published entries."""
    return [(name, half) for name in CATALOGUE for half in (0, 1)]


def local_halves(root: Root) -> list[tuple[str, int]]:
    """Return (name, half-set) of the entries under `root` whose star is there."""
    folder = _root(root)
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return [(name, half) for name in names for half in (0, 1) if (folder / name / f"particles_{half}.star").is_file()]


def add_half(star: Path, particles_root: Path, target: str, half_set: int, symmetry: str, root: Root) -> None:
    """Add one half-set of own data as an entry, its images copied."""
    from cesped_stream.benchmark.add_entry import add_entry

    add_entry(star, particles_root, target, half_set, symmetry, _root(root), copy=True)


def _fetch(target: str, half_set: int, root: Path) -> None:
    if target not in CATALOGUE:
        raise InvalidSettingsError(
            f"target {target!r}: there is no {root / target / f'particles_{half_set}.star'}, and no published entry has "
            f"this name; published are {', '.join(CATALOGUE)}, and `cesped-stream entries add` makes own ones"
        )
    from cesped_stream.benchmark.download import download_entry

    download_entry(target, root)


def _root(root: Root) -> Path:
    return Path(DEFAULT_ROOT if root is None else root).expanduser()


def _symmetry(folder: Path, half_set: int) -> str:
    info = folder / f"info_{half_set}.json"
    try:
        return str(json.loads(info.read_text())["symmetry"]).strip().upper()
    except OSError as error:
        raise UnreachableFileError(f"{info}: {error.strerror}; it should read {{\"symmetry\": \"C1\"}}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidStarError(f'{info}: {error!r}; it should read {{"symmetry": "C1"}}') from None
