"""Rows of the orders that are no aligned rows' alone: of a given map, and of poses that were predicted. No torch."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cesped_stream.errors import CespedStreamError
from cesped_stream.particles.identities import particle_digests
from cesped_stream.particles.own_columns import (
    CHECKPOINT,
    CONFIDENCE,
    OWN_LABELS,
    PREDICTED,
    PROPOSER,
    STATUS,
)
from cesped_stream.particles.stacks import STACK_LABEL
from cesped_stream.particles.star import read_star
from cesped_stream.particles.table import ParticleTable

from . import given_map
from .finished import NO_CHECKPOINT, BatchTables, joined
from .ledger import CONFIDENT, PREDICT, UNPOSED_PLACE, Ledger, ShardRecord
from .messages import MAP, POSES, TrainingSource
from .rolling import OPEN_FILE, shard_file
from .session import SessionFolder
from .settings import SessionSettings

logger = logging.getLogger(__name__)

LOOKED_AT = 4
"""Committed rows that an order looks at, the newest, for each row that it may take."""
BY_REFERENCES = "gallery"
"""In `cestreamProposer` of rows whose pose has a shift."""


@dataclass(frozen=True, eq=False)
class Frozen:
    """Rows of an order, not yet in their final sequence, and the batches that they are of."""

    table: ParticleTable
    batch_ids: Sequence[int]
    source: TrainingSource = "aligned"
    reference: str = ""
    """sha256 of the given map."""


class MapOrders:
    """Orders a reference of the session's given map as soon as enough particles have landed to learn the noise from."""

    def __init__(self, settings: SessionSettings, ledger: Ledger, tables: BatchTables) -> None:
        self._settings = settings
        self._ledger = ledger
        self._tables = tables

    def is_done(self) -> bool:
        """Return whether the map gives, or gave, poses: whatever lands gets one without any aligned row."""
        return self._ledger.scalar("SELECT count(*) FROM trainings WHERE source = ? AND state = 'done'", (MAP,)) > 0

    def rows_per_half(self) -> tuple[int, int]:
        """Return how many particles without poses have landed."""
        halves = "SELECT coalesce(sum(half_0), 0), coalesce(sum(half_1), 0) FROM batches WHERE kind = ?"
        row = self._ledger.execute(halves, (PREDICT,)).fetchone()
        return int(row[0]), int(row[1])

    def waits(self) -> bool:
        """Return whether the session's map is still to be ordered: nothing else was trained, and it was not tried."""
        sha256 = self._ledger.fact(given_map.FACT) if self._settings.reference is not None else ""
        done = self._ledger.scalar("SELECT count(*) FROM trainings WHERE state = 'done'")
        return bool(sha256) and not done and not given_map.was_tried(self._ledger, sha256)

    def frozen(self) -> Frozen | None:
        """Return the first `noise_rows_per_half` rows of each half-set, in order of landing; None while they are
        fewer, or where no map is to be ordered."""
        least = self._settings.noise_rows_per_half
        if not self.waits() or min(self.rows_per_half()) < least:
            return None
        batch_ids, halves = [], np.zeros(2, np.int64)
        rows = self._ledger.execute(
            "SELECT batch_id, half_0, half_1 FROM batches WHERE kind = ? ORDER BY batch_id", (PREDICT,)
        )
        for batch_id, *many in rows.fetchall():
            if halves.min() >= least:
                break
            batch_ids.append(int(batch_id))
            halves += many
        table = joined([self._tables[batch_id] for batch_id in batch_ids])
        half_sets = table.half_sets()
        chosen = [np.flatnonzero(half_sets == half)[:least] for half in (0, 1)]
        table = table.select(np.sort(np.concatenate(chosen)))
        return Frozen(table, batch_ids, MAP, self._ledger.fact(given_map.FACT))


class RebuildOrders:
    """Orders references anew, of aligned rows and of rows whose predicted pose is confident, as those accumulate."""

    def __init__(self, settings: SessionSettings, folder: SessionFolder, ledger: Ledger, tables: BatchTables) -> None:
        self._settings = settings.referencing
        self._folder = folder
        self._ledger = ledger
        self._tables = tables
        self.problems: dict[str, str] = {}
        """What kept rows, or a whole order, from being made at the last attempt, by pose file."""

    def confident_per_half(self) -> tuple[int, int]:
        """Return how many confident rows were committed since the last rebuilding was ordered."""
        return self._ledger.counter(CONFIDENT[0]), self._ledger.counter(CONFIDENT[1])

    def is_due(self) -> bool:
        """Return whether `rebuild_rows` more rows of each half-set were posed confidently."""
        return 0 < self._settings.rebuild_rows <= min(self.confident_per_half())

    def frozen(self, read_aligned: Callable[[], Sequence[tuple[int, ParticleTable]]]) -> Frozen | None:
        """Return the aligned rows (of batches, with their ids) and the newest confident ones, at most
        `rebuild_max_rows` a half.

        Predicted rows have their pose, and in `cestreamCheckpoint` what made it ("none": an aligned row). None where
        they cannot be read (that is told in `problems`, and the next order waits for as many rows as this one did) and
        where fewer confident rows are found than `rebuild_rows` of a half (the next order waits for the rest).
        """
        self.problems.clear()
        try:
            frozen, found = self._collected(read_aligned())
        except (CespedStreamError, OSError, ValueError, LookupError) as error:
            logger.error("references are not made anew", extra={"why": str(error)})
            self.problems["all"] = f"references are not made anew this time: {error}"
            with self._ledger.transaction("rebuilding given up"):
                self.start_counting()
            return None
        if frozen is None:
            with self._ledger.transaction("confident rows counted again"):
                self.start_counting(found)
        return frozen

    def start_counting(self, found: Sequence[int] = (0, 0)) -> None:
        """Count confident rows from what was `found` of each half-set on, inside a transaction."""
        for name, many in zip(CONFIDENT, found, strict=True):
            self._ledger.count(name, int(many) - self._ledger.counter(name))

    def _collected(self, aligned: Sequence[tuple[int, ParticleTable]]) -> tuple[Frozen | None, list[int]]:
        """Return the order's rows, None where too few are confident, and how many are of each half-set."""
        given = [table.with_columns({CHECKPOINT: [NO_CHECKPOINT] * len(table)}) for _, table in aligned]
        known = np.concatenate([np.empty(0, np.uint64), *map(particle_digests, given)])
        predicted, batch_ids, halves = [], {batch_id for batch_id, _ in aligned}, np.zeros(2, np.int64)
        for table, batches in self._posed():
            chosen = self._confident(table) & ~np.isin(particle_digests(table), known)
            rows = _newest(chosen, table.half_sets(), self._settings.rebuild_max_rows - halves)
            halves += np.bincount(table.half_sets()[rows], minlength=2)
            predicted.append(table.select(rows).without([label for label in OWN_LABELS if label != CHECKPOINT]))
            batch_ids |= set(batches[rows].tolist())
            if halves.min() >= self._settings.rebuild_max_rows:
                break
        found: list[int] = halves.tolist()
        if min(found) < min(self._settings.rebuild_rows, self._settings.rebuild_max_rows):
            return None, found
        return Frozen(joined([*given, *predicted]), sorted(batch_ids), POSES), found

    def _confident(self, table: ParticleTable) -> NDArray[np.bool_]:
        predicted = np.array(table.column(STATUS)) == PREDICTED
        by_references = np.array([BY_REFERENCES in text for text in table.column(PROPOSER)], np.bool_)
        confident = table.numbers(CONFIDENCE) >= self._settings.rebuild_least_confidence
        return np.asarray(predicted & by_references & confident, np.bool_)

    def _posed(self) -> Iterator[tuple[ParticleTable, NDArray[np.int64]]]:
        """Yield the committed rows of the newest shards, the newest first, with their stacks, and the batch of each
        row: `LOOKED_AT` times what may be taken of both halves, at least one shard, however many there are."""
        left = LOOKED_AT * 2 * self._settings.rebuild_max_rows
        for shard in reversed(self._ledger.shards()):
            if left <= 0:
                return
            path = self._path(shard)
            if shard.shard_id == UNPOSED_PLACE or shard.num_rows == 0 or not self._is_as_committed(path, shard):
                continue
            left -= shard.num_rows
            stacks, batches = [], []
            for run in self._ledger.runs_of(shard.shard_id):
                stacks += self._tables.rows(run.batch_id, run.first_row, run.num_rows).column(STACK_LABEL)
                batches += [run.batch_id] * run.num_rows
            table = read_star(path).with_columns({STACK_LABEL: stacks})
            yield table, np.array(batches, np.int64)

    def _is_as_committed(self, path: Path, shard: ShardRecord) -> bool:
        """Return whether a pose file is there with the ledger's hash; what is wrong with it goes to `problems`."""
        try:
            with open(path, "rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            self.problems[path.name] = f"{path.name}: {error.strerror}; its rows are left out of references made anew"
            return False
        if found != shard.sha256:
            self.problems[path.name] = (
                f"{path.name}: not the file that was committed; its rows are left out of references made anew; "
                "bring back the one that was"
            )
        return found == shard.sha256

    def _path(self, shard: ShardRecord) -> Path:
        return self._folder.poses / (OPEN_FILE if shard.state == "open" else shard_file(shard.shard_id))


def _newest(chosen: NDArray[np.bool_], half_sets: NDArray[np.int8], most: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the last rows that are chosen, ascending, at most `most[half]` of each half-set."""
    parts = [np.flatnonzero(chosen & (half_sets == half)) for half in (0, 1)]
    kept = [rows[max(0, len(rows) - max(0, int(many))) :] for rows, many in zip(parts, most, strict=True)]
    return np.sort(np.concatenate(kept))
