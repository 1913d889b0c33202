"""`stop` waits until nobody holds the session, says what it waits for, and is not misled by a kill."""

from pathlib import Path

import pytest
from support.session_bench import Bench, FakeWorker, crash, fake_checkpoint, run_until, turn

from cesped_stream_service.messages import Control
from cesped_stream_service.request import last_status
from cesped_stream_service.session import SessionFolder, is_held
from cesped_stream_service.stopping import wait_for_end


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")))


def test_a_session_is_held_as_long_as_its_coordinator_is_open(bench: Bench) -> None:
    folder = SessionFolder.of(bench.settings)
    assert not is_held(folder)
    core = bench.open()
    assert is_held(folder)
    core.close()
    assert not is_held(folder)
    bench.open().close()


def test_it_waits_for_the_rows_in_hand_and_tells_them_and_the_end(bench: Bench) -> None:
    bench.land("one", 9)
    core, worker = bench.open(), FakeWorker()
    for _ in range(8):
        turn(core, bench.clock, [], 0.5)
    worker.turn(core)
    core.drain()
    turns = 0

    def sleep(seconds: float) -> None:
        nonlocal turns
        turns += 1
        turn(core, bench.clock, [worker] if turns > 3 else [], 1.1)
        if core.stop_requested:
            core.close()

    said: list[str] = []
    wait_for_end(bench.settings, said.append, sleep=sleep)
    assert said[0] == "waits for 4 rows in hand at 1 worker"
    assert said[-1].startswith("stopped: 9 landed, 4 posed, 5 pending; `cesped-stream run --settings ")
    assert len(said) == 2 and turns > 3


def test_a_coordinator_that_is_killed_meanwhile_ends_the_wait(bench: Bench) -> None:
    core = bench.open()
    said: list[str] = []
    wait_for_end(bench.settings, said.append, sleep=lambda seconds: crash(core))
    assert said[-1].startswith("stopped")


def test_the_last_status_has_what_the_end_committed_and_no_rows_in_hand(bench: Bench) -> None:
    bench.land("one", 9)
    core, worker = bench.open(), FakeWorker()
    for _ in range(8):
        turn(core, bench.clock, [], 0.5)
    worker.turn(core)
    worker.turn(core)
    assert last_status(bench.settings).posed == 0  # type: ignore[union-attr]
    core.close()
    status = last_status(bench.settings)
    assert status is not None and status.state == "stopped"
    assert (status.posed, status.leased, status.pending, status.roles) == (4, 0, 5, ())


def test_a_request_on_a_session_that_does_not_run_leaves_its_last_status(bench: Bench) -> None:
    bench.land("one", 4)
    core = bench.open()
    run_until(core, bench.clock, [FakeWorker()], 4)
    core.close()
    before = SessionFolder.of(bench.settings).status.read_bytes()
    again = bench.open()
    assert again.control(Control(action="requeue")).ok
    again.close()
    assert SessionFolder.of(bench.settings).status.read_bytes() == before
