import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from support.session_bench import (
    Bench,
    FakeTrainer,
    FakeWorker,
    crash,
    fake_checkpoint,
    is_done,
    result_of,
    run_until,
    tell,
    turn,
)

from cesped_stream.errors import CespedStreamError, InvalidSettingsError
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.star import read_star
from cesped_stream_service import coordinator as coordinator_module
from cesped_stream_service.coordinator import Coordinator
from cesped_stream_service.messages import (
    Ack,
    Control,
    Failure,
    Heartbeat,
    Hello,
    HelloAgain,
    Idle,
    Lease,
    Ready,
    TrainingDone,
    TrainingOrder,
    TrainingProgress,
    Welcome,
)
from cesped_stream_service.session import SessionBusyError
from cesped_stream_service.status import SessionState


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A bench whose session has a checkpoint from its start."""
    return Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")))


def hello(core: Coordinator, incarnation: str = "w1", name: str = "worker 1") -> None:
    message = Hello(role="worker", name=name, incarnation=incarnation, pid=1, device="cpu")
    assert isinstance(tell(core, incarnation.encode(), message)[0], Welcome)


def ready(core: Coordinator, incarnation: str = "w1", rate: float = 0.0) -> Lease | Idle:
    reply = tell(core, incarnation.encode(), Ready(incarnation=incarnation, particles_per_second=rate))[0]
    assert isinstance(reply, Lease | Idle)
    return reply


def leased(bench: Bench, core: Coordinator, incarnation: str = "w1") -> Lease:
    """Take turns until the worker gets a lease."""
    hello(core, incarnation)
    for _ in range(20):
        reply = ready(core, incarnation)
        if isinstance(reply, Lease):
            return reply
        turn(core, bench.clock, [])
    raise AssertionError("no lease")


def answer(core: Coordinator, lease: Lease, incarnation: str = "w1") -> list[Ack]:
    result, frames = result_of(lease, incarnation, StackReader())
    said = core.handle(incarnation.encode(), result, frames)
    return [out.message for out in [*said, *core.tick()] if isinstance(out.message, Ack)]


def posed_rows(bench: Bench) -> int:
    return sum(len(read_star(path)) for path in (bench.session / "poses").glob("poses*.star"))


def test_starting_imports_no_torch() -> None:
    code = "import sys, cesped_stream_service.coordinator, cesped_stream.export.star; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "False\n"


def test_a_second_coordinator_is_refused_and_told_who_runs(bench: Bench) -> None:
    core = bench.open()
    with pytest.raises(SessionBusyError, match=f"pid {os.getpid()} on host"):
        bench.open()
    core.close()
    bench.open().close()


def test_an_acknowledgement_comes_only_after_the_commit(bench: Bench) -> None:
    bench.land("s", 4)
    core = bench.open()
    lease = leased(bench, core)
    result, frames = result_of(lease, "w1", StackReader())
    assert core.handle(b"w1", result, frames) == []
    assert posed_rows(bench) == 0
    acks = [out.message for out in core.tick()]
    assert acks == [Ack(lease_id=lease.lease_id, accepted=True)]
    assert posed_rows(bench) == lease.num_rows
    core.close()


def test_results_are_committed_together_while_others_are_out_and_at_once_when_none_is(tmp_path: Path) -> None:
    bench = Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")), service={"commit_seconds": 5.0})
    bench.land("s", 12)
    core = bench.open()
    first = leased(bench, core)
    assert [ack.lease_id for ack in answer(core, first)] == [first.lease_id], "none is out"
    hello(core, "w2", "worker 2")
    second, third = ready(core), ready(core, "w2")
    assert isinstance(second, Lease) and isinstance(third, Lease)
    assert answer(core, second) == [], "one is out"
    assert [ack.lease_id for ack in answer(core, third, "w2")] == [second.lease_id, third.lease_id]
    core.close()


def test_a_result_sent_again_is_acknowledged_and_counted_once(bench: Bench) -> None:
    bench.land("s", 4)
    core = bench.open()
    lease = leased(bench, core)
    assert [ack.accepted for ack in answer(core, lease)] == [True]
    assert [ack.accepted for ack in answer(core, lease)] == [True]
    crash(core)
    core = bench.open()
    hello(core)
    assert [ack.accepted for ack in answer(core, lease)] == [True]
    assert core.status().posed == posed_rows(bench) == 4
    core.close()


def test_a_silent_worker_loses_its_lease_within_ten_seconds_and_its_late_result_is_refused(bench: Bench) -> None:
    bench.land("s", 4)
    core = bench.open()
    lease = leased(bench, core)
    silent_since = bench.clock.now
    hello(core, "w2", "worker 2")
    while isinstance(reply := ready(core, "w2"), Idle):
        turn(core, bench.clock, [], 0.5)
        beat = Heartbeat(incarnation="w2", role="worker", name="worker 2", state="idle", progress=0)
        assert tell(core, b"w2 heart", beat) == []
    assert bench.clock.now - silent_since < 10.0
    assert (reply.batch_id, reply.first_row, reply.num_rows) == (lease.batch_id, lease.first_row, lease.num_rows)
    assert reply.lease_id != lease.lease_id
    assert [ack.accepted for ack in answer(core, lease)] == [False]
    assert [ack.accepted for ack in answer(core, reply, "w2")] == [True]
    assert core.status().posed == posed_rows(bench) == 4
    assert core.status().refused_results == 1
    core.close()


def test_a_worker_that_comes_back_is_another_incarnation_and_the_former_result_is_refused(bench: Bench) -> None:
    bench.land("s", 4)
    core = bench.open()
    lease = leased(bench, core)
    hello(core, "w1 again", "worker 1")
    again = ready(core, "w1 again")
    assert isinstance(again, Lease) and again.first_row == lease.first_row
    assert [ack.accepted for ack in answer(core, lease)] == [False]
    assert [ack.accepted for ack in answer(core, again, "w1 again")] == [True]
    assert posed_rows(bench) == 4
    core.close()


def test_another_workers_lease_cannot_be_answered(bench: Bench) -> None:
    bench.land("s", 4)
    core = bench.open()
    lease = leased(bench, core)
    hello(core, "w2", "worker 2")
    assert [ack.accepted for ack in answer(core, lease, "w2")] == [False]
    assert [ack.accepted for ack in answer(core, lease, "w1")] == [True]
    core.close()


def test_a_lease_expires_though_heartbeats_go_on(bench: Bench) -> None:
    bench.land("s", 4)
    core = bench.open()
    lease = leased(bench, core)
    for _ in range(130):
        turn(core, bench.clock, [], 1.0)
        tell(core, b"h", Heartbeat(incarnation="w1", role="worker", name="worker 1", state="stuck", progress=0))
    assert [ack.accepted for ack in answer(core, lease)] == [False]
    assert isinstance(ready(core), Lease)
    core.close()


def test_a_restarted_coordinator_asks_for_a_greeting_and_never_gives_a_lease_id_twice(bench: Bench) -> None:
    bench.land("s", 20)
    core = bench.open()
    first = leased(bench, core)
    answer(core, first)
    seen = {first.lease_id, leased(bench, core).lease_id}
    crash(core)
    core = bench.open()
    assert tell(core, b"w1", Ready(incarnation="w1")) == [HelloAgain()]
    beat = Heartbeat(incarnation="w1", role="worker", name="worker 1", state="idle", progress=0)
    assert tell(core, b"heart", beat) == [HelloAgain()]
    assert leased(bench, core).lease_id not in seen
    core.close()


def test_leases_are_sized_by_the_workers_rate_in_whole_inference_batches(tmp_path: Path) -> None:
    bench = Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")), service={"batch_rows": 500})
    bench.land("s", 300)
    core = bench.open()
    first = leased(bench, core)
    assert first.num_rows == 4
    answer(core, first)
    reply = ready(core, rate=2.3)
    assert isinstance(reply, Lease) and reply.num_rows == 20
    core.close()


def fail(core: Coordinator, lease: Lease, *, transient: bool, row: int = -1) -> None:
    message = Failure(
        incarnation="w1", lease_id=lease.lease_id, error="E", message="bad", retry_can_help=transient, row=row
    )
    assert tell(core, b"w1", message) == [Ack(lease_id=lease.lease_id, accepted=True)]


def test_a_row_that_always_fails_is_quarantined_alone_and_requeue_brings_it_back(bench: Bench) -> None:
    bench.land("s", 7)
    core = bench.open()
    hello(core)
    failures = 0
    worker = FakeWorker()
    for _ in range(60):
        turn(core, bench.clock, [], 1.0)
        tell(core, b"h", Heartbeat(incarnation="w1", role="worker", name="worker 1", state="", progress=0))
        reply = ready(core)
        if isinstance(reply, Lease) and reply.first_row <= 2 < reply.first_row + reply.num_rows:
            fail(core, reply, transient=False, row=2)
            failures += 1
        elif isinstance(reply, Lease):
            answer(core, reply)
    status = core.status()
    assert (status.posed, status.quarantined, status.pending, failures) == (6, 1, 0, 3)
    reasons = list((bench.session / "quarantine").glob("batch_000001_row_2.json"))
    assert len(reasons) == 1 and "E: bad" in reasons[0].read_text()
    assert "1 rows" in tell(core, b"cli", Control(action="requeue", argument="1"))[0].text
    assert not reasons[0].exists()
    run_until(core, bench.clock, [worker], 7)
    assert core.status().posed == posed_rows(bench) == 7
    core.close()


def test_a_failure_that_a_retry_can_help_with_is_tried_until_patience_ends(bench: Bench) -> None:
    bench.land("s", 4)
    core = bench.open()
    hello(core)
    tries = 0
    start = bench.clock.now
    while core.status().quarantined == 0 and bench.clock.now - start < 300:
        turn(core, bench.clock, [], 1.0)
        tell(core, b"h", Heartbeat(incarnation="w1", role="worker", name="worker 1", state="", progress=0))
        if isinstance(reply := ready(core), Lease):
            fail(core, reply, transient=True)
            tries += 1
    assert core.status().quarantined == 4
    assert tries > 5
    assert bench.clock.now - start > 60.0
    core.close()


def test_a_result_with_a_pose_that_is_no_number_is_refused(bench: Bench) -> None:
    bench.land("s", 4)
    core = bench.open()
    lease = leased(bench, core)
    result, frames = result_of(lease, "w1", StackReader())
    frames["euler_deg"][1, 1] = float("nan")
    reply = core.handle(b"w1", result, frames)[0].message
    assert isinstance(reply, Ack) and not reply.accepted and "euler_deg" in reply.reason
    core.tick()
    assert posed_rows(bench) == 0
    core.close()


@pytest.mark.parametrize("name", ["confidence", "top_probability"])
@pytest.mark.parametrize(("value", "accepted"), [(1e303, False), (-0.01, False), (1.01, False), (1 + 1e-7, True)])
def test_a_result_with_a_confidence_that_is_no_probability_is_refused(
    bench: Bench, name: str, value: float, accepted: bool
) -> None:
    bench.land("s", 4)
    core = bench.open()
    lease = leased(bench, core)
    result, frames = result_of(lease, "w1", StackReader())
    frames[name][1] = value
    said = [*core.handle(b"w1", result, frames), *core.tick()]
    acks = [out.message for out in said if isinstance(out.message, Ack)]
    assert [ack.accepted for ack in acks] == [accepted]
    assert accepted or name in acks[0].reason
    assert posed_rows(bench) == (4 if accepted else 0)
    core.close()


def test_nothing_is_leased_before_a_checkpoint_is_there_and_waiting_rows_are_done_then(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.land("s", 5)
    core = bench.open()
    worker = FakeWorker()
    for _ in range(10):
        turn(core, bench.clock, [worker])
    assert core.status().pending == 5 and worker.rows_done == 0
    assert core.status().state is SessionState.COLLECTING_ALIGNED
    bench.land("aligned", 8, aligned=True)
    trainer = FakeTrainer(bench.session / "checkpoints")
    run_until(core, bench.clock, [trainer, worker], 13)
    status = core.status()
    assert (status.given, status.predicted) == (8, 5)
    assert status.latency.num_rows == 5 and status.latency_with_model.num_rows == 0
    core.close()


def test_a_torn_checkpoint_is_not_used_and_the_last_good_one_stays(tmp_path: Path) -> None:
    bench = Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given", "i2s-00000000000a")))
    bench.land("aligned", 8, aligned=True)
    core = bench.open()
    for _ in range(8):
        turn(core, bench.clock, [])
    assert "asked for" in tell(core, b"cli", Control(action="train"))[0].text
    core.tick()
    tell(core, b"t", Hello(role="trainer", name="t", incarnation="t", pid=1, device="cpu"))
    order = tell(core, b"t", Ready(incarnation="t"))[0]
    assert isinstance(order, TrainingOrder)
    folder = fake_checkpoint(bench.session / "checkpoints", "i2s-00000000000b")
    (folder / "half_1.safetensors").write_bytes(b"torn")
    done = TrainingDone(
        incarnation="t",
        training_id=order.training_id,
        checkpoint_id=folder.name,
        checkpoint=str(folder),
        seconds=1.0,
    )
    ack = tell(core, b"t", done)[0]
    assert isinstance(ack, Ack) and not ack.accepted and "half_1.safetensors" in ack.reason
    status = core.status()
    assert status.checkpoint is not None and status.checkpoint.checkpoint_id == "i2s-00000000000a"
    fake_checkpoint(bench.session / "checkpoints", "i2s-00000000000b")
    assert tell(core, b"t", done) == tell(core, b"t", done) == [Ack(lease_id=order.training_id, accepted=True)]
    crash(core)
    core = bench.open()
    status = core.status()
    assert status.checkpoint is not None and status.checkpoint.checkpoint_id == "i2s-00000000000b"
    core.close()


def test_a_trainer_that_died_gets_the_same_order_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.land("aligned", 8, aligned=True)
    core = bench.open()
    for _ in range(8):
        turn(core, bench.clock, [])
    orders = []
    for incarnation in ("t1", "t2"):
        tell(core, b"t", Hello(role="trainer", name="t", incarnation=incarnation, pid=1, device="cpu"))
        orders += tell(core, b"t", Ready(incarnation=incarnation))
    tell(core, b"u", Hello(role="trainer", name="u", incarnation="u1", pid=1, device="cpu"))
    assert orders[0] == orders[1] and isinstance(orders[0], TrainingOrder)
    assert isinstance(tell(core, b"u", Ready(incarnation="u1"))[0], Idle)
    table = read_star(Path(orders[0].aligned_star))
    assert len(table) == 8 and table.has_poses().all() and "cestreamStack" in table
    core.close()


def test_reinfer_raises_the_revision_of_predicted_rows_once_each_time(bench: Bench) -> None:
    bench.land("aligned", 6, aligned=True)
    bench.land("s", 20, flagged=[5])
    core = bench.open()
    worker = FakeWorker()
    run_until(core, bench.clock, [worker], 26)
    for revision, checkpoint_id in (("1", "i2s-00000000000b"), ("2", "i2s-00000000000c")):
        fake_checkpoint(bench.session / "checkpoints", checkpoint_id)
        reply = tell(core, b"cli", Control(action="reinfer", argument=checkpoint_id))[0]
        assert reply.ok and core.status().reinfer_shards_left > 0
        run_until(core, bench.clock, [worker], 26)
        tables = [read_star(path) for path in (bench.session / "poses").glob("poses*.star")]
        rows = [row for t in tables for row in zip(*map(t.column, ("cestreamStatus", "cestreamRevision")), strict=True)]
        assert sorted(rows) == sorted([("given", "0")] * 6 + [("predicted", revision)] * 19)
        assert {c for t in tables for c in t.column("cestreamCheckpoint")} == {"none", checkpoint_id}
    reply = tell(core, b"cli", Control(action="reinfer", argument="nowhere"))[0]
    assert not reply.ok
    assert reply.text == (
        "reinfer nowhere: no checkpoint of this id and no folder; the session has i2s-00000000000b, i2s-00000000000c"
    )
    core.close()


def test_a_reinfer_commits_the_results_in_hand_first_and_takes_back_the_leases_of_the_former_model(
    bench: Bench,
) -> None:
    bench.land("s", 7)
    core = bench.open()
    first = leased(bench, core)
    hello(core, "w2", "worker 2")
    second = ready(core, "w2")
    assert isinstance(second, Lease)
    result, frames = result_of(first, "w1", StackReader())
    core.handle(b"w1", result, frames)
    fake_checkpoint(bench.session / "checkpoints", "i2s-00000000000b")
    assert core.request_reinfer("i2s-00000000000b") == 1
    assert [out.message for out in core.tick()] == [Ack(lease_id=first.lease_id, accepted=True)]
    assert [ack.accepted for ack in answer(core, second, "w2")] == [False]
    run_until(core, bench.clock, [FakeWorker()], 7)
    tables = [read_star(path) for path in (bench.session / "poses").glob("poses*.star")]
    assert sorted(r for t in tables for r in t.column("cestreamRevision")) == ["0"] * 3 + ["1"] * 4
    assert {c for t in tables for c in t.column("cestreamCheckpoint")} == {"i2s-00000000000b"}
    core.close()


def test_a_session_inside_the_landing_folder_does_not_eat_its_own_stars(tmp_path: Path) -> None:
    bench = Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")))
    bench.settings = bench.settings.model_copy(update={"session": bench.landing / "session"})
    bench.land("s", 5)
    core = bench.open()
    run_until(core, bench.clock, [FakeWorker()], 5)
    for _ in range(10):
        turn(core, bench.clock, [])
    status = core.status()
    assert (status.landed, status.stars, status.duplicates, status.quarantined_stars) == (5, 1, 0, 0)
    core.close()
    inside = bench.settings.landing.model_copy(update={"folder": bench.settings.session / "poses"})
    bench.settings = bench.settings.model_copy(update={"landing": inside})
    with pytest.raises(InvalidSettingsError, match="lies in the session folder"):
        bench.open()


def test_low_disk_pauses_and_resumes_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.settings = bench.settings.model_copy(
        update={"service": bench.settings.service.model_copy(update={"free_disk_megabytes": 100})}
    )
    free = [50]
    usage = shutil.disk_usage(bench.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free[0] * 1_000_000))
    bench.land("s", 5)
    core = bench.open()
    worker = FakeWorker()
    for _ in range(10):
        turn(core, bench.clock, [worker])
    status = core.status()
    assert status.state is SessionState.PAUSED and status.landed == 0
    assert "50 MB, below 100 MB" in status.problems[0]
    free[0] = 200
    run_until(core, bench.clock, [worker], 5)
    assert core.status().state is SessionState.UP_TO_DATE
    core.close()


@pytest.mark.parametrize(
    "at", ["poses.star: temporary written", "commit intent: before commit", "commit: folder synced"]
)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), sqlite3.OperationalError("disk is full")])
def test_a_failed_write_loses_nothing_and_is_tried_again(bench: Bench, at: str, error: Exception) -> None:
    failures = [error, error]

    def step(name: str) -> None:
        if name == at and failures:
            raise failures.pop()

    bench.land("s", 5)
    core = bench.open(step)
    worker = FakeWorker()
    run_until(core, bench.clock, [worker], 5)
    assert not failures
    assert any(not ack.accepted for ack in worker.acks)
    assert core.status().posed == posed_rows(bench) == 5
    core.close()


def test_a_pose_file_changed_from_outside_is_set_aside_and_made_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")), service={"shard_rows": 1000})
    bench.land("s", 5)
    core = bench.open()
    run_until(core, bench.clock, [FakeWorker()], 5)
    core.close()
    good = (bench.session / "poses" / "poses.star").read_bytes()
    (bench.session / "poses" / "poses.star").write_bytes(good.replace(b"predicted", b"predicteX"))
    core = bench.open()
    assert "poses.star" in core.status().problems[0]
    run_until(core, bench.clock, [FakeWorker()], 5)
    core.close()
    assert read_star(bench.session / "poses" / "poses.star").column("cestreamStatus") == ["predicted"] * 5
    assert len(list((bench.session / "quarantine").glob("poses.star.*"))) == 1


def test_drain_finishes_what_is_in_hand_and_then_asks_to_stop(bench: Bench) -> None:
    bench.land("s", 7)
    core = bench.open()
    lease = leased(bench, core)
    core.drain()
    core.tick()
    assert not core.stop_requested and isinstance(ready(core), Idle)
    assert core.status().state is SessionState.DRAINING
    answer(core, lease)
    core.tick()
    assert core.stop_requested
    core.close()
    assert posed_rows(bench) == 4


def test_requests_work_on_a_session_where_nothing_runs(bench: Bench) -> None:
    bench.land("s", 7)
    core = bench.open()
    run_until(core, bench.clock, [FakeWorker()], 7)
    core.close()
    fake_checkpoint(bench.session / "checkpoints", "i2s-00000000000b")
    core = bench.open()
    assert core.request_reinfer("i2s-00000000000b") == 1
    core.close()
    core = bench.open()
    run_until(core, bench.clock, [FakeWorker()], 7)
    assert core.status().checkpoint is not None and core.status().checkpoint.rows == 7
    core.close()
    with pytest.raises(CespedStreamError, match="nothing of it is quarantined"):
        core = bench.open()
        try:
            core.requeue("77")
        finally:
            core.close()


def test_status_is_written_to_the_session_folder(bench: Bench) -> None:
    core = bench.open()
    turn(core, bench.clock, [])
    text = (bench.session / "state" / "status.json").read_text()
    assert coordinator_module.SessionStatus.model_validate_json(text).state is SessionState.WAITING_FOR_ROWS
    reply = tell(core, b"cli", Control(action="status"))[0]
    assert reply.ok and coordinator_module.SessionStatus.model_validate_json(reply.status).landed == 0
    assert is_done(core, 0)
    core.close()


def test_rows_whose_redo_is_given_up_keep_their_checkpoint_and_another_reinfer_redoes_them(tmp_path: Path) -> None:
    bench = Bench(
        tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given", "i2s-00000000000a")), service={"max_attempts": 1}
    )
    bench.land("s", 7)
    core = bench.open()
    run_until(core, bench.clock, [FakeWorker()], 7)
    fake_checkpoint(bench.session / "checkpoints", "i2s-00000000000b")
    assert core.request_reinfer("i2s-00000000000b") == 1
    assert core.status().state is SessionState.INFERRING
    fail(core, leased(bench, core), transient=False, row=2)
    run_until(core, bench.clock, [FakeWorker(incarnation="w2")], 7)

    def checkpoints() -> list[str]:
        tables = [read_star(path) for path in (bench.session / "poses").glob("poses*.star")]
        return sorted(c for t in tables for c in t.column("cestreamCheckpoint"))

    assert checkpoints() == ["i2s-00000000000a"] + ["i2s-00000000000b"] * 6
    status = core.status()
    assert status.checkpoint is not None and status.checkpoint.rows == 6
    (reason,) = (bench.session / "quarantine").glob("batch_000001_row_2.json")
    assert "cesped-stream reinfer" in reason.read_text()
    assert core.request_reinfer("i2s-00000000000b") == 1
    run_until(core, bench.clock, [FakeWorker(incarnation="w3")], 7)
    assert checkpoints() == ["i2s-00000000000b"] * 7
    core.close()


def test_a_checkpoint_is_taken_only_from_the_trainer_with_the_order_and_from_the_sessions_folder(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path)
    bench.land("aligned", 8, aligned=True)
    core = bench.open()
    for _ in range(8):
        turn(core, bench.clock, [])
    hello(core)
    for name in ("t", "u"):
        tell(core, name.encode(), Hello(role="trainer", name=name, incarnation=name, pid=1, device="cpu"))
    order = tell(core, b"t", Ready(incarnation="t"))[0]
    assert isinstance(order, TrainingOrder)
    foreign, own = fake_checkpoint(tmp_path / "foreign"), fake_checkpoint(bench.session / "checkpoints")

    def done(incarnation: str, folder: Path) -> Ack:
        message = TrainingDone(
            incarnation=incarnation,
            training_id=order.training_id,
            checkpoint_id=folder.name,
            checkpoint=str(folder),
            seconds=1.0,
        )
        reply = tell(core, incarnation.encode(), message)[0]
        assert isinstance(reply, Ack)
        return reply

    progress = {"training_id": order.training_id, "step": 5, "max_steps": 9}
    for incarnation in ("w1", "u"):
        tell(core, incarnation.encode(), TrainingProgress(incarnation=incarnation, **progress))
        refused = done(incarnation, own)
        assert not refused.accepted and "not ordered from this role" in refused.reason
    training = core.status().training
    assert training is not None and training.step == 0
    refused = done("t", foreign)
    assert not refused.accepted and "lies not in" in refused.reason and core.status().checkpoint is None
    assert done("t", own).accepted and done("t", own).accepted
    core.close()


def test_a_trainer_that_trained_on_while_the_coordinator_restarted_still_has_the_order(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.land("aligned", 8, aligned=True)
    core = bench.open()
    for _ in range(8):
        turn(core, bench.clock, [])
    greeting = Hello(role="trainer", name="t", incarnation="t", pid=1, device="cpu")
    tell(core, b"t", greeting)
    order = tell(core, b"t", Ready(incarnation="t"))[0]
    assert isinstance(order, TrainingOrder)
    crash(core)
    core = bench.open()
    tell(core, b"t", greeting)
    tell(core, b"t", TrainingProgress(incarnation="t", training_id=order.training_id, step=5, max_steps=9))
    training = core.status().training
    assert training is not None and training.step == 5
    tell(core, b"u", Hello(role="trainer", name="u", incarnation="u", pid=1, device="cpu"))
    assert isinstance(tell(core, b"u", Ready(incarnation="u"))[0], Idle)
    core.close()
