"""`cesped-stream run`: coordinator, trainer and workers as children in the foreground, restarted when they crash."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from .process import TRAINING_THREADS, ParentWatch, StopRequest, usable_cores, worker_threads
from .resolve import ENV_PREFIX
from .settings import SessionSettings

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
FIRST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS = 1.0, 30.0
HEALTHY_SECONDS = 60.0
REFUSED_EXIT_CODE = 2
STOP_SECONDS = 600.0
"""The batch in hand is waited for so long; `lease_seconds` makes it short, an unknown rate may not."""
COORDINATOR, TRAINER = "coordinator", "trainer"


class Process(Protocol):
    """What the supervisor needs of a child; `subprocess.Popen` has it."""

    pid: int

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


@dataclass
class Child:
    """One role that is to run, and how it has been doing."""

    name: str
    arguments: Sequence[str]
    process: Process | None = None
    started: float = 0.0
    crashes: int = 0
    start_at: float = 0.0
    place: int | None = None
    """Which worker of this machine it is, from 0; None for other roles."""
    hurried: bool = False
    """It was asked a second time to end."""
    events: list[str] = field(default_factory=list)

    @property
    def is_coordinator(self) -> bool:
        return self.name == COORDINATOR


def children_of(settings: SessionSettings, settings_file: Path) -> list[Child]:
    """Return the roles that a session has on this machine: coordinator, trainer, workers."""
    common = ["--settings", str(settings_file), "--parent-pid", str(os.getpid())]
    trainers = [TRAINER] * settings.service.trainers
    workers = [f"worker-{k + 1}" for k in range(settings.service.workers)]
    return [
        Child(COORDINATOR, [COORDINATOR, *common]),
        *(Child(name, [TRAINER, *common, "--name", name]) for name in trainers),
        *(Child(name, ["worker", *common, "--name", name], place=k) for k, name in enumerate(workers)),
    ]


def gpu_of(child: Child, visible: Sequence[str]) -> str | None:
    """Return the GPU that a worker gets where there are several, round robin; None leaves the choice to torch."""
    return visible[child.place % len(visible)] if child.place is not None and len(visible) > 1 else None


def visible_gpus() -> list[str]:
    """Return the GPUs of this machine, or those that CUDA_VISIBLE_DEVICES leaves of them."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [gpu for gpu in allowed.split(",") if gpu]
    return sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))


class Supervisor:
    """Starts children, restarts crashed ones with growing pauses, stops them in the order that loses no work."""

    def __init__(
        self,
        children: list[Child],
        start: Callable[[Child], Process],
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.children = children
        self._start = start
        self._now = now
        self._stopping_since: float | None = None
        self.exit_code = 0
        self.killed = False
        """The children were ended at once, batch in hand or not."""

    @property
    def over(self) -> bool:
        """True once stopping and every child has ended."""
        return self._stopping_since is not None and not any(child.process for child in self.children)

    @property
    def coordinator_pid(self) -> int:
        """Pid of the coordinator that runs, 0 where none does."""
        running = [c.process.pid for c in self.children if c.is_coordinator and c.process is not None]
        return running[0] if running else 0

    @property
    def stopping(self) -> bool:
        """True once the children were asked to end."""
        return self._stopping_since is not None

    @property
    def running(self) -> list[str]:
        """Names of the roles whose process runs."""
        return [child.name for child in self.children if child.process is not None]

    def stop(self) -> None:
        """Ask trainer and workers to end after what is in hand; the coordinator, which commits it, ends after them."""
        if self._stopping_since is not None:
            return
        self._stopping_since = self._now()
        for child in self.children:
            if child.process is not None and not child.is_coordinator:
                child.process.terminate()

    def kill(self) -> None:
        """End every child now: what is in hand is done again after the next start, nothing that is on disk is lost."""
        self.killed = True
        for child in self.children:
            if child.process is not None:
                child.process.kill()

    def turn(self) -> None:
        """Look at every child once: note who ended, start who is due."""
        for child in self.children:
            if child.process is not None and (code := child.process.poll()) is not None:
                self._ended(child, code)
        if self._stopping_since is None:
            for child in self.children:
                if child.process is None and self._now() >= child.start_at:
                    self._begin(child)
        else:
            self._go_on_stopping(self._stopping_since)

    def _begin(self, child: Child) -> None:
        child.process = self._start(child)
        child.started = self._now()
        logger.info("role started", extra={"role_name": child.name, "child_pid": child.process.pid})

    def _ended(self, child: Child, code: int) -> None:
        child.process = None
        if self._stopping_since is not None:
            return
        logger.warning("role ended", extra={"role_name": child.name, "exit_code": code})
        if code == REFUSED_EXIT_CODE:
            # It said why, and a restart would say the same: settings, endpoint, a second daemon.
            self.exit_code = REFUSED_EXIT_CODE
            self.stop()
        elif code == 0 and child.is_coordinator:
            self.stop()
        else:
            healthy = self._now() - child.started >= HEALTHY_SECONDS
            child.crashes = 1 if healthy else child.crashes + 1
            pause = min(LAST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** (child.crashes - 1))
            child.start_at = self._now() + pause
            child.events.append(f"{child.name} ended with {code}; starts again in {pause:.0f} s")

    def _go_on_stopping(self, since: float) -> None:
        running = [child for child in self.children if child.process is not None]
        if self._now() - since > STOP_SECONDS:
            self.exit_code = self.exit_code or 1
            self.kill()
        elif len(running) == 1 and running[0].is_coordinator and running[0].process is not None:
            running[0].process.terminate()
        elif running and not any(child.is_coordinator for child in running):
            self._hurry(running)

    def _hurry(self, running: list[Child]) -> None:
        """Nobody is left who could take a result: a second signal ends a role between two chunks of its batch.

        One only: each begins a role's wait in a socket anew.
        """
        for child in running:
            if child.process is not None and not child.hurried:
                child.hurried = True
                child.process.terminate()


def start_child(settings: SessionSettings, child: Child) -> Process:
    """Start a role as a process of its own; what it prints goes to `<session>/logs/<name>.stderr`."""
    threads = str(worker_threads(settings, usable_cores()))
    # The file of resolved settings has been through the environment already; a command line beats the environment.
    environment = {key: value for key, value in os.environ.items() if not key.upper().startswith(ENV_PREFIX)}
    environment |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    # Threads that wait would take the cores from the other roles.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if child.name == TRAINER:
        environment |= {"OMP_NUM_THREADS": str(TRAINING_THREADS), "MKL_NUM_THREADS": str(TRAINING_THREADS)}
    environment.pop("NOTIFY_SOCKET", None)
    if (gpu := gpu_of(child, visible_gpus())) is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    command = [sys.executable, "-m", "cesped_stream_service", *child.arguments]
    with open(settings.session / "logs" / f"{child.name}.stderr", "ab") as stderr:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            # A terminal's Ctrl-C reaches `run` only, which then stops its children in order.
            start_new_session=True,
        )


def supervise(
    supervisor: Supervisor, stop: StopRequest, on_turn: Callable[[Supervisor], object], *, parent_pid: int = 0
) -> int:
    """Run the children until a stop is asked for, the coordinator ends or the process `parent_pid` does (0: none is
    watched); return the exit code."""
    parent = ParentWatch(parent_pid)
    supervisor.turn()
    while not supervisor.over:
        on_turn(supervisor)
        parent.check()
        if not stop.asked():
            stop.wait(POLL_SECONDS)
        else:
            time.sleep(POLL_SECONDS)
        if stop.asked():
            supervisor.stop()
        if stop.at_once():
            supervisor.kill()
        supervisor.turn()
    return supervisor.exit_code
