"""Everything that a session has in memory, built from its disk: what a restart, or a failed write, builds again."""

import logging
import os
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

from cesped_stream.durable import Step
from cesped_stream.errors import CespedStreamError, InvalidCheckpointError, PermanentError
from cesped_stream.particles.table import ParticleTable
from cesped_stream.published import REFERENCE_KIND

from .calibration_watch import CalibrationWatch
from .committing import Committer, shard_groups
from .consensus import REDO_AFTER_TRAINING, Consensus
from .failed_rows import FailedRows, LeaseFailure
from .finished import BatchTables, Finished, output_tables
from .ingest import Ingest
from .leasing import (
    LeaseInHand,
    Leases,
    Member,
    Members,
    PendingRows,
    Span,
    backoff_seconds,
)
from .ledger import ALIGNED_KINDS, CONSENSUS, GIVEN, UNPOSED_PLACE, Ledger
from .messages import ALIGNED, MAP, POSES, Failure, TrainingDone, TrainingProgress
from .reinfer import Reinference
from .rolling import PoseFiles
from .scorers import NO_SCORER, Scorers
from .session import SessionFolder
from .settings import SessionSettings
from .training_gate import DONE, TrainingGate, VerifiedCheckpoint, verify_checkpoint
from .watcher import Watcher

logger = logging.getLogger(__name__)

TRIED_AGAIN = {
    ALIGNED: "see to that cause, then `cesped-stream retrain {session}` orders it again",
    MAP: "the next start tries it again, also with another map",
    POSES: "it is tried again when as many more rows are confident",
}
"""What makes an order that was given up again, by its source."""
COMMIT_DUTY = 4.0
"""While leases are out, commits are at least this many times their own duration apart."""


class Work:
    """Ledger, pose files, ingest, training gate, pending rows and leases of one session."""

    def __init__(self, settings: SessionSettings, folder: SessionFolder, watcher: Watcher, *, step: Step) -> None:
        self._settings = settings
        self._folder = folder
        self._watcher = watcher
        self._step = step
        self.ledger = Ledger(folder.ledger, step=step)
        try:
            self._build()
        except BaseException:
            self.ledger.close()
            raise

    def _build(self) -> None:
        settings, folder, step = self._settings, self._folder, self._step
        self.tables = BatchTables(folder, self.ledger)
        self.consensus = Consensus(self.ledger, self.tables)
        self.poses = PoseFiles(folder, self.ledger, step=step)
        self.committer = Committer(
            self.ledger, self.tables, self.poses, least_confidence=settings.referencing.rebuild_least_confidence
        )
        self.reinference = Reinference(self.ledger, self.poses, self.committer)
        self.gate = TrainingGate(settings, folder, self.ledger, self.tables, step=step)
        self.problems: dict[str, str] = {f"pose file {k}": text for k, text in enumerate(self.poses.problems)}
        if why := self.gate.problem():
            self.problems["training"] = why
        self.checkpoint: VerifiedCheckpoint | None = None
        self.calibration = CalibrationWatch(settings.calibration)
        self._choose_checkpoint()
        self._watch_calibration()
        self.ingest = Ingest(
            settings, folder, self.ledger, self.tables, self._watcher, lambda: self.checkpoint is not None, step=step
        )
        self.leases = Leases(self.ledger, settings.service)
        self.scorers = Scorers(self.ledger, self.tables, settings.half_mode)
        self.pending = PendingRows()
        self.failed_rows = FailedRows(
            settings, folder, self.ledger, self.tables, self.reinference, self.pending, self.problems, step=step
        )
        self._queue: list[tuple[Finished, Span]] = []
        self._reopened: set[int] = set()
        """Batches whose open rows are to be queued or leased anew: some of them have a consensus pose now."""
        self._next_commit = float("-inf")
        self._shard_since: float | None = None
        self.training_progress: TrainingProgress | None = None
        self.training_not_before = float("-inf")
        self._training_failures = 0
        self.last_scan = float("-inf")
        for batch_id in self.ledger.open_batches():
            self._add_open_rows(batch_id)
        self.reinference.switch_ready({shard_id for shard_id, _ in self.reinference.shards_left()})
        self._look_at_redo()
        for span in self.reinference.spans():
            self.pending.add(span)
        self._redo_after_training()

    def close(self) -> None:
        self.ledger.close()

    @property
    def is_quiet(self) -> bool:
        """Nothing is leased and nothing waits for a commit."""
        return not self._queue and not any(True for _ in self.leases)

    @property
    def queued_rows(self) -> int:
        return sum(finished.num_rows for finished, _ in self._queue if finished.shard_id == 0)

    def checkpoints_in_use(self) -> set[str]:
        """Return the ids of what first poses, and redone ones, are made with."""
        in_use = (self.checkpoint, self.reinference.checkpoint)
        return {checkpoint.checkpoint_id for checkpoint in in_use if checkpoint is not None}

    # Rows

    def _add_open_rows(self, batch_id: int) -> None:
        """Queue the rows of a batch that have a given pose, its own or a consensus that came later; the rest waits for
        a worker."""
        is_given = self.ledger.batch(batch_id).kind == GIVEN
        returned = self.consensus.rows_of(batch_id)
        for first, many in self.ledger.open_rows(batch_id):
            rows = range(first, first + many)
            for aligned_batch, stretch in groupby(rows, lambda row: returned.get(row, (0, 0))[0]):
                chosen = list(stretch)
                span = Span(batch_id, chosen[0], len(chosen))
                if aligned_batch or is_given:
                    self._queue.append((self._given(span, returned), span))
                else:
                    self.pending.add(span)

    def _given(self, span: Span, returned: Mapping[int, tuple[int, int]]) -> Finished:
        """Return rows with their given pose: all of one consensus batch, or none of them is `returned`."""
        places = [returned[span.first_row + k] for k in range(span.num_rows) if span.first_row in returned]
        given = self.consensus.aligned_rows(places) if places else None
        return Finished(span.batch_id, span.first_row, span.num_rows, given=given)

    def scan(self, now: float) -> None:
        self.last_scan = now
        self.ingest.stars_landed(self._watcher.scan(now), now)

    def ingest_next(self, now: float) -> bool:
        """Accept the next part of what landed; return whether there may be more."""
        batches = self.ingest.advance(now)
        for accepted in batches:
            if accepted.kind != CONSENSUS:
                self._add_open_rows(accepted.batch_id)
            if accepted.kind in ALIGNED_KINDS:
                self.gate.rows_landed(now)
        if self.ingest.marker_seen:
            self.ingest.marker_seen, self.gate.marker_seen = False, True
        return self.ingest.busy

    def consensus_is_due(self) -> bool:
        """Return whether consensus poses of known particles have been read to the end of their star."""
        return not self.ingest.reads_aligned and self.consensus.is_due()

    def adopt_consensus(self) -> None:
        """Let the consensus poses that came for known particles count; everything that is finished is committed.

        Leases of their batches are given back: who has one would pose particles that have a pose now, or under a
        half-set that is not theirs any more.
        """
        assert not self._queue, "what is finished must be committed first"
        if self.consensus.touches(self.poses.open_shard_id):
            self._seal()
        batches = self.consensus.adopt()
        self.ingest.consensus_adopted()
        logger.info("consensus adopted", extra={"aligned": self.gate.aligned_per_half()})
        for lease in self.leases:
            if lease.span.batch_id in batches and not lease.span.shard_id:
                self.leases.remove(lease, None)
        self.pending.drop_first_poses(batches)
        self._reopened |= batches & set(self.ledger.open_batches())

    def shards_to_write_again(self) -> int:
        """Return how many sealed shards are to be redone, or have rows that get their consensus pose."""
        redone = {shard_id for shard_id, _ in self.reinference.shards_left()}
        return len(redone | (set(self.consensus.shards_left()) - self.poses.missing))

    def restate_next(self) -> None:
        """Queue the open rows of the next batch, or write the next shard again, in which rows have a consensus pose
        now."""
        if self._reopened:
            batch_id = min(self._reopened)
            self._reopened.discard(batch_id)
            self._add_open_rows(batch_id)
            return
        left = [shard_id for shard_id in self.consensus.shards_left() if shard_id not in self.poses.missing]
        if not left:
            return
        if left[0] == UNPOSED_PLACE:
            batches = self.poses.withdraw(self.ledger.restated_positions(UNPOSED_PLACE))
            self.pending.drop_first_poses(set(batches))
            self._reopened.update(batches)
            return
        restated = self.ledger.restated_positions(left[0])
        given: dict[int, ParticleTable] = {}
        for run in self.ledger.runs_of(left[0]):
            returned = self.consensus.rows_of(run.batch_id)
            rows = [run.first_row + k for k in range(run.num_rows) if run.position + k in restated]
            # Consecutive rows of one consensus batch: the row less its number is the same.
            keys = [(returned[row][0], row - number) for number, row in enumerate(rows)]
            for _, pairs in groupby(zip(keys, rows, strict=True), lambda pair: pair[0]):
                stretch = [row for _, row in pairs]
                aligned = self.consensus.aligned_rows([returned[row] for row in stretch])
                landed = self.tables[run.batch_id].select(stretch)
                finished = Finished(run.batch_id, stretch[0], len(stretch), given=aligned)
                given[run.position + stretch[0] - run.first_row] = output_tables(landed, finished)[0]
        self.poses.restate(left[0], given)
        self.reinference.switch_ready({left[0]})

    def lease_next(self, member: Member, max_rows: int, now: float) -> tuple[LeaseInHand, VerifiedCheckpoint] | None:
        """Lease the next rows to a worker, with what is to score them; None where there are none, or no checkpoint."""
        while self.checkpoint is not None and (span := self._next_span(member, max_rows, now)) is not None:
            in_use = self.reinference.checkpoint if span.shard_id else self.checkpoint
            if in_use is None:  # the redo has ended
                continue
            if not span.shard_id and (span := self._without_consensus(span)) is None:
                continue
            part, checkpoint = self.scorers.first_part(span, in_use)
            if part.num_rows < span.num_rows:
                self.pending.add(span.part(part.num_rows, span.num_rows - part.num_rows))
            if checkpoint is not None:
                return self.leases.grant(part, checkpoint.checkpoint_id, member, now), checkpoint
            self.failed_rows.quarantine(part, NO_SCORER)
        return None

    def _without_consensus(self, span: Span) -> Span | None:
        """Return the first rows of a span that have no consensus pose, None where its first one has; the rest goes
        where it belongs. Only rows that were requeued have one."""
        returned = self.consensus.rows_of(span.batch_id)
        stretches = groupby(range(span.num_rows), lambda k: returned.get(span.first_row + k, (0, 0))[0])
        aligned_batch, many = next((batch_id, len(list(rows))) for batch_id, rows in stretches)
        if many < span.num_rows:
            self.pending.add(span.part(many, span.num_rows - many))
        first = span.part(0, many)
        if not aligned_batch:
            return first
        self.queue(self._given(first, returned), first)
        return None

    def half_sets(self, span: Span) -> str:
        """Return the half-set of each row of a span, a digit each."""
        halves = self.ledger.half_sets(span.batch_id)[span.first_row : span.first_row + span.num_rows]
        return "".join(map(str, halves))

    def _next_span(self, member: Member, max_rows: int, now: float) -> Span | None:
        return self.pending.take(max_rows, now, rather_not=self.failed_rows.workers.rather_not(member.name))

    def expire(self, members: Members, now: float) -> None:
        """Give back what was not answered in time."""
        for lease in self.leases:
            if now > lease.expires:
                logger.warning("lease expired", extra={"lease_id": lease.lease_id})
                member = members.get(lease.incarnation)
                self.leases.remove(lease, member)
                if member is not None:
                    self.failed_rows.expired(lease.span, now)
                else:
                    self.failed_rows.lost(lease, "", now)

    def give_back(self, member: Member, now: float, *, fault: bool) -> None:
        """Give back what a role holds; `fault`: it did not say goodbye."""
        for lease_id in sorted(member.lease_ids):
            lease = self.leases.get(lease_id)
            if lease is not None:
                self.leases.remove(lease, member)
                if fault:
                    self.failed_rows.lost(lease, member.name, now)
                else:
                    self.failed_rows.put_back(lease.span, "its workers stopped", now)

    def failed(self, span: Span, failure: LeaseFailure, now: float) -> None:
        """Try the rows of a lease that failed again, or quarantine those that are to blame."""
        self.failed_rows.failed(span, failure, now)

    def requeue(self, argument: str) -> str:
        """Bring back a batch (number), a star (path) or everything (""). PermanentError where there is nothing."""
        rows = self.ledger.execute("SELECT batch_id, first_row, num_rows FROM quarantined").fetchall()
        chosen = [row for row in rows if argument in ("", str(row[0]))]
        self.failed_rows.bring_back([Span(*row) for row in chosen])
        stars = self.ingest.requeue(argument)
        if argument and not chosen and not stars:
            raise PermanentError(
                f"requeue {argument}: nothing of it is quarantined; give a batch's number or a star's path"
            )
        return f"{sum(int(row[2]) for row in chosen)} rows of batches and {stars} stars are tried again"

    # Commits

    def queue(self, finished: Finished, span: Span) -> None:
        self._queue.append((finished, span))
        self.calibration.see(finished)

    def commit_is_due(self, now: float) -> bool:
        """Return whether to commit now: nothing more is to be expected soon, or it is time."""
        if not self._queue:
            return self._seal_is_due(now)
        return now >= self._next_commit or not any(True for _ in self.leases)

    def rest_after_commit(self, seconds: float, now: float) -> None:
        """Note how long a commit took: rewriting a large open shard must not take all the time there is."""
        self._next_commit = now + max(self._settings.service.commit_seconds, COMMIT_DUTY * seconds)

    def commit(self, now: float) -> list[int]:
        """Commit everything that is finished; return the lease ids that are on disk now."""
        queue, self._queue = self._queue, []
        first = [finished for finished, _ in queue if finished.shard_id == 0]
        redone = [finished for finished, _ in queue if finished.shard_id != 0]
        for group in shard_groups(first, self._settings.service.shard_rows):
            self.committer.commit(group, now)
            self._shard_since = now if self._shard_since is None else self._shard_since
            if self._seal_is_due(now):
                self._seal()
        if redone:
            self.reinference.stage(redone, now)
            self.reinference.switch_ready({finished.shard_id for finished in redone})
        if self._seal_is_due(now):
            self._seal()
        return [finished.lease_id for finished, _ in queue if finished.lease_id]

    def _seal_is_due(self, now: float) -> bool:
        service = self._settings.service
        rows = self.poses.open_rows
        if rows and self._shard_since is None:
            self._shard_since = now
        old = self._shard_since is not None and now - self._shard_since >= service.shard_seconds
        return rows > 0 and (rows >= service.shard_rows or old)

    def _seal(self) -> None:
        self.poses.seal()
        self._shard_since = None

    # Checkpoints and training

    def _choose_checkpoint(self) -> None:
        """Use the checkpoint of the settings where it is new there, else the last one in use that is still good."""
        given = self._settings.checkpoint
        if given and self.ledger.fact("checkpoint of the settings") != given:
            found = verify_checkpoint(Path(os.path.abspath(given)))
            with self.ledger.transaction("checkpoint chosen"):
                self.ledger.remember("checkpoint of the settings", given)
                self.ledger.remember("checkpoint", str(found.folder))
        last = self.ledger.fact("checkpoint")
        rows = self.ledger.execute("SELECT folder FROM trainings WHERE folder != '' ORDER BY training_id DESC")
        folders = dict.fromkeys([last, *(str(row[0]) for row in rows.fetchall())])
        for folder in folders:
            if not folder:
                continue
            try:
                self.checkpoint = verify_checkpoint(Path(folder))
                return
            except InvalidCheckpointError as error:
                self.problems["checkpoint"] = str(error)
        self.checkpoint = None

    def _watch_calibration(self) -> None:
        if self.checkpoint is None:
            return
        try:
            self.calibration.look_at(self.checkpoint.checkpoint_id, self.checkpoint.folder)
            self.problems.pop("calibration", None)
        except InvalidCheckpointError as error:
            self.problems["calibration"] = str(error)

    def checkpoint_suspected(self, checkpoint_id: str) -> None:
        """A worker says that a checkpoint's hash is wrong: look, and go back to the last good one if so."""
        if self.checkpoint is not None and self.checkpoint.checkpoint_id == checkpoint_id:
            self._choose_checkpoint()
            self._watch_calibration()
        redo = self.reinference.checkpoint
        if redo is not None and redo.checkpoint_id == checkpoint_id:
            self._look_at_redo()

    def _look_at_redo(self) -> None:
        if problem := self.reinference.verify():
            self.problems["redo"] = problem
            self.pending.drop_redos()

    def start_training_if_due(self, now: float) -> None:
        if self.ingest.reads_aligned or self.consensus.is_due():
            return
        self.problems.pop("half-sets", None)
        if why := self.gate.waits.problem():
            self.problems["half-sets"] = why
        if self.gate.start_if_due(now):
            self._training_failures = 0
            self.problems.pop("training", None)
            logger.info("training ordered", extra={"aligned": self.gate.aligned_per_half()})

    def training_failed(self, message: Failure, now: float) -> None:
        """Order the training again after a while, or give it up."""
        order = self.gate.order()
        if order is None or order.training_id != message.lease_id:
            return
        self._training_failures += 1
        why = f"training {order.training_id}: {message.error}: {message.message}"
        if not message.retry_can_help and self._training_failures >= self._settings.service.max_attempts:
            again = TRIED_AGAIN[order.source].format(session=self._folder.root)
            why += f"; given up: {again}"
            self.gate.give_up(order.training_id, why)
        self.problems["training"] = why
        self.training_not_before = now + backoff_seconds(self._training_failures)

    def training_done(self, message: TrainingDone) -> str:
        """Use the checkpoint from now on if it is what its manifest says; return what is wrong, or "".

        One that is not the order's last is taken where none or references are in use, and once: whatever a restarted
        trainer says, another one that was chosen since stays in use.
        """
        state = self.gate.state_of(message.training_id)
        if state == DONE:
            return ""
        if not state:
            return f"training {message.training_id} was never ordered"
        try:
            if Path(os.path.realpath(message.checkpoint)).parent != Path(os.path.realpath(self._folder.checkpoints)):
                where = f"{message.checkpoint}: lies not in {self._folder.checkpoints}"
                raise InvalidCheckpointError(f"{where}; do trainer and coordinator have the same session?")
            found = verify_checkpoint(Path(message.checkpoint))
            if found.checkpoint_id != message.checkpoint_id:
                raise InvalidCheckpointError(f"{message.checkpoint} holds {found.checkpoint_id}")
        except CespedStreamError as error:
            self.problems["training"] = str(error)
            return str(error)
        if message.complete:
            self.gate.finish(message.training_id, found, message.seconds)
        elif self.gate.published_so_far(message.training_id) == found.checkpoint_id or (
            self.checkpoint is not None and self.checkpoint.kind != REFERENCE_KIND
        ):
            return ""
        else:
            self.gate.go_on_with(message.training_id, found)
        self.checkpoint = found
        self._watch_calibration()
        self.training_progress = None
        self.problems.pop("training", None)
        logger.info("checkpoint in use", extra={"checkpoint_id": found.checkpoint_id})
        self._redo_after_training()
        return ""

    def _redo_after_training(self) -> None:
        """Redo what references of a former split posed, once there is a checkpoint of the split that counts now."""
        if not self.ledger.fact(REDO_AFTER_TRAINING) or self.gate.aligned_is_open() or self.checkpoint is None:
            return
        self.request_reinfer("")
        with self.ledger.transaction("redo after training ordered"):
            self.ledger.remember(REDO_AFTER_TRAINING, "")

    def request_reinfer(self, checkpoint: str) -> int:
        """Redo every row of another checkpoint, and use this one from now on; leases of others are given back."""
        found = self._named_checkpoint(checkpoint)
        for lease in self.leases:
            if lease.checkpoint_id != found.checkpoint_id or lease.span.shard_id:
                self.leases.remove(lease, None)
                if not lease.span.shard_id:
                    self.pending.add(lease.span)
        with self.ledger.transaction("checkpoint chosen"):
            self.ledger.remember("checkpoint", str(found.folder))
        self.checkpoint = found
        self._watch_calibration()
        shards = self.reinference.request(found)
        self.problems.pop("redo", None)
        self.pending.drop_redos()
        for span in self.reinference.spans():
            self.pending.add(span)
        return shards

    def _named_checkpoint(self, name: str) -> VerifiedCheckpoint:
        if not name:
            if self.checkpoint is None:
                raise PermanentError("reinfer: no checkpoint is in use; name one")
            return self.checkpoint
        inside = self._folder.checkpoints / name
        outside = Path(os.path.abspath(name))
        if not inside.is_dir() and not outside.is_dir():
            known = sorted(path.parent.name for path in self._folder.checkpoints.glob("*/manifest.json"))
            has = f"the session has {', '.join(known)}" if known else "the session has none yet"
            raise PermanentError(f"reinfer {name}: no checkpoint of this id and no folder; {has}")
        return verify_checkpoint(inside if inside.is_dir() else outside)
