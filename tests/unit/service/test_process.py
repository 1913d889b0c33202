"""Around every role: polite signals, one JSON object a log line, a watchdog that means something, no orphans."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cesped_stream_service.process import (
    ORPHAN_GRACE_SECONDS,
    Activity,
    ParentWatch,
    Shutdown,
    StopRequest,
    Systemd,
    start_logging,
    trainer_threads,
    worker_threads,
)
from cesped_stream_service.settings import SessionSettings


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield root
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def session(workers: int = 1, threads: int = 0) -> SessionSettings:
    return SessionSettings.model_validate(
        {
            "session": "s",
            "landing": {"folder": "l"},
            "service": {"workers": workers},
            "inference": {"threads": threads},
        }
    )


def test_first_signal_asks_politely_and_the_second_at_once() -> None:
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        stop = StopRequest().install()
        assert stop.state is Shutdown.NOT_ASKED
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(1.0)
        assert stop.state is Shutdown.AFTER_BATCH
        assert stop.asked()
        assert not stop.at_once()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.state is Shutdown.NOW
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def test_log_lines_are_json_with_event_and_extras(tmp_path: Path, root_logger: logging.Logger) -> None:
    file = start_logging(tmp_path, "worker-1", to_stderr=False)
    logger = logging.getLogger("cesped_stream_service.test")
    logger.info("batch committed", extra={"batch_id": 3, "path": tmp_path})
    try:
        raise ValueError("a\nb")
    except ValueError:
        logger.exception("failed")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert file == tmp_path / "logs" / "worker-1.jsonl"
    assert lines[0] | {"event": "batch committed", "role": "worker-1", "batch_id": 3, "path": str(tmp_path)} == lines[0]
    assert lines[0]["level"] == "info"
    assert lines[0]["pid"] == os.getpid()
    assert "ValueError: a\nb" in lines[1]["exception"]
    assert len(lines) == 2


def test_watchdog_is_pinged_only_when_something_went_on(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd_side:
        systemd_side.bind(address)
        systemd_side.settimeout(2)
        activity = Activity("idle")
        systemd = Systemd(activity, address)
        systemd.ready()
        assert systemd_side.recv(100) == b"READY=1"
        assert systemd.ping_if_alive()
        assert systemd_side.recv(100).startswith(b"WATCHDOG=1")
        assert not systemd.ping_if_alive()
        activity.turned()
        assert systemd.ping_if_alive()
        activity.worked()
        assert systemd.ping_if_alive()
        assert not systemd.ping_if_alive()
        assert activity.progress == 1


def test_abstract_notify_socket_is_reached() -> None:
    name = f"cesped-stream-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd_side:
        systemd_side.bind(f"\0{name}")
        systemd_side.settimeout(2)
        Systemd(Activity("x"), f"@{name}").stopping()
        assert systemd_side.recv(100) == b"STOPPING=1"


def test_without_systemd_nothing_is_sent_and_nothing_fails(tmp_path: Path) -> None:
    Systemd(Activity("x"), "").ready()
    Systemd(Activity("x"), str(tmp_path / "gone")).ready()


def test_orphan_asks_itself_to_end_once_and_gives_up_after_the_grace() -> None:
    clock = [0.0]
    events: list[str] = []
    watch = ParentWatch(
        42, now=lambda: clock[0], terminate=lambda: events.append("term"), give_up=lambda: events.append("exit")
    )
    watch.check(42)
    assert events == []
    watch.check(1)
    watch.check(1)
    assert events == ["term"]
    clock[0] = ORPHAN_GRACE_SECONDS + 1
    watch.check(1)
    assert events == ["term", "exit"]


def test_role_without_a_supervisor_never_calls_itself_an_orphan() -> None:
    watch = ParentWatch(0, terminate=lambda: pytest.fail("terminated"), give_up=lambda: pytest.fail("gave up"))
    watch.check(1)


@pytest.mark.parametrize("cores", [1, 2, 4, 16, 64])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_trainer_and_workers_together_do_not_oversubscribe(cores: int, workers: int) -> None:
    settings = session(workers)
    each = worker_threads(settings, cores)
    trainer = trainer_threads(settings, cores, workers_busy=True)
    assert each >= 1
    assert trainer >= 1
    assert workers * each + trainer <= max(cores, workers + 1)


def test_trainer_alone_uses_two_cores_and_given_threads_are_kept() -> None:
    assert trainer_threads(session(), 2, workers_busy=False) == 2
    assert trainer_threads(session(), 1, workers_busy=False) == 1
    assert worker_threads(session(threads=5), 2) == 5


def test_coordinator_side_and_help_import_no_torch() -> None:
    code = (
        "import sys; import cesped_stream_service.cli, cesped_stream_service.coordinator_process; "
        "sys.exit(1 if {'torch', 'e3nn', 'matplotlib'} & set(sys.modules) else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
