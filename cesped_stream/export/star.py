"""The canonical export: every committed particle once, in one star whose bytes do not depend on how it came about."""

import heapq
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from cesped_stream.conventions import POSE_LABELS
from cesped_stream.durable import fsync_folder
from cesped_stream.errors import InvalidSettingsError, UnreachableFileError
from cesped_stream.particles.missing_columns import filled_rows, optics_cells, shared_columns, shared_optics
from cesped_stream.particles.own_columns import OWN_LABELS
from cesped_stream.particles.stacks import parse_image_name
from cesped_stream.particles.star import (
    iter_star,
    optics_block,
    particles_header,
    row_line,
)
from cesped_stream.particles.table import OpticsGroup, ParticleTable

OnProgress = Callable[[str, int], None]
"""Called with "read" or "written" and the number of rows so far."""

OnLeftOut = Callable[[Path, tuple[str, ...]], None]
"""Called with a file written and the columns that only some of its rows had, where RELION has no value for the rest."""

ROWS_PER_RUN: Final = 200_000
"""Rows sorted in memory at a time (about 0.5 KB each); more are merged from temporary files beside the output."""

_LAST_LABELS: Final = (*POSE_LABELS, *OWN_LABELS)
_SEPARATOR: Final = b"\x1f"


def export_star(
    poses_folder: Path,
    output: Path,
    *,
    on_progress: OnProgress = lambda phase, rows: None,
    on_left_out: OnLeftOut = lambda path, labels: None,
    rows_per_run: int = ROWS_PER_RUN,
) -> list[Path]:
    """Join the shards and the open star of a session's poses folder into `output`, sorted by particle.

    Rows without a pose go to `<output's stem>_unposed.star` beside it. Columns are those of all (`shared_columns`), in
    one order; optics groups are numbered by their sorted content. Returns the files written (the second only where
    there is such a row). A session may go on meanwhile: the export is what was committed when it began.
    UnreachableFileError where nothing is committed yet, InvalidSettingsError for an output that is a folder or among
    the poses themselves.
    """
    if output.is_dir():
        raise InvalidSettingsError(f"output: {output} is a folder; give the star file's path")
    if output.resolve().parent == poses_folder.resolve():
        raise InvalidSettingsError(f"output: {output} lies among the session's own poses; give a path outside")
    output.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        posed, unposed = _snapshot(poses_folder, held)
        if not posed and not unposed:
            raise UnreachableFileError(f"{poses_folder}: no poses yet; is it a session's poses folder?")
        written = []
        for sources, path in ((posed, output), (unposed, output.with_name(f"{output.stem}_unposed{output.suffix}"))):
            if sources:
                layout = _Layout.of(sources)
                _export(sources, layout, path, on_progress, rows_per_run)
                if layout.left_out:
                    on_left_out(path, layout.left_out)
                written.append(path)
            else:
                path.unlink(missing_ok=True)
    return written


def _snapshot(folder: Path, held: ExitStack) -> tuple[list[Path], list[Path]]:
    """Return the star files that together hold every committed row once.

    The open star is held by a descriptor: sealed shards keep their rows for ever, but the open one is replaced, and
    is renamed when it is sealed. If that happened between opening it and listing the shards, look again.
    """
    while True:
        descriptor = _opened(folder / "poses.star", held)
        sealed = sorted(folder.glob("poses_[0-9]*.star"))
        if _identity(folder / "poses.star") == (os.fstat(descriptor).st_ino if descriptor is not None else None):
            break
    unposed = _opened(folder / "unposed.star", held)
    return [*sealed, *_held_path(descriptor)], [path for path in _held_path(unposed) if _has_rows(path)]


def _has_rows(path: Path) -> bool:
    return len(next(iter_star(path, rows_per_table=1))) > 0


def _opened(path: Path, held: ExitStack) -> int | None:
    try:
        return held.enter_context(open(path, "rb")).fileno()
    except FileNotFoundError:
        return None


def _identity(path: Path) -> int | None:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return None


def _held_path(descriptor: int | None) -> list[Path]:
    return [] if descriptor is None else [Path(f"/proc/self/fd/{descriptor}")]


@dataclass(frozen=True)
class _Layout:
    """Columns and optics groups of the whole export."""

    labels: tuple[str, ...]
    optics_labels: tuple[str, ...]
    number: dict[tuple[str, ...], int]
    left_out: tuple[str, ...]

    @classmethod
    def of(cls, sources: Iterable[Path]) -> "_Layout":
        layouts: list[tuple[tuple[str, ...], tuple[OpticsGroup, ...]]] = []
        for path in sources:
            first = next(iter_star(path, rows_per_table=1))
            layouts.append((first.labels, first.optics))
        columns = shared_columns(layouts)
        groups = sorted({group for _, of_star in layouts for group in of_star}, key=lambda group: group.values)
        optics = shared_optics(groups)
        input_labels = sorted(set(columns.kept) - {"rlnImageName", *_LAST_LABELS})
        own = [label for label in _LAST_LABELS if label in columns.kept]
        optics_labels = tuple(sorted(optics.kept))
        contents = sorted({optics_cells(group, optics_labels) for group in groups})
        number = {content: k for k, content in enumerate(contents, 1)}
        left_out = tuple(sorted({*columns.left_out, *optics.left_out}))
        return cls(("rlnImageName", *input_labels, *own), optics_labels, number, left_out)

    def head(self) -> bytes:
        groups = [OpticsGroup(tuple(zip(self.optics_labels, content, strict=True))) for content in self.number]
        return optics_block(groups) + particles_header(self.labels)

    def lines(self, table: ParticleTable) -> Iterator[bytes]:
        """Yield each row as it will stand in the export, after a key that sorts by stack and index."""
        numbers = [self.number[optics_cells(group, self.optics_labels)] for group in table.optics]
        for cells, optics in zip(filled_rows(self.labels, table), table.optics_index.tolist(), strict=True):
            index, stack = parse_image_name(cells[0])
            key = stack.encode() + _SEPARATOR + b"%010d" % index + _SEPARATOR
            yield key + row_line(cells, numbers[optics])


def _export(sources: list[Path], layout: "_Layout", output: Path, on_progress: OnProgress, rows_per_run: int) -> None:
    temporary = output.with_name(f".{output.name}.tmp")
    with ExitStack() as held:
        lines = _sorted_lines(sources, layout, output.parent, held, on_progress, rows_per_run)
        with open(temporary, "wb", buffering=1 << 20) as stream:
            stream.write(layout.head())
            rows = 0
            for rows, line in enumerate(lines, 1):
                stream.write(line.split(_SEPARATOR, 2)[2])
                if rows % 10_000 == 0:
                    on_progress("written", rows)
            stream.write(b"\n")
            on_progress("written", rows)
            stream.flush()
            os.fsync(stream.fileno())
    os.replace(temporary, output)
    fsync_folder(output.parent)


def _sorted_lines(
    sources: list[Path],
    layout: _Layout,
    folder: Path,
    held: ExitStack,
    on_progress: OnProgress,
    rows_per_run: int,
) -> Iterable[bytes]:
    """Return all keyed rows in order: an external merge sort where they are more than one run."""
    runs: list[Iterable[bytes]] = []
    rows: list[bytes] = []
    read = 0
    for path in sources:
        for table in iter_star(path):
            rows.extend(layout.lines(table))
            read += len(table)
            on_progress("read", read)
            if len(rows) >= rows_per_run:
                runs.append(_spilled(sorted(rows), folder, held))
                rows = []
    rows.sort()
    return heapq.merge(*runs, rows) if runs else rows


def _spilled(rows: list[bytes], folder: Path, held: ExitStack) -> BinaryIO:
    stream = os.fdopen(_nameless(folder), "w+b", buffering=1 << 20)
    held.callback(stream.close)
    stream.writelines(rows)
    stream.seek(0)
    return stream


def _nameless(folder: Path) -> int:
    """Return the descriptor of a new file that has no name any more: it goes when the process does."""
    descriptor, name = tempfile.mkstemp(dir=folder)
    os.unlink(name)
    return descriptor
