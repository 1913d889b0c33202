"""Finished rows become one commit: star rows, runs, digests, latencies, and what conflicts."""

import logging
import time
from collections.abc import Sequence
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from cesped_stream.particles.flags import ImageFlag
from cesped_stream.particles.stacks import STACK_LABEL, parse_image_name
from cesped_stream.particles.table import ParticleTable

from .finished import BatchTables, Finished, Poses, output_tables
from .ledger import CONFIDENT, UNPOSED_PLACE, Ledger, Run
from .rolling import Commit, PoseFiles
from .session import boot_id

logger = logging.getLogger(__name__)

COMMITTED_EVENT = "poses committed"
"""Log event, one for each stretch of a batch: batch_id, first_row, num_rows, monotonic_seconds."""


class Committer:
    """Writes groups of finished rows through `PoseFiles` and remembers their latencies."""

    def __init__(self, ledger: Ledger, tables: BatchTables, poses: PoseFiles, *, least_confidence: float = 1.0) -> None:
        self._ledger = ledger
        self._tables = tables
        self._poses = poses
        self._least_confidence = least_confidence
        self._boot = boot_id()
        rows = ledger.execute("SELECT latency, num_rows, had_model FROM leases WHERE latency IS NOT NULL").fetchall()
        self.latencies: list[tuple[float, int, bool]] = [(float(a), int(b), bool(c)) for a, b, c in rows]

    def commit(self, group: Sequence[Finished], now: float) -> None:
        """Commit first poses, given and predicted; all of the group or nothing."""
        commit = Commit()
        latencies = []
        for finished in group:
            table = self.input_rows(finished)
            posed, unposed = output_tables(table, finished)
            with_pose = finished.posed()
            commit.posed.append((posed, _runs(finished, with_pose)))
            if len(unposed):
                commit.unposed.append((unposed, _runs(finished, ~with_pose)))
            if finished.poses is None:
                continue
            commit.digests.append((finished.batch_id, finished.first_row, finished.poses.digest.tobytes().hex()))
            commit.conflicts.extend((finished.batch_id, row, "pixels", "stack") for row in self.conflicting(finished))
            commit.counts.extend(confident_counts(table, finished.poses, self._least_confidence))
            lease = self.lease_record(finished, now)
            commit.leases.append(lease)
            if lease[2] is not None:
                latencies.append((lease[2], lease[1], bool(lease[3])))
        self._mark_stacks(group, commit)
        self._poses.commit(commit)
        _log_committed(group)
        self.latencies.extend(latencies)

    def lease_record(self, finished: Finished, now: float) -> tuple[int, int, float | None, int, str, float]:
        """Return the ledger's row of a lease; its latency is that of its batch, None across a reboot or for a redo."""
        batch = self._ledger.batch(finished.batch_id)
        measurable = batch.boot == self._boot and not finished.shard_id
        latency = max(0.0, now - batch.landed) if measurable else None
        lease = (finished.lease_id, finished.num_rows, latency, int(batch.had_model))
        return (*lease, finished.worker, finished.compute_seconds)

    def input_rows(self, finished: Finished) -> ParticleTable:
        """Return the rows as they landed."""
        return self._tables.rows(finished.batch_id, finished.first_row, finished.num_rows)

    def conflicting(self, finished: Finished) -> list[int]:
        """Return the rows (within the batch) whose pixels differ from those that an earlier pose was made from."""
        assert finished.poses is not None
        known = self._ledger.digests(finished.batch_id)
        rows = range(finished.first_row, finished.first_row + finished.num_rows)
        return [
            row
            for k, row in enumerate(rows)
            if row in known
            and finished.poses.flag[k] not in (ImageFlag.UNREADABLE, ImageFlag.IN_REFERENCE)
            and finished.poses.digest[k].tobytes() != known[row]
        ]

    def _mark_stacks(self, group: Sequence[Finished], commit: Commit) -> None:
        marked: set[str] = set()
        for finished in group:
            if finished.poses is None:
                continue
            table = self._tables.rows(finished.batch_id, finished.first_row, finished.num_rows)
            for k, stack in enumerate(table.column(STACK_LABEL)):
                if stack in marked or finished.poses.flag[k] != ImageFlag.OK:
                    continue
                marked.add(stack)
                known = self._ledger.known_stack(unquote(stack))
                index = parse_image_name(table.column("rlnImageName")[k])[0]
                if known is not None:
                    commit.marks.append((known[0], index, finished.poses.digest[k].tobytes().hex()))


def confident_counts(table: ParticleTable, poses: Poses, least_confidence: float) -> list[tuple[str, int]]:
    """Return how many rows of each half-set references posed with at least that confidence, by their counters."""
    if not poses.has_shifts:
        return []
    confident = (poses.flag == 0) & (poses.confidence >= least_confidence)
    many = np.bincount(table.half_sets()[confident], minlength=2)
    return [(name, int(count)) for name, count in zip(CONFIDENT, many, strict=True) if count]


def _log_committed(group: Sequence[Finished]) -> None:
    for finished in group:
        rows = {"batch_id": finished.batch_id, "first_row": finished.first_row, "num_rows": finished.num_rows}
        logger.info(COMMITTED_EVENT, extra={**rows, "monotonic_seconds": time.monotonic()})


def _runs(finished: Finished, which: NDArray[np.bool_]) -> list[Run]:
    """Return the consecutive stretches of the chosen rows; positions count the chosen rows from 0."""
    chosen = np.flatnonzero(which)
    if not len(chosen):
        return []
    breaks = np.flatnonzero(np.diff(chosen) != 1) + 1
    runs, position = [], 0
    for stretch in np.split(chosen, breaks):
        first = finished.first_row + int(stretch[0])
        runs.append(Run(finished.batch_id, first, len(stretch), UNPOSED_PLACE, position, finished.checkpoint_id))
        position += len(stretch)
    return runs


def shard_groups(finished: Sequence[Finished], shard_rows: int) -> list[list[Finished]]:
    """Split what is committed so that a shard ends at most one batch after `shard_rows`."""
    groups: list[list[Finished]] = []
    rows = shard_rows
    for item in finished:
        if rows >= shard_rows:
            groups.append([])
            rows = 0
        groups[-1].append(item)
        rows += item.num_rows
    return groups
