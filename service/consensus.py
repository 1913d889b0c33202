"""Consensus poses that came for known particles: what they change of a session, all at once and at any time.

An aligned star is read in parts; its rows stand in batches of their own and change nothing. Once it has been read to
its end, one transaction adopts all of it: half-sets, which rows references are made of, and which committed rows are to
be written again. No torch here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from cesped_stream.conventions import HALVES
from cesped_stream.particles.table import ParticleTable

from .finished import BatchTables
from .ledger import ALIGNED_KINDS, BY_HASH, FORMER_SPLIT, GIVEN, HALF, PREDICT, Ledger
from .messages import MAP, POSES

TOOK_HALF = "particles that took the aligned half-set"
NEWER = "rows with a newer consensus"
NEWER_THAN_REFERENCES = "rows with a newer consensus than the references"
OTHER_SPLIT = "members of references whose half-set changed"
ADOPTIONS = "adoptions of consensus rows"
"""Counters of the ledger. Those of references begin anew when some are ordered."""
TRAINING_REQUESTED = "training requested"
REDO_AFTER_TRAINING = "redo after training"
"""Facts of the ledger, "yes" or empty."""


@dataclass
class _Touched:
    """Bytes of one batch as an adoption leaves them."""

    kind: str
    halves: bytearray
    superseded: bytearray

    def counts(self) -> tuple[int, int]:
        """Return how many rows of each half-set count: of aligned batches those that no newer consensus replaced."""
        live = [
            byte for byte, gone in zip(self.halves, self.superseded, strict=True) if self.kind == PREDICT or not gone
        ]
        return sum(byte & HALF == HALVES[0] for byte in live), sum(byte & HALF == HALVES[1] for byte in live)


@dataclass
class _Adoption:
    """What one transaction changes."""

    rebuilt: bool
    """References were made of predicted poses too: any particle may be in one."""
    batches: dict[int, _Touched] = field(default_factory=dict)
    landed_batches: set[int] = field(default_factory=set)
    newest: set[tuple[int, int]] = field(default_factory=set)
    """(batch, row) of the consensus rows that count from now on."""
    restated: list[tuple[int, int]] = field(default_factory=list)
    took_half: int = 0
    newer: int = 0
    other_split: int = 0


class Consensus:
    """Adopts consensus rows, and says which landed rows have one."""

    def __init__(self, ledger: Ledger, tables: BatchTables) -> None:
        self._ledger = ledger
        self._tables = tables

    def is_due(self) -> bool:
        """Return whether consensus rows have been accepted that are not adopted yet."""
        return self._ledger.scalar("SELECT count(*) FROM (SELECT 1 FROM consensus WHERE adopted = 0 LIMIT 1)") > 0

    def touches(self, place: int) -> bool:
        """Return whether what is to be adopted has a committed row in this pose file."""
        return (
            self._ledger.scalar(
                "SELECT count(*) FROM (SELECT 1 FROM consensus JOIN runs ON runs.batch_id = consensus.batch_id AND"
                " batch_row >= first_row AND batch_row < first_row + num_rows WHERE adopted = 0 AND place = ? LIMIT 1)",
                (place,),
            )
            > 0
        )

    def adopt(self) -> set[int]:
        """Make every consensus row that was accepted the one that counts; return the batches with which its particles
        landed. Rows that are committed are noted in `restated`: sealed shards hold all of them by now.

        Where a particle of references gets another half-set, those references, and every pose by them, are of a former
        split: references are ordered anew and what they posed is redone after that.
        """
        rows = self._ledger.execute(
            "SELECT batch_id, batch_row, aligned_batch, aligned_row FROM consensus WHERE adopted = 0"
            " ORDER BY batch_id, batch_row, aligned_batch"
        ).fetchall()
        adoption = _Adoption(rebuilt=self._are_references_of_poses())
        for batch_id, of_batch in groupby(rows, key=lambda found: int(found[0])):
            former = self.rows_of(batch_id)
            returned = {
                row: [(int(found[2]), int(found[3])) for found in versions]
                for row, versions in groupby(of_batch, key=lambda found: int(found[1]))
            }
            for row, versions in returned.items():
                self._adopt_row(adoption, batch_id, row, versions, former.get(row))
            adoption.landed_batches.add(batch_id)
            adoption.restated += self._committed(batch_id, sorted(returned))
        if adoption.other_split:
            self._mark_former_split(adoption)
        with self._ledger.transaction("consensus adopted"):
            self._note(adoption)
        self._tables.forget()
        return adoption.landed_batches

    def _adopt_row(
        self,
        adoption: _Adoption,
        batch_id: int,
        row: int,
        versions: list[tuple[int, int]],
        former: tuple[int, int] | None,
    ) -> None:
        """Let the last of a row's new `versions` count, (batch, row) each, in the place of its `former` one."""
        landed = self._touched(adoption, batch_id)
        for aligned_batch, aligned_row in (*([former] if former else []), *versions[:-1]):
            self._touched(adoption, aligned_batch).superseded[aligned_row] = 1
        aligned_batch, aligned_row = versions[-1]
        adoption.newest.add(versions[-1])
        newest = self._touched(adoption, aligned_batch)
        before, now = landed.halves[row], newest.halves[aligned_row]
        if now & BY_HASH:  # the star gave none: the particle's own one stays
            now = newest.halves[aligned_row] = now & ~HALF | before & HALF
        else:
            landed.halves[row] = before & ~(HALF | BY_HASH) | now & HALF
        changed = (before ^ now) & HALF > 0
        was_aligned = landed.kind == GIVEN or former is not None
        adoption.took_half += bool(before & BY_HASH and not now & BY_HASH)
        adoption.newer += was_aligned
        adoption.other_split += changed and (was_aligned or adoption.rebuilt)
        if landed.kind == GIVEN:
            landed.superseded[row] = 1

    def _are_references_of_poses(self) -> bool:
        count = "SELECT count(*) FROM trainings WHERE source = ? AND state != 'failed'"
        return self._ledger.scalar(count, (POSES,)) > 0

    def _mark_former_split(self, adoption: _Adoption) -> None:
        """Mark the aligned rows that count and that no star of this adoption names: their refinement divided particles
        otherwise, and with the new ones they make no independent half-sets."""
        rows = self._ledger.execute("SELECT batch_id FROM batches WHERE kind IN (?, ?)", ALIGNED_KINDS).fetchall()
        for (batch_id,) in rows:
            touched = self._touched(adoption, int(batch_id))
            for row, gone in enumerate(touched.superseded):
                if not gone and (batch_id, row) not in adoption.newest:
                    touched.halves[row] |= FORMER_SPLIT

    def _touched(self, adoption: _Adoption, batch_id: int) -> _Touched:
        if batch_id not in adoption.batches:
            rows = self._ledger.declared(batch_id)
            superseded = bytearray(rows.superseded or bytes(len(rows.halves)))
            adoption.batches[batch_id] = _Touched(rows.kind, bytearray(rows.halves), superseded)
        return adoption.batches[batch_id]

    def _committed(self, batch_id: int, rows: Sequence[int]) -> list[tuple[int, int]]:
        """Return (place, position) of those of a batch's rows that are on disk, with a pose or without."""
        runs = self._ledger.execute(
            "SELECT first_row, num_rows, place, position FROM runs WHERE batch_id = ?", (batch_id,)
        ).fetchall()
        chosen = np.asarray(rows, np.int64)
        found = []
        for first, many, place, position in runs:
            inside = chosen[(chosen >= first) & (chosen < first + many)]
            found += [(int(place), int(position + row - first)) for row in inside.tolist()]
        return found

    def _note(self, adoption: _Adoption) -> None:
        ledger = self._ledger
        for batch_id, touched in adoption.batches.items():
            superseded = bytes(touched.superseded) if any(touched.superseded) else b""
            ledger.execute(
                "UPDATE batches SET halves = ?, superseded = ?, half_0 = ?, half_1 = ? WHERE batch_id = ?",
                (bytes(touched.halves), superseded, *touched.counts(), batch_id),
            )
        ledger.execute("UPDATE consensus SET adopted = 1 WHERE adopted = 0")
        ledger.executemany("INSERT OR IGNORE INTO restated VALUES(?, ?)", adoption.restated)
        ledger.executemany("DELETE FROM staged WHERE shard_id = ? AND position = ?", adoption.restated)
        for counter, more in ((TOOK_HALF, adoption.took_half), (NEWER, adoption.newer)):
            ledger.count(counter, more)
        ledger.count(ADOPTIONS)
        trained = ledger.scalar("SELECT count(*) FROM trainings WHERE source != ? AND state != 'failed'", (MAP,))
        if trained:
            ledger.count(NEWER_THAN_REFERENCES, adoption.newer)
        if trained and adoption.other_split:
            ledger.count(OTHER_SPLIT, adoption.other_split)
            ledger.remember(TRAINING_REQUESTED, "yes")
            ledger.remember(REDO_AFTER_TRAINING, "yes")

    def shards_left(self) -> list[int]:
        """Return the shards in which rows wait to be written again with their consensus pose; UNPOSED_PLACE where rows
        of unposed.star wait to be taken out of it."""
        rows = self._ledger.execute("SELECT DISTINCT shard_id FROM restated ORDER BY shard_id").fetchall()
        return [int(row[0]) for row in rows]

    def rows_of(self, batch_id: int) -> dict[int, tuple[int, int]]:
        """Return (batch, row) of the consensus that counts, by row of the batch with which its particle landed."""
        rows = self._ledger.execute(
            "SELECT batch_row, aligned_batch, aligned_row FROM consensus WHERE batch_id = ? AND adopted = 1"
            " ORDER BY batch_row, aligned_batch",
            (batch_id,),
        ).fetchall()
        return {int(row): (int(aligned_batch), int(aligned_row)) for row, aligned_batch, aligned_row in rows}

    def aligned_rows(self, places: Sequence[tuple[int, int]]) -> ParticleTable:
        """Return consensus rows as their star has them, by (batch, row); all of one batch."""
        (batch_id,) = {batch_id for batch_id, _ in places}
        return self._tables[batch_id].select([row for _, row in places])
