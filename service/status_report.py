"""Puts the session's numbers together for `status.json` and the status command."""

import logging
import os
import socket
from collections import deque

import numpy as np

from cesped_stream.calibration.drift import DriftState
from cesped_stream.particles.pose_tally import PoseTally
from cesped_stream.particles.star_kind import StarKind

from .accepting import NEWS, OTHER_CTF, OTHER_POSE
from .consensus_notes import consensus_notes
from .finished import NO_CHECKPOINT
from .landing_report import first_refusal, landing_notes, landing_problems, stars_left
from .leasing import Member, Members
from .ledger import CONSENSUS, UNPOSED_PLACE, Ledger
from .pose_status import pose_problems, poses_status
from .problems import Cost, Problem, ProblemList, named_problem
from .session import SessionFolder
from .settings import SessionSettings
from .source_notes import source_notes
from .status import (
    CheckpointStatus,
    LatencyStatus,
    RoleState,
    RoleStatus,
    SessionState,
    SessionStatus,
    TrainingStatus,
)
from .training_gate import ORDERED
from .waiting import rows_in_hand, waits_for
from .watcher import Watcher
from .work import Work

logger = logging.getLogger(__name__)

RATE_SECONDS = 60.0

UNTRAINED = {
    OTHER_CTF: "their micrograph or optics is not what their particles landed with, or their defocus lies more than "
    "1000 A away: are they of the same images? Correct the star",
    OTHER_POSE: "their star gives the particle more than one pose (is it symmetry expanded?); the first one counts: "
    "give a star with each particle once",
}
"""Why aligned rows of particles that landed before are not used, by what conflicts."""


class StatusReport:
    """Remembers the last minute for the rates, and the last status for times when the ledger is closed."""

    def __init__(self, settings: SessionSettings, folder: SessionFolder, watcher: Watcher, members: Members) -> None:
        self._settings = settings
        self._folder = folder
        self._watcher = watcher
        self._members = members
        self._history: deque[tuple[float, int, int]] = deque()
        self._last: SessionStatus | None = None
        self._problem_list = ProblemList()

    def write(self, status: SessionStatus) -> None:
        """Replace status.json; not fsynced: after a crash the next one is a second away."""
        temporary = self._folder.state / ".status.json.tmp"
        try:
            temporary.write_text(status.model_dump_json(indent=1))
            os.replace(temporary, self._folder.status)
        except OSError:
            temporary.unlink(missing_ok=True)

    def status(
        self, work: Work | None, now: float, *, paused: str, draining: bool, refused_results: int
    ) -> SessionStatus:
        roles = tuple(self._role(member, work, now) for member in self._members)
        if work is None:
            assert self._last is not None, "the first status is made while the ledger is open"
            told = {"state": SessionState.PAUSED, "roles": roles, "waits_for": (), "problems": (paused,)}
            return self._last.model_copy(update=told)
        self._last = self._of(work, now, paused, draining, roles, refused_results)
        return self._last

    def _of(
        self, work: Work, now: float, paused: str, draining: bool, roles: tuple[RoleStatus, ...], refused_results: int
    ) -> SessionStatus:
        ledger = work.ledger
        landed = ledger.scalar("SELECT sum(num_rows) FROM batches WHERE kind != ?", (CONSENSUS,))
        posed = ledger.scalar("SELECT sum(num_rows) FROM runs WHERE place != ?", (UNPOSED_PLACE,))
        given = ledger.scalar("SELECT sum(num_rows) FROM runs WHERE checkpoint_id = ?", (NO_CHECKPOINT,))
        unposed = ledger.scalar("SELECT sum(num_rows) FROM runs WHERE place = ?", (UNPOSED_PLACE,))
        quarantined = ledger.scalar("SELECT sum(num_rows) FROM quarantined")
        leased = work.leases.num_rows
        training = self._training(work)
        tally = work.poses.tally()
        pending = landed - posed - unposed - quarantined - leased
        landed_rate, posed_rate = self._rates(now, landed, posed + unposed)
        return SessionStatus(
            session=str(self._folder.root),
            pid=os.getpid(),
            host=socket.gethostname(),
            state=self._state(work, training, paused, draining, landed, pending + leased),
            landed=landed,
            posed=posed,
            given=given,
            predicted=posed - given,
            unposed=unposed,
            pending=pending,
            leased=leased,
            waiting_for_stack=work.ingest.waiting_rows,
            quarantined=quarantined,
            refused_rows=ledger.scalar("SELECT sum(refused_rows) FROM stars"),
            quarantined_stars=ledger.scalar("SELECT count(*) FROM stars WHERE problem != ''"),
            duplicates=ledger.counter("duplicates"),
            conflicts=ledger.scalar("SELECT count(*) FROM conflicts WHERE what NOT IN (?, ?)", NEWS),
            likely_copies=ledger.counter("likely copies"),
            refused_results=refused_results,
            first_refusal=first_refusal(ledger),
            stars=ledger.scalar("SELECT count(*) FROM stars WHERE kind = ?", (StarKind.PARTICLES,)),
            stars_waiting=work.ingest.stars_in_hand + self._watcher.stars_unsettled,
            stars_passed_over=self._watcher.stars_passed_over,
            stars_left=stars_left(work, self._watcher),
            aligned_per_half=work.gate.aligned_per_half(),
            references_per_half=work.gate.references_per_half(),
            min_aligned_per_half=self._settings.min_aligned_per_half,
            half_mode=self._settings.half_mode,
            proposer=self._settings.proposer,
            training=training,
            checkpoint=_checkpoint(work),
            poses=poses_status(tally),
            reinfer_shards_left=work.shards_to_write_again(),
            shards=ledger.scalar("SELECT count(*) FROM shards WHERE state = 'sealed'"),
            landed_per_second=landed_rate,
            posed_per_second=posed_rate,
            latency=latency_status(work.committer.latencies),
            latency_with_model=latency_status([entry for entry in work.committer.latencies if entry[2]]),
            roles=roles,
            waits_for=waits_for(work, self._watcher, self._settings, {role.role for role in roles}, now)
            if not draining
            else rows_in_hand(work),
            problems=self._problems(work, paused, now, tally),
            notes=tuple(self._notes(work, now)),
        )

    def _problems(self, work: Work, paused: str, now: float, tally: PoseTally) -> tuple[str, ...]:
        """Return what is wrong, by what it costs; a kind of problem that is new goes to the log too."""
        problems = [
            Problem("paused", Cost.ROWS, paused),
            Problem("landing", Cost.ROWS, self._watcher.problem),
            *landing_problems(work, self._watcher, now),
            *(named_problem(name, text) for name, text in work.problems.items()),
            *(Problem("rebuild", Cost.REST, text) for text in work.gate.rebuild_orders.problems.values()),
            *(Problem("untrained", Cost.TRAINING, _untrained(work.ledger, *item)) for item in UNTRAINED.items()),
            *(Problem("left out", Cost.REST, text) for text in work.poses.left_out.values()),
            *(Problem("poses", Cost.REST, text) for text in self._pose_problems(tally)),
        ]
        listed, new = self._problem_list.listed(problems)
        if new:
            logger.warning("problems", extra={"new": new, "problems": [problem.text for problem in listed]})
        return tuple(problem.text for problem in listed)

    def _pose_problems(self, tally: PoseTally) -> list[str]:
        return pose_problems(tally, self._settings.gallery, self._settings.refinement)

    def _notes(self, work: Work, now: float) -> list[str]:
        notes = [*source_notes(work, self._settings), *consensus_notes(work, self._settings)]
        drift = work.calibration.drift()
        if drift is not None and drift.state is DriftState.STALE:
            notes.append(
                f"calibration stale: confidences of the last {drift.num_particles} particles are unlike those that it "
                f"was fitted on (stability index {drift.stability_index:.2f}); `retrain` on aligned rows of now, then "
                "`reinfer`"
            )
        return [*notes, *landing_notes(work, self._watcher, now)]

    def _state(
        self,
        work: Work,
        training: TrainingStatus | None,
        paused: str,
        draining: bool,
        landed: int,
        backlog: int,
    ) -> SessionState:
        if paused:
            return SessionState.PAUSED
        if draining:
            return SessionState.DRAINING
        if training is not None and training.state == ORDERED and work.checkpoint is None:
            return SessionState.TRAINING
        if landed == 0:
            return SessionState.WAITING_FOR_ROWS
        if work.checkpoint is None:
            waits = work.gate.map_orders.waits()
            return SessionState.COLLECTING_ROWS if waits else SessionState.COLLECTING_ALIGNED
        return SessionState.INFERRING if backlog or work.shards_to_write_again() else SessionState.UP_TO_DATE

    def _role(self, member: Member, work: Work | None, now: float) -> RoleStatus:
        leases = [work.leases.get(lease_id) for lease_id in member.lease_ids] if work is not None else []
        silence = now - member.last_heard
        late = silence > 2 * self._settings.service.heartbeat_seconds
        busy = bool(member.lease_ids) or (member.role == "trainer" and member.says not in ("", "idle", "starting"))
        return RoleStatus(
            role=member.role,
            name=member.name,
            incarnation=member.incarnation,
            pid=member.pid,
            device=member.device,
            state=RoleState.SILENT if late else RoleState.WORKING if busy else RoleState.IDLE,
            says=member.says,
            seconds_since_heard=round(silence, 3),
            progress=member.progress,
            particles_per_second=member.particles_per_second,
            leased_rows=sum(lease.span.num_rows for lease in leases if lease is not None),
        )

    def _rates(self, now: float, landed: int, posed: int) -> tuple[float, float]:
        self._history.append((now, landed, posed))
        while len(self._history) > 2 and now - self._history[0][0] > RATE_SECONDS:
            self._history.popleft()
        then, landed_then, posed_then = self._history[0]
        seconds = now - then
        if seconds <= 0:
            return 0.0, 0.0
        return (landed - landed_then) / seconds, (posed - posed_then) / seconds

    def _training(self, work: Work) -> TrainingStatus | None:
        row = work.ledger.execute(
            "SELECT training_id, state, num_rows, checkpoint_id, seconds, source FROM trainings"
            " ORDER BY training_id DESC"
        ).fetchone()
        if row is None:
            return None
        progress = work.training_progress
        return TrainingStatus(
            training_id=row[0],
            state=row[1],
            num_rows=row[2],
            checkpoint_id=row[3],
            seconds=row[4],
            source=row[5],
            step=progress.step if progress else 0,
            max_steps=progress.max_steps if progress else 0,
            half_steps=progress.half_steps if progress else (),
            stage=progress.stage if progress else "",
            validation_error_deg=progress.validation_error_deg if progress else (),
        )


def _checkpoint(work: Work) -> CheckpointStatus | None:
    if work.checkpoint is None:
        return None
    rows = _rows_of(work.ledger, work.checkpoint.checkpoint_id)
    drift = work.calibration.drift()
    return CheckpointStatus(
        checkpoint_id=work.checkpoint.checkpoint_id,
        folder=str(work.checkpoint.folder),
        rows=rows,
        independence=work.checkpoint.independence,
        resolution_angstrom=work.checkpoint.resolution_angstrom,
        median_error_deg=work.checkpoint.median_error_deg,
        calibration=str(drift.state) if drift else "none",
    )


def _rows_of(ledger: Ledger, checkpoint_id: str) -> int:
    return ledger.scalar(
        "SELECT sum(num_rows) FROM runs WHERE checkpoint_id = ? AND place != ?", (checkpoint_id, UNPOSED_PLACE)
    )


def _untrained(ledger: Ledger, what: str, why: str) -> str:
    rows = ledger.counter(what)
    if not rows:
        return ""
    seen_in = ledger.execute("SELECT seen_in FROM conflicts WHERE what = ? LIMIT 1", (what,)).fetchone()[0]
    return f"{rows} aligned rows are not used (such as of {seen_in}): {why}"


def latency_status(latencies: list[tuple[float, int, bool]]) -> LatencyStatus:
    """Return the quantiles over rows of (seconds, number of rows, had a model) entries."""
    if not latencies:
        return LatencyStatus(num_rows=0, p50_seconds=None, p95_seconds=None)
    seconds = np.array([entry[0] for entry in latencies])
    rows = np.array([entry[1] for entry in latencies])
    order = np.argsort(seconds, kind="stable")
    below = np.cumsum(rows[order])
    quantile = [float(seconds[order][np.searchsorted(below, q * below[-1])]) for q in (0.5, 0.95)]
    return LatencyStatus(num_rows=int(below[-1]), p50_seconds=quantile[0], p95_seconds=quantile[1])
