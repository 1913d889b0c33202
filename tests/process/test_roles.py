"""Real coordinator and worker processes over ipc, on a tiny session with a ready checkpoint."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import zmq

from cesped_stream_service.cli import main
from cesped_stream_service.messages import Control, Hello, Welcome
from cesped_stream_service.request import ask_running, current_status
from cesped_stream_service.sockets import coordinator_at_role, link_of
from cesped_stream_service.wire import decode, encode

from .conftest import DEADLINE_SECONDS, QUICK_SERVICE, MakeSession, TinySession, land, wait_until


def test_second_coordinator_refuses_and_names_the_first(
    make_session: MakeSession, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    landing = tmp_path / "landing"
    landing.mkdir()
    session = make_session("s", landing, checkpoint=str(tiny_checkpoint))
    first = session.start("coordinator")
    session.wait_for("first status", lambda status: status["pid"] == first.pid)
    for command in ("coordinator", "run"):
        second = session.start(command)
        assert second.wait(DEADLINE_SECONDS) == 2
    said = (session.folder / "coordinator.out").read_text()
    assert f"pid {first.pid}" in said
    assert "Traceback" not in said
    assert f"pid {first.pid}" in (session.folder / "run.out").read_text()
    # The first one was not harmed: its endpoint still answers.
    assert ask_running(session.settings, Control(action="status")) is not None
    assert session.stop(first) == 0


def test_coordinator_survives_garbage_and_answers_requests(
    make_session: MakeSession, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    landing = tmp_path / "landing"
    land(landing, "batch_1", 10, aligned=False, seed=1)
    session = make_session("s", landing, checkpoint=str(tiny_checkpoint))
    coordinator = session.start("coordinator")
    session.wait_for("rows wait", lambda status: status["pending"] == 10)
    link = link_of(session.settings, coordinator=False)
    hello = encode(Hello(role="worker", name="w", incarnation="i", pid=1, device="cpu"))
    garbage: list[list[bytes]] = [
        [b""],
        [b"\x80\x04\x95"],
        [b"{}"],
        [b'{"version": 9, "kind": "hello"}'],
        [hello[0][:-5]],
        [*hello, b"extra"],
        [b"[" * 10_000],
        [b"x"] * 50,
        [b"y" * (2 << 20)],
    ]
    with zmq.Context() as context, coordinator_at_role(context, link) as socket:
        for parts in garbage * 20:
            socket.send_multipart(parts)
        socket.send_multipart(hello)
        assert socket.poll(int(DEADLINE_SECONDS * 1000))
        assert isinstance(decode(socket.recv_multipart())[0], Welcome)
    status, running = current_status(session.settings)
    assert running
    assert status is not None
    assert (status.landed, status.pending) == (10, 10)
    assert session.stop(coordinator) == 0
    log = (session.folder / "logs" / "coordinator.jsonl").read_text()
    last = json.loads(log.splitlines()[-1])
    assert last["event"] == "coordinator stops"
    assert sum(last["refused"].values()) == 20 * len(garbage)


def test_requests_work_on_a_session_that_does_not_run(
    make_session: MakeSession, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    landing = tmp_path / "landing"
    land(landing, "batch_1", 10, aligned=False, seed=1)
    session = make_session("s", landing, checkpoint=str(tiny_checkpoint))
    coordinator = session.start("coordinator")
    session.wait_for("rows wait", lambda status: status["pending"] == 10)
    assert main(["status", str(session.folder), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["running"], said["pid"], said["landed"]) == (True, coordinator.pid, 10)
    assert main(["stop", str(session.folder)]) == 0
    assert coordinator.wait(DEADLINE_SECONDS) == 0
    capsys.readouterr()
    assert main(["status", str(session.folder)]) == 0
    assert "no coordinator runs" in capsys.readouterr().out
    assert main(["requeue", str(session.folder)]) == 0
    assert "0 rows" in capsys.readouterr().out
    assert main(["requeue", str(session.folder), "--batch", "77"]) == 2
    assert "nothing of it is quarantined" in capsys.readouterr().err


def test_run_restarts_a_killed_worker_and_leaves_no_process_behind(
    make_session: MakeSession, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    landing = tmp_path / "landing"
    land(landing, "batch_1", 60, aligned=False, seed=1)
    session = make_session("s", landing, checkpoint=str(tiny_checkpoint), service=QUICK_SERVICE | {"trainers": 0})
    run = session.start("run")
    status = session.wait_for("60 posed", lambda status: status["posed"] == 60)
    (worker,) = [role["pid"] for role in status["roles"] if role["role"] == "worker"]
    os.kill(worker, signal.SIGKILL)
    land(landing, "batch_2", 40, aligned=False, seed=2)
    status = session.wait_for("100 posed", lambda status: status["posed"] == 100)
    pids = [status["pid"], *(role["pid"] for role in status["roles"])]
    assert worker not in pids
    assert session.stop(run, signal.SIGKILL) == -signal.SIGKILL
    wait_until(lambda: not any(alive(pid) for pid in pids), "no orphan is left")


def alive(pid: int) -> bool:
    """Return whether a process runs; one that ended and that nobody waits for does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def with_rows_in_hand(make_session: MakeSession, checkpoint: Path, landing: Path) -> tuple[TinySession, int]:
    """A `run` whose only worker holds a lease and stands still; and the worker's pid."""
    land(landing, "batch_1", 2000, aligned=False, seed=1)
    service = QUICK_SERVICE | {"trainers": 0, "heartbeat_seconds": 20.0}
    session = make_session("s", landing, checkpoint=str(checkpoint), service=service)
    session.start("run")
    session.wait_for("the worker", lambda status: status["roles"])

    def leased_to() -> int:
        status, _ = current_status(session.settings)
        return status.roles[0].pid if status is not None and status.leased else 0

    worker: int = wait_until(leased_to, "a lease")
    os.kill(worker, signal.SIGSTOP)
    return session, worker


def test_stop_waits_for_the_batch_in_hand_and_says_so(
    make_session: MakeSession, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    session, worker = with_rows_in_hand(make_session, tiny_checkpoint, tmp_path / "landing")
    said = tmp_path / "said"
    with said.open("wb") as out:
        stop = subprocess.Popen(
            [sys.executable, "-m", "cesped_stream_service", "stop", str(session.folder)], stdout=out
        )
    try:
        wait_until(lambda: b"rows in hand at 1 worker" in said.read_bytes(), "what it waits for is said")
        assert stop.poll() is None and session.processes[0].poll() is None
        os.kill(worker, signal.SIGCONT)
        assert stop.wait(DEADLINE_SECONDS) == 0
    finally:
        stop.kill()
    assert session.processes[0].wait(DEADLINE_SECONDS) == 0
    status = session.status()
    assert b"stopped: 2000 landed" in said.read_bytes()
    assert (status["leased"], status["posed"] + status["pending"]) == (0, 2000)
    assert status["posed"] > 0


def test_a_first_ctrl_c_waits_for_the_batch_and_a_second_ends_at_once_without_loss(
    make_session: MakeSession, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    session, _ = with_rows_in_hand(make_session, tiny_checkpoint, tmp_path / "landing")
    (run,) = session.processes
    out = session.folder / "run.out"
    run.send_signal(signal.SIGINT)
    wait_until(lambda: "stops: waits for worker-1" in out.read_text(), "what it waits for is said")
    assert run.poll() is None
    run.send_signal(signal.SIGINT)
    run.wait(DEADLINE_SECONDS)
    assert "ends at once" in out.read_text()
    again = session.start("run")
    session.wait_for("all posed", lambda status: status["posed"] == 2000)
    assert session.stop(again) == 0
    assert "ended: 2000 landed, 2000 posed, 0 pending" in out.read_text()
