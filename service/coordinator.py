"""The coordinator's core: a plain object without socket or torch. What a kill interrupts, the next start finishes."""

import logging
import sqlite3
import time
from collections.abc import Callable

from cesped_stream.durable import Step
from cesped_stream.errors import CespedStreamError, TransientError

from .exchange import Exchange, Frames, Outgoing
from .given_map import adopt, check_sources
from .leasing import Member, Members
from .messages import (
    AnyMessage,
    Control,
    ControlReply,
    Failure,
    Goodbye,
    Heartbeat,
    Hello,
    HelloAgain,
    Idle,
    Ready,
    Refused,
    Result,
    Welcome,
)
from .session import SessionFolder, SessionLock, refuse_landing_inside, refuse_network_file_system
from .settings import SessionSettings, inference_sha256
from .status import SessionStatus
from .status_report import StatusReport
from .waiting import rows_in_hand
from .watcher import FileEvents, Watcher
from .work import Work

__all__ = ["Coordinator", "Outgoing"]

logger = logging.getLogger(__name__)

DISK_FAULTS = (OSError, sqlite3.Error, TransientError)
"""What a disk, or a mount that is away, makes of a step; the next one may succeed."""
FAULT_RETRY_SECONDS = 2.0
INGEST_SECONDS_PER_TICK = 0.2
INGEST_PARTS_PER_TICK = 16
STATUS_SECONDS = 1.0
SCAN_DUTY = 5.0
"""Scans are at least this many times their own duration apart: a whole project has tens of thousands of files."""
EVENT_SCAN_SECONDS = 0.2
"""A file event makes the next scan come sooner, but not sooner than this after the last one."""


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
        refuse_landing_inside(settings)
        self.folder.create()
        refuse_network_file_system(self.folder.ledger_folder)
        self._lock = SessionLock(self.folder)
        self._watcher = Watcher(settings.landing, without=self.folder.root)
        self._events = FileEvents(settings.landing.folder, self._watcher.note_renamed) if watch_events else None
        self._members = Members(settings.service)
        self._report = StatusReport(settings, self.folder, self._watcher, self._members)
        self._next_scan = self._next_status = self._next_disk_look = self._resume_at = float("-inf")
        self._scan_took = 0.0
        self._pause_reason = ""
        self._draining = False
        self._stopping = False
        self._exchange = Exchange(settings, self.folder, self._members)
        self._outbox: list[Outgoing] = []
        try:
            self._work: Work | None = Work(settings, self.folder, self._watcher, step=step)
            self._first_status()
            self._adopt_map(self._work)
        except BaseException:
            self._lock.release()
            raise

    def _first_status(self) -> None:
        """Make a status while the ledger is open: what is told if the first turn already meets a bad disk."""
        assert self._work is not None
        try:
            self._status_of(self._work)
        except BaseException:
            self._work.close()
            raise

    def _adopt_map(self, work: Work) -> None:
        try:
            check_sources(self._settings)
            adopt(self._settings, self.folder, work.ledger, step=self._step)
        except BaseException:
            work.close()
            raise

    # The shell's interface

    def handle(self, peer: bytes, message: AnyMessage, frames: Frames) -> list[Outgoing]:
        """Take one valid message and return what to send now; acknowledgements of results come from `tick`."""
        now = self._now()
        if isinstance(message, Hello):
            return self._hello(peer, message, now)
        if isinstance(message, Control):
            return [Outgoing(peer, self._answered(message))]
        incarnation = getattr(message, "incarnation", None)
        if incarnation is None:
            self._exchange.refused["unexpected kind"] += 1
            return []
        member = self._members.get(incarnation)
        if member is None:
            return self._stranger(peer, message)
        member.last_heard = now
        return self._member_says(member, peer, message, frames, now)

    def _member_says(
        self, member: Member, peer: bytes, message: AnyMessage, frames: Frames, now: float
    ) -> list[Outgoing]:
        if isinstance(message, Heartbeat):
            if self._members.heartbeat(message, now) and self._work is not None:
                self._work.leases.extend(member, now)
            return []
        member.peer = peer
        if isinstance(message, Goodbye):
            self._part_with(member, now, fault=False)
            return []
        if self._work is None:
            return [Outgoing(peer, Idle(retry_seconds=FAULT_RETRY_SECONDS))] if isinstance(message, Ready) else []
        return self._guarded(lambda work: self._exchange.serve(work, member, message, frames, now))

    def tick(self) -> list[Outgoing]:
        """Do what is due: lost leases, scan, ingest, training, commit, shards, status; within about a second."""
        now = self._now()
        for member in self._members.silent(now):
            logger.warning("role is silent", extra={"role": member.role, "role_name": member.name})
            self._part_with(member, now, fault=True)
        out, self._outbox = self._outbox, []
        self._exchange.gives_work = not (self._draining or self._stopping or self._pause_reason)
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
        """Return what the session is doing now; what it did last where the disk does not tell."""
        try:
            return self._status_of(self._work)
        except DISK_FAULTS as error:
            self._fault(error)
            return self._status_of(None)

    def _status_of(self, work: Work | None) -> SessionStatus:
        return self._report.status(
            work,
            self._now(),
            paused=self._pause_reason,
            draining=self._draining,
            refused_results=self._exchange.refused["late results"],
        )

    def listens_at(self, endpoint: str) -> None:
        """Note in the session folder where this coordinator can be asked."""
        self._lock.note(endpoint)

    @property
    def stop_requested(self) -> bool:
        """True after `stop`, and after `drain` once every result in hand is committed."""
        return self._stopping

    def close(self) -> None:
        """Commit the results that have arrived, write the last status, close the ledger and release the lock."""
        if self._work is not None and not self._pause_reason:
            self._guarded(lambda work: self._committed(work, self._now()))
        self._write_last_status()
        if self._work is not None:
            self._work.close()
            self._work = None
        if self._events is not None:
            self._events.close()
        self._lock.release()

    def _write_last_status(self) -> None:
        """Tell what the commit of the end made of the counts, where this coordinator wrote a status before."""
        if self._work is None or self._pause_reason or self._next_status == float("-inf"):
            return
        status = self.status()
        if self._work is not None:
            self._report.write(status.ended())

    # Requests

    def control(self, message: Control) -> ControlReply:
        """Do what the command line asks for; also without any socket, on a session where nothing runs."""
        try:
            text = self._control(message)
        except DISK_FAULTS as error:
            self._fault(error)
            return ControlReply(action=message.action, ok=False, text=self._pause_reason)
        except CespedStreamError as error:
            return ControlReply(action=message.action, ok=False, text=str(error))
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
                return self._ends("stops: waits for {}; no new ones are given out", "stops: nothing is in hand")
            case "stop":
                self._stopping = True
                return self._ends("stops at once: {} are done again after the next start", "stops at once")
            case "status":
                return ""

    def _ends(self, with_rows: str, without: str) -> str:
        rows = rows_in_hand(self._work) if self._work is not None else ()
        return with_rows.format(*rows) if rows else without

    def _answered(self, message: Control) -> ControlReply:
        """Return the reply; by then status.json tells of what was asked for."""
        reply = self.control(message)
        if message.action != "status":
            self._report.write(self.status())
        return reply

    def request_reinfer(self, checkpoint: str = "") -> int:
        """Redo every pose of another checkpoint with this one (id, folder, or "": the one in use) and use it from
        now on; return how many shards that takes. InvalidCheckpointError."""
        work = self._present()
        self._outbox += self._committed(work, self._now())
        return work.request_reinfer(checkpoint)

    def requeue(self, argument: str = "") -> str:
        """Bring quarantined rows back: of a batch (its number), of a star (its path), or all ("")."""
        return self._present().requeue(argument)

    def request_training(self) -> str:
        """Train on all aligned rows that landed so far; CespedStreamError where they are not enough."""
        work = self._present()
        halves, least = work.gate.aligned_per_half(), self._settings.min_aligned_per_half
        if min(halves) < least:
            if one_half := work.gate.waits.problem():
                raise CespedStreamError(one_half)
            raise CespedStreamError(
                f"{halves[0]} + {halves[1]} aligned rows, min_aligned_per_half is {least}: start `run` with a lower one"
            )
        work.gate.request()
        return f"training on {halves[0]} + {halves[1]} aligned rows is asked for"

    def drain(self) -> None:
        """Give no new leases; `stop_requested` turns true when every result in hand is committed."""
        self._draining = True
        self._exchange.gives_work = False

    def _present(self) -> Work:
        if self._work is None:
            raise CespedStreamError(f"{self.folder.root}: {self._pause_reason}; try again when that is over")
        return self._work

    # Messages

    def _hello(self, peer: bytes, message: Hello, now: float) -> list[Outgoing]:
        if self._members.is_replaced(message.incarnation):
            reason = f"another {message.role} has the name {message.name!r} now; give each its own with --name"
            return [Outgoing(peer, Refused(reason=reason))]
        for former in self._members.hello(peer, message, now):
            self._part_with(former, now, fault=True)
        welcome = Welcome(
            session=str(self.folder.root),
            heartbeat_seconds=self._settings.service.heartbeat_seconds,
            half_mode=self._settings.half_mode,
            inference_sha256=inference_sha256(self._settings),
        )
        return [Outgoing(peer, welcome)]

    def _stranger(self, peer: bytes, message: AnyMessage) -> list[Outgoing]:
        """Answer an incarnation that is not (or no longer) known: its late result is refused, unless it is on disk."""
        if isinstance(message, Goodbye):
            return []
        if isinstance(message, Result | Failure) and self._work is not None:
            lease_id = message.lease_id
            late = self._guarded(lambda work: [Outgoing(peer, self._exchange.late(work, lease_id))])
            return [*late, Outgoing(peer, HelloAgain())]
        return [Outgoing(peer, HelloAgain())]

    def _part_with(self, member: Member, now: float, *, fault: bool) -> None:
        """Forget a role and give its rows back."""
        if self._exchange.training_owner == member.incarnation:
            self._exchange.training_owner = ""

        def give_back(work: Work) -> list[Outgoing]:
            work.give_back(member, now, fault=fault)
            return []

        if self._work is not None:
            self._guarded(give_back)
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
        out = self._adopted(work, now)
        work.start_training_if_due(now)
        if work.commit_is_due(now):
            out += self._committed(work, now)
        return out

    def _adopted(self, work: Work, now: float) -> list[Outgoing]:
        """Let consensus poses count that came for known particles, or write the next shard again that has some."""
        if not work.consensus_is_due():
            work.restate_next()
            return []
        out = self._committed(work, now)
        work.adopt_consensus()
        return out

    def _ingest(self, work: Work, now: float) -> None:
        if self._draining:
            return
        hinted = self._events is not None and self._events.take()
        rest = SCAN_DUTY * self._scan_took
        if now >= max(self._next_scan, work.last_scan + rest) or (
            hinted and now >= work.last_scan + max(EVENT_SCAN_SECONDS, rest)
        ):
            start = self._now()
            work.scan(now)
            self._scan_took = self._now() - start
            self._next_scan = now + self._settings.landing.scan_seconds
        for _ in range(INGEST_PARTS_PER_TICK):
            if not work.ingest_next(now) or self._now() - now > INGEST_SECONDS_PER_TICK:
                return

    def _committed(self, work: Work, now: float) -> list[Outgoing]:
        start = self._now()
        done = work.commit(now)
        end = self._now()
        work.rest_after_commit(end - start, end)
        return self._exchange.committed(done)

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
        except DISK_FAULTS as error:
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
        except DISK_FAULTS as error:
            self._pause_reason = f"cannot open the session: {error}"
            self._resume_at = self._now() + FAULT_RETRY_SECONDS
            return []
        self._work, self._pause_reason = work, ""
        return self._exchange.after_reload(work)
