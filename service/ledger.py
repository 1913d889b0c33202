"""The ledger: which particle is where and what is committed, in SQLite (WAL, synchronous=FULL) on a local disk.

One row a particle (identity to batch row, without rowid); whatever else a particle has is kept per batch or per run
of rows, as one blob or one range, so that 7.2 million particles stay well under 1.5 GB.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from cesped_stream.durable import Step
from cesped_stream.errors import PermanentError
from cesped_stream.particles.star_kind import StarKind

SCHEMA_VERSION = 4
GIVEN, PREDICT, CONSENSUS = "given", "predict", "consensus"
"""Kinds of batches: particles that landed with a consensus pose; without one; rows of particles that were known when a
consensus pose came for them. A particle landed once, with a row of the first two kinds."""
ALIGNED_KINDS = (GIVEN, CONSENSUS)
HALF, BY_HASH, FROM_OWN, FORMER_SPLIT = 1, 2, 4, 8
"""Bits of a row's byte in `batches.halves`: its half-set; the row came without rlnRandomSubset, so that the half-set is
by its micrograph's name or its particle's; its pose is RELION's refinement of a prediction of ours; it is of a
refinement whose half-sets were others than those of a later one that does not name its particle."""
UNPOSED_PLACE = 0
"""Place of rows in unposed.star; shards count from 1."""
CONFIDENT = ("confident rows of half 0", "confident rows of half 1")
"""Counters: rows posed confidently by references since the last rebuilding was ordered."""

_SCHEMA = """
CREATE TABLE counters(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE stacks(
  stack_id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, inode INTEGER, size INTEGER, mtime_ns INTEGER,
  mark_index INTEGER, mark BLOB);
CREATE INDEX stacks_mark ON stacks(mark) WHERE mark IS NOT NULL;
CREATE TABLE stars(
  star_id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, signature TEXT NOT NULL DEFAULT '',
  prefix TEXT NOT NULL DEFAULT '', rows_read INTEGER NOT NULL DEFAULT 0, aligned INTEGER NOT NULL DEFAULT 0,
  refused_rows INTEGER NOT NULL DEFAULT 0, problem TEXT NOT NULL DEFAULT '', refusal TEXT NOT NULL DEFAULT '',
  kind TEXT NOT NULL DEFAULT 'particles');
CREATE TABLE batches(
  batch_id INTEGER PRIMARY KEY, star_id INTEGER NOT NULL, num_rows INTEGER NOT NULL, kind TEXT NOT NULL,
  half_0 INTEGER NOT NULL, half_1 INTEGER NOT NULL, landed REAL NOT NULL, boot TEXT NOT NULL,
  had_model INTEGER NOT NULL, complete INTEGER NOT NULL DEFAULT 0, declared BLOB NOT NULL, halves BLOB NOT NULL,
  superseded BLOB NOT NULL);
CREATE INDEX batches_open ON batches(batch_id) WHERE complete = 0;
CREATE TABLE particles(
  stack_id INTEGER NOT NULL, image_index INTEGER NOT NULL, batch_id INTEGER NOT NULL, batch_row INTEGER NOT NULL,
  PRIMARY KEY(stack_id, image_index)) WITHOUT ROWID;
CREATE TABLE consensus(
  batch_id INTEGER NOT NULL, batch_row INTEGER NOT NULL, aligned_batch INTEGER NOT NULL, aligned_row INTEGER NOT NULL,
  adopted INTEGER NOT NULL DEFAULT 0, PRIMARY KEY(batch_id, batch_row, aligned_batch)) WITHOUT ROWID;
CREATE INDEX consensus_to_adopt ON consensus(aligned_batch) WHERE adopted = 0;
CREATE TABLE restated(
  shard_id INTEGER NOT NULL, position INTEGER NOT NULL, PRIMARY KEY(shard_id, position)) WITHOUT ROWID;
CREATE TABLE runs(
  batch_id INTEGER NOT NULL, first_row INTEGER NOT NULL, num_rows INTEGER NOT NULL, place INTEGER NOT NULL,
  position INTEGER NOT NULL, checkpoint_id TEXT NOT NULL, PRIMARY KEY(batch_id, first_row)) WITHOUT ROWID;
CREATE INDEX runs_place ON runs(place, position);
CREATE TABLE digests(batch_id INTEGER NOT NULL, first_row INTEGER NOT NULL, digests BLOB NOT NULL);
CREATE INDEX digests_batch ON digests(batch_id, first_row);
CREATE TABLE leases(
  lease_id INTEGER PRIMARY KEY, num_rows INTEGER NOT NULL, latency REAL, had_model INTEGER NOT NULL,
  worker TEXT NOT NULL, compute_seconds REAL NOT NULL);
CREATE TABLE quarantined(
  batch_id INTEGER NOT NULL, first_row INTEGER NOT NULL, num_rows INTEGER NOT NULL, reason TEXT NOT NULL,
  PRIMARY KEY(batch_id, first_row)) WITHOUT ROWID;
CREATE TABLE conflicts(
  batch_id INTEGER NOT NULL, batch_row INTEGER NOT NULL, what TEXT NOT NULL, seen_in TEXT NOT NULL,
  PRIMARY KEY(batch_id, batch_row, what, seen_in)) WITHOUT ROWID;
CREATE TABLE shards(
  shard_id INTEGER PRIMARY KEY, state TEXT NOT NULL, generation INTEGER NOT NULL, num_rows INTEGER NOT NULL,
  sha256 TEXT NOT NULL, tally TEXT NOT NULL DEFAULT '{}');
CREATE TABLE intents(intent_id INTEGER PRIMARY KEY, payload TEXT NOT NULL);
CREATE TABLE trainings(
  training_id INTEGER PRIMARY KEY, state TEXT NOT NULL, num_rows INTEGER NOT NULL, checkpoint_id TEXT NOT NULL,
  folder TEXT NOT NULL, seconds REAL, problem TEXT NOT NULL, source TEXT NOT NULL, reference TEXT NOT NULL,
  num_aligned INTEGER NOT NULL, num_unknown INTEGER NOT NULL, num_refined INTEGER NOT NULL);
CREATE TABLE training_batches(
  training_id INTEGER NOT NULL, batch_id INTEGER NOT NULL, PRIMARY KEY(training_id, batch_id)) WITHOUT ROWID;
CREATE TABLE reinfers(shard_id INTEGER PRIMARY KEY, checkpoint_id TEXT NOT NULL);
CREATE TABLE staged(
  shard_id INTEGER NOT NULL, position INTEGER NOT NULL, cells TEXT NOT NULL,
  PRIMARY KEY(shard_id, position)) WITHOUT ROWID;
CREATE TABLE facts(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Run:
    """Consecutive rows of one batch that stand at consecutive positions of one shard (or in unposed.star)."""

    batch_id: int
    first_row: int
    num_rows: int
    place: int
    position: int
    checkpoint_id: str


@dataclass(frozen=True)
class BatchRecord:
    batch_id: int
    star_id: int
    num_rows: int
    kind: str
    landed: float
    boot: str
    had_model: bool


@dataclass(frozen=True)
class DeclaredRows:
    """What the rows of a batch were accepted with, and from which star: 8 bytes a row of `declared`, 1 of `halves`
    (see `HALF`). `superseded` has a 1 for each row whose particle has a newer consensus, or is empty."""

    kind: str
    star_id: int
    declared: bytes
    halves: bytes
    superseded: bytes

    def live_rows(self) -> list[int]:
        """Return the rows that no newer consensus replaced."""
        return [row for row in range(len(self.halves)) if not (self.superseded and self.superseded[row])]


@dataclass(frozen=True)
class ShardRecord:
    """A pose file as it was committed; `tally` is the JSON of `PoseTally.counts` of its rows."""

    shard_id: int
    state: str
    generation: int
    num_rows: int
    sha256: str
    tally: str = "{}"


@dataclass(frozen=True)
class StarRecord:
    star_id: int
    path: str
    signature: str
    prefix: str
    rows_read: int
    aligned: bool
    refused_rows: int
    problem: str
    refusal: str = ""
    """The first refused row and why."""
    kind: str = StarKind.PARTICLES
    """What the star is about; one of anything but particles is no input."""

    @property
    def is_input(self) -> bool:
        return self.kind == StarKind.PARTICLES


class Ledger:
    """The one connection to ledger.sqlite; every change happens inside `transaction`."""

    def __init__(self, path: Path, *, step: Step) -> None:
        self._step = step
        self._sql = sqlite3.connect(path, isolation_level=None, timeout=10.0)
        self._sql.execute("PRAGMA journal_mode=WAL")
        self._sql.execute("PRAGMA synchronous=FULL")
        version = int(self._sql.execute("PRAGMA user_version").fetchone()[0])
        if version == 0:
            with self.transaction("ledger created"):
                for statement in _SCHEMA.split(";"):
                    self._sql.execute(statement)
                self._sql.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        elif version != SCHEMA_VERSION:
            self._sql.close()
            raise PermanentError(
                f"{path}: ledger version {version}, this program writes {SCHEMA_VERSION}; use the version that made it"
            )

    def close(self) -> None:
        """Close the connection; an open transaction is rolled back, as a kill would."""
        self._sql.close()

    @contextmanager
    def transaction(self, name: str) -> Iterator[None]:
        """Commit all or nothing; durable when it returns."""
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._step(f"{name}: before commit")
            self._sql.execute("COMMIT")
        except BaseException:
            if self._sql.in_transaction:
                self._sql.execute("ROLLBACK")
            raise
        self._step(f"{name}: committed")

    def execute(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        return self._sql.execute(sql, values)

    def executemany(self, sql: str, values: Sequence[Sequence[Any]]) -> None:
        self._sql.executemany(sql, values)

    def scalar(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Return the one number that `sql` selects; 0 for NULL or no row."""
        row = self._sql.execute(sql, values).fetchone()
        return int(row[0]) if row is not None and row[0] is not None else 0

    def count(self, name: str, more: int = 1) -> None:
        """Add to a counter, inside a transaction."""
        self._sql.execute(
            "INSERT INTO counters VALUES(?, ?) ON CONFLICT(name) DO UPDATE SET value = value + excluded.value",
            (name, more),
        )

    def counter(self, name: str) -> int:
        return self.scalar("SELECT value FROM counters WHERE name = ?", (name,))

    def fact(self, name: str) -> str:
        """Return a remembered text, "" where there is none."""
        row = self._sql.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row is not None else ""

    def remember(self, name: str, value: str) -> None:
        """Set a remembered text, inside a transaction."""
        self._sql.execute("INSERT OR REPLACE INTO facts VALUES(?, ?)", (name, value))

    def reserve_lease_ids(self, many: int) -> int:
        """Return the first of `many` lease ids that no lease ever had or will have."""
        with self.transaction("lease ids reserved"):
            first = self.counter("lease ids") + 1
            self.count("lease ids", many)
        return first

    # Stars

    def star(self, path: str) -> StarRecord | None:
        row = self._sql.execute("SELECT * FROM stars WHERE path = ?", (path,)).fetchone()
        return _star_record(row) if row else None

    def stars(self) -> list[StarRecord]:
        rows = self._sql.execute("SELECT * FROM stars ORDER BY star_id").fetchall()
        return [_star_record(row) for row in rows]

    def put_star(self, record: StarRecord) -> None:
        """Insert or update a star, inside a transaction; a record with star_id 0 gets the next id."""
        self._sql.execute(
            "INSERT INTO stars(star_id, path, signature, prefix, rows_read, aligned, refused_rows, problem, refusal,"
            " kind) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT(path) DO UPDATE SET signature = excluded.signature,"
            " prefix = excluded.prefix, rows_read = excluded.rows_read, aligned = excluded.aligned,"
            " refused_rows = excluded.refused_rows, problem = excluded.problem, refusal = excluded.refusal,"
            " kind = excluded.kind",
            (
                record.star_id or None,
                record.path,
                record.signature,
                record.prefix,
                record.rows_read,
                int(record.aligned),
                record.refused_rows,
                record.problem,
                record.refusal,
                str(record.kind),
            ),
        )

    # Stacks and particles

    def stack_id(self, path: str, signature: tuple[int, int, int]) -> int:
        """Return the id of a stack, noting it (inode, size, mtime_ns) when it is new; inside a transaction."""
        row = self._sql.execute("SELECT stack_id FROM stacks WHERE path = ?", (path,)).fetchone()
        if row is not None:
            return int(row[0])
        cursor = self._sql.execute(
            "INSERT INTO stacks(path, inode, size, mtime_ns) VALUES(?, ?, ?, ?)", (path, *signature)
        )
        return int(cursor.lastrowid or 0)

    def known_stack(self, path: str) -> tuple[int, tuple[int, int, int]] | None:
        """Return (stack id, (inode, size, mtime_ns) as noted) of a stack, or None."""
        row = self._sql.execute("SELECT stack_id, inode, size, mtime_ns FROM stacks WHERE path = ?", (path,)).fetchone()
        return (int(row[0]), (int(row[1]), int(row[2]), int(row[3]))) if row else None

    def find_particle(self, stack_id: int, image_index: int) -> tuple[int, int] | None:
        """Return (batch, row in the batch) of an identity, or None where it never landed."""
        row = self._sql.execute(
            "SELECT batch_id, batch_row FROM particles WHERE stack_id = ? AND image_index = ?",
            (stack_id, image_index),
        ).fetchone()
        return (int(row[0]), int(row[1])) if row else None

    def declared(self, batch_id: int) -> DeclaredRows:
        """Return what the rows of a batch declared."""
        row = self._sql.execute(
            "SELECT kind, star_id, declared, halves, superseded FROM batches WHERE batch_id = ?", (batch_id,)
        ).fetchone()
        return DeclaredRows(*row)

    def half_sets(self, batch_id: int) -> list[int]:
        """Return the half-set, 0 or 1, of each row of a batch, as it is now."""
        row = self._sql.execute("SELECT halves FROM batches WHERE batch_id = ?", (batch_id,)).fetchone()
        return [byte & HALF for byte in row[0]]

    def digests(self, batch_id: int) -> dict[int, bytes]:
        """Return the known image digests of a batch: row to 16 bytes."""
        known: dict[int, bytes] = {}
        for first, blob in self._sql.execute("SELECT first_row, digests FROM digests WHERE batch_id = ?", (batch_id,)):
            for k in range(len(blob) // 16):
                known[first + k] = blob[16 * k : 16 * k + 16]
        return known

    # Batches

    def batch(self, batch_id: int) -> BatchRecord:
        row = self._sql.execute(
            "SELECT batch_id, star_id, num_rows, kind, landed, boot, had_model FROM batches WHERE batch_id = ?",
            (batch_id,),
        ).fetchone()
        if row is None:
            raise KeyError(f"no batch {batch_id}")
        return BatchRecord(row[0], row[1], row[2], row[3], row[4], row[5], bool(row[6]))

    def open_batches(self) -> list[int]:
        """Return the batches with rows that are neither committed nor quarantined, oldest first."""
        rows = self._sql.execute("SELECT batch_id FROM batches WHERE complete = 0 ORDER BY batch_id")
        return [int(row[0]) for row in rows.fetchall()]

    def open_rows(self, batch_id: int) -> list[tuple[int, int]]:
        """Return (first row, number of rows) of what is neither committed nor quarantined in a batch."""
        taken = self._sql.execute(
            "SELECT first_row, num_rows FROM runs WHERE batch_id = ? UNION ALL"
            " SELECT first_row, num_rows FROM quarantined WHERE batch_id = ? ORDER BY first_row",
            (batch_id, batch_id),
        ).fetchall()
        total = self.batch(batch_id).num_rows
        gaps, at = [], 0
        for first, many in [*taken, (total, 0)]:
            if first > at:
                gaps.append((at, first - at))
            at = max(at, first + many)
        return gaps

    def mark_complete(self, batch_ids: Sequence[int]) -> None:
        """Close the batches that have no open row left, inside a transaction."""
        for batch_id in sorted(set(batch_ids)):
            done = int(not self.open_rows(batch_id))
            self._sql.execute("UPDATE batches SET complete = ? WHERE batch_id = ?", (done, batch_id))

    # Shards and intents

    def shards(self) -> list[ShardRecord]:
        return [ShardRecord(*row) for row in self._sql.execute("SELECT * FROM shards ORDER BY shard_id").fetchall()]

    def put_shard(self, shard: ShardRecord) -> None:
        """Insert or replace a shard's record, inside a transaction."""
        self._sql.execute(
            "INSERT OR REPLACE INTO shards VALUES(?, ?, ?, ?, ?, ?)",
            (shard.shard_id, shard.state, shard.generation, shard.num_rows, shard.sha256, shard.tally),
        )

    def runs_of(self, place: int) -> list[Run]:
        """Return what stands in a shard, in its order."""
        rows = self._sql.execute("SELECT * FROM runs WHERE place = ? ORDER BY position", (place,))
        return [Run(*row) for row in rows.fetchall()]

    def put_runs(self, runs: Sequence[Run]) -> None:
        """Record committed rows, inside a transaction; a row that is already committed is an AssertionError."""
        for run in runs:
            overlapping = self.scalar(
                "SELECT count(*) FROM runs WHERE batch_id = ? AND first_row < ? AND first_row + num_rows > ?",
                (run.batch_id, run.first_row + run.num_rows, run.first_row),
            )
            assert not overlapping, f"batch {run.batch_id}: row {run.first_row} would be committed twice"
        self._sql.executemany(
            "INSERT INTO runs VALUES(?, ?, ?, ?, ?, ?)",
            [(r.batch_id, r.first_row, r.num_rows, r.place, r.position, r.checkpoint_id) for r in runs],
        )

    def intent(self) -> dict[str, Any] | None:
        """Return what was about to be renamed when the last process ended, or None."""
        row = self._sql.execute("SELECT payload FROM intents").fetchone()
        return dict(json.loads(row[0])) if row else None

    def put_intent(self, payload: dict[str, Any]) -> None:
        """Record what is about to be renamed, inside a transaction; there is one at most."""
        self._sql.execute("INSERT INTO intents VALUES(1, ?)", (json.dumps(payload),))

    def drop_intent(self) -> None:
        self._sql.execute("DELETE FROM intents")

    def lease_is_committed(self, lease_id: int) -> bool:
        return self.scalar("SELECT count(*) FROM leases WHERE lease_id = ?", (lease_id,)) > 0

    def give_back_place(self, place: int) -> None:
        """Make every row of an open file uncommitted again, inside a transaction; confident ones are counted anew."""
        self._sql.execute("DELETE FROM counters WHERE name IN (?, ?)", CONFIDENT)
        self._sql.execute(
            "UPDATE batches SET complete = 0 WHERE batch_id IN (SELECT batch_id FROM runs WHERE place = ?)", (place,)
        )
        self._sql.execute("DELETE FROM runs WHERE place = ?", (place,))
        self._sql.execute("DELETE FROM restated WHERE shard_id = ?", (place,))
        self._sql.execute("DELETE FROM shards WHERE shard_id = ?", (place,))

    def finish_reinfer(self, shard_id: int, checkpoint_id: str) -> None:
        """Note which checkpoint a shard's predicted rows come from now, inside a transaction: those staged without
        cells kept their pose, and its checkpoint."""
        rows = self._sql.execute("SELECT position FROM staged WHERE shard_id = ? AND cells = ''", (shard_id,))
        kept = {int(row[0]) for row in rows.fetchall()}
        for run in self.runs_of(shard_id):
            if run.checkpoint_id not in ("none", checkpoint_id):
                self._reassign(run, lambda position: position not in kept, checkpoint_id)
        self._sql.execute("DELETE FROM staged WHERE shard_id = ?", (shard_id,))
        self._sql.execute("DELETE FROM reinfers WHERE shard_id = ?", (shard_id,))

    def restated_positions(self, shard_id: int) -> set[int]:
        """Return the positions of a sealed shard whose rows wait to be written again with their consensus pose."""
        rows = self._sql.execute("SELECT position FROM restated WHERE shard_id = ?", (shard_id,)).fetchall()
        return {int(row[0]) for row in rows}

    def finish_restating(self, shard_id: int) -> None:
        """Note that a shard's restated rows are given ones now, inside a transaction."""
        restated = self.restated_positions(shard_id)
        for run in self.runs_of(shard_id):
            if run.checkpoint_id != "none":
                self._reassign(run, restated.__contains__, "none")
        self._sql.execute("DELETE FROM restated WHERE shard_id = ?", (shard_id,))

    def _reassign(self, run: Run, chosen: Callable[[int], bool], checkpoint_id: str) -> None:
        """Give the run's rows at `chosen` positions another checkpoint; it falls into as many runs as that takes."""
        places = range(run.position, run.position + run.num_rows)
        pieces = [(changes, len(list(group))) for changes, group in groupby(places, chosen)]
        self._sql.execute("DELETE FROM runs WHERE batch_id = ? AND first_row = ?", (run.batch_id, run.first_row))
        at = 0
        for changes, many in pieces:
            whose = checkpoint_id if changes else run.checkpoint_id
            piece = (run.batch_id, run.first_row + at, many, run.place, run.position + at, whose)
            self._sql.execute("INSERT INTO runs VALUES(?, ?, ?, ?, ?, ?)", piece)
            at += many

    def put_mark(self, stack_id: int, index: int, digest: bytes) -> None:
        """Remember one image of a stack by its digest, inside a transaction; the first one stays."""
        same = self.scalar("SELECT count(*) FROM stacks WHERE mark = ? AND stack_id != ?", (digest, stack_id))
        cursor = self._sql.execute(
            "UPDATE stacks SET mark_index = ?, mark = ? WHERE stack_id = ? AND mark IS NULL", (index, digest, stack_id)
        )
        if same and cursor.rowcount:
            self.count("likely copies")


def _star_record(row: Sequence[Any]) -> StarRecord:
    return StarRecord(row[0], row[1], row[2], row[3], row[4], bool(row[5]), *row[6:])
