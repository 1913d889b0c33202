from pathlib import Path

import pytest
from support.session_bench import Bench, FakeTrainer, fake_checkpoint, tell, turn

from cesped_stream.errors import InvalidCheckpointError
from cesped_stream.particles.star import read_star
from cesped_stream_service.coordinator import Coordinator
from cesped_stream_service.messages import Ack, Control, Failure, Hello, Idle, Ready, TrainingOrder
from cesped_stream_service.training_gate import verify_checkpoint


def asked(core: Coordinator) -> TrainingOrder | Idle:
    tell(core, b"t", Hello(role="trainer", name="t", incarnation="t", pid=1, device="cpu"))
    reply = tell(core, b"t", Ready(incarnation="t"))[0]
    assert isinstance(reply, TrainingOrder | Idle)
    return reply


def turns(core: Coordinator, bench: Bench, many: int) -> None:
    for _ in range(many):
        turn(core, bench.clock, [], 0.5)


def test_training_waits_for_enough_rows_in_both_halves_and_then_for_quiet(tmp_path: Path) -> None:
    bench = Bench(tmp_path, min_aligned_per_half=4, aligned_quiet_seconds=10.0)
    bench.land("one", 7, aligned=True)
    core = bench.open()
    turns(core, bench, 40)
    assert core.status().aligned_per_half == (3, 4) and isinstance(asked(core), Idle)
    bench.land("two", 2, aligned=True)
    turns(core, bench, 6)
    assert core.status().aligned_per_half == (4, 5) and isinstance(asked(core), Idle)
    turns(core, bench, 12)
    assert isinstance(asked(core), Idle), "not quiet for long enough"
    turns(core, bench, 10)
    order = asked(core)
    assert isinstance(order, TrainingOrder) and len(read_star(Path(order.aligned_star))) == 9
    core.close()


def test_a_done_marker_ends_the_quiet_period(tmp_path: Path) -> None:
    bench = Bench(tmp_path, aligned_quiet_seconds=1000.0)
    bench.land("one", 8, aligned=True)
    (bench.landing / "one.star.done").touch()
    core = bench.open()
    turns(core, bench, 3)
    assert isinstance(asked(core), TrainingOrder)
    core.close()


def test_later_aligned_rows_are_kept_for_a_training_that_is_asked_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.land("one", 8, aligned=True)
    core = bench.open()
    trainer = FakeTrainer(bench.session / "checkpoints")
    for _ in range(12):
        turn(core, bench.clock, [trainer])
    assert [order.training_id for order in trainer.orders] == [1]
    frozen = (bench.session / "batches" / "training_000001.star").read_bytes()
    bench.land("two", 6, aligned=True)
    for _ in range(20):
        turn(core, bench.clock, [trainer])
    assert len(trainer.orders) == 1 and core.status().given == 14
    assert core.control(Control(action="train")).ok
    core.close()
    core = bench.open()
    trainer = FakeTrainer(bench.session / "checkpoints", "i2s-000000000002")
    for _ in range(3):
        turn(core, bench.clock, [trainer])
    assert [order.training_id for order in trainer.orders] == [2] and trainer.acks == [Ack(lease_id=2, accepted=True)]
    assert len(read_star(Path(trainer.orders[0].aligned_star))) == 14
    assert (bench.session / "batches" / "training_000001.star").read_bytes() == frozen
    status = core.status()
    assert status.checkpoint is not None and status.checkpoint.checkpoint_id == "i2s-000000000002"
    core.close()


def test_the_frozen_rows_do_not_depend_on_the_order_in_which_they_came(tmp_path: Path) -> None:
    frozen = []
    for order in (("one", "two"), ("two", "one")):
        bench = Bench(tmp_path / order[0], min_aligned_per_half=6)
        core = bench.open()
        for name in order:
            bench.land(name, 7, aligned=True, optics=name)
            turns(core, bench, 6)
        turns(core, bench, 6)
        table = read_star(bench.session / "batches" / "training_000001.star")
        frozen.append(
            (
                table.labels,
                [(*row[:-1], table.optics[k]) for row, k in zip(table.rows, table.optics_index, strict=True)],
            )
        )
        core.close()
    assert frozen[0] == frozen[1] and len(frozen[0][1]) == 14


def test_a_training_that_always_fails_is_given_up_with_a_problem_until_it_is_asked_for_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.land("one", 8, aligned=True)
    core = bench.open()
    failures = 0
    for _ in range(60):
        turns(core, bench, 2)
        if isinstance(order := asked(core), TrainingOrder):
            failure = Failure(
                incarnation="t",
                lease_id=order.training_id,
                error="InvalidStarError",
                message="no pixel size",
                retry_can_help=False,
            )
            tell(core, b"t", failure)
            failures += 1
    status = core.status()
    assert failures == 3 and status.training is not None and status.training.state == "failed"
    told = [problem for problem in status.problems if "no pixel size" in problem]
    assert len(told) == 1 and f"`cesped-stream retrain {bench.session}`" in told[0]
    core.close()
    core = bench.open()
    assert [problem for problem in core.status().problems if "no pixel size" in problem] == told, "a restart forgets it"
    assert core.control(Control(action="train")).ok
    turns(core, bench, 2)
    order = asked(core)
    assert isinstance(order, TrainingOrder) and order.training_id == 2
    assert not any("no pixel size" in problem for problem in core.status().problems)
    core.close()


def test_a_checkpoint_is_verified_by_the_hashes_of_its_manifest(tmp_path: Path) -> None:
    folder = fake_checkpoint(tmp_path)
    assert verify_checkpoint(folder).checkpoint_id == folder.name
    manifest = (folder / "manifest.json").read_text()
    for broken in (manifest[:40], manifest.replace('"0"', '"2"'), manifest.replace("half_0", "../half_0"), "[]"):
        (folder / "manifest.json").write_text(broken)
        with pytest.raises(InvalidCheckpointError):
            verify_checkpoint(folder)
    (folder / "manifest.json").write_text(manifest)
    (folder / "half_0.safetensors").write_bytes(b"flipped")
    with pytest.raises(InvalidCheckpointError, match="sha256"):
        verify_checkpoint(folder)
    (folder / "half_0.safetensors").unlink()
    with pytest.raises(InvalidCheckpointError, match="incomplete"):
        verify_checkpoint(folder)


def test_a_training_that_cannot_start_is_refused_and_not_promised(tmp_path: Path) -> None:
    bench = Bench(tmp_path, min_aligned_per_half=4)
    bench.land("one", 3, aligned=True)
    core = bench.open()
    turns(core, bench, 10)
    reply = core.control(Control(action="train"))
    assert not reply.ok
    assert "1 + 2 aligned rows, min_aligned_per_half is 4" in reply.text
    core.close()
