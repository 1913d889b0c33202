"""A session says what it waits for, at every stage, and nothing where it has all it needs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.session_bench import Bench, FakeTrainer, FakeWorker, fake_checkpoint, run_until, tell, turn

from cesped_stream_service.coordinator import Coordinator
from cesped_stream_service.messages import Control, ControlReply, Hello


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, min_aligned_per_half=4, aligned_quiet_seconds=10.0)


@pytest.fixture
def core(bench: Bench) -> Iterator[Coordinator]:
    core = bench.open()
    yield core
    core.close()


def waits(core: Coordinator, bench: Bench, turns: int = 8) -> tuple[str, ...]:
    for _ in range(turns):
        turn(core, bench.clock, [], 0.5)
    return core.status().waits_for


def test_an_empty_session_waits_for_rows_and_says_where(bench: Bench, core: Coordinator) -> None:
    assert waits(core, bench) == (f"rows: no star has landed in {bench.landing}",)


def test_a_star_that_has_just_come_is_to_settle(bench: Bench, core: Coordinator) -> None:
    bench.land("one", 3)
    assert waits(core, bench, turns=1) == ("1 star to settle (unchanged for 1 s)",)


def test_rows_whose_stack_is_not_there_wait_for_it(bench: Bench, core: Coordinator) -> None:
    bench.land_star("one", range(1, 6))
    assert waits(core, bench) == ("the stacks of 5 rows",)


def test_the_aligned_rows_that_each_half_lacks_are_counted(bench: Bench, core: Coordinator) -> None:
    bench.land("one", 5, aligned=True)
    assert waits(core, bench) == ("2 + 1 more aligned rows (4 a half)",)


def test_rows_without_any_poses_wait_for_all_the_aligned_ones(bench: Bench, core: Coordinator) -> None:
    bench.land("one", 5)
    assert waits(core, bench) == ("4 + 4 more aligned rows (4 a half)",)


def test_the_quiet_time_that_is_left_counts_down_and_begins_again_with_a_new_row(
    bench: Bench, core: Coordinator
) -> None:
    def seconds_left() -> int:
        (words,) = waits(core, bench, turns=2)
        assert words.endswith(" s without a new aligned row")
        return int(words.split()[0])

    bench.land("one", 8, aligned=True)
    for _ in range(6):
        turn(core, bench.clock, [], 0.5)
    first, then = seconds_left(), seconds_left()
    assert (first - then, first <= 10) == (1, True)
    bench.land("two", 8, aligned=True)
    for _ in range(4):
        turn(core, bench.clock, [], 0.5)
    assert seconds_left() > then


def test_an_order_without_a_trainer_waits_for_one(bench: Bench, core: Coordinator) -> None:
    bench.land("one", 8, aligned=True)
    (bench.landing / "one.star.done").touch()
    assert waits(core, bench) == ("a trainer: none is connected",)
    tell(core, b"t", Hello(role="trainer", name="t", incarnation="t", pid=1, device="cpu"))
    assert core.status().waits_for == ()


def test_rows_to_score_wait_for_a_worker_and_a_session_that_is_done_for_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")))
    bench.land("one", 9)
    core = bench.open()
    assert waits(core, bench) == ("a worker: none is connected",)
    run_until(core, bench.clock, [FakeWorker()], 9)
    assert core.status().waits_for == ()
    core.close()


def test_a_session_that_learned_waits_for_nothing(bench: Bench, core: Coordinator) -> None:
    bench.land("one", 8, aligned=True)
    (bench.landing / "one.star.done").touch()
    trainer = FakeTrainer(bench.session / "checkpoints")
    for _ in range(12):
        turn(core, bench.clock, [trainer], 0.5)
    assert core.status().checkpoint is not None
    assert core.status().waits_for == ()


def test_a_stop_waits_for_the_rows_in_hand_says_so_and_ends_once_they_are_on_disk(tmp_path: Path) -> None:
    bench = Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")))
    bench.land("one", 9)
    core = bench.open()
    worker = FakeWorker()
    waits(core, bench)
    worker.turn(core)
    assert worker.lease is not None
    (reply,) = tell(core, b"cli", Control(action="drain"))
    assert isinstance(reply, ControlReply)
    assert "waits for 4 rows in hand at 1 worker" in reply.text
    assert waits(core, bench, turns=1) == ("4 rows in hand at 1 worker",)
    assert not core.stop_requested
    for _ in range(3):
        turn(core, bench.clock, [worker], 0.5)
    assert core.stop_requested
    assert (core.status().posed, worker.lease) == (4, None)
    (reply,) = tell(core, b"cli", Control(action="drain"))
    assert isinstance(reply, ControlReply) and "nothing is in hand" in reply.text
    core.close()


def test_a_stop_at_once_waits_for_nothing_and_loses_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")))
    bench.land("one", 9)
    core = bench.open()
    worker = FakeWorker()
    waits(core, bench)
    worker.turn(core)
    (reply,) = tell(core, b"cli", Control(action="stop"))
    assert isinstance(reply, ControlReply) and core.stop_requested
    assert reply.text == "stops at once: 4 rows in hand at 1 worker are done again after the next start"
    core.close()
    again = bench.open()
    run_until(again, bench.clock, [FakeWorker(incarnation="w2")], 9)
    assert again.status().posed == 9
    again.close()
