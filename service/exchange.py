"""The roles' side of the coordinator's core: who asks gets work, who answers is acknowledged after the commit."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cesped_stream.errors import InvalidCheckpointError
from cesped_stream.particles.flags import Clipped, ImageFlag

from .failed_rows import LeaseFailure
from .finished import Finished, Poses
from .leasing import Member, Members, lease_rows
from .messages import (
    Ack,
    AnyMessage,
    Failure,
    Idle,
    Lease,
    Ready,
    Result,
    TrainingDone,
    TrainingProgress,
)
from .session import SessionFolder
from .settings import SessionSettings
from .training_gate import ORDERED
from .work import Work

logger = logging.getLogger(__name__)

IDLE_RETRY_SECONDS = 0.5

PROBABILITIES = ("confidence", "top_probability")
PROBABILITY_TOLERANCE = 1e-6
"""What is that little outside [0, 1] is rounding."""

NOT_ITS = "the training was not ordered from this role"

Frames = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Outgoing:
    peer: bytes
    message: AnyMessage


class Exchange:
    """Answers known roles, and remembers whom to tell when a result is on disk."""

    def __init__(self, settings: SessionSettings, folder: SessionFolder, members: Members) -> None:
        self._settings = settings
        self._folder = folder
        self._members = members
        self._waiting: dict[int, bytes] = {}
        """Lease id of a result that is not committed yet, and the peer that waits for the acknowledgement."""
        self.training_owner = ""
        self.gives_work = True
        self.refused = Counter[str]()

    def committed(self, lease_ids: Sequence[int]) -> list[Outgoing]:
        """Return the acknowledgements of results that are on disk now."""
        return [
            Outgoing(self._waiting.pop(lease_id), Ack(lease_id=lease_id, accepted=True))
            for lease_id in lease_ids
            if lease_id in self._waiting
        ]

    def after_reload(self, work: Work) -> list[Outgoing]:
        """Tell who waited which results are on disk after all and which are done again."""
        waiting, self._waiting = self._waiting, {}
        for member in self._members:
            member.lease_ids.clear()
        return [Outgoing(peer, self.late(work, lease_id)) for lease_id, peer in waiting.items()]

    def late(self, work: Work, lease_id: int) -> Ack:
        """Return the answer to a result whose lease is not out (any more)."""
        if work.ledger.lease_is_committed(lease_id):
            return Ack(lease_id=lease_id, accepted=True)
        self.refused["late results"] += 1
        return Ack(lease_id=lease_id, accepted=False, reason="the lease was given back; its rows are done again")

    def serve(self, work: Work, member: Member, message: AnyMessage, frames: Frames, now: float) -> list[Outgoing]:
        match message:
            case Ready():
                return [Outgoing(member.peer, self._ready(work, member, message, now))]
            case Result():
                return self._result(work, member, message, frames, now)
            case Failure():
                return self._failure(work, member, message, now)
            case TrainingProgress():
                if self._owns_training(work, member, message.training_id):
                    work.training_progress = message
                return []
            case TrainingDone():
                return [Outgoing(member.peer, self._training_done(work, member, message))]
        self.refused["unexpected kind"] += 1
        return []

    def _ready(self, work: Work, member: Member, message: Ready, now: float) -> AnyMessage:
        member.particles_per_second = message.particles_per_second or member.particles_per_second
        idle = Idle(retry_seconds=IDLE_RETRY_SECONDS)
        if not self.gives_work:
            return idle
        if member.role == "trainer":
            return self._training_order(work, member, now) or idle
        settings = self._settings
        if member.lease is not None and work.leases.get(member.lease.lease_id) is not None:
            # It asks again: the answer to its last question was late or lost.
            return member.lease
        if work.failed_rows.workers.rests(member.name, work.checkpoints_in_use(), now):
            return idle
        rows = lease_rows(settings.service, settings.inference.batch_size, member.particles_per_second)
        granted = work.lease_next(member, rows, now)
        if granted is None:
            return idle
        lease, checkpoint = granted
        member.lease = Lease(
            lease_id=lease.lease_id,
            batch_id=lease.span.batch_id,
            batch_star=str(self._folder.batch_star(lease.span.batch_id)),
            first_row=lease.span.first_row,
            num_rows=lease.span.num_rows,
            half_sets=work.half_sets(lease.span),
            checkpoint=str(checkpoint.folder),
            checkpoint_id=lease.checkpoint_id,
            expires_seconds=settings.service.lease_expiry_seconds,
        )
        return member.lease

    def _training_order(self, work: Work, member: Member, now: float) -> AnyMessage | None:
        order = work.gate.order()
        owner = self._members.get(self.training_owner)
        if order is None or now < work.training_not_before or (owner is not None and owner is not member):
            return None
        self.training_owner = member.incarnation
        return order

    def _result(self, work: Work, member: Member, message: Result, frames: Frames, now: float) -> list[Outgoing]:
        if message.lease_id in self._waiting:
            self._waiting[message.lease_id] = member.peer
            return []
        lease = work.leases.get(message.lease_id)
        if lease is None or lease.incarnation != member.incarnation:
            return [Outgoing(member.peer, self.late(work, message.lease_id))]
        problem = wrong_with(frames, lease.span.num_rows)
        if lease.checkpoint_id != message.checkpoint_id:
            problem = f"poses of checkpoint {message.checkpoint_id!a:.80}, the lease is for {lease.checkpoint_id}"
        work.leases.remove(lease, member)
        if problem:
            why = f"a result that is none: {problem}"
            work.failed(lease.span, LeaseFailure(member.name, lease.checkpoint_id, why, transient=False), now)
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
        work.failed_rows.done(span, member.name, now)
        self._waiting[lease.lease_id] = member.peer
        return []

    def _failure(self, work: Work, member: Member, message: Failure, now: float) -> list[Outgoing]:
        logger.error("role failed", extra={"role": member.role, "lease_id": message.lease_id, "why": message.message})
        if member.role == "trainer":
            owns = self._owns_training(work, member, message.lease_id)
            if owns:
                self.training_owner = ""
                work.training_failed(message, now)
            return [
                Outgoing(member.peer, Ack(lease_id=message.lease_id, accepted=owns, reason="" if owns else NOT_ITS))
            ]
        lease = work.leases.get(message.lease_id)
        if lease is None or lease.incarnation != member.incarnation:
            return [Outgoing(member.peer, self.late(work, message.lease_id))]
        work.leases.remove(lease, member)
        if message.error == InvalidCheckpointError.__name__:
            work.checkpoint_suspected(lease.checkpoint_id)
        failure = LeaseFailure(
            member.name,
            lease.checkpoint_id,
            f"{message.error}: {message.message}",
            transient=message.retry_can_help or message.worker_at_fault,
            worker_at_fault=message.worker_at_fault,
            row=message.row - lease.span.first_row if message.row >= 0 else -1,
        )
        work.failed(lease.span, failure, now)
        return [Outgoing(member.peer, Ack(lease_id=message.lease_id, accepted=True))]

    def _owns_training(self, work: Work, member: Member, training_id: int) -> bool:
        """Return whether the role has the training's order; one that trained on while the coordinator was restarted
        takes it up again."""
        order = work.gate.order()
        if member.role != "trainer" or order is None or order.training_id != training_id:
            return False
        if self._members.get(self.training_owner) is None:
            self.training_owner = member.incarnation
        return self.training_owner == member.incarnation

    def _training_done(self, work: Work, member: Member, message: TrainingDone) -> Ack:
        open_order = work.gate.state_of(message.training_id) == ORDERED
        if member.role != "trainer" or (open_order and not self._owns_training(work, member, message.training_id)):
            return Ack(lease_id=message.training_id, accepted=False, reason=NOT_ITS)
        problem = work.training_done(message)
        if not problem and message.complete:
            self.training_owner = ""
        return Ack(lease_id=message.training_id, accepted=not problem, reason=problem)


def wrong_with(frames: Frames, num_rows: int) -> str:
    """Return what is wrong with a result's arrays, "" where nothing is."""
    for name in Poses.__dataclass_fields__:
        if name not in frames or len(frames[name]) != num_rows:
            return f"{name} is missing or has not {num_rows} rows"
    posed = frames["flag"] == 0
    for name in ("euler_deg", "confidence", "top_euler_deg", "top_probability"):
        if wrong := _wrong_numbers(name, frames[name][posed]):
            return f"{name} is {wrong} in a row that is not flagged"
    shifts = frames["shift_angstrom"][posed]
    if not (np.isfinite(shifts).all() or np.isnan(shifts).all()):
        return "shift_angstrom is neither given for all rows that are not flagged nor for none"
    if frames["calibrated"].max(initial=0) > 1 or frames["clipped"].max(initial=0) > Clipped.BOTH:
        return "calibrated or clipped has a value that is unknown"
    if frames["flag"].max(initial=0) > max(ImageFlag):
        return f"flag {frames['flag'].max()} is unknown"
    return ""


def _wrong_numbers(name: str, found: NDArray[Any]) -> str:
    if not np.isfinite(found).all():
        return "not finite"
    outside = name in PROBABILITIES and (np.abs(found - 0.5) > 0.5 + PROBABILITY_TOLERANCE).any()
    return "outside [0, 1]" if outside else ""
