"""Redoing committed rows with another checkpoint: whole shards, each switched by one rename, each row exactly once."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from cesped_stream.errors import InvalidCheckpointError

from .committing import Committer
from .finished import NO_CHECKPOINT, Finished, origin_cells, pose_cells
from .leasing import Span
from .ledger import Ledger, Run
from .rolling import PoseFiles
from .training_gate import VerifiedCheckpoint, verify_checkpoint

KEPT_MEMBERS = "rows kept in a redo: in the reference"
"""Counter of the ledger."""
FOLDER = "checkpoint of the redo"
"""Fact of the ledger: the folder of what the last request is made with."""


class Reinference:
    """Redone rows are staged in the ledger; a shard whose last one is staged gets its next generation."""

    def __init__(self, ledger: Ledger, poses: PoseFiles, committer: Committer) -> None:
        self._ledger = ledger
        self._poses = poses
        self._committer = committer
        self.checkpoint: VerifiedCheckpoint | None = None
        """What redone rows are posed with, also while another one is in use; None where no redo was asked for, or the
        last one had to end."""

    def request(self, checkpoint: VerifiedCheckpoint) -> int:
        """Order every predicted row of another checkpoint to be redone; return how many shards that takes.

        Seals the open shard first. An unfinished request for another checkpoint is replaced.
        """
        checkpoint_id = checkpoint.checkpoint_id
        self._poses.seal()
        shards = [
            shard.shard_id
            for shard in self._ledger.shards()
            if shard.state == "sealed"
            and shard.shard_id not in self._poses.missing
            and self._stale(shard.shard_id, checkpoint_id)
        ]
        with self._ledger.transaction("reinfer ordered"):
            self._ledger.remember(FOLDER, str(checkpoint.folder))
            self._ledger.count(KEPT_MEMBERS, -self.kept_members())
            self._ledger.execute(
                "DELETE FROM staged WHERE shard_id IN (SELECT shard_id FROM reinfers WHERE checkpoint_id != ?)",
                (checkpoint_id,),
            )
            self._ledger.execute("DELETE FROM reinfers WHERE checkpoint_id != ?", (checkpoint_id,))
            self._ledger.executemany(
                "INSERT OR IGNORE INTO reinfers VALUES(?, ?)", [(shard_id, checkpoint_id) for shard_id in shards]
            )
        self.checkpoint = checkpoint
        return len(shards)

    def verify(self) -> str:
        """Look whether the open redo's checkpoint is good; "" if so. If not, the redo ends: its rows keep their poses,
        and what is wrong is returned."""
        self.checkpoint = None
        left = self.shards_left()
        if not left:
            return ""
        try:
            found = verify_checkpoint(Path(self._ledger.fact(FOLDER)))
            if found.checkpoint_id != left[0][1]:
                raise InvalidCheckpointError(f"{found.folder} holds {found.checkpoint_id}, not {left[0][1]}")
        except InvalidCheckpointError as error:
            with self._ledger.transaction("reinfer ended"):
                self._ledger.execute("DELETE FROM staged")
                self._ledger.execute("DELETE FROM reinfers")
            return f"{error}; the redo has ended, {len(left)} shards keep their poses: reinfer with another checkpoint"
        self.checkpoint = found
        return ""

    def shards_left(self) -> list[tuple[int, str]]:
        """Return (shard, checkpoint id) of what is not switched yet."""
        rows = self._ledger.execute("SELECT shard_id, checkpoint_id FROM reinfers ORDER BY shard_id").fetchall()
        return [(int(shard_id), str(checkpoint_id)) for shard_id, checkpoint_id in rows]

    def spans(self) -> list[Span]:
        """Return the rows that are still to be redone."""
        spans = []
        for shard_id, checkpoint_id in self.shards_left():
            done = self._staged(shard_id) | self._ledger.restated_positions(shard_id)
            for run in self._stale(shard_id, checkpoint_id):
                spans.extend(_not_staged(run, done))
        return spans

    def kept_members(self) -> int:
        """Return how many rows kept their pose since the last request because the checkpoint is made of them."""
        return self._ledger.counter(KEPT_MEMBERS)

    def stage(self, group: Sequence[Finished], now: float) -> None:
        """Make redone rows durable; a row that is flagged (its image is unusable, or in the reference that
        would score it) or whose pixels changed keeps its pose."""
        wanted = dict(self.shards_left())
        with self._ledger.transaction("redone rows staged"):
            for finished in group:
                if wanted.get(finished.shard_id) != finished.checkpoint_id:
                    continue
                due = self._due(finished.shard_id, finished.checkpoint_id)
                conflicts = set(self._committer.conflicting(finished))
                posed, cells_of = finished.posed(), self._cells_of(finished)
                rows = []
                for k in range(finished.num_rows):
                    if finished.position + k not in due:  # its consensus pose came meanwhile
                        continue
                    keep = not posed[k] or finished.first_row + k in conflicts
                    cells = "" if keep else json.dumps(cells_of(k))
                    rows.append((finished.shard_id, finished.position + k, cells))
                self._ledger.executemany("INSERT INTO staged VALUES(?, ?, ?)", rows)
                self._ledger.count(KEPT_MEMBERS, finished.in_reference(due))
                lease = self._committer.lease_record(finished, now)
                self._ledger.execute("INSERT INTO leases VALUES(?, ?, ?, ?, ?, ?)", lease)
                self._ledger.executemany(
                    "INSERT OR IGNORE INTO conflicts VALUES(?, ?, 'pixels', 'stack')",
                    [(finished.batch_id, row) for row in sorted(conflicts)],
                )

    def _cells_of(self, finished: Finished) -> Callable[[int], dict[str, str]]:
        """Return what gives a redone row's cells; one whose proposer gives no shifts gets back the origin it came with,
        whatever it had meanwhile."""
        if finished.poses is None or finished.poses.has_shifts:
            return lambda row: pose_cells(finished, row, 0)
        table = self._committer.input_rows(finished)
        return lambda row: origin_cells(table, row) | pose_cells(finished, row, 0)

    def switch_ready(self, shard_ids: set[int]) -> None:
        """Switch those of the shards whose rows are all staged."""
        for shard_id, checkpoint_id in self.shards_left():
            if shard_id not in shard_ids or shard_id in self._poses.missing:
                continue
            if self._due(shard_id, checkpoint_id) <= self._staged(shard_id):
                self._poses.switch(shard_id, checkpoint_id)

    def _stale(self, shard_id: int, checkpoint_id: str) -> list[Run]:
        return [
            run for run in self._ledger.runs_of(shard_id) if run.checkpoint_id not in (checkpoint_id, NO_CHECKPOINT)
        ]

    def _due(self, shard_id: int, checkpoint_id: str) -> set[int]:
        """Return the positions of a shard that are to be redone; not those that get a consensus pose instead."""
        runs = self._stale(shard_id, checkpoint_id)
        stale = {position for run in runs for position in range(run.position, run.position + run.num_rows)}
        return stale - self._ledger.restated_positions(shard_id)

    def _staged(self, shard_id: int) -> set[int]:
        rows = self._ledger.execute("SELECT position FROM staged WHERE shard_id = ?", (shard_id,)).fetchall()
        return {int(row[0]) for row in rows}


def _not_staged(run: Run, staged: set[int]) -> list[Span]:
    spans: list[Span] = []
    start: int | None = None
    for k in range(run.num_rows + 1):
        missing = k < run.num_rows and run.position + k not in staged
        if missing and start is None:
            start = k
        elif not missing and start is not None:
            spans.append(Span(run.batch_id, run.first_row + start, k - start, run.place, run.position + start))
            start = None
    return spans
