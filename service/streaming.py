"""A replay and the roles together: an entry streams into a session on this machine until every particle is answered."""

import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from cesped_stream.benchmark.figure import Timeline
from cesped_stream.benchmark.plan import BatchRole, ReplayPlan
from cesped_stream.benchmark.replay import Landed, replay
from cesped_stream.benchmark.replay_settings import ReplaySettings
from cesped_stream.durable import write_whole
from cesped_stream.errors import CespedStreamError, InvalidSettingsError

from .messages import Control
from .request import request
from .resolve import ENV_PREFIX
from .session import SessionFolder
from .settings import SessionSettings
from .status import SessionStatus
from .toml import toml_text
from .training_gate import DONE, ORDERED

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.25
STOP_SECONDS = 150.0
"""`run` itself gives its roles two minutes."""


class StreamFailedError(CespedStreamError):
    """The roles ended, or the deadline passed, before every landed particle was answered."""


@dataclass(frozen=True)
class StreamProgress:
    """Where a stream is: what the replay has written and what the session says (None before its first status)."""

    seconds: float
    landed: int
    status: SessionStatus | None


@dataclass(frozen=True, eq=False)
class StreamRecord:
    """What came of a stream."""

    timeline: Timeline
    status: SessionStatus
    """The last one, everything answered and the roles still up."""
    seconds: float
    particles_per_second: float
    """The workers' own measured rate, all together, at its best."""
    peak_memory_gigabytes: float
    """Of the role that needed most."""


@dataclass
class _Samples:
    seconds: list[float] = field(default_factory=list)
    landed: list[int] = field(default_factory=list)
    posed: list[int] = field(default_factory=list)
    marks: dict[str, float] = field(default_factory=dict)
    particles_per_second: float = 0.0

    def add(self, progress: StreamProgress) -> None:
        status = progress.status
        self.seconds.append(progress.seconds)
        self.landed.append(progress.landed)
        self.posed.append(status.posed if status else 0)
        if status is None:
            return
        if status.training:
            self.marks.setdefault("training begins", progress.seconds)
        if status.checkpoint:
            self.marks.setdefault("model published", progress.seconds)
        rate = sum(role.particles_per_second for role in status.roles if role.role == "worker")
        self.particles_per_second = max(self.particles_per_second, rate)

    def timeline(self) -> Timeline:
        marks = tuple((seconds, text) for text, seconds in self.marks.items())
        return Timeline(np.array(self.seconds), np.array(self.landed), np.array(self.posed), marks)


def stream_entry(
    plan: ReplayPlan,
    replay_settings: ReplaySettings,
    session: SessionSettings,
    truth: Path,
    *,
    on_progress: Callable[[StreamProgress], None] = lambda progress: None,
    deadline_seconds: float = 3600.0,
) -> StreamRecord:
    """Start a session's roles, replay `plan` into its landing folder, and stop the roles once all is answered.

    The roles are those of `cesped-stream run` in processes of their own; they see the landing folder only, `truth` lies
    elsewhere. Raises InvalidSettingsError where the aligned rows cannot start a training, StreamFailedError where the
    roles end early or `deadline_seconds` pass.
    """
    check_training_can_start(plan, session)
    session.landing.folder.mkdir(parents=True, exist_ok=True)
    stop, landed = threading.Event(), _LandedCount()
    errors: list[Exception] = []

    def write() -> None:
        try:
            replay(plan, session.landing.folder, truth, replay_settings, on_landed=landed, stop=stop)
        except Exception as error:  # noqa: BLE001
            # Whatever it is, the loop below ends with it.
            errors.append(error)

    with roles_running(session) as roles:
        writer = threading.Thread(target=write, name="replay", daemon=True)
        start = time.monotonic()
        writer.start()
        samples, redo = _Samples(), _Redo(session)
        try:
            while True:
                progress = StreamProgress(time.monotonic() - start, landed.count, read_status(session))
                samples.add(progress)
                on_progress(progress)
                if errors:
                    raise errors[0]
                if progress.status and _is_over(progress.status, plan.num_particles, redo):
                    break
                _check_alive(roles, session, progress, deadline_seconds)
                time.sleep(POLL_SECONDS)
        finally:
            stop.set()
            writer.join(STOP_SECONDS)
    return StreamRecord(
        samples.timeline(),
        progress.status,
        progress.seconds,
        samples.particles_per_second,
        _peak_memory_gigabytes(),
    )


def all_answered(status: SessionStatus, num_particles: int) -> bool:
    """Return whether so many particles landed and each is posed, unposed or quarantined."""
    return status.landed >= num_particles == status.posed + status.unposed + status.quarantined


def check_training_can_start(plan: ReplayPlan, session: SessionSettings) -> None:
    """Raise InvalidSettingsError where a half-set's aligned rows are fewer than training waits for."""
    if session.checkpoint:
        return
    if session.reference is not None:
        check_noise_can_be_learned(plan, session)
        return
    rows = [batch for batch in plan.batches if batch.role is BatchRole.ALIGNED]
    halves = [plan.landed_rows(batch).half_sets() for batch in rows]
    counts = np.bincount(np.concatenate([np.zeros(0, np.int8), *halves]), minlength=2)
    if counts.min() < session.min_aligned_per_half:
        raise InvalidSettingsError(
            f"aligned particles per half-set: {counts[0]} and {counts[1]}, training waits for "
            f"{session.min_aligned_per_half} (min_aligned_per_half); align more or other micrographs, as with "
            "--first-aligned 2500"
        )


def check_noise_can_be_learned(plan: ReplayPlan, session: SessionSettings) -> None:
    """Raise InvalidSettingsError where fewer particles stream than the noise beside a given map is learned from."""
    rows = [batch for batch in plan.batches if batch.role is not BatchRole.ALIGNED]
    halves = [plan.landed_rows(batch).half_sets() for batch in rows]
    counts = np.bincount(np.concatenate([np.zeros(0, np.int8), *halves]), minlength=2)
    if counts.min() < session.noise_rows_per_half:
        raise InvalidSettingsError(
            f"streamed particles per half-set: {counts[0]} and {counts[1]}, the noise beside reference "
            f"{session.reference} is learned from {session.noise_rows_per_half} (noise_rows_per_half); let fewer wait"
        )


def read_status(session: SessionSettings) -> SessionStatus | None:
    """Return what the coordinator last wrote of itself, None before it has."""
    try:
        return SessionStatus.model_validate_json(SessionFolder.of(session).status.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise StreamFailedError(
            f"{SessionFolder.of(session).status}: {error}; is the session of this version?"
        ) from None


@contextmanager
def roles_running(session: SessionSettings) -> Iterator[subprocess.Popen[bytes]]:
    """Run `cesped-stream run` on a session; on leaving, SIGTERM and wait, and kill what does not end.

    `run` and its roles end by themselves where this process is killed.
    """
    session.session.mkdir(parents=True, exist_ok=True)
    file = session.session / "run.toml"
    write_whole(file, toml_text(session.model_dump(mode="json", exclude_none=True)).encode())
    command = [sys.executable, "-m", "cesped_stream_service", "run", "--settings", str(file), "--plain"]
    command += ["--parent-pid", str(os.getpid())]
    # The settings are resolved already; the environment must not change them again.
    environment = {key: value for key, value in os.environ.items() if not key.upper().startswith(ENV_PREFIX)}
    with (session.session / "run.log").open("wb") as log:
        roles = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )
        try:
            yield roles
        finally:
            if roles.poll() is None:
                roles.send_signal(signal.SIGTERM)
            try:
                roles.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                logger.warning("roles did not stop", extra={"pid": roles.pid})
                roles.kill()
                roles.wait()
    if roles.returncode:
        raise StreamFailedError(f"the roles ended with exit code {roles.returncode}: {_last_lines(session)}")


def _is_over(status: SessionStatus, num_particles: int, redo: "_Redo") -> bool:
    return all_answered(status, num_particles) and redo.is_done(status)


class _Redo:
    """With references first and networks later: once both are fused, what references alone posed is posed again."""

    def __init__(self, session: SessionSettings) -> None:
        self._session = session
        self._asked = False

    def is_done(self, status: SessionStatus) -> bool:
        """Return whether nothing is left to redo; asks for it once the training is over."""
        training, checkpoint = status.training, status.checkpoint
        if self._session.proposer != "both" or self._session.checkpoint:
            return True
        if training is None or training.state == ORDERED or checkpoint is None:
            return False
        if training.state != DONE or checkpoint.rows == status.predicted:
            return True
        if not self._asked:
            self._asked = request(self._session, Control(action="reinfer")).ok
        return False


class _LandedCount:
    """Counts what the replay has landed; written by its thread, read by another."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, landed: Landed) -> None:
        self.count += landed.num_rows


def _check_alive(
    roles: subprocess.Popen[bytes], session: SessionSettings, progress: StreamProgress, deadline_seconds: float
) -> None:
    if roles.poll() is not None:
        raise StreamFailedError(f"the roles ended with exit code {roles.returncode}: {_last_lines(session)}")
    if progress.seconds > deadline_seconds:
        state = progress.status.state if progress.status else "no status"
        raise StreamFailedError(f"not finished after {deadline_seconds:.0f} s ({state}); see {session.session}/logs")


def _last_lines(session: SessionSettings) -> str:
    lines = (session.session / "run.log").read_text(errors="replace").splitlines()
    return " | ".join(lines[-5:]) or "it said nothing"


def _peak_memory_gigabytes() -> float:
    """Of the largest process among the ended and waited-for children and theirs (Linux counts in kilobytes)."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
