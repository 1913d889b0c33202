"""A slow worker keeps its lease, a question asked twice has one answer, and of two with one name the newer stays."""

from pathlib import Path

import pytest
from support.session_bench import Bench, FakeWorker, fake_checkpoint, result_of, run_until, tell, turn

from cesped_stream.particles.stacks import StackReader
from cesped_stream_service.coordinator import Coordinator
from cesped_stream_service.messages import Ack, Heartbeat, Hello, HelloAgain, Lease, Ready, Refused, Welcome

HELLO = Hello(role="worker", name="worker 1", incarnation="w1", pid=1, device="cpu")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")))


def beat(core: Coordinator, progress: int, incarnation: str = "w1") -> None:
    message = Heartbeat(incarnation=incarnation, role="worker", name="worker 1", state="busy", progress=progress)
    assert tell(core, b"heart", message) == []


def leased(bench: Bench, core: Coordinator) -> Lease:
    assert isinstance(tell(core, b"w1", HELLO)[0], Welcome)
    for _ in range(20):
        reply = tell(core, b"w1", Ready(incarnation="w1"))[0]
        if isinstance(reply, Lease):
            return reply
        turn(core, bench.clock, [])
    raise AssertionError("no lease")


def test_a_worker_that_makes_progress_keeps_its_lease_however_long_it_takes(bench: Bench) -> None:
    bench.land("s", 4)
    core = bench.open()
    lease = leased(bench, core)
    for k in range(60):
        turn(core, bench.clock, [], 5.0)
        beat(core, 1 + k // 10)
    core.handle(b"w1", *result_of(lease, "w1", StackReader()))
    assert [out.message for out in core.tick()] == [Ack(lease_id=lease.lease_id, accepted=True)]
    core.close()


def test_leases_that_expire_under_a_beating_worker_never_quarantine_rows(tmp_path: Path) -> None:
    bench = Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")), service={"max_attempts": 1})
    bench.land("s", 4)
    core = bench.open()
    leases = set()
    for _ in range(8):
        leases.add(leased(bench, core).lease_id)
        for _ in range(25):
            turn(core, bench.clock, [], 5.0)
            beat(core, 0)
    assert len(leases) == 8 and core.status().quarantined == 0
    core.close()


def test_a_worker_that_asks_while_it_holds_a_lease_gets_that_one_again(bench: Bench) -> None:
    bench.land("s", 7)
    core = bench.open()
    lease = leased(bench, core)
    assert tell(core, b"w1", Ready(incarnation="w1")) == [lease]
    assert core.status().leased == lease.num_rows == 4
    core.handle(b"w1", *result_of(lease, "w1", StackReader()))
    after = tell(core, b"w1", Ready(incarnation="w1"))[0]
    assert isinstance(after, Lease) and after.lease_id != lease.lease_id
    core.close()


def test_of_two_workers_with_one_name_the_newer_works_and_the_older_is_refused(bench: Bench) -> None:
    bench.land("s", 40)
    core = bench.open()
    leased(bench, core)
    newer = FakeWorker("worker 1", "w2")
    newer.turn(core)
    assert tell(core, b"w1", Ready(incarnation="w1")) == [HelloAgain()]
    (refused,) = tell(core, b"w1", HELLO)
    assert isinstance(refused, Refused) and "another worker has the name 'worker 1'" in refused.reason
    run_until(core, bench.clock, [newer], 40)
    assert core.status().refused_results == 0
    core.close()


def test_a_result_of_another_checkpoint_than_the_leases_is_refused_and_its_rows_are_done_again(bench: Bench) -> None:
    bench.land("s", 4)
    core = bench.open()
    lease = leased(bench, core)
    result, frames = result_of(lease, "w1", StackReader())
    (out,) = core.handle(b"w1", result.model_copy(update={"checkpoint_id": "i2s-other"}), frames)
    assert isinstance(out.message, Ack) and "i2s-other" in out.message.reason
    assert core.status().leased == 0
    core.close()
