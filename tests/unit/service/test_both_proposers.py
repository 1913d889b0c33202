"""Sessions of references and networks together: poses at once, better ones once the networks are trained."""

from pathlib import Path

import pytest
from support.session_bench import Bench, FakeTrainer, FakeWorker, crash, fake_checkpoint, run_until, tell, turn

from cesped_stream.export.star import export_star
from cesped_stream.particles.star import read_star
from cesped_stream.particles.table import ParticleTable
from cesped_stream.training.fit import Progress
from cesped_stream_service.coordinator import Coordinator
from cesped_stream_service.messages import Control, TrainingOrder
from cesped_stream_service.process import Activity
from cesped_stream_service.trainer import LatestProgress

REFERENCES, FUSED, OTHER = "ref-000000000001", "fus-000000000001", "i2s-000000000009"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path, proposer="both")
    bench.land("aligned", 8, aligned=True)
    bench.land("s1", 6)
    return bench


def trainer_of(bench: Bench, turns_between: int = 1000) -> FakeTrainer:
    return FakeTrainer(bench.session / "checkpoints", FUSED, first_id=REFERENCES, turns_between=turns_between)


def in_use(core: Coordinator) -> str:
    checkpoint = core.status().checkpoint
    return checkpoint.checkpoint_id if checkpoint else ""


def exported(bench: Bench) -> ParticleTable:
    return read_star(export_star(bench.session / "poses", bench.root / "export.star")[0])


def test_references_give_poses_while_the_networks_train_and_what_is_posed_stays(bench: Bench) -> None:
    core, worker = bench.open(), FakeWorker()
    trainer = trainer_of(bench)
    run_until(core, bench.clock, [trainer, worker], 14)
    training = core.status().training
    assert training is not None and (training.state, in_use(core)) == ("ordered", REFERENCES)
    trainer.publish(core, trainer.orders[0], FUSED)
    training = core.status().training
    assert training is not None and (training.state, in_use(core)) == ("done", FUSED)
    assert [ack.accepted for ack in trainer.acks] == [True, True]
    bench.land("s2", 5)
    run_until(core, bench.clock, [worker], 19)
    core.close()
    table = exported(bench)
    made = dict(zip(table.column("rlnImageName"), table.column("cestreamProposer"), strict=True))
    assert {made[name] for name in made if "s1" in name} == {"gallery+refinement"}
    assert {made[name] for name in made if "s2" in name} == {"network+gallery+refinement"}


def test_a_restart_goes_on_with_the_references_and_orders_the_rest_again(bench: Bench) -> None:
    core = bench.open()
    trainer = trainer_of(bench)
    run_until(core, bench.clock, [trainer, FakeWorker()], 14)
    crash(core)
    again = bench.open()
    assert in_use(again) == REFERENCES
    second = trainer_of(bench, 2)
    for _ in range(5):
        turn(again, bench.clock, [second])
    assert [order.training_id for order in second.orders] == [1]
    assert in_use(again) == FUSED
    again.close()


def test_a_trainer_that_says_again_what_it_published_takes_nothing_back(bench: Bench) -> None:
    core = bench.open()
    trainer = trainer_of(bench)
    run_until(core, bench.clock, [trainer, FakeWorker()], 14)
    fake_checkpoint(bench.session / "checkpoints", OTHER)
    assert tell(core, b"cli", Control(action="reinfer", argument=OTHER))[0].ok  # type: ignore[union-attr]
    order: TrainingOrder = trainer.orders[0]
    trainer.publish(core, order, REFERENCES, complete=False)
    assert trainer.acks[-1].accepted and in_use(core) == OTHER
    trainer.publish(core, order, FUSED)
    trainer.publish(core, order, REFERENCES, complete=False)
    assert trainer.acks[-1].accepted and in_use(core) == FUSED
    core.close()


def test_progress_says_what_is_made_and_counts_steps_once_there_are_any() -> None:
    latest = LatestProgress(Activity("training"))
    assert latest.message("t1", 1) is None
    for half in (1, 0):
        latest.put(Progress(half, 0, 0, 0.0, (None, None), "reference"))
    message = latest.message("t1", 1)
    assert message is not None
    assert (message.stage, message.max_steps, message.half_steps) == ("reference of half 0, reference of half 1", 0, ())
    latest.put(Progress(1, 3, 12, 0.5, (None, None)))
    message = latest.message("t1", 1)
    assert message is not None and (message.stage, message.half_steps, message.max_steps) == ("", (0, 3), 24)
