"""Plain lines carry the time, say what is waited for and each problem once; a stop says what it waits for."""

import re
from pathlib import Path

import pytest
from rich.console import Console

from cesped_stream_service import live
from cesped_stream_service.coordinator import Coordinator
from cesped_stream_service.live import LINE_SECONDS, PlainView, StatusFile
from cesped_stream_service.messages import Heartbeat, Hello
from cesped_stream_service.run import Child, Supervisor
from cesped_stream_service.settings import SessionSettings
from cesped_stream_service.status import SessionStatus


class FakeProcess:
    def __init__(self, pid: int) -> None:
        self.pid, self.code = pid, None

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Screen:
    """A plain view of a status that the test sets, and what it printed."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = SessionSettings.model_validate({"session": folder / "s", "landing": {"folder": folder}})
        core = Coordinator(settings, watch_events=False)
        core.handle(b"w", Hello(role="worker", name="worker-1", incarnation="i", pid=7, device="cpu"), {})
        beat = Heartbeat(incarnation="i", role="worker", name="worker-1", state="batch 3, 64 particles", progress=1)
        core.handle(b"w", beat, {})
        self.status: SessionStatus | None = core.status()
        core.close()
        self.clock = 100.0
        monkeypatch.setattr(live.time, "monotonic", lambda: self.clock)
        monkeypatch.setattr(StatusFile, "latest", lambda _, supervisor: self.status)
        self.children = [Child("coordinator", []), Child("trainer", []), Child("worker-1", [])]
        self.supervisor = Supervisor(self.children, lambda child: FakeProcess(1), now=lambda: self.clock)
        self.supervisor.turn()
        self.console = Console(width=400)
        self.view = PlainView(StatusFile(settings), self.console)

    def lines(self, seconds: float = LINE_SECONDS + 1) -> list[str]:
        """Update after so long; return the new lines without their time."""
        self.clock += seconds
        with self.console.capture() as capture:
            self.view.update(self.supervisor)
        lines = capture.get().splitlines()
        assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines), lines
        return [line[20:] for line in lines]

    def update(self, **changes: object) -> None:
        assert self.status is not None
        self.status = self.status.model_copy(update=changes)


@pytest.fixture
def screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Screen:
    return Screen(tmp_path, monkeypatch)


def test_a_line_tells_counts_and_what_is_waited_for_when_that_changes(screen: Screen) -> None:
    screen.update(waits_for=("30 s without a new aligned row",), landed=9)
    (line,) = screen.lines()
    assert line == "waiting for rows: 9 landed, 0 posed, 0 pending; waits for 30 s without a new aligned row"
    assert screen.lines(seconds=1) == []
    screen.update(waits_for=("20 s without a new aligned row",))
    assert screen.lines(seconds=1) == [], "a line each second"
    assert len(screen.lines()) == 1


def test_a_problem_is_told_once_not_again_with_other_numbers(screen: Screen) -> None:
    screen.lines()
    screen.update(problems=("6 of 100 rows are refused", "the disk is full"))
    assert screen.lines() == ["! 6 of 100 rows are refused", "! the disk is full"]
    screen.update(problems=("7 of 1,200 rows are refused", "the disk is full", "a stack is gone"))
    assert screen.lines() == ["! a stack is gone"]


def test_nothing_is_told_twice(screen: Screen) -> None:
    screen.update(problems=("the disk is full",))
    assert len(screen.lines()) == 2
    assert screen.lines() == []


def test_each_roles_events_are_told_once_whoever_else_has_some(screen: Screen) -> None:
    screen.lines()
    screen.children[2].events.append("worker-1 ended with 1")
    assert screen.lines() == ["worker-1 ended with 1"]
    screen.children[1].events.append("trainer ended with 1")
    assert screen.lines() == ["trainer ended with 1"]


def test_a_stop_tells_what_it_waits_for_and_how_to_end_at_once(screen: Screen) -> None:
    screen.lines()
    screen.supervisor.stop()
    (line,) = screen.lines(seconds=0.2)
    assert line == "stops: waits for trainer, worker-1 (batch 3, 64 particles); Ctrl-C or SIGTERM again ends at once"
    assert screen.lines(seconds=0.2) == []
    screen.children[1].process = screen.children[2].process = None
    assert screen.lines(seconds=0.2) == ["stops: writes the last results"]


def test_a_session_that_was_stopped_from_elsewhere_says_so(screen: Screen) -> None:
    screen.lines()
    screen.supervisor.stop()
    screen.children[0].process = None
    assert screen.lines(seconds=0.2) == ["stops: the coordinator has ended, the other roles end"]


def test_an_end_at_once_says_that_nothing_is_lost(screen: Screen) -> None:
    screen.lines()
    screen.supervisor.stop()
    screen.supervisor.kill()
    (line,) = screen.lines(seconds=0.2)
    assert line.startswith("ends at once: what was in hand is done again after the next start; nothing")
