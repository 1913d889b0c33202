"""A disk that fails, or a mount that is away, pauses the session and ends nothing."""

import argparse
from pathlib import Path

import pytest
from support.session_bench import Bench, FakeWorker, fake_checkpoint, run_until, turn

from cesped_stream.errors import TransientError
from cesped_stream_service import cli
from cesped_stream_service.session import SessionBusyError
from cesped_stream_service.status import SessionState


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")))


def test_a_disk_that_fails_in_the_first_turn_pauses_and_resumes(bench: Bench) -> None:
    bench.land("s", 3)
    (bench.landing / "s.star.done").touch()
    failures = [OSError(28, "No space left on device")]

    def step(name: str) -> None:
        if "rows accepted" in name and failures:
            raise failures.pop()

    core = bench.open(step)
    core.tick()
    assert not failures and core.status().state is SessionState.PAUSED
    run_until(core, bench.clock, [FakeWorker()], 3)
    core.close()


def test_a_silent_workers_rows_that_cannot_be_quarantined_pause_the_session(tmp_path: Path) -> None:
    bench = Bench(
        tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")), service={"max_attempts": 1, "batch_rows": 4}
    )
    failures = [OSError(28, "No space left on device")]

    def step(name: str) -> None:
        if "rows quarantined" in name and failures:
            raise failures.pop()

    bench.land("s", 4)
    core = bench.open(step)
    for k in range(40):
        worker = FakeWorker(f"worker {k}", f"w{k}")
        for _ in range(4):
            worker.turn(core)
            if worker.lease is not None:
                break
            turn(core, bench.clock, [])
        turn(core, bench.clock, [], 7.0)
        if not failures:
            break
    assert not failures and core.status().state is SessionState.PAUSED
    turn(core, bench.clock, [], 5.0)
    run_until(core, bench.clock, [FakeWorker("last", "last")], 4)
    core.close()


def test_a_mount_that_is_away_at_a_commit_pauses_the_session_until_it_is_back(bench: Bench) -> None:
    failures = [TransientError("batch_000001.star: No such file or directory; is the mount there?")]

    def step(name: str) -> None:
        if name == "commit: folder synced" and failures:
            raise failures.pop()

    bench.land("s", 5)
    core = bench.open(step)
    worker = FakeWorker()
    for _ in range(20):
        turn(core, bench.clock, [worker])
        if not failures:
            break
    assert core.status().state is SessionState.PAUSED and "is the mount there" in core.status().problems[0]
    run_until(core, bench.clock, [worker], 5)
    core.close()


@pytest.mark.parametrize(("error", "code"), [(TransientError("away"), 75), (SessionBusyError("busy"), 2)])
def test_what_a_later_start_may_not_meet_exits_with_75_and_a_busy_session_with_2(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(arguments: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(cli, "_later", lambda name: fails)
    assert cli.main(["status", "somewhere"]) == code
    assert str(error) in capsys.readouterr().err
