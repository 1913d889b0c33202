"""The rolling star files, and the only writer of poses.

A commit writes new files under temporary names (fsync), notes the intent with their hashes in the ledger, renames
them, fsyncs the folder, and notes the result. A start after a crash finishes or drops the intent by those hashes.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cesped_stream.durable import Step, fsync_folder, rename_durably
from cesped_stream.errors import PermanentError
from cesped_stream.particles.missing_columns import filled_rows, shared_columns, shared_optics
from cesped_stream.particles.own_columns import REVISION
from cesped_stream.particles.pose_tally import PoseTally
from cesped_stream.particles.star import (
    optics_block,
    particles_header,
    read_star,
    row_line,
)
from cesped_stream.particles.table import OpticsGroup, ParticleTable

from .finished import left_out_words, prior_labels, used_groups
from .ledger import UNPOSED_PLACE, Ledger, Run, ShardRecord
from .session import SessionFolder

logger = logging.getLogger(__name__)

OPEN_FILE, UNPOSED_FILE = "poses.star", "unposed.star"


def shard_file(shard_id: int) -> str:
    return f"poses_{shard_id:06d}.star"


@dataclass(frozen=True)
class StarLines:
    """A star file held as rendered rows: appending renders only what is new, unless a new column appears."""

    labels: tuple[str, ...] = ()
    optics: tuple[OpticsGroup, ...] = ()
    lines: tuple[bytes, ...] = ()
    left_out: tuple[str, ...] = ()
    """Columns of rows that were appended, which other rows lack and RELION has no value for."""

    def appended(self, tables: Sequence[ParticleTable], whole: Path) -> "StarLines":
        """Return the file with the tables' rows after its own; `whole` is the present file, read only when every row
        changes: a new column appears, or one that new rows lack has to be left out."""
        tables = [table for table in tables if len(table)]
        if not tables:
            return self
        layouts = [(self.labels, list(self.optics))] if self.lines else []
        columns = shared_columns([*layouts, *((table.labels, used_groups(table)) for table in tables)])
        labels, left_out = columns.kept, tuple(sorted({*self.left_out, *columns.left_out}))
        if self.lines and labels != self.labels:
            return replace(StarLines().appended([read_star(whole), *tables], whole), left_out=left_out)
        number = {group: k for k, group in enumerate(self.optics)}
        lines = list(self.lines)
        for table in tables:
            used = {k: number.setdefault(table.optics[k], len(number)) + 1 for k in table.optics_index.tolist()}
            rows = zip(filled_rows(labels, table), table.optics_index.tolist(), strict=True)
            lines.extend(row_line(cells, used[k]) for cells, k in rows)
        return StarLines(labels, tuple(number), tuple(lines), left_out)

    def content(self) -> bytes:
        # An empty line ends a star without rows.
        lines = self.lines or (b"\n",)
        return b"".join([optics_block(self.optics), particles_header(self.labels), *lines])


@dataclass
class Commit:
    """What one commit makes true, besides the rows themselves; applied in one ledger transaction."""

    posed: list[tuple[ParticleTable, list[Run]]] = field(default_factory=list)
    """Rows for the open shard, and their runs with positions relative to the table."""
    unposed: list[tuple[ParticleTable, list[Run]]] = field(default_factory=list)
    leases: list[tuple[int, int, float | None, int, str, float]] = field(default_factory=list)
    digests: list[tuple[int, int, str]] = field(default_factory=list)
    """(batch, first row, hex of 16 bytes a row)."""
    marks: list[tuple[int, int, str]] = field(default_factory=list)
    """(stack, image index, hex digest): the first known image of a stack."""
    conflicts: list[tuple[int, int, str, str]] = field(default_factory=list)
    counts: list[tuple[str, int]] = field(default_factory=list)
    """(counter of the ledger, how many more)."""


class PoseFiles:
    """poses.star, its sealed shards and unposed.star of one session."""

    def __init__(self, folder: SessionFolder, ledger: Ledger, *, step: Step) -> None:
        self._folder = folder.poses
        self._quarantine = folder.quarantine
        self._ledger = ledger
        self._step = step
        self.problems: list[str] = []
        self.left_out: dict[str, str] = {}
        """What is said of columns that an open file cannot have, by file."""
        self.missing: set[int] = set()
        """Sealed shards whose file is gone: they cannot be redone."""
        self._recover()
        self._check_sealed()
        self._posed = self._load(OPEN_FILE, self.open_shard_id)
        self._unposed = self._load(UNPOSED_FILE, UNPOSED_PLACE)

    @property
    def open_shard_id(self) -> int:
        """The number that poses.star will have when it is sealed."""
        sealed = self._ledger.scalar("SELECT max(shard_id) FROM shards WHERE state = 'sealed'")
        return sealed + 1

    @property
    def open_rows(self) -> int:
        return len(self._posed.lines)

    def commit(self, commit: Commit) -> None:
        """Append rows to poses.star and unposed.star and make the rest of `commit` true, exactly once.

        OSError and sqlite3.Error leave the disk recoverable but this object stale: build a new one.
        """
        placed, moves, shards, files = [], [], [], []
        for star, more, name, place in (
            (self._posed, commit.posed, OPEN_FILE, self.open_shard_id),
            (self._unposed, commit.unposed, UNPOSED_FILE, UNPOSED_PLACE),
        ):
            new = star.appended([table for table, _ in more], self._folder / name)
            self._say_left_out(name, new)
            files.append(new)
            placed.extend(_placed(more, place, len(star.lines)))
            if new is not star:
                digest = self._write_temporary(name, new.content())
                moves.append([f".{name}.tmp", name, digest])
                shards.append([place, "open", 0, len(new.lines), digest, self._tally_with(place, more)])
        payload = {
            "moves": moves,
            "shards": shards,
            "runs": [list(vars(run).values()) for run in placed],
            "leases": commit.leases,
            "digests": commit.digests,
            "marks": commit.marks,
            "conflicts": commit.conflicts,
            "counts": commit.counts,
        }
        self._carry_out(payload, "commit")
        self._posed, self._unposed = files

    def seal(self) -> None:
        """Give poses.star its final name; the next commit starts a new one. Nothing happens where it is empty."""
        if not self._posed.lines:
            return
        shard_id = self.open_shard_id
        record = next(shard for shard in self._ledger.shards() if shard.shard_id == shard_id)
        payload = {
            "moves": [[OPEN_FILE, shard_file(shard_id), record.sha256]],
            "shards": [[shard_id, "sealed", record.generation, record.num_rows, record.sha256, record.tally]],
        }
        self._carry_out(payload, "seal")
        self._posed = StarLines()

    def switch(self, shard_id: int, checkpoint_id: str) -> None:
        """Put the next generation of a sealed shard, its staged rows redone, in the place of the present one."""
        table = self._sealed(shard_id)
        revision = table.column(REVISION)
        staged = self._ledger.execute("SELECT position, cells FROM staged WHERE shard_id = ?", (shard_id,))
        place = {label: k for k, label in enumerate(table.labels)}
        rows = list(table.rows)
        for position, text in staged.fetchall():
            if text:
                cells = list(rows[position])
                new = json.loads(text) | {REVISION: str(int(revision[position]) + 1)}
                new |= {prior: new[angle] for prior, angle in prior_labels(table.labels).items()}
                for label in place.keys() & new.keys():
                    cells[place[label]] = new[label]
                rows[position] = tuple(cells)
        self._next_generation(
            shard_id, [replace(table, rows=rows)], "switch", {"switched": [[shard_id, checkpoint_id]]}
        )

    def restate(self, shard_id: int, given: dict[int, ParticleTable]) -> None:
        """Put the next generation of a sealed shard in the place of the present one, in which rows are these, with the
        pose that was given for their particles: `given` has consecutive rows by the position of the first."""
        table = self._sealed(shard_id)
        parts: list[ParticleTable] = []
        start = 0
        for position in sorted(given):
            if position > start:
                parts.append(table.select(range(start, position)))
            parts.append(given[position])
            start = position + len(given[position])
        parts.append(table.select(range(start, len(table))))
        self._next_generation(shard_id, parts, "restate", {"restated": [shard_id]})

    def withdraw(self, positions: set[int]) -> list[int]:
        """Take rows out of unposed.star, uncommitted: their particles have a given pose now. Return their batches."""
        star = self._unposed
        left = replace(star, lines=tuple(line for k, line in enumerate(star.lines) if k not in positions))
        runs, withdrawn, at = [], set(), 0
        for run in self._ledger.runs_of(UNPOSED_PLACE):
            for k in range(run.num_rows):
                if run.position + k in positions:
                    withdrawn.add(run.batch_id)
                else:
                    runs.append([run.batch_id, run.first_row + k, 1, UNPOSED_PLACE, at, run.checkpoint_id])
                    at += 1
        digest = self._write_temporary(UNPOSED_FILE, left.content())
        payload = {
            "moves": [[f".{UNPOSED_FILE}.tmp", UNPOSED_FILE, digest]],
            "shards": [[UNPOSED_PLACE, "open", 0, len(left.lines), digest, "{}"]],
            "unposed": runs,
            "withdrawn": sorted(withdrawn),
        }
        self._carry_out(payload, "withdraw")
        self._unposed = left
        return sorted(withdrawn)

    def _sealed(self, shard_id: int) -> ParticleTable:
        return read_star(self._folder / shard_file(shard_id))

    def _next_generation(
        self, shard_id: int, parts: Sequence[ParticleTable], name: str, result: dict[str, Any]
    ) -> None:
        file = shard_file(shard_id)
        record = next(shard for shard in self._ledger.shards() if shard.shard_id == shard_id)
        digest = self._write_temporary(file, StarLines().appended(parts, self._folder / file).content())
        tally = json.dumps(PoseTally.together([PoseTally.of(part) for part in parts]).counts)
        payload = {
            "moves": [[f".{file}.tmp", file, digest]],
            "shards": [[shard_id, "sealed", record.generation + 1, record.num_rows, digest, tally]],
        }
        self._carry_out(payload | result, name)

    def tally(self) -> PoseTally:
        """Return the counts of all committed predicted rows, those of every file's record together."""
        return PoseTally.together(PoseTally(json.loads(shard.tally)) for shard in self._ledger.shards())

    def _say_left_out(self, name: str, star: StarLines) -> None:
        left_out = tuple(sorted({*star.left_out, *shared_optics(star.optics).left_out}))
        said = left_out_words(name, left_out)
        if left_out and self.left_out.get(name) != said:
            self.left_out[name] = said
            logger.warning("columns left out", extra={"file": name, "columns": list(left_out)})

    def _tally_with(self, place: int, more: Sequence[tuple[ParticleTable, list[Run]]]) -> str:
        before = next((shard.tally for shard in self._ledger.shards() if shard.shard_id == place), "{}")
        rows = [PoseTally.of(table) for table, _ in more]
        return json.dumps(PoseTally.together([PoseTally(json.loads(before)), *rows]).counts)

    def _write_temporary(self, name: str, content: bytes) -> str:
        with open(self._folder / f".{name}.tmp", "wb") as stream:
            stream.write(content)
            self._step(f"{name}: temporary written")
            stream.flush()
            os.fsync(stream.fileno())
        self._step(f"{name}: temporary synced")
        return hashlib.sha256(content).hexdigest()

    def _carry_out(self, payload: dict[str, Any], name: str) -> None:
        fsync_folder(self._folder)
        self._step(f"{name}: folder synced")
        with self._ledger.transaction(f"{name} intent"):
            self._ledger.put_intent(payload)
        for source, target, _ in payload["moves"]:
            rename_durably(self._folder / source, self._folder / target, step=self._step)
        self._apply(payload, name)

    def _apply(self, payload: dict[str, Any], name: str) -> None:
        ledger = self._ledger
        runs = [Run(*run) for run in payload.get("runs", [])]
        with ledger.transaction(f"{name} result"):
            if "withdrawn" in payload:
                ledger.give_back_place(UNPOSED_PLACE)
                runs += [Run(*run) for run in payload["unposed"]]
            ledger.put_runs(runs)
            for shard in payload["shards"]:
                ledger.put_shard(ShardRecord(*shard))
            ledger.executemany("INSERT INTO leases VALUES(?, ?, ?, ?, ?, ?)", payload.get("leases", []))
            digests = [(batch, first, bytes.fromhex(text)) for batch, first, text in payload.get("digests", [])]
            ledger.executemany("INSERT INTO digests VALUES(?, ?, ?)", digests)
            for stack_id, index, text in payload.get("marks", []):
                ledger.put_mark(stack_id, index, bytes.fromhex(text))
            ledger.executemany("INSERT OR IGNORE INTO conflicts VALUES(?, ?, ?, ?)", payload.get("conflicts", []))
            for name_of_counter, more in payload.get("counts", []):
                ledger.count(name_of_counter, more)
            for shard_id, checkpoint_id in payload.get("switched", []):
                ledger.finish_reinfer(shard_id, checkpoint_id)
            for shard_id in payload.get("restated", []):
                ledger.finish_restating(shard_id)
            ledger.mark_complete([run.batch_id for run in runs] + payload.get("withdrawn", []))
            ledger.drop_intent()

    def _recover(self) -> None:
        intent = self._ledger.intent()
        if intent is not None:
            if all(self._moved(*move) for move in intent["moves"]):
                self._apply(intent, "recovery")
            else:
                with self._ledger.transaction("intent dropped"):
                    self._ledger.drop_intent()
        for leftover in self._folder.glob(".*.tmp"):
            leftover.unlink()
            self._step("leftover removed")

    def _check_sealed(self) -> None:
        """Refuse sealed files that the ledger does not know: with another ledger every row would be made twice."""
        sealed = {shard_file(s.shard_id): s.shard_id for s in self._ledger.shards() if s.state == "sealed"}
        found = {path.name for path in self._folder.glob("poses_*.star")}
        if unknown := sorted(found - set(sealed)):
            raise PermanentError(
                f"{self._folder / unknown[0]}: a sealed shard that the ledger does not know ({len(unknown)} such); is "
                "ledger_folder the one that this session was begun with? Bring its ledger back, or begin a new session"
            )
        for name in sorted(set(sealed) - found):
            self.missing.add(sealed[name])
            self.problems.append(f"{name}: the file is gone, its rows are missing from the export; bring it back")
            logger.error("sealed shard is gone", extra={"file": str(self._folder / name)})

    def _moved(self, source: str, target: str, digest: str) -> bool:
        if _sha256(self._folder / source) == digest:
            rename_durably(self._folder / source, self._folder / target, step=self._step)
            return True
        return _sha256(self._folder / target) == digest

    def _load(self, name: str, place: int) -> StarLines:
        path = self._folder / name
        record = next((shard for shard in self._ledger.shards() if shard.shard_id == place), None)
        found = _sha256(path)
        if found == (record.sha256 if record else ""):
            return StarLines().appended([read_star(path)], path) if record else StarLines()
        if found:
            os.replace(path, self._quarantine / f"{name}.{found[:12]}")
        self.problems.append(f"{name}: not the file that was committed; its rows are made again")
        logger.error("committed file was changed from outside", extra={"file": str(path)})
        with self._ledger.transaction("rows given back"):
            self._ledger.give_back_place(place)
        return StarLines()


def _placed(commits: list[tuple[ParticleTable, list[Run]]], place: int, position: int) -> list[Run]:
    runs: list[Run] = []
    for table, relative in commits:
        runs.extend(replace(run, place=place, position=position + run.position) for run in relative)
        position += len(table)
    return runs


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return ""
