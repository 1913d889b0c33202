"""A replay with references first and networks later is over once nothing is left to redo, whatever kept its pose."""

from pathlib import Path

import pytest
from support.session_bench import Bench, FakeTrainer, FakeWorker, run_until, tell, turn

from cesped_stream.errors import TransientError
from cesped_stream_service import streaming
from cesped_stream_service.coordinator import Coordinator
from cesped_stream_service.messages import Control, ControlReply, Failure
from cesped_stream_service.settings import SessionSettings
from cesped_stream_service.streaming import Redo

REFERENCES, FUSED = "ref-000000000001", "fus-000000000001"
LANDED = 14


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path, proposer="both", service={"max_attempts": 1})
    bench.land("aligned", 8, aligned=True)
    bench.land("s1", LANDED - 8)
    return bench


def with_references_poses(bench: Bench, worker: FakeWorker) -> tuple[Coordinator, FakeTrainer]:
    core = bench.open()
    trainer = FakeTrainer(bench.session / "checkpoints", FUSED, first_id=REFERENCES, turns_between=1000)
    run_until(core, bench.clock, [trainer, worker], LANDED)
    return core, trainer


class Asked:
    """Stands for the link: the first questions are not answered, the others reach the core."""

    def __init__(self, core: Coordinator, *, silent: int) -> None:
        self._core, self._silent, self.many = core, silent, 0

    def __call__(self, settings: SessionSettings, message: Control) -> ControlReply | None:
        del settings
        self.many += 1
        if self.many == 1 and self._silent:
            raise TransientError("its coordinator did not answer within 15 s")
        if self.many <= self._silent:
            return None
        reply = tell(self._core, b"cli", message)[0]
        assert isinstance(reply, ControlReply)
        return reply


@pytest.mark.parametrize("silent", [0, 3])
def test_a_redo_ends_with_rows_that_keep_their_poses(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, silent: int
) -> None:
    worker = FakeWorker()
    core, trainer = with_references_poses(bench, worker)
    asked, redo = Asked(core, silent=silent), Redo(bench.settings)
    monkeypatch.setattr(streaming, "ask_running", asked)
    assert not redo.is_done(core.status()) and asked.many == 0, "the networks train"
    trainer.publish(core, trainer.orders[0], FUSED)
    core.tick()
    for _ in range(silent + 1):
        assert not redo.is_done(core.status())
    assert asked.many == silent + 1
    # What the replay reads next is of after the request, though no turn was taken since.
    status = streaming.read_status(bench.settings)
    assert status is not None and status.reinfer_shards_left > 0
    turn(core, bench.clock, [worker])
    assert worker.lease is not None
    failure = Failure(
        incarnation=worker.incarnation,
        lease_id=worker.lease.lease_id,
        error="E",
        message="",
        retry_can_help=False,
        row=worker.lease.first_row,
    )
    worker.lease = None
    tell(core, worker.peer, failure)
    for _ in range(10):
        turn(core, bench.clock, [worker])
    status = streaming.read_status(bench.settings)
    assert status is not None and status.checkpoint is not None
    assert status.checkpoint.rows < status.predicted, "no row kept its pose: this shows nothing"
    assert redo.is_done(status) and asked.many == silent + 1
    core.close()


def test_a_replay_is_not_over_while_a_redo_is_leased(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = FakeWorker()
    core, trainer = with_references_poses(bench, worker)
    monkeypatch.setattr(streaming, "ask_running", Asked(core, silent=0))
    redo = Redo(bench.settings)
    trainer.publish(core, trainer.orders[0], FUSED)
    assert not redo.is_done(core.status())
    turn(core, bench.clock, [worker])
    status = core.status()
    assert worker.lease is not None and not redo.is_done(status)
    assert not redo.is_done(status.model_copy(update={"reinfer_shards_left": 0}))
    core.close()
