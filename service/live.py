"""What `cesped-stream run` shows while it runs: a live view on a terminal, one line a change elsewhere."""

import re
import time
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from types import TracebackType
from typing import Protocol

from pydantic import ValidationError
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from .run import COORDINATOR, Supervisor
from .session import SessionFolder
from .settings import SessionSettings
from .show import status_line, status_view
from .status import SessionStatus

REFRESH_SECONDS = 0.5
LINE_SECONDS = 10.0
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
NUMBERS = re.compile(r"\d[\d,.]*")
"""What may differ between two tellings of one problem."""


class View(Protocol):
    """Shows a status; `update` is called about five times a second."""

    def __enter__(self) -> "View": ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def update(self, supervisor: Supervisor) -> None: ...


def view_of(settings: SessionSettings, console: Console, *, plain: bool) -> View:
    """Return the live view on a terminal, else the plain one."""
    status = StatusFile(settings)
    return PlainView(status, console) if plain or not console.is_terminal else LiveView(status, console)


class StatusFile:
    """The status that the coordinator wrote last, read again at most twice a second."""

    def __init__(self, settings: SessionSettings) -> None:
        self._file = SessionFolder.of(settings).status
        self._next = 0.0
        self._latest: SessionStatus | None = None

    def latest(self, supervisor: Supervisor) -> SessionStatus | None:
        """Return the status, or None before this run's coordinator wrote its first."""
        pid = supervisor.coordinator_pid
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + REFRESH_SECONDS
            try:
                status = SessionStatus.model_validate_json(self._file.read_bytes())
            except (FileNotFoundError, ValidationError):
                return self._latest
            if status.pid == pid:
                self._latest = status
        return self._latest


class LiveView:
    """The status tables, redrawn in place."""

    def __init__(self, status: StatusFile, console: Console) -> None:
        self._status = status
        self._live = Live(console=console, refresh_per_second=4, transient=False)

    def __enter__(self) -> "LiveView":
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def update(self, supervisor: Supervisor) -> None:
        status = self._status.latest(supervisor)
        body = Text("starting ...", "dim") if status is None else status_view(status, running=True)
        events = [event for child in supervisor.children for event in child.events[-1:]]
        events += [words] if (words := stopping_words(supervisor, status)) else []
        self._live.update(Group(body, *(Text(event, "yellow") for event in events)))


class PlainView:
    """One line, with the time of day, when something changed; at most every ten seconds unless the state changed.

    A problem is told when it is new, not again with other numbers.
    """

    def __init__(self, status: StatusFile, console: Console) -> None:
        self._status = status
        self._console = console
        self._line = ""
        self._state = ""
        self._next = 0.0
        self._events = Counter[str]()
        self._told: set[str] = set()

    def __enter__(self) -> "PlainView":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._next = 0.0

    def update(self, supervisor: Supervisor) -> None:
        for child in supervisor.children:
            for event in child.events[self._events[child.name] :]:
                self._say(event)
            self._events[child.name] = len(child.events)
        status = self._status.latest(supervisor)
        self._tell_new([words] if (words := stopping_words(supervisor, status)) else [])
        if status is None or supervisor.stopping:
            return
        line = status_line(status)
        due = time.monotonic() >= self._next or status.state != self._state
        if line != self._line and due:
            self._line, self._state, self._next = line, str(status.state), time.monotonic() + LINE_SECONDS
            self._say(line)
        self._tell_new(f"! {problem}" for problem in status.problems)

    def _tell_new(self, sayings: Iterable[str]) -> None:
        for text in sayings:
            kind = NUMBERS.sub("#", text)
            if kind not in self._told:
                self._told.add(kind)
                self._say(text)

    def _say(self, text: str) -> None:
        self._console.print(with_time(text), highlight=False, markup=False, soft_wrap=True)


def with_time(text: str) -> str:
    """Return a line that begins with this machine's date and time of day."""
    return f"{datetime.now().astimezone():{TIME_FORMAT}} {text}"


def stopping_words(supervisor: Supervisor, status: SessionStatus | None) -> str:
    """Return what a stop that was asked for waits for; "" where none was."""
    if not supervisor.stopping:
        return ""
    if supervisor.killed:
        return "ends at once: what was in hand is done again after the next start; nothing that is on disk is lost"
    if COORDINATOR not in supervisor.running:
        return "stops: the coordinator has ended, the other roles end"
    says = {role.name: role.says for role in status.roles} if status is not None else {}
    roles = [name for name in supervisor.running if name != COORDINATOR]
    if not roles:
        return "stops: writes the last results"
    each = ", ".join(f"{name} ({says[name]})" if says.get(name) else name for name in roles)
    return f"stops: waits for {each}; Ctrl-C or SIGTERM again ends at once"
