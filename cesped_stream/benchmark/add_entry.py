"""Own particles as an entry in CESPED's layout, by links to the stacks or by a copy of the images."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from cesped_stream.benchmark.catalogue import DEFAULT_ROOT
from cesped_stream.benchmark.entry_folder import check_new_name, disk_errors, done_path, entry_lock, mark_added
from cesped_stream.conventions import HALVES, SUBSET_LABEL, half_set_to_random_subset
from cesped_stream.durable import rename_durably, write_whole
from cesped_stream.errors import InvalidEntryError, InvalidSettingsError, InvalidStarError, NotSettledError
from cesped_stream.particles.aligned_rows import refuse_own_predictions
from cesped_stream.particles.half_sets import check_both_halves
from cesped_stream.particles.own_rows import PoseSource, pose_sources
from cesped_stream.particles.stack_paths import resolve_stack
from cesped_stream.particles.stack_writer import StackWriter
from cesped_stream.particles.stacks import (
    STACK_LABEL,
    StackHeader,
    StackReader,
    check_names_of_one_stack,
    parse_image_name,
    read_images,
)
from cesped_stream.particles.star import read_star, write_star
from cesped_stream.particles.table import ParticleTable
from cesped_stream.point_group import point_group_name
from cesped_stream.so3.symmetry import group_rotations

ORIGINAL_LABEL = "rlnImageOriginalName"
ROWS_AT_ONCE = 256

OnProgress = Callable[[int, int], None]
"""Called with the images copied so far and their number."""


@dataclass
class AddedEntry:
    """An entry as it was added, and what its user should know of it."""

    folder: Path
    num_particles: dict[int, int] = field(default_factory=dict)
    """By half-set."""
    warnings: list[str] = field(default_factory=list)


@dataclass
class _Source:
    """Rows of one half-set with the real path of each one's stack."""

    half_set: int
    table: ParticleTable
    stacks: list[Path]
    """Of each row."""
    indices: list[int]
    """In its stack, from 0."""

    headers: dict[Path, StackHeader]

    @property
    def box_sizes(self) -> list[int]:
        """Of each row."""
        return [self.headers[path].box_size for path in self.stacks]


@dataclass(frozen=True)
class NewEntry:
    """What is to be made, and how."""

    target: str
    """The entry's name."""
    symmetry: str
    particles_root: Path | None = None
    """Image names are relative to it (a RELION project); none: to the star's folder."""
    root: Path = DEFAULT_ROOT
    """The folder of all entries."""
    copy: bool = False
    """Copy the images; else link their stacks."""
    allow_own_predictions: bool = False
    """Take rows whose pose this program predicted for true ones."""
    on_progress: OnProgress = lambda done, total: None


def add_entry(star: Path, half_set: int, new: NewEntry) -> AddedEntry:
    """Add one half-set (0 or 1) of an entry: `particles_<h>.star` with all its columns, its stack or stacks, its info.

    By links (default) rows keep their index: one stack becomes `particles_<h>.mrcs`, several become
    `stacks_<h>/<k>_<name>`. A copy gives one float32 stack in the order of the rows. rlnImageOriginalName keeps the
    name that a row came with, unless the star has that column. cesped reads either (25.12.0), but for what `warnings`
    name.

    Raises InvalidSettingsError (name, symmetry), InvalidStarError (rows of the other half-set, a row that stands
    twice, boxes that cannot share a stack), NotSettledError (an image that is not there), InvalidEntryError (the
    half-set is there already). On any error nothing of it is left.
    """
    if half_set not in HALVES:
        raise InvalidSettingsError(f"half_set: {half_set}; it is 0 or 1")
    return _add({half_set: _of_one_half(read_star(star), half_set)}, {half_set: star}, new)


def add_entry_of_two_stars(stars: tuple[Path, Path], new: NewEntry) -> AddedEntry:
    """Add an entry whose half-sets are two stars, 0 and 1; otherwise as `add_entry`."""
    tables = {half: _of_one_half(read_star(star), half) for half, star in enumerate(stars)}
    return _add(tables, dict(enumerate(stars)), new)


def add_entry_of_one_star(star: Path, new: NewEntry) -> AddedEntry:
    """Add an entry from one star, split by its rlnRandomSubset, else by a stable hash of the micrographs' names.

    Each row then has rlnRandomSubset. Otherwise as `add_entry`; InvalidStarError where a half-set would be empty.
    """
    whole = read_star(star)
    if not len(whole):
        raise InvalidStarError(f"{star}: no rows; an entry needs particles of both half-sets")
    check_both_halves(whole)
    half_sets = whole.half_sets()
    tables = {half: _of_one_half(whole.select(np.flatnonzero(half_sets == half)), half) for half in HALVES}
    return _add(tables, dict.fromkeys(HALVES, star), new)


def _of_one_half(table: ParticleTable, half_set: int) -> ParticleTable:
    """Return the rows with rlnRandomSubset on each; one that says the other half-set is refused."""
    subset = str(half_set_to_random_subset(half_set))
    if SUBSET_LABEL not in table:
        return table.with_columns({SUBSET_LABEL: [subset] * len(table)})
    others = np.flatnonzero(table.half_sets() != half_set)
    if len(others):
        raise InvalidStarError(
            f"{table.source}: {len(others)} of {len(table)} rows for half-set {half_set} have another rlnRandomSubset "
            f"than {subset}, the first is row {others[0] + 1}; give the star of both half-sets alone, to be split by it"
        )
    return table


def _add(tables: dict[int, ParticleTable], stars: dict[int, Path], new: NewEntry) -> AddedEntry:
    check_new_name(new.target)
    group_rotations(new.symmetry)
    own = {half: _own_predictions(table, new) for half, table in tables.items()}
    with StackReader() as reader, entry_lock(new.target, new.root) as folder, disk_errors(folder):
        for half in tables:
            _refuse_present(folder, half)
        sources = [_source(half, table, stars[half], new.particles_root, reader) for half, table in tables.items()]
        added = AddedEntry(folder, {source.half_set: len(source.table) for source in sources})
        added.warnings += [
            f"{new.target}, half-set {half}: {rows:,} poses are predictions of this program, no truth to measure by"
            for half, rows in own.items()
            if rows
        ]
        _check_images([*_linked_already(folder, sources, reader), *sources])
        making = folder.with_name(f".{new.target}.adding")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        try:
            writer = _Writer(making, new, reader, added, total=sum(map(len, tables.values())))
            for source in sources:
                writer.write(source)
            _publish(making, folder, [source.half_set for source in sources])
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return added


def _own_predictions(table: ParticleTable, new: NewEntry) -> int:
    """Return how many poses this program predicted; InvalidStarError where there are any and that is not allowed."""
    if not new.allow_own_predictions:
        refuse_own_predictions(table, "--allow-own-predictions")
    return int(((pose_sources(table) == PoseSource.OWN) & table.has_poses()).sum())


def _refuse_present(folder: Path, half: int) -> None:
    present = [path.name for path in (folder / f"particles_{half}.star", done_path(folder, half)) if path.exists()]
    if present:
        raise InvalidEntryError(
            f"{folder}: half-set {half} is there ({', '.join(present)}); remove it or take a new name"
        )


def _source(half: int, table: ParticleTable, star: Path, particles_root: Path | None, reader: StackReader) -> _Source:
    found: dict[str, Path] = {}
    stacks, indices = [], []
    for text in table.column("rlnImageName"):
        index, name = parse_image_name(text)
        if name not in found:
            # The user names this star on this machine: any folder that it points to may be read.
            found[name] = resolve_stack(name, star=star, image_root=particles_root, allowed_roots=(Path("/"),))
        stacks.append(found[name])
        indices.append(index)
    headers = {path: reader.header(path) for path in dict.fromkeys(stacks)}
    for path, text in zip(stacks, table.column("rlnImageName"), strict=True):
        check_names_of_one_stack(path, headers[path].num_images, [text])
    return _Source(half, table, stacks, indices, headers)


def _linked_already(folder: Path, new: Sequence[_Source], reader: StackReader) -> list[_Source]:
    """Return the rows of a half-set that was added before, whose images are links: they may be those of the new one.

    Of a copy the sources are not known any more.
    """
    stars = {half: folder / f"particles_{half}.star" for half in HALVES if half not in {s.half_set for s in new}}
    present = {half: star for half, star in stars.items() if star.is_file()}
    return [_source(half, read_star(star), star, folder, reader) for half, star in present.items()]


def _check_images(sources: Sequence[_Source]) -> None:
    """Refuse an image that is not there, or that stands in two rows: a half-set must not know the other's images."""
    taken: dict[Path, NDArray[np.bool_]] = {}
    for source in sources:
        for row, (path, index) in enumerate(zip(source.stacks, source.indices, strict=True)):
            where = f"{source.table.source} (half-set {source.half_set}, row {row + 1})"
            present = source.headers[path].num_whole_images
            if index >= present:
                raise NotSettledError(f"{path}: {present} images, {where} asks for {index + 1}; is the copy finished?")
            of_stack = taken.setdefault(path, np.zeros(present, np.bool_))
            if of_stack[index]:
                raise InvalidStarError(f"{where}: image {index + 1} of {path} stands in two rows; keep one of them")
            of_stack[index] = True


@dataclass
class _Writer:
    """Writes the half-sets of one entry into a folder that is not yet its own."""

    folder: Path
    new: NewEntry
    reader: StackReader
    added: AddedEntry
    total: int
    done: int = 0

    def write(self, source: _Source) -> None:
        """Write stack or links, then star and info."""
        half = source.half_set
        boxes = source.box_sizes
        names = self._copied(source, boxes) if self.new.copy else self._linked(source)
        table = source.table.without([STACK_LABEL]).with_image_sizes(boxes)
        columns: dict[str, Sequence[str]] = {"rlnImageName": names}
        if ORIGINAL_LABEL not in table:
            columns[ORIGINAL_LABEL] = table.column("rlnImageName")
        table = table.with_columns(columns)
        self._warn(table, boxes)
        write_star(self.folder / f"particles_{half}.star", table)
        write_whole(
            self.folder / f"info_{half}.json",
            json.dumps({"symmetry": point_group_name(self.new.symmetry)}).encode() + b"\n",
        )

    def _linked(self, source: _Source) -> list[str]:
        """Link the stacks; return the rows' new image names."""
        half, stacks = source.half_set, list(source.headers)
        names = {stacks[0]: f"particles_{half}.mrcs"}
        if len(stacks) > 1:
            (self.folder / f"stacks_{half}").mkdir()
            names = {path: f"stacks_{half}/{k:06d}_{_plain(path.name)}" for k, path in enumerate(stacks, 1)}
        for path, name in names.items():
            (self.folder / name).symlink_to(path)
            self._warn_format(path.name, source.headers[path])
        return [f"{k + 1:06d}@{names[path]}" for path, k in zip(source.stacks, source.indices, strict=True)]

    def _copied(self, source: _Source, boxes: list[int]) -> list[str]:
        """Copy the images into one stack, in the order of the rows; return the rows' new image names."""
        if len(set(boxes)) > 1:
            raise InvalidStarError(
                f"{source.table.source}: images of {', '.join(map(str, sorted(set(boxes))))} px cannot share a stack; "
                "add them by links"
            )
        name = f"particles_{source.half_set}.mrcs"
        pixel_size = float(source.table.pixel_sizes_angstrom()[0])
        with StackWriter(self.folder / name, boxes[0], pixel_size) as stack:
            for first in range(0, len(source.table), ROWS_AT_ONCE):
                rows = range(first, min(first + ROWS_AT_ONCE, len(source.table)))
                part = source.table.select(rows).with_columns(
                    {STACK_LABEL: [quote(str(source.stacks[k])) for k in rows]}
                )
                (group,) = read_images(part, self.reader)
                stack.append(group.images)
                self.done += len(rows)
                self.new.on_progress(self.done, self.total)
        return [f"{k + 1:06d}@{name}" for k in range(len(source.table))]

    def _warn(self, table: ParticleTable, boxes: list[int]) -> None:
        where = f"{self.new.target}, half-set {table.half_sets()[0]}"
        if not table.has_poses().all():
            self._say(f"{where}: {int((~table.has_poses()).sum()):,} rows have no pose")
        if len(table.optics) > 1:
            self._say(f"{where}: {len(table.optics)} optics groups, cesped corrects the CTF of one only")
        if len(set(boxes)) > 1 or len(set(table.pixel_sizes_angstrom())) > 1:
            self._say(f"{where}: several pixel or box sizes, cesped cannot read it")

    def _warn_format(self, name: str, header: StackHeader) -> None:
        if header.mode != 2 or header.byte_order != "<" or header.data_offset != 1024:
            self._say(
                f"{name}: not plain float32 (mode {header.mode}, data from byte {header.data_offset}), which cesped "
                "cannot read; a copy can be"
            )

    def _say(self, text: str) -> None:
        if text not in self.added.warnings:
            self.added.warnings.append(text)


def _plain(name: str) -> str:
    """Return a file name in which no reader of stars sees a separator."""
    return "".join(c if (c.isascii() and c.isalnum()) or c in "._-" else "_" for c in name)


def _publish(making: Path, folder: Path, half_sets: Sequence[int]) -> None:
    """Give what was made its names: a new entry by one rename, a second half-set with its marker last."""
    if not folder.exists():
        for half in half_sets:
            mark_added(making, half, folder.name)
        rename_durably(making, folder)
        return
    names = sorted((path.name for path in making.iterdir()), key=lambda name: name.endswith(".star"))
    for name in names:
        # Left by a call that was killed here: its star, which comes last, is not there.
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        rename_durably(making / name, folder / name)
    for half in half_sets:
        mark_added(folder, half, folder.name)
