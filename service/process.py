"""What every role's process has around its core: signals, log files, systemd's notifications, parent death, threads."""

import enum
import json
import logging
import logging.handlers
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from cesped_stream.durable import write_whole
from cesped_stream.errors import InvalidSettingsError

from .settings import SessionSettings
from .toml import flat, read_toml, toml_text

logger = logging.getLogger(__name__)

LOG_BYTES, LOG_FILES = 10_000_000, 5
ORPHAN_GRACE_SECONDS = 60.0
ORPHAN_EXIT_CODE = 70
TRAINING_THREADS = 2
"""Both half-models train side by side with one thread each."""

_LOG_RECORD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Shutdown(enum.Enum):
    """What a role has been asked to do."""

    NOT_ASKED = "run"
    AFTER_BATCH = "finish the batch in hand, then exit"
    NOW = "exit at once"


class StopRequest:
    """SIGTERM, SIGINT or SIGHUP asks for an exit after the batch in hand, a second one for an exit at once."""

    def __init__(self) -> None:
        self.state = Shutdown.NOT_ASKED
        self._event = threading.Event()

    def install(self) -> "StopRequest":
        """Answer SIGTERM, SIGINT and, unless it is ignored (nohup), SIGHUP of this process (main thread only)."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.ask()

    def ask(self) -> None:
        """Ask once more: first for an exit after the batch in hand, then at once."""
        self.state = Shutdown.AFTER_BATCH if self.state is Shutdown.NOT_ASKED else Shutdown.NOW
        self._event.set()

    def asked(self) -> bool:
        return self.state is not Shutdown.NOT_ASKED

    def at_once(self) -> bool:
        return self.state is Shutdown.NOW

    def wait(self, seconds: float) -> bool:
        """Wait at most so long for a request; return whether there is one."""
        return self._event.wait(seconds)


class Activity:
    """What a role is doing, for its heartbeat and its watchdog. Written by the working thread, read by another."""

    def __init__(self, state: str) -> None:
        self.state = state
        self.progress = 0
        self.turns = 0

    def worked(self) -> None:
        """Work was made progress on: a chunk of images, a training step."""
        self.progress += 1
        self.turns += 1

    def turned(self) -> None:
        """The main loop came round, with or without work: the role does not hang."""
        self.turns += 1


class Systemd:
    """systemd's notifications (sd_notify), silent where NOTIFY_SOCKET is not set."""

    def __init__(self, activity: Activity, address: str | None = None) -> None:
        self._activity = activity
        self._address = os.environ.get("NOTIFY_SOCKET", "") if address is None else address
        self._turns_at_last_ping = -1

    def ready(self) -> None:
        self._send("READY=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def ping_if_alive(self) -> bool:
        """Send WATCHDOG=1 if the role's loop or work went on since the last ping; return whether it did."""
        turns = self._activity.turns
        if turns == self._turns_at_last_ping:
            return False
        self._turns_at_last_ping = turns
        self._send(f"WATCHDOG=1\nSTATUS={self._activity.state}")
        return True

    def _send(self, text: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            try:
                notify.sendto(text.encode(), address)
            except OSError as error:
                logger.warning("systemd not reached", extra={"error": str(error)})


class ParentWatch:
    """Notices that the process which started this role is gone, so that no orphan goes on alone."""

    def __init__(
        self,
        parent_pid: int,
        *,
        now: Callable[[], float] = time.monotonic,
        terminate: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGTERM),
        give_up: Callable[[], None] = lambda: os._exit(ORPHAN_EXIT_CODE),
    ) -> None:
        self._parent_pid = parent_pid
        self._now, self._terminate, self._give_up = now, terminate, give_up
        self._alone_since: float | None = None

    def check(self, parent_now: int | None = None) -> None:
        """Ask this process to terminate once its parent is gone, and end it where it does not within a minute."""
        if self._parent_pid == 0 or (os.getppid() if parent_now is None else parent_now) == self._parent_pid:
            return
        if self._alone_since is None:
            self._alone_since = self._now()
            logger.warning("parent is gone", extra={"parent_pid": self._parent_pid})
            self._terminate()
        elif self._now() - self._alone_since > ORPHAN_GRACE_SECONDS:
            self._give_up()


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, role, event, and whatever the call gave as `extra`."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "role": self._role,
            "pid": record.process,
            "logger": record.name,
            "event": record.getMessage(),
        }
        entry |= {key: value for key, value in vars(record).items() if key not in _LOG_RECORD_FIELDS}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def start_logging(session: Path, role: str, *, to_stderr: bool = True) -> Path:
    """Log to `<session>/logs/<role>.jsonl` (10 MB a file, five kept) and, for a journal, to stderr; return it."""
    folder = session / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{role}.jsonl"
    lines = logging.handlers.RotatingFileHandler(file, maxBytes=LOG_BYTES, backupCount=LOG_FILES - 1)
    lines.setFormatter(JsonLines(role))
    root = logging.getLogger()
    for former in list(root.handlers):
        root.removeHandler(former)
    root.setLevel(logging.INFO)
    root.addHandler(lines)
    if to_stderr:
        plain = logging.StreamHandler(sys.stderr)
        plain.setFormatter(logging.Formatter(f"%(levelname)s {role}: %(message)s"))
        root.addHandler(plain)
    logging.captureWarnings(True)
    return file


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_threads(settings: SessionSettings, cores: int) -> int:
    """Return the CPU threads of one worker: a setting, else its share of the cores beside the trainer's two.

    It does not depend on whether a trainer runs at the moment: poses are bit-equal for a fixed number of threads only.
    """
    if settings.inference.threads:
        return settings.inference.threads
    for_trainer = min(TRAINING_THREADS, cores - 1)
    return max(1, (cores - for_trainer) // max(1, settings.service.workers))


def trainer_threads(settings: SessionSettings, cores: int, *, workers_busy: bool) -> int:
    """Return the trainer's CPU threads: what it can use while workers have no checkpoint, else what they leave."""
    if not workers_busy:
        return min(TRAINING_THREADS, cores)
    left = cores - settings.service.workers * worker_threads(settings, cores)
    return max(1, min(TRAINING_THREADS, left))


SETTINGS_FOR_LIFE = ("half_mode", "landing.folder", "training.symmetry")


def changed_settings(settings: SessionSettings) -> dict[str, tuple[Any, Any]]:
    """Return what differs from the session's last start, by dotted key: (then, now); nothing at its first."""
    file = settings.session / "session.toml"
    if not file.exists():
        return {}
    before = flat(read_toml(file))
    after = flat(settings.model_dump(mode="json", exclude_none=True))
    pairs = {key: (before.get(key), after.get(key)) for key in before | after}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def save_settings(settings: SessionSettings) -> Path:
    """Write the resolved settings to `<session>/session.toml`; return the file.

    InvalidSettingsError where the session was begun with another half mode, landing folder or symmetry: its poses would
    not be comparable. Whatever else differs from the last start is taken, and logged.
    """
    file = settings.session / "session.toml"
    changed = changed_settings(settings)
    for key in SETTINGS_FOR_LIFE:
        was, now = changed.get(key, (None, None))
        if was is not None:
            what = key.replace(".", " ").replace("_", " ")
            raise InvalidSettingsError(
                f"{key}: {file} says {was}, got {now}; a session keeps its {what}, start another session"
            )
    for key, (was, now) in changed.items():
        logger.warning("setting differs from the session's last start", extra={"key": key, "was": was, "is": now})
    settings.session.mkdir(parents=True, exist_ok=True)
    text = "# Resolved settings of this session's last start.\n" + toml_text(
        settings.model_dump(mode="json", exclude_none=True)
    )
    write_whole(file, text.encode())
    return file
