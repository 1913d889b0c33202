"""The coordinator's core: a plain object without socket or torch. What a kill interrupts, the next start finishes."""

import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cesped_stream.durable import Step
from cesped_stream.errors import CespedStreamError, InvalidCheckpointError

from .finished import Finished, Poses
from .leasing import Member, Members, lease_rows
from .messages import (
    Ack,
    AnyMessage,
    Control,
    ControlReply,
    Failure,
    Goodbye,
    Heartbeat,
    Hello,
    HelloAgain,
    Idle,
    Lease,
    Ready,
    Result,
    TrainingDone,
    TrainingProgress,
    Welcome,
)
from .session import SessionFolder, SessionLock, refuse_network_file_system
from .settings import SessionSettings
from .status import SessionStatus
from .status_report import StatusReport
from .watcher import FileEvents, Watcher
from .work import Work

logger = logging.getLogger(__name__)

IDLE_RETRY_SECONDS = 0.5
FAULT_RETRY_SECONDS = 2.0
INGEST_SECONDS_PER_TICK = 0.2
INGEST_PARTS_PER_TICK = 16
STATUS_SECONDS = 1.0
EVENT_SCAN_SECONDS = 0.2
"""A file event makes the next scan come sooner, but not sooner than this after the last one."""


@dataclass(frozen=True)
class Outgoing:
    peer: bytes
    message: AnyMessage


class Coordinator:
    """Watches the landing folder, owns the ledger, leases work and is the only writer of poses.

    Opening takes the session's lock (SessionBusyError names who holds it) and recovers from any crash. `step` is
    called after each durable step; tests raise there.
    """

    def __init__(
        self,
        settings: SessionSettings,
        *,
        now: Callable[[], float] = time.monotonic,
        step: Step = lambda name: None,
        watch_events: bool = True,
    ) -> None:
        self._settings = settings
        self._now = now
        self._step = step
        self.folder = SessionFolder.of(settings)
        self.folder.create()
        refuse_network_file_system(self.folder.ledger_folder)
        self._lock = SessionLock(self.folder)
        self._watcher = Watcher(settings.landing)
        self._events = FileEvents(settings.landing.folder) if watch_events else None
        self._members = Members(settings.service)
        self._report = StatusReport(settings, self.folder, self._watcher, self._members)
        self._next_scan = self._next_status = self._next_disk_look = self._resume_at = float("-inf")
        self._pause_reason = ""
        self._draining = False
        self._stopping = False
        self._training_owner = ""
        self._acks: dict[int, tuple[bytes, int]] = {}
        self.refused = Counter[str]()
        try:
            self._work: Work | None = Work(settings, self.folder, self._watcher, step=step)
        except BaseException:
            self._lock.release()
            raise

    # The shell's interface

    def handle(self, peer: bytes, message: AnyMessage, frames: dict[str, NDArray[Any]]) -> list[Outgoing]:
        """Take one valid message and return what to send now; acknowledgements of results come from `tick`."""
        now = self._now()
        if isinstance(message, Hello):
            return self._hello(peer, message, now)
        if isinstance(message, Control):
            return [Outgoing(peer, self.control(message))]
        incarnation = getattr(message, "incarnation", None)
        if incarnation is None:
            self.refused["unexpected kind"] += 1
            return []
        member = self._members.get(incarnation)
        if member is None:
            return self._stranger(peer, message)
        member.last_heard = now
        if isinstance(message, Heartbeat):
            self._members.heartbeat(message, now)
            return []
        member.peer = peer
        if isinstance(message, Goodbye):
            self._part_with(member, now, fault=False)
            return []
        if self._work is None:
            return [Outgoing(peer, Idle(retry_seconds=FAULT_RETRY_SECONDS))] if isinstance(message, Ready) else []
        return self._guarded(lambda work: self._serve(work, member, message, frames, now))

    def tick(self) -> list[Outgoing]:
        """Do what is due: lost leases, scan, ingest, training, commit, shards, status. Returns within about a second."""
        now = self._now()
        for member in self._members.silent(now):
            logger.warning("role is silent", extra={"role": member.role, "role_name": member.name})
            self._part_with(member, now, fault=True)
        out: list[Outgoing] = []
        if self._work is None and now >= self._resume_at:
            out += self._reload()
        if self._work is not None:
            out += self._guarded(lambda work: self._turn(work, now))
        if now >= self._next_status:
            self._next_status = now + STATUS_SECONDS
            self._report.write(self.status())
        if self._draining and (self._work is None or self._work.is_quiet):
            self._stopping = True
        return out

    def status(self) -> SessionStatus:
        """Return what the session is doing now."""
        return self._report.status(self._work, self._now(), paused=self._pause_reason, draining=self._draining)

    @property
    def stop_requested(self) -> bool:
        """True after `stop`, and after `drain` once every result in hand is committed."""
        return self._stopping

    def close(self) -> None:
        """Commit the results that have arrived, close the ledger and release the lock."""
        if self._work is not None and not self._pause_reason:
            self._guarded(lambda work: self._committed(work, self._now()))
        if self._work is not None:
            self._work.close()
            self._work = None
        if self._events is not None:
            self._events.close()
        self._lock.release()

    # Requests

    def control(self, message: Control) -> ControlReply:
        """Do what the command line asks for; also without any socket, on a session where nothing runs."""
        try:
            text = self._control(message)
        except CespedStreamError as error:
            return ControlReply(action=message.action, ok=False, text=str(error))
        except (OSError, sqlite3.Error) as error:
            self._fault(error)
            return ControlReply(action=message.action, ok=False, text=self._pause_reason)
        status = self.status().model_dump_json() if message.action == "status" else ""
        return ControlReply(action=message.action, ok=True, text=text, status=status)

    def _control(self, message: Control) -> str:
        match message.action:
            case "reinfer":
                return f"{self.request_reinfer(message.argument)} shards will be redone"
            case "requeue":
                return self.requeue(message.argument)
            case "train":
                return self.request_training()
            case "drain":
                self.drain()
                return "no new leases; stops when the results in hand are committed"
            case "stop":
                self._stopping = True
                return "stops now; leases that are out are done again after the next start"
            case "status":
                return ""

    def request_reinfer(self, checkpoint: str = "") -> int:
        """Redo every pose of another checkpoint with this one (id, folder, or "": the one in use) and use it from
        now on; return how many shards that takes. InvalidCheckpointError."""
        work = self._present()
        return work.request_reinfer(checkpoint)

    def requeue(self, argument: str = "") -> str:
        """Bring quarantined rows back: of a batch (its number), of a star (its path), or all ("")."""
        return self._present().requeue(argument)

    def request_training(self) -> str:
        """Train on all aligned rows that landed so far, as soon as they are enough."""
        work = self._present()
        work.gate.request()
        halves = work.gate.aligned_per_half()
        return f"training on {halves[0]} + {halves[1]} aligned rows is asked for"

    def drain(self) -> None:
        """Give no new leases; `stop_requested` turns true when every result in hand is committed."""
        self._draining = True

    def _present(self) -> Work:
        if self._work is None:
            raise CespedStreamError(f"{self.folder.root}: {self._pause_reason}; try again when that is over")
        return self._work

    # Messages

    def _hello(self, peer: bytes, message: Hello, now: float) -> list[Outgoing]:
        for former in self._members.hello(peer, message, now):
            self._part_with(former, now, fault=True)
        welcome = Welcome(session=str(self.folder.root), heartbeat_seconds=self._settings.service.heartbeat_seconds)
        return [Outgoing(peer, welcome)]

    def _stranger(self, peer: bytes, message: AnyMessage) -> list[Outgoing]:
        """Answer an incarnation that is not (or no longer) known: its late result is refused, unless it is on disk."""
        if isinstance(message, Goodbye):
            return []
        if isinstance(message, Result | Failure) and self._work is not None:
            return [Outgoing(peer, self._late(self._work, message.lease_id)), Outgoing(peer, HelloAgain())]
        return [Outgoing(peer, HelloAgain())]

    def _late(self, work: Work, lease_id: int) -> Ack:
        if work.ledger.lease_is_committed(lease_id):
            return Ack(lease_id=lease_id, accepted=True)
        self.refused["late results"] += 1
        work.refused_results += 1
        return Ack(lease_id=lease_id, accepted=False, reason="the lease was given back; its rows are done again")

    def _serve(
        self, work: Work, member: Member, message: AnyMessage, frames: dict[str, NDArray[Any]], now: float
    ) -> list[Outgoing]:
        match message:
            case Ready():
                return [Outgoing(member.peer, self._ready(work, member, message, now))]
            case Result():
                return self._result(work, member, message, frames, now)
            case Failure():
                return self._failure(work, member, message, now)
            case TrainingProgress():
                work.training_progress = message
                return []
            case TrainingDone():
                return [Outgoing(member.peer, self._training_done(work, message))]
        self.refused["unexpected kind"] += 1
        return []

    def _ready(self, work: Work, member: Member, message: Ready, now: float) -> AnyMessage:
        member.particles_per_second = message.particles_per_second or member.particles_per_second
        idle = Idle(retry_seconds=IDLE_RETRY_SECONDS)
        if self._draining or self._stopping or self._pause_reason:
            return idle
        if member.role == "trainer":
            return self._training_order(work, member, now) or idle
        settings = self._settings
        rows = lease_rows(settings.service, settings.inference.batch_size, member.particles_per_second)
        checkpoint = work.checkpoint
        if checkpoint is None:
            return idle
        lease = work.leases.grant(work.pending, checkpoint.checkpoint_id, member, rows, now)
        if lease is None:
            return idle
        return Lease(
            lease_id=lease.lease_id,
            batch_id=lease.span.batch_id,
            batch_star=str(self.folder.batch_star(lease.span.batch_id)),
            first_row=lease.span.first_row,
            num_rows=lease.span.num_rows,
            checkpoint=str(checkpoint.folder),
            checkpoint_id=lease.checkpoint_id,
            expires_seconds=settings.service.lease_expiry_seconds,
        )

    def _training_order(self, work: Work, member: Member, now: float) -> AnyMessage | None:
        order = work.gate.order()
        owner = self._members.get(self._training_owner)
        if order is None or now < work.training_not_before or (owner is not None and owner is not member):
            return None
        self._training_owner = member.incarnation
        return order

    def _result(
        self, work: Work, member: Member, message: Result, frames: dict[str, NDArray[Any]], now: float
    ) -> list[Outgoing]:
        if message.lease_id in self._acks:
            self._acks[message.lease_id] = (member.peer, message.lease_id)
            return []
        lease = work.leases.get(message.lease_id)
        if lease is None or lease.incarnation != member.incarnation or lease.checkpoint_id != message.checkpoint_id:
            return [Outgoing(member.peer, self._late(work, message.lease_id))]
        problem = wrong_with(frames, lease.span.num_rows)
        work.leases.remove(lease, member)
        if problem:
            work.failed(lease.span, f"a result that is none: {problem}", transient=False, row=-1, now=now)
            return [Outgoing(member.peer, Ack(lease_id=lease.lease_id, accepted=False, reason=problem))]
        span = lease.span
        finished = Finished(
            batch_id=span.batch_id,
            first_row=span.first_row,
            num_rows=span.num_rows,
            poses=Poses(**{name: frames[name] for name in Poses.__dataclass_fields__}),
            lease_id=lease.lease_id,
            checkpoint_id=lease.checkpoint_id,
            proposer=message.proposer,
            worker=member.name,
            compute_seconds=message.compute_seconds,
            shard_id=span.shard_id,
            position=span.position,
        )
        work.queue(finished, span)
        self._acks[lease.lease_id] = (member.peer, lease.lease_id)
        return []

    def _failure(self, work: Work, member: Member, message: Failure, now: float) -> list[Outgoing]:
        logger.error("role failed", extra={"role": member.role, "lease_id": message.lease_id, "why": message.message})
        if member.role == "trainer":
            self._training_owner = ""
            work.training_failed(message, now)
            return [Outgoing(member.peer, Ack(lease_id=message.lease_id, accepted=True))]
        lease = work.leases.get(message.lease_id)
        if lease is None or lease.incarnation != member.incarnation:
            return [Outgoing(member.peer, self._late(work, message.lease_id))]
        work.leases.remove(lease, member)
        if message.error == InvalidCheckpointError.__name__:
            work.checkpoint_suspected(lease.checkpoint_id)
        row = message.row - lease.span.first_row if message.row >= 0 else -1
        why = f"{message.error}: {message.message}"
        work.failed(lease.span, why, transient=message.retry_can_help, row=row, now=now)
        return [Outgoing(member.peer, Ack(lease_id=message.lease_id, accepted=True))]

    def _training_done(self, work: Work, message: TrainingDone) -> Ack:
        problem = work.training_done(message)
        if not problem:
            self._training_owner = ""
        return Ack(lease_id=message.training_id, accepted=not problem, reason=problem)

    def _part_with(self, member: Member, now: float, *, fault: bool) -> None:
        """Forget a role and give its rows back."""
        if self._training_owner == member.incarnation:
            self._training_owner = ""
        if self._work is not None:
            self._work.give_back(member, now, fault=fault)
        self._members.remove(member.incarnation)

    # Turns

    def _turn(self, work: Work, now: float) -> list[Outgoing]:
        work.expire(self._members, now)
        if now >= self._next_disk_look:
            self._next_disk_look = now + STATUS_SECONDS
            self._look_at_disk()
        if self._pause_reason:
            return []
        self._ingest(work, now)
        work.start_training_if_due(now)
        if not work.commit_is_due(now):
            return []
        return self._committed(work, now)

    def _ingest(self, work: Work, now: float) -> None:
        if self._draining:
            return
        hinted = self._events is not None and self._events.take()
        if now >= self._next_scan or (hinted and now >= work.last_scan + EVENT_SCAN_SECONDS):
            work.scan(now)
            self._next_scan = now + self._settings.landing.scan_seconds
        for _ in range(INGEST_PARTS_PER_TICK):
            if not work.ingest_next(now) or self._now() - now > INGEST_SECONDS_PER_TICK:
                return

    def _committed(self, work: Work, now: float) -> list[Outgoing]:
        done = work.commit(now)
        return [
            Outgoing(self._acks.pop(lease_id)[0], Ack(lease_id=lease_id, accepted=True))
            for lease_id in done
            if lease_id in self._acks
        ]

    def _look_at_disk(self) -> None:
        free, wanted = self.folder.free_megabytes(), self._settings.service.free_disk_megabytes
        was = self._pause_reason
        self._pause_reason = "" if free >= wanted else f"free disk is {free:.0f} MB, below {wanted} MB; free some"
        if bool(was) != bool(self._pause_reason):
            logger.warning("pause changed", extra={"paused": self._pause_reason or "no"})

    def _guarded(self, act: Callable[[Work], list[Outgoing]]) -> list[Outgoing]:
        """Do something on disk; after a failed write everything in memory is built again from the disk."""
        assert self._work is not None
        try:
            return act(self._work)
        except (OSError, sqlite3.Error) as error:
            self._fault(error)
            return []

    def _fault(self, error: Exception) -> None:
        logger.error("disk fault", extra={"why": str(error)})
        self._pause_reason = f"cannot write: {error}"
        self._resume_at = self._now() + FAULT_RETRY_SECONDS
        if self._work is not None:
            self._work.close()
            self._work = None

    def _reload(self) -> list[Outgoing]:
        """Start again from the disk, and tell the roles which of their results are there and which are not."""
        try:
            work = Work(self._settings, self.folder, self._watcher, step=self._step)
        except (OSError, sqlite3.Error) as error:
            self._pause_reason = f"cannot open the session: {error}"
            self._resume_at = self._now() + FAULT_RETRY_SECONDS
            return []
        self._work, self._pause_reason = work, ""
        for member in self._members:
            member.lease_ids.clear()
        acks, self._acks = self._acks, {}
        return [Outgoing(peer, self._late(work, lease_id)) for peer, lease_id in acks.values()]


def wrong_with(frames: dict[str, NDArray[Any]], num_rows: int) -> str:
    """Return what is wrong with a result's arrays, "" where nothing is."""
    for name in Poses.__dataclass_fields__:
        if name not in frames or len(frames[name]) != num_rows:
            return f"{name} is missing or has not {num_rows} rows"
    posed = frames["flag"] == 0
    for name in ("euler_deg", "confidence", "top_euler_deg", "top_probability"):
        if not np.isfinite(frames[name][posed]).all():
            return f"{name} is not finite in a row that is not flagged"
    if frames["flag"].max(initial=0) > 4:
        return f"flag {frames['flag'].max()} is unknown"
    return ""
