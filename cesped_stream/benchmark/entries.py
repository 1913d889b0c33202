"""Entries: aligned particle sets with known poses, in CESPED's layout or as any star file."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from cesped_stream.benchmark.catalogue import CATALOGUE, DEFAULT_ROOT, DEMO_NAME
from cesped_stream.benchmark.entry_check import read_symmetry
from cesped_stream.benchmark.entry_folder import EntryState, entry_state, is_entry_name, name_hint
from cesped_stream.conventions import SUBSET_LABEL, half_set_to_random_subset
from cesped_stream.errors import InvalidSettingsError, InvalidStarError, UnreachableFileError
from cesped_stream.particles.missing_columns import filled_rows, shared_columns
from cesped_stream.particles.stack_paths import resolve_stack
from cesped_stream.particles.stacks import STACK_LABEL, parse_image_name
from cesped_stream.particles.star import concatenated, read_star
from cesped_stream.particles.table import ParticleTable


@dataclass(frozen=True)
class Entry:
    """Star files with poses whose rows together are one data set."""

    name: str
    folder: Path
    stars: tuple[Path, ...]
    """One star, or CESPED's two: particles_0.star (half-set 0) and particles_1.star (half-set 1)."""
    symmetry: str | None = None
    """The point group that info_0.json states; None where there is none."""

    def particles(self) -> ParticleTable:
        """Return all rows, half 0 first, with each stack's absolute path in `cestreamStack`.

        Rows of CESPED's two stars get the rlnRandomSubset that their file says, where they have none. Raises
        InvalidStarError for a star, ForbiddenPathError or UnreachableFileError for a stack it cannot use.
        """
        tables = [_with_stacks(read_star(star), star) for star in self.stars]
        if len(tables) == 1:
            return tables[0]
        halves = [_with_subset(table, half) for half, table in enumerate(tables)]
        return concatenated(_with_equal_labels(halves, self.stars))


def find_entry(target: str, root: Path = DEFAULT_ROOT) -> Entry:
    """Return the entry of that name under `root`, or the one at that path; names come first.

    "DEMO", the embedded simulated entry, is made under `root` where it is not there yet (seconds; imports torch).
    Raises UnreachableFileError for a published entry or a path that is not on disk, or only in part, and
    InvalidSettingsError for a name that is none, both with what to do; else as `open_entry`.
    """
    folder = root.expanduser() / target
    if target == DEMO_NAME:
        from cesped_stream.benchmark.demo_entry import make_demo_entry

        return open_entry(make_demo_entry(root))
    if is_entry_name(target) and folder.is_dir():
        if target in CATALOGUE and entry_state(folder) is not EntryState.COMPLETE:
            raise UnreachableFileError(
                f"{folder}: not whole yet; `cesped-stream entries download {target}` goes on where it ended"
            )
        return open_entry(folder)
    path = Path(target).expanduser()
    if path.exists():
        return open_entry(path)
    if target in CATALOGUE:
        raise UnreachableFileError(f"{folder}: not there; `cesped-stream entries download {target}` fetches it")
    if not is_entry_name(target):
        raise UnreachableFileError(f"{path}: no such entry; is the path right, is its mount there?")
    raise InvalidSettingsError(
        f"{target}: no entry under {root}, no published one, and no such path; {name_hint(target, root)}"
    )


def open_entry(path: Path) -> Entry:
    """Return the entry at `path`: a folder in CESPED's layout, a folder with one star file, or a star file.

    The symmetry is that of info_0.json (`{"symmetry": "C2"}`), of a half-set's star (`particles_1.star`) that of the
    info file beside it (info_1.json); None where there is none.
    """
    if path.is_file():
        half = re.fullmatch(r"particles_([01])\.star", path.name)
        return Entry(path.stem, path.parent, (path,), _symmetry(path.parent, half[1]) if half else None)
    if not path.is_dir():
        raise UnreachableFileError(f"{path}: no such entry; give an entry's folder or a star file")
    halves = tuple(path / f"particles_{half}.star" for half in (0, 1))
    present = [star for star in halves if star.is_file()]
    if len(present) == 1:
        missing = next(star.name for star in halves if star not in present)
        raise UnreachableFileError(f"{path}: {missing} is missing; an entry has both halves")
    stars = halves if present else tuple(sorted(path.glob("*.star")))
    if not present and len(stars) != 1:
        raise UnreachableFileError(
            f"{path}: neither particles_0.star and particles_1.star nor exactly one star file "
            f"({len(stars)} found); name the star file"
        )
    return Entry(path.name, path, stars, _symmetry(path, "0"))


def _symmetry(folder: Path, half: str) -> str | None:
    info = folder / f"info_{half}.json"
    return read_symmetry(info) if info.is_file() else None


def stack_path(name: str, star: Path) -> Path:
    """Return the real path of a stack that an entry's star names: the name stays in the entry's folder.

    A link in that folder may lead anywhere: whoever made the entry put it there. Raises ForbiddenPathError for a name
    that leaves the folder, UnreachableFileError for what is not there.
    """
    folder = os.path.abspath(star.parent)
    inside = os.path.commonpath([os.path.normpath(os.path.join(folder, name)), folder]) == folder
    allowed = (Path("/"),) if inside else (star.parent,)
    return resolve_stack(name, star=star, image_root=star.parent, allowed_roots=allowed)


def _with_stacks(table: ParticleTable, star: Path) -> ParticleTable:
    stacks: dict[str, str] = {}
    column = []
    for text in table.column("rlnImageName"):
        name = parse_image_name(text)[1]
        if name not in stacks:
            stacks[name] = quote(str(stack_path(name, star)))
        column.append(stacks[name])
    return table.with_columns({STACK_LABEL: column})


def _with_subset(table: ParticleTable, half: int) -> ParticleTable:
    if SUBSET_LABEL in table:
        return table
    return replace(table, source="").with_columns({SUBSET_LABEL: [str(half_set_to_random_subset(half))] * len(table)})


def _with_equal_labels(tables: list[ParticleTable], stars: tuple[Path, ...]) -> list[ParticleTable]:
    """Fill columns that one table lacks, or leave them out (`shared_columns`); angles must be in all tables or none."""
    angles_of_any = {label for table in tables for label in table.labels if label.startswith("rlnAngle")}
    labels = shared_columns((table.labels, table.optics) for table in tables).kept
    filled = []
    for table, star in zip(tables, stars, strict=True):
        if absent := [label for label in sorted(angles_of_any) if label not in table]:
            raise InvalidStarError(
                f"{star}: no column {', '.join(absent)}, which the other half-set's star has; add it"
            )
        filled.append(replace(table, labels=labels, rows=filled_rows(labels, table)))
    return filled
