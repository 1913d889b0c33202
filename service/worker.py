"""The worker: asks for a lease, predicts the poses of its rows, sends them back. The core knows no socket."""

import logging
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cesped_stream.conventions import rotation_to_euler_deg
from cesped_stream.errors import CespedStreamError, InvalidCheckpointError, TransientError
from cesped_stream.faulty_rows import is_device_lost, is_fault_of_no_row
from cesped_stream.inference import PoseBatch
from cesped_stream.model.device import pick_device
from cesped_stream.particles.flags import ImageFlag
from cesped_stream.particles.reference_members import NO_MEMBERS, ReferenceMembers
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.star import read_star
from cesped_stream.particles.table import ParticleTable
from cesped_stream.pipeline import Proposer, open_proposer
from cesped_stream.reference_pair import MatchingSettings

from .messages import Ack, AnyMessage, Failure, Idle, Lease, Ready, Result
from .peer import Conversation, Identity, connected
from .process import Activity, StopRequest, usable_cores, worker_threads
from .settings import PosingSettings, SessionSettings
from .wire import Frames

logger = logging.getLogger(__name__)

RATE_WEIGHT = 0.5


class WorkerStopped(Exception):
    """The worker was asked to exit at once; its lease goes back unanswered."""


class Worker:
    """From a lease to its poses. Keeps the checkpoint and the batch star that it used last."""

    def __init__(self, settings: SessionSettings, *, now: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._now = now
        self._reader = StackReader()
        self._proposer: tuple[str, Proposer] | None = None
        self._members = NO_MEMBERS
        self._table: tuple[str, ParticleTable] | None = None
        self.particles_per_second = 0.0
        """Measured over the leases done so far, the recent ones counting more; 0 before the first."""

    def work(
        self,
        lease: Lease,
        incarnation: str,
        *,
        on_progress: Callable[[], None] = lambda: None,
        stop_at_once: Callable[[], bool] = lambda: False,
    ) -> tuple[Result, Frames]:
        """Return the lease's result and its frames. Raises CespedStreamError, or WorkerStopped between two chunks."""
        proposer = self._proposer_of(lease)
        table = self._rows_of(lease)
        start = self._now()
        scored = np.flatnonzero(~self._members.among(table, self._settings.half_mode))
        parts: list[PoseBatch] = []
        for first in range(0, len(scored), proposer.rows_at_once):
            if stop_at_once():
                raise WorkerStopped
            index = scored[first : first + proposer.rows_at_once]
            parts.append(proposer.poses(table.select(index), self._reader))
            on_progress()
        seconds = self._now() - start
        self._measure(len(scored), seconds)
        result = Result(
            incarnation=incarnation,
            lease_id=lease.lease_id,
            checkpoint_id=proposer.checkpoint_id,
            proposer=proposer.proposer,
            compute_seconds=seconds,
            frames=(),
        )
        return result, pose_frames(with_left_out(parts, scored, len(table)))

    def forget(self) -> None:
        """Let go of the checkpoint and the batch: after an error that nobody foresaw both are read again."""
        self._proposer, self._table = None, None

    def _proposer_of(self, lease: Lease) -> Proposer:
        if self._proposer is None or self._proposer[0] != lease.checkpoint_id:
            self._proposer = None
            settings = self._settings
            proposer = open_proposer(
                Path(lease.checkpoint), settings.inference, matching_settings(settings), settings.half_mode
            )
            self._members = ReferenceMembers.of(Path(lease.checkpoint))
            logger.info("checkpoint loaded", extra={"checkpoint_id": lease.checkpoint_id})
            self._proposer = (lease.checkpoint_id, proposer)
        return self._proposer[1]

    def _rows_of(self, lease: Lease) -> ParticleTable:
        if self._table is None or self._table[0] != lease.batch_star:
            self._table = (lease.batch_star, read_star(Path(lease.batch_star)))
        rows = self._table[1].select(np.arange(lease.first_row, lease.first_row + lease.num_rows))
        return rows.with_half_sets([int(digit) for digit in lease.half_sets])

    def _measure(self, num_rows: int, seconds: float) -> None:
        if num_rows == 0:
            return
        rate = num_rows / max(seconds, 1e-3)
        before = self.particles_per_second
        self.particles_per_second = rate if before == 0 else RATE_WEIGHT * rate + (1 - RATE_WEIGHT) * before


def with_left_out(parts: list[PoseBatch], scored: np.ndarray, num_rows: int) -> PoseBatch:
    """Return the poses of all rows of a lease: `parts` of those that were `scored`, in order, and no pose for the rest,
    which is in the reference that would score it."""
    if len(scored) == num_rows:
        return PoseBatch.joined(parts)
    poses = PoseBatch.empty(num_rows, parts[0].top_probability.shape[1] if parts else 1)
    poses.flag[:] = ImageFlag.IN_REFERENCE
    if parts:
        poses.put(scored, PoseBatch.joined(parts))
    return poses


def matching_settings(settings: PosingSettings) -> MatchingSettings:
    """Return what poses by references depend on, of a command's settings."""
    return MatchingSettings(
        settings.referencing,
        settings.gallery,
        settings.refinement,
        device=settings.inference.device,
        fusion=settings.fusion,
        calibration=settings.calibration,
    )


def pose_frames(poses: PoseBatch) -> Frames:
    """Return the frames of a Result; the angles of a row without a pose are 0, its flag tells it."""
    posed = poses.flag == 0
    return {
        "euler_deg": _euler_deg(poses.rotation, posed),
        "confidence": np.where(posed, poses.confidence, 0.0),
        "top_euler_deg": _euler_deg(poses.top_rotation, posed),
        "top_probability": np.where(posed[:, None], poses.top_probability, 0.0),
        "flag": poses.flag,
        "digest": poses.digest,
        "shift_angstrom": poses.shift_angstrom,
        "calibrated": poses.calibrated.astype(np.uint8),
        "above_noise": poses.above_noise,
        "network_euler_deg": _euler_deg_or_nan(poses.network_rotation),
        "gallery_euler_deg": _euler_deg_or_nan(poses.gallery_rotation),
        "apart_deg": poses.apart_deg,
        "clipped": poses.clipped,
    }


def _euler_deg(rotations: np.ndarray, posed: np.ndarray) -> np.ndarray:
    angles = np.zeros(rotations.shape[:-1])
    if posed.any():
        angles[posed] = rotation_to_euler_deg(rotations[posed]).reshape(-1, *angles.shape[1:])
    return angles


def _euler_deg_or_nan(rotations: np.ndarray) -> np.ndarray:
    given = np.isfinite(rotations).all(axis=(1, 2))
    return np.where(given[:, None], _euler_deg(rotations, given), np.nan)


def failure_of(error: Exception, lease_id: int, incarnation: str) -> Failure:
    """Return what to tell the coordinator of an error: a retry can help where neither rows nor a checkpoint are to
    blame."""
    of_worker = is_fault_of_no_row(error)
    innocent = isinstance(error, (TransientError, OSError))
    return Failure(
        incarnation=incarnation,
        lease_id=lease_id,
        error=type(error).__name__,
        message=str(error)[:2000],
        retry_can_help=innocent or (of_worker and not isinstance(error, InvalidCheckpointError)),
        worker_at_fault=of_worker,
    )


def run_worker(settings: SessionSettings, stop: StopRequest, *, name: str, parent_pid: int = 0) -> int:
    """Run one worker until it is asked to stop; return the exit code, 1 where it met an error it cannot answer."""
    torch.set_num_threads(worker_threads(settings, usable_cores()))
    identity = Identity("worker", name, device_name(settings))
    activity = Activity("starting")
    with connected(settings, identity, activity, stop, parent_pid=parent_pid) as talk:
        return _work_until_stopped(Worker(settings), talk, identity, activity, stop)


def _work_until_stopped(
    worker: Worker, talk: Conversation, identity: Identity, activity: Activity, stop: StopRequest
) -> int:
    leases: deque[Lease] = deque()
    seen: set[int] = set()
    while not stop.asked():
        reply: AnyMessage | None = None
        if not leases:
            activity.state = "asking for work"
            ready = Ready(incarnation=identity.incarnation, particles_per_second=worker.particles_per_second)
            reply = talk.ask(ready, Lease, Idle)
        # A Ready that was sent twice brings its lease twice; one that is done or queued is not done again.
        for message in (reply, *talk.unasked):
            if isinstance(message, Lease) and message.lease_id not in seen:
                seen.add(message.lease_id)
                leases.append(message)
        talk.unasked.clear()
        if leases:
            if not _answer(worker, leases.popleft(), talk, identity, activity, stop):
                return 1
        elif isinstance(reply, Idle):
            activity.state = "idle"
            activity.turned()
            stop.wait(reply.retry_seconds)
    return 0


def _answer(
    worker: Worker, lease: Lease, talk: Conversation, identity: Identity, activity: Activity, stop: StopRequest
) -> bool:
    """Work on a lease and have its result, or its failure, acknowledged; return whether the worker can go on."""
    activity.state = f"batch {lease.batch_id}, {lease.num_rows} particles"
    can_go_on = True
    frames: Frames = {}
    answer: Result | Failure
    try:
        answer, frames = worker.work(
            lease, identity.incarnation, on_progress=activity.worked, stop_at_once=stop.at_once
        )
    except WorkerStopped:
        return True
    except (CespedStreamError, OSError) as error:
        logger.warning("lease failed", extra={"lease_id": lease.lease_id, "error": repr(error)})
        answer = failure_of(error, lease.lease_id, identity.incarnation)
    except Exception as error:
        can_go_on = not is_device_lost(error)
        logger.exception("lease failed", extra={"lease_id": lease.lease_id, "goes_on": can_go_on})
        answer = failure_of(error, lease.lease_id, identity.incarnation)
        worker.forget()
    activity.state = "sending a result"
    ack = talk.ask(answer, Ack, frames=frames, lease_id=lease.lease_id)
    if isinstance(ack, Ack) and not ack.accepted:
        logger.warning("result refused", extra={"lease_id": lease.lease_id, "reason": ack.reason})
    return can_go_on


def device_name(settings: SessionSettings) -> str:
    """Return the name of the device that `inference.device` stands for on this machine."""
    device = pick_device(settings.inference.device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
