"""One bad row costs no other row its pose, and one bad worker costs no row anything."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.session_bench import Bench, FakeWorker, fake_checkpoint, run_until, turn

from cesped_stream.export.star import export_star
from cesped_stream.particles.star import read_star
from cesped_stream_service.coordinator import Coordinator
from cesped_stream_service.failed_rows import lines_of
from cesped_stream_service.leasing import LOSSES_PER_FAILURE, Span, after_failure, after_loss
from cesped_stream_service.messages import Control, Failure, Heartbeat, Lease
from cesped_stream_service.status import SessionStatus

EIGH = "linalg.eigh: (Batch element 3): The algorithm failed to converge"


class FailingWorker(FakeWorker):
    """Fails the leases that `fails` says, with an error that is nobody's; does the others."""

    def __init__(
        self,
        fails: Callable[[list[str]], bool],
        name: str = "worker 1",
        incarnation: str = "w1",
        *,
        transient: bool = False,
        worker_at_fault: bool = False,
    ) -> None:
        super().__init__(name, incarnation)
        self.fails = fails
        self.transient, self.worker_at_fault = transient, worker_at_fault
        self.failed: list[int] = []
        """Rows of each lease that failed."""

    def turn(self, core: Coordinator) -> None:
        if self.lease is None or not self.fails(images_of(self.lease)):
            super().turn(core)
            return
        self.failed.append(self.lease.num_rows)
        failure = Failure(
            incarnation=self.incarnation,
            lease_id=self.lease.lease_id,
            error="_LinAlgError",
            message=EIGH,
            retry_can_help=self.transient,
            worker_at_fault=self.worker_at_fault,
        )
        self.hear(core.handle(self.peer, failure, {}))


def images_of(lease: Lease) -> list[str]:
    table = read_star(Path(lease.batch_star))
    return table.column("rlnImageName")[lease.first_row : lease.first_row + lease.num_rows]


def bad(*names: str) -> Callable[[list[str]], bool]:
    return lambda images: any(name in image for image in images for name in names)


def make_bench(root: Path, **changes: object) -> Bench:
    service = {"batch_rows": 64, "lease_seconds": 1.0} | dict(changes.pop("service", {}))  # type: ignore[call-overload]
    return Bench(
        root,
        checkpoint=str(fake_checkpoint(root / "given", "i2s-00000000000a")),
        service=service,
        inference={"batch_size": 32},
        **changes,
    )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)


def posed_images(bench: Bench) -> list[str]:
    return [n for path in (bench.session / "poses").glob("poses*.star") for n in read_star(path).column("rlnImageName")]


def turns_until(
    core: Coordinator, bench: Bench, roles: list[FakeWorker], is_over: Callable[[SessionStatus], bool], most: int = 120
) -> int:
    for k in range(most):
        turn(core, bench.clock, roles)
        if is_over(core.status()):
            return k
    raise AssertionError(f"not over after {most} turns: {core.status()}")


def test_one_bad_row_of_many_is_found_by_halving_and_quarantined_alone_by_name(bench: Bench) -> None:
    bench.land("s", 24)
    core = bench.open()
    worker = FailingWorker(bad("000011@s.mrcs"))
    turns_until(core, bench, [worker], lambda status: status.quarantined == 1 and status.pending == 0)
    assert core.status().posed == 23 and sorted(posed_images(bench)) == [
        f"{k:06d}@s.mrcs" for k in range(1, 25) if k != 11
    ]
    assert worker.failed == [24, 12, 6, 3, 2, 1, 1, 1], "halves at once, the row alone three times"
    (reason,) = (bench.session / "quarantine").glob("batch_000001_row_10.json")
    told = json.loads(reason.read_text())
    star = bench.landing / "s.star"
    line = star.read_text().splitlines().index(next(x for x in star.read_text().splitlines() if "000011@" in x)) + 1
    assert told["particles"] == [
        {"image": "000011@s.mrcs", "stack": str(bench.landing / "s.mrcs"), "star": str(star), "line": line}
    ]
    assert EIGH in told["reason"] and f"000011@s.mrcs (line {line} of {star})" in told["reason"]
    (problem,) = core.status().problems
    assert f"line {line} of {star}" in problem
    core.close()


def test_halving_changes_no_byte_of_the_export(tmp_path: Path) -> None:
    exports = []
    for number, fails in enumerate((lambda images: False, lambda images: len(images) > 1)):
        bench = make_bench(tmp_path / str(number) / "same")
        for name in ("a", "b"):
            bench.land(name, 13)
        core = bench.open()
        turns_until(core, bench, [FailingWorker(fails)], lambda status: status.posed == 26, most=300)
        core.close()
        export_star(bench.session / "poses", tmp_path / f"{number}.star")
        text = (tmp_path / f"{number}.star").read_text()
        exports.append(text.replace(f"/{number}/same/", "/"))
    assert exports[0] == exports[1]


def test_a_row_that_kills_its_worker_is_found_and_the_others_are_posed(bench: Bench) -> None:
    bench.land("s", 16)
    bench.land("t", 16)
    core = bench.open()
    deaths, incarnation = 0, 0
    worker = FakeWorker("worker 1", "w0")
    for _ in range(400):
        turn(core, bench.clock, [], 0.3)
        if worker.lease is not None and bad("000005@s.mrcs")(images_of(worker.lease)):
            incarnation, deaths = incarnation + 1, deaths + 1
            worker = FakeWorker("worker 1", f"w{incarnation}")  # the same name, a new process
        worker.hear(core.tick())
        worker.turn(core)
        if core.status().quarantined and not core.status().pending and not core.status().leased:
            break
    status = core.status()
    assert (status.posed, status.quarantined) == (31, 1)
    assert deaths <= LOSSES_PER_FAILURE + 4 + 3, "five of the whole, one a halving, three of the row"
    assert "000005@s.mrcs" in status.problems[0] and "workers died" in status.problems[0]
    core.close()


def test_a_redone_row_that_always_fails_keeps_its_pose_and_the_others_get_theirs(bench: Bench) -> None:
    bench.land("s", 24)
    core = bench.open()
    run_until(core, bench.clock, [FakeWorker()], 24)
    fake_checkpoint(bench.session / "checkpoints", "i2s-00000000000b")
    core.request_reinfer("i2s-00000000000b")
    worker = FailingWorker(bad("000011@s.mrcs"), incarnation="w2")
    turns_until(core, bench, [worker], lambda status: status.reinfer_shards_left == 0)
    tables = [read_star(path) for path in (bench.session / "poses").glob("poses*.star")]
    columns = [(t.column("rlnImageName"), t.column("cestreamCheckpoint")) for t in tables]
    by = {name: checkpoint for names, made_by in columns for name, checkpoint in zip(names, made_by, strict=True)}
    assert by.pop("000011@s.mrcs") == "i2s-00000000000a" and set(by.values()) == {"i2s-00000000000b"} and len(by) == 23
    core.close()


def test_a_worker_that_fails_everything_is_set_aside_and_another_does_the_rows(bench: Bench) -> None:
    for name in "abcdef":
        bench.land(name, 10)
    core = bench.open()
    broken = FailingWorker(lambda images: True, "gpu 1", "g1")
    turns_until(core, bench, [broken], lambda status: any("set aside" in text for text in status.problems))
    assert len(broken.failed) <= 6 and core.status().quarantined == 0
    (told,) = [text for text in core.status().problems if "set aside" in text]
    assert told.startswith("gpu 1 is set aside") and EIGH in told
    failed = len(broken.failed)
    run_until(core, bench.clock, [broken, FakeWorker("gpu 2", "g2")], 60)
    assert core.status().posed == 60 and core.status().quarantined == 0
    assert len(broken.failed) <= failed + 1
    core.close()


@pytest.mark.parametrize("kind", ["worker_at_fault", "nobody's"])
def test_a_worker_that_is_mended_goes_on_after_its_rest_and_no_row_was_quarantined(bench: Bench, kind: str) -> None:
    for name in "abcd":
        bench.land(name, 10)
    core = bench.open()
    worker = FailingWorker(lambda images: True, worker_at_fault=kind == "worker_at_fault")
    turns_until(core, bench, [worker], lambda status: any("set aside" in text for text in status.problems))
    worker.fails = lambda images: False
    turn(core, bench.clock, [worker], 3.0)
    assert core.status().posed == 0, "it rests"
    for _ in range(25):
        turn(core, bench.clock, [worker], 3.0)
    run_until(core, bench.clock, [worker], 40)
    assert core.status().quarantined == 0 and core.status().posed == 40
    assert not any("set aside" in text for text in core.status().problems)
    core.close()


def test_rows_that_only_a_broken_worker_condemned_are_brought_back_when_it_is_set_aside(bench: Bench) -> None:
    core = bench.open()
    worker = FailingWorker(lambda images: True)
    condemned = 0
    for name in "abc":  # one batch after the other: there are never other rows to try the worker with
        bench.land(name, 4)
        for _ in range(60):
            turn(core, bench.clock, [worker])
            condemned = max(condemned, core.status().quarantined)
    assert condemned == 8 and core.status().quarantined == 0
    assert not list((bench.session / "quarantine").glob("*.json"))
    assert [text for text in core.status().problems if "set aside" in text]
    run_until(core, bench.clock, [worker, FakeWorker("worker 2", "w2")], 12)
    core.close()


def test_rows_that_were_requeued_by_hand_meanwhile_are_not_brought_back_a_second_time(bench: Bench) -> None:
    core = bench.open()
    worker = FailingWorker(lambda images: True)
    bench.land("a", 4)
    turns_until(core, bench, [worker], lambda status: status.quarantined == 4)
    assert core.control(Control(action="requeue")).ok
    for _ in range(3):  # they are pending again, and wait while the worker fails others
        turn(core, bench.clock, [])
    worker.fails = lambda images: True
    bench.land("b", 4)
    bench.land("c", 4)
    turns_until(core, bench, [worker], lambda status: any("set aside" in text for text in status.problems), most=300)
    worker.fails = lambda images: False
    turns_until(core, bench, [worker], lambda status: status.posed == 12, most=400)
    assert sorted(posed_images(bench)) == sorted(f"{k:06d}@{name}.mrcs" for name in "abc" for k in range(1, 5))
    core.close()


def test_a_star_whose_rows_are_all_bad_is_quarantined_and_the_worker_goes_on(bench: Bench) -> None:
    bench.land("bad", 6)
    for name in ("a", "b"):
        bench.land(name, 40)
    core = bench.open()
    worker = FailingWorker(bad("@bad.mrcs"))
    turns_until(core, bench, [worker], lambda status: status.quarantined == 6 and status.posed == 80)
    turn(core, bench.clock, [worker])
    assert not any("set aside" in text for text in core.status().problems)
    core.close()


def test_rows_whose_file_is_away_do_not_keep_those_beside_them_waiting(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, landing={"stack_timeout_seconds": 300.0})
    bench.land("s", 32)
    bench.land("t", 32)
    core = bench.open()
    worker = FailingWorker(bad("000003@s.mrcs"), transient=True)
    turns_until(core, bench, [worker], lambda status: status.posed >= 60, most=400)
    assert core.status().quarantined == 0
    turns_until(core, bench, [worker], lambda status: status.quarantined == 1 and status.posed == 63, most=900)
    core.close()


def test_rows_that_share_a_mount_that_is_away_stay_together(bench: Bench) -> None:
    bench.land("s", 32)
    core = bench.open()
    worker = FailingWorker(lambda images: True, transient=True)
    for _ in range(60):
        turn(core, bench.clock, [worker])
    assert len(worker.failed) > 3 and set(worker.failed) == {32}
    worker.fails = lambda images: False
    turns_until(core, bench, [worker], lambda status: status.posed == 32, most=120)
    core.close()


class HangingWorker(FakeWorker):
    """Beats on without an answer where the image that hangs it is in its lease; free again when that has expired."""

    def __init__(self, image: str) -> None:
        super().__init__()
        self._hangs = bad(image)
        self._turns = 0

    def turn(self, core: Coordinator) -> None:
        if self.lease is None or not self._hangs(images_of(self.lease)):
            super().turn(core)
            return
        beat = Heartbeat(incarnation=self.incarnation, role="worker", name=self.name, state="busy", progress=0)
        core.handle(self.peer + b" heart", beat, {})
        self._turns += 1
        if self._turns % 10 == 0:
            self.lease = None


def test_a_row_that_hangs_its_worker_keeps_no_other_waiting_and_is_never_condemned(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, service={"lease_expiry_seconds": 4.0})
    bench.land("s", 16)
    bench.land("t", 16)
    core = bench.open()
    worker = HangingWorker("000007@s.mrcs")
    turns_until(core, bench, [worker], lambda status: status.posed == 31, most=300)
    for _ in range(100):
        turn(core, bench.clock, [worker])
    assert core.status().quarantined == 0
    assert any("its leases expired" in text for text in core.status().problems)
    core.close()


def test_another_checkpoint_gives_a_worker_that_was_set_aside_a_new_chance(bench: Bench) -> None:
    for name in "abcd":
        bench.land(name, 10)
    core = bench.open()
    worker = FailingWorker(lambda images: True)
    turns_until(core, bench, [worker], lambda status: any("set aside" in text for text in status.problems))
    worker.fails = lambda images: False
    fake_checkpoint(bench.session / "checkpoints", "i2s-00000000000b")
    core.request_reinfer("i2s-00000000000b")
    assert turns_until(core, bench, [worker], lambda status: status.posed == 40) < 20
    core.close()


def test_a_worker_that_fails_is_given_other_rows_before_single_ones_are_blamed(bench: Bench) -> None:
    bench.land("a", 32)
    bench.land("b", 32)
    core = bench.open()
    worker = FailingWorker(bad("@a.mrcs"))
    turns_until(core, bench, [worker], lambda status: status.posed == 32)
    assert worker.failed == [32, 16, 8]
    core.close()


def test_halves_share_the_rows_and_know_their_lease() -> None:
    span = Span(3, 10, 7, shard_id=2, position=40, retries=2, failing_since=1.0)
    first, second = after_failure(span, transient=False, others_go_well=True, now=5.0)
    assert [(p.first_row, p.num_rows, p.position) for p in (first, second)] == [(10, 3, 40), (13, 4, 43)]
    assert first.whole == second.whole == span.whole == second.halves()[1].whole
    assert (first.failures, first.retries, first.failing_since) == (0, 0, None)


def test_only_a_single_rows_failure_counts() -> None:
    (tried,) = after_failure(Span(1, 0, 1), transient=False, others_go_well=True, now=5.0)
    assert (tried.failures, tried.num_rows) == (1, 1)


def test_lost_rows_are_halved_at_the_fifth_loss_and_then_at_each() -> None:
    spans = [Span(1, 0, 8)]
    for _ in range(LOSSES_PER_FAILURE - 1):
        spans = after_loss(spans[0], 5.0)
        assert [span.num_rows for span in spans] == [8]
    spans = after_loss(spans[0], 5.0)
    assert [span.num_rows for span in spans] == [4, 4]
    assert [span.num_rows for span in after_loss(spans[1], 5.0)] == [2, 2]
    single = Span(1, 0, 1, halvings=3)
    assert [span.failures for span in after_loss(single, 5.0)] == [1]


def test_the_line_of_an_image_is_that_of_its_whole_name(tmp_path: Path) -> None:
    star = tmp_path / "s.star"
    star.write_text("data_\nloop_\n_rlnImageName #1\n1@a.mrcs.old\n11@a.mrcs\n1@a.mrcs 5\n")
    assert lines_of(star, ["1@a.mrcs", "11@a.mrcs", "2@a.mrcs"]) == [6, 5, 0]
    assert lines_of(tmp_path / "none.star", ["1@a.mrcs"]) == [0]
