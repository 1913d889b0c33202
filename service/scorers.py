"""Which checkpoint may give rows their first pose: the one in use, unless its references are made of them. No torch."""

from pathlib import Path
from typing import Literal

import numpy as np

from cesped_stream.errors import CespedStreamError
from cesped_stream.particles.reference_members import ReferenceMembers
from cesped_stream.particles.table import ParticleTable

from .finished import BatchTables
from .leasing import Span
from .ledger import Ledger
from .training_gate import VerifiedCheckpoint, verify_checkpoint

NO_SCORER = (
    "these particles are in the reference that would score them, and no other checkpoint is at hand; use one that was "
    "made without them (cesped-stream reinfer --checkpoint), then requeue"
)


class Scorers:
    """Remembers what the references of the session's checkpoints are made of."""

    def __init__(self, ledger: Ledger, tables: BatchTables, half_mode: Literal["gold_standard", "cross_half"]) -> None:
        self._ledger = ledger
        self._tables = tables
        self._half_mode: Literal["gold_standard", "cross_half"] = half_mode
        self._members: dict[str, ReferenceMembers] = {}
        self._verified: dict[str, VerifiedCheckpoint] = {}

    def first_part(self, span: Span, in_use: VerifiedCheckpoint) -> tuple[Span, VerifiedCheckpoint | None]:
        """Return the longest first part of a span that one checkpoint may score, and that checkpoint or None.

        It is the one in use or, for a row that this one's references are made of, the newest former one without it.
        Rows to be redone go whole to the one that is given: there the worker leaves out what is in the reference.
        """
        if span.shard_id or not len(self._of(in_use)):
            return span, in_use
        table = self._tables.rows(span.batch_id, span.first_row, span.num_rows)
        inside = self._of(in_use).among(table, self._half_mode)
        many = int((inside != inside[0]).argmax()) or span.num_rows
        part = span.part(0, many)
        if not inside[0]:
            return part, in_use
        return self._former_part(part, table.select(range(many)))

    def _former_part(self, span: Span, table: ParticleTable) -> tuple[Span, VerifiedCheckpoint | None]:
        """Return the first rows of a span whose newest former checkpoint without them is the same, and that one."""
        former = self._former()
        without = [~self._of(checkpoint).among(table, self._half_mode) for checkpoint in former]
        newest = np.array([*without, np.ones(len(table), np.bool_)]).argmax(axis=0)  # the last: no checkpoint
        many = int((newest != newest[0]).argmax()) or len(table)
        return span.part(0, many), [*former, None][newest[0]]

    def _of(self, checkpoint: VerifiedCheckpoint) -> ReferenceMembers:
        if checkpoint.checkpoint_id not in self._members:
            self._members[checkpoint.checkpoint_id] = ReferenceMembers.of(checkpoint.folder)
        return self._members[checkpoint.checkpoint_id]

    def _former(self) -> list[VerifiedCheckpoint]:
        """Return the session's good checkpoints, the newest first."""
        rows = self._ledger.execute("SELECT folder FROM trainings WHERE folder != '' ORDER BY training_id DESC")
        folders = [str(row[0]) for row in rows.fetchall()] + [self._ledger.fact("checkpoint of the settings")]
        good = []
        for folder in dict.fromkeys(folder for folder in folders if folder):
            try:
                if folder not in self._verified:
                    self._verified[folder] = verify_checkpoint(Path(folder))
            except CespedStreamError:
                continue
            good.append(self._verified[folder])
        return good
