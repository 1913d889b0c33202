"""RELION star files of particles: read whole, streamed, or as they grow; written whole or row by row.

The reader is strict where starfile is not: a star that is cut anywhere is not accepted.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from cesped_stream.durable import write_whole
from cesped_stream.errors import InvalidStarError, NotSettledError, TransientError
from cesped_stream.particles.missing_columns import optics_cells, shared_optics
from cesped_stream.particles.star_blocks import LaterBlocks
from cesped_stream.particles.star_files import opened, refuse_foreign
from cesped_stream.particles.star_header import HeaderReader, StarHeader, is_block_line
from cesped_stream.particles.star_lines import CompleteLines, quoted, split_cells
from cesped_stream.particles.star_normalise import normalised
from cesped_stream.particles.star_rows import Rows
from cesped_stream.particles.table import OPTICS_GROUP_LABEL, OpticsGroup, ParticleTable

ROWS_PER_TABLE: Final = 2000


class PrefixChanged(TransientError):
    """Rows of a growing star that were accepted before now read differently: scan it again from its start."""


@dataclass(frozen=True)
class StarPrefix:
    """How far a growing star has been accepted: its first `length` bytes, with their hash, hold `num_rows` rows."""

    length: int
    sha256: str
    header: StarHeader
    num_rows: int

    def to_json(self) -> dict[str, object]:
        """Return the prefix as JSON can hold it."""
        return {
            "length": self.length,
            "sha256": self.sha256,
            "num_rows": self.num_rows,
            "header": self.header.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "StarPrefix":
        """Return the prefix that `to_json` gave; KeyError, TypeError or ValueError for anything else."""
        header = StarHeader.from_json(data["header"])
        return cls(int(data["length"]), str(data["sha256"]), header, int(data["num_rows"]))


def read_star(path: Path) -> ParticleTable:
    """Return all rows of a complete particle star.

    Raises NotSettledError where it is cut or has no row yet, InvalidStarError where it is wrong, and
    UnreachableFileError.
    """
    tables = list(iter_star(path))
    return concatenated(tables) if len(tables) > 1 else tables[0]


def iter_star(path: Path, *, rows_per_table: int = ROWS_PER_TABLE) -> Iterator[ParticleTable]:
    """Yield the rows of a complete star in tables of at most `rows_per_table`; errors as `read_star`.

    Memory does not grow with the number of rows. A star without rows gives one empty table.
    """
    with opened(path) as stream:
        before = os.fstat(stream.fileno())
        size = before.st_size
        refuse_foreign(stream, path)
        stream.seek(max(0, size - 1))
        if size == 0 or stream.read(1) != b"\n":
            raise NotSettledError(
                f"{path}: no newline at its end, so its last row may be cut; is it being written? If it is complete, "
                f"add the newline: echo >> {path.name}"
            )
        stream.seek(0)
        tail = _Tail(stream, size, str(path), rows_per_table)
        found = False
        for table, _ in tail.tables(None):
            found = True
            if table.refused:
                raise InvalidStarError(table.refused[0][1])
            yield table
        if tail.lines.rest:
            raise NotSettledError(f"{path}: zero bytes among its rows; is it being written?")
        if not found:
            yield tail.empty_table()
        after = os.fstat(stream.fileno())
        if (after.st_size, after.st_mtime_ns) != (size, before.st_mtime_ns):
            raise NotSettledError(f"{path}: changed while it was read; is it being written?")


def read_tail(
    path: Path, prefix: StarPrefix | None, *, rows_per_table: int = ROWS_PER_TABLE
) -> Iterator[tuple[ParticleTable, StarPrefix]]:
    """Yield the rows of a growing star that came after `prefix` (None: its start), each table with the new prefix.

    Only rows that end in a newline are taken; what follows them, and what is written meanwhile, waits for the next
    call. Rows that cannot be used are told in the table's `refused`. Raises PrefixChanged where the accepted bytes are
    not those of before, NotSettledError where data_optics stands after the rows and is not written yet,
    InvalidStarError, UnreachableFileError.
    """
    with opened(path) as stream:
        at_first = os.fstat(stream.fileno())
        size = at_first.st_size
        digest = hashlib.sha256()
        lines_before = 0
        if prefix is None:
            refuse_foreign(stream, path)
        else:
            lines_before = _check_prefix(stream, prefix, digest, path)
        tail = _Tail(stream, size, str(path), rows_per_table, digest, lines_before)
        for accepted in tail.tables(prefix):
            now = os.fstat(stream.fileno())
            # Rewritten in place meanwhile: a line may be half old, half new.
            if (now.st_size, now.st_mtime_ns) != (size, at_first.st_mtime_ns):
                return
            yield accepted


def bytes_behind(path: Path, prefix: StarPrefix | None, most_bytes: int) -> bytes:
    """Return at most so many of the bytes that follow the accepted rows. Raises as `read_tail`."""
    with opened(path) as stream:
        if prefix is None:
            refuse_foreign(stream, path)
        else:
            _check_prefix(stream, prefix, hashlib.sha256(), path)
        return stream.read(most_bytes)


def read_bytes_behind(
    path: Path, prefix: StarPrefix | None, data: bytes, *, rows_per_table: int = ROWS_PER_TABLE
) -> Iterator[tuple[ParticleTable, StarPrefix]]:
    """Yield the rows of bytes that stood behind the accepted rows of a star; as `read_tail`, which reads what stands
    there now. None of a star whose optics follow its rows: the bytes do not hold them."""
    digest = hashlib.sha256()
    lines_before = 0
    if prefix is not None:
        if prefix.header.optics_follow:
            return
        with opened(path) as stream:
            lines_before = _check_prefix(stream, prefix, digest, path)
    yield from _Tail(io.BytesIO(data), len(data), str(path), rows_per_table, digest, lines_before).tables(prefix)


def tail_is_blank(path: Path, prefix: StarPrefix) -> bool:
    """Return whether nothing but empty lines or another data block follows the accepted rows: no row is cut."""
    with opened(path) as stream:
        stream.seek(prefix.length)
        lines = CompleteLines(stream, max(0, os.fstat(stream.fileno()).st_size - prefix.length), str(path))
        for line in lines:
            text = line.strip()
            if text and not text.startswith(b"#"):
                return is_block_line(text)
        return not lines.rest


class _Tail:
    """Tables of the complete rows from where a stream of `size` bytes stands, after `lines_before` lines."""

    def __init__(
        self,
        stream: BinaryIO,
        size: int,
        where: str,
        rows_per_table: int,
        digest: "hashlib._Hash | None" = None,
        lines_before: int = 0,
    ) -> None:
        self._stream = stream
        self._size = size
        self.lines = self._lines_from(stream.tell(), where)
        self._where = where
        self._rows_per_table = rows_per_table
        self._digest = digest
        self._lines_before = lines_before
        self._header = HeaderReader(where)
        self._optics_open = False

    def tables(self, prefix: StarPrefix | None) -> Iterator[tuple[ParticleTable, StarPrefix]]:
        lines = iter(self.lines)
        pending: list[bytes] = []
        if prefix is None:
            header = self._header.read(lines)
            if header is None:
                return
            prefix = StarPrefix(0, "", header, 0)
            pending = self._header.consumed
            assert self._header.first_row is not None
            lines = _chained(self._header.first_row, lines)
        if prefix.header.optics_follow:
            start = prefix.length + sum(len(line) + 1 for line in pending)
            prefix = replace(prefix, header=self._with_later_optics(prefix, start, len(pending)))
            self.lines = self._lines_from(start, self._where)
            lines = iter(self.lines)
        rows: list[tuple[str, ...]] = []
        for line in lines:
            cells = split_cells(line, self._where)
            is_row = bool(cells) and not (cells[0][:1] == "#" and line.lstrip().startswith(b"#"))
            if is_row and len(cells) == 1 and is_block_line(line.strip()):
                self._later_blocks(line, lines, len(pending), prefix.header)
                break
            if is_row and len(rows) == self._rows_per_table:
                table, prefix = self._accepted(prefix, rows, pending)
                yield table, prefix
                rows, pending = [], []
            pending.append(line)
            if is_row:
                rows.append(cells)
        if rows:
            yield self._accepted(prefix, rows, pending)

    def _lines_from(self, start: int, where: str) -> CompleteLines:
        self._stream.seek(start)
        return CompleteLines(self._stream, self._size - start, where)

    def _later_blocks(self, first: bytes, lines: Iterator[bytes], read: int, header: StarHeader) -> LaterBlocks:
        later = LaterBlocks(self._where, self._lines_before + read + 1, header.optics_follow)
        later.read(first, lines)
        return later

    def _with_later_optics(self, prefix: StarPrefix, start: int, read: int) -> StarHeader:
        """Return the header with the optics that follow the rows: one pass over the rest of the file."""
        lines = iter(self._lines_from(start, self._where))
        found = None
        for line in lines:
            if b"data_" in line and is_block_line(line.strip()):
                found = self._later_blocks(line, lines, read, prefix.header)
                break
            read += 1
        if found is None or found.optics is None:
            raise NotSettledError(
                f"{self._where}: its rows name an rlnOpticsGroup, but no data_optics with a row stands before them or "
                "after them yet; is it being written?"
            )
        if prefix.header.optics and prefix.header.optics != found.optics:
            raise PrefixChanged(f"{self._where}: the optics of its rows changed since they were read; read it again")
        self._optics_open = found.optics_open
        return replace(prefix.header, optics=found.optics)

    def _check_optics_complete(self, header: StarHeader, rows: Sequence[tuple[str, ...]]) -> None:
        place = header.labels.index(OPTICS_GROUP_LABEL)
        known = {str(number) for number in header.optics or ()}
        if missing := {cells[place] for cells in rows if len(cells) == len(header.labels)} - known:
            raise NotSettledError(
                f"{self._where}: rows name optics group {min(missing)}, which data_optics at the end of the file does "
                "not have yet; is it being written? If it is complete, correct the rows and end it with an empty line"
            )

    def empty_table(self) -> ParticleTable:
        header = self._header.empty_table()
        if header is None:
            blocks = ", ".join(f"data_{name}" for name in self._header.names) or "no data block"
            raise NotSettledError(f"{self._where}: no particle row yet (found: {blocks}); is it being written?")
        return normalised(Rows(self._where, header, [], 0))

    def _accepted(
        self, prefix: StarPrefix, rows: list[tuple[str, ...]], pending: list[bytes]
    ) -> tuple[ParticleTable, StarPrefix]:
        if self._optics_open:
            self._check_optics_complete(prefix.header, rows)
        table = normalised(Rows(self._where, prefix.header, rows, prefix.num_rows))
        self._lines_before += len(pending)
        data = b"\n".join(pending) + b"\n"
        sha256 = ""
        if self._digest is not None:
            self._digest.update(data)
            sha256 = self._digest.hexdigest()
        return table, StarPrefix(prefix.length + len(data), sha256, prefix.header, prefix.num_rows + len(rows))


def _chained(first: bytes, lines: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from lines


def _check_prefix(stream: BinaryIO, prefix: StarPrefix, digest: "hashlib._Hash", path: Path) -> int:
    """Return how many lines the prefix has."""
    left, lines = prefix.length, 0
    while left and (block := stream.read(min(left, 1 << 20))):
        digest.update(block)
        lines += block.count(b"\n")
        left -= len(block)
    if left or digest.hexdigest() != prefix.sha256:
        raise PrefixChanged(f"{path}: its first {prefix.num_rows} rows changed since they were read; read it again")
    return lines


def renumber(
    groups: Iterable[Sequence[OpticsGroup]],
) -> tuple[tuple[OpticsGroup, ...], list[NDArray[np.int64]]]:
    """Return the distinct optics groups of several tables, and for each table where its groups stand among them."""
    place: dict[OpticsGroup, int] = {}
    index = [np.array([place.setdefault(g, len(place)) for g in of_table], np.int64) for of_table in groups]
    return tuple(place), index


def concatenated(tables: Sequence[ParticleTable]) -> ParticleTable:
    """Return the rows of tables with equal labels as one table."""
    optics, places = renumber(table.optics for table in tables)
    rows = [row for table in tables for row in table.rows]
    index = np.concatenate([place[table.optics_index] for place, table in zip(places, tables, strict=True)])
    return replace(tables[0], rows=rows, optics=optics, optics_index=index)


def optics_block(optics: Sequence[OpticsGroup]) -> bytes:
    """Return `data_optics`; the groups are numbered from 1 in the order given. Their columns are `shared_optics`: a
    group that lacks one of them gets RELION's neutral value, and what has none is left out for all."""
    if any(group.text("rlnOpticsGroupName") is not None for group in optics):
        named = [{"rlnOpticsGroupName": f"opticsGroup{k}"} | dict(group.values) for k, group in enumerate(optics, 1)]
        optics = [OpticsGroup(tuple(texts.items())) for texts in named]
    labels = shared_optics(optics).kept
    lines = [_header("optics", (OPTICS_GROUP_LABEL, *labels))]
    lines += [_line((str(number), *optics_cells(group, labels))) for number, group in enumerate(optics, 1)]
    return b"".join([*lines, b"\n"])


def particles_header(labels: Sequence[str]) -> bytes:
    """Return the head of `data_particles` for rows that `row_line` makes; rlnOpticsGroup is added as the last label."""
    return _header("particles", (*labels, OPTICS_GROUP_LABEL))


def row_line(cells: Sequence[str], optics_number: int) -> bytes:
    """Return one particle row with its newline; `optics_number` counts from 1. ValueError for an unwritable text."""
    return _line((*cells, str(optics_number)))


def star_bytes(table: ParticleTable) -> bytes:
    """Return the table as a RELION 3.1 star, with all its optics groups."""
    lines = [optics_block(table.optics), particles_header(table.labels)]
    lines += map(row_line, table.rows, (table.optics_index + 1).tolist())
    return b"".join([*lines, b"\n"])


def write_star(path: Path, table: ParticleTable) -> None:
    """Write the table as a RELION 3.1 star that appears whole. Raises OSError."""
    write_whole(path, star_bytes(table))


def _header(block: str, labels: Sequence[str]) -> bytes:
    lines = [f"_{label} #{number}" for number, label in enumerate(labels, 1)]
    return "\n".join(["", "# version 30001", "", f"data_{block}", "", "loop_", *lines, ""]).encode()


_PLAIN = re.compile(r"[^\s\"'#]\S*(?: [^\s\"'#]\S*)*").fullmatch


def _line(cells: tuple[str, ...]) -> bytes:
    line = " ".join(cells)
    if len(line.split(" ")) != len(cells) or not _PLAIN(line):
        line = " ".join(map(quoted, cells))
    return line.encode() + b"\n"
