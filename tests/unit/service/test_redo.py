"""A redo keeps the checkpoint that it was asked for, whatever comes into use before it is done."""

import shutil
from pathlib import Path

import pytest
from support.session_bench import (
    Bench,
    FakeTrainer,
    FakeWorker,
    crash,
    fake_checkpoint,
    is_done,
    run_until,
    tell,
    turn,
)

from cesped_stream.export.star import export_star
from cesped_stream.particles.star import read_star
from cesped_stream_service.coordinator import Coordinator
from cesped_stream_service.messages import Control, Failure

FIRST, ASKED, LATER = "i2s-000000000001", "i2s-000000000002", "i2s-000000000003"
POSED = 20


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.land("aligned", 8, aligned=True)
    bench.land("s1", POSED)
    return bench


def with_open_redo(bench: Bench) -> tuple[Coordinator, FakeWorker]:
    """Return a session that has posed everything and was asked for a redo, two of whose leases are done or out."""
    core, worker = bench.open(), FakeWorker()
    run_until(core, bench.clock, [FakeTrainer(bench.session / "checkpoints", FIRST), worker], 8 + POSED)
    fake_checkpoint(bench.session / "checkpoints", ASKED)
    assert tell(core, b"cli", Control(action="reinfer", argument=ASKED))[0].ok  # type: ignore[union-attr]
    for _ in range(3):
        turn(core, bench.clock, [worker])
    assert worker.lease is not None and core.status().reinfer_shards_left > 0
    return core, worker


def train_later(core: Coordinator, bench: Bench) -> None:
    """Order another training, which publishes at once."""
    assert tell(core, b"cli", Control(action="train"))[0].ok  # type: ignore[union-attr]
    trainer = FakeTrainer(bench.session / "checkpoints", LATER)
    turn(core, bench.clock, [trainer])
    assert trainer.acks[-1].accepted
    checkpoint = core.status().checkpoint
    assert checkpoint is not None and checkpoint.checkpoint_id == LATER


def made_by(bench: Bench) -> dict[str, set[str]]:
    """Return the checkpoints of each stack's rows."""
    table = read_star(export_star(bench.session / "poses", bench.root / "export.star")[0])
    found: dict[str, set[str]] = {}
    for name, checkpoint in zip(table.column("rlnImageName"), table.column("cestreamCheckpoint"), strict=True):
        found.setdefault(name.split("@")[1], set()).add(checkpoint)
    return found


@pytest.mark.parametrize("killed", [False, True])
def test_a_redo_ends_as_asked_when_a_training_ends_meanwhile(bench: Bench, killed: bool) -> None:
    core, worker = with_open_redo(bench)
    train_later(core, bench)
    if killed:
        crash(core)
        core, worker = bench.open(), FakeWorker(incarnation="w2")
    bench.land("s2", 5)
    before = worker.rows_done
    run_until(core, bench.clock, [worker], 8 + POSED + 5)
    assert worker.rows_done - before <= POSED + 5, "rows were redone and thrown away"
    assert core.status().state == "up to date"
    core.close()
    assert made_by(bench) | {"aligned.mrcs": set()} == {
        "aligned.mrcs": set(),
        "s1.mrcs": {ASKED},
        "s2.mrcs": {LATER},
    }


def test_a_redo_from_a_folder_elsewhere_goes_on_after_a_restart(bench: Bench, tmp_path: Path) -> None:
    core, worker = bench.open(), FakeWorker()
    run_until(core, bench.clock, [FakeTrainer(bench.session / "checkpoints", FIRST), worker], 8 + POSED)
    elsewhere = fake_checkpoint(tmp_path / "elsewhere", ASKED)
    assert tell(core, b"cli", Control(action="reinfer", argument=str(elsewhere)))[0].ok  # type: ignore[union-attr]
    train_later(core, bench)
    crash(core)
    core = bench.open()
    run_until(core, bench.clock, [FakeWorker(incarnation="w2")], 8 + POSED)
    core.close()
    assert made_by(bench)["s1.mrcs"] == {ASKED}


@pytest.mark.parametrize("found", ["by a worker", "at the next start"])
def test_a_redo_whose_checkpoint_is_gone_ends_and_the_poses_stay(bench: Bench, found: str) -> None:
    core, worker = with_open_redo(bench)
    shutil.rmtree(bench.session / "checkpoints" / ASKED)
    if found == "by a worker":
        assert worker.lease is not None
        failure = Failure(
            incarnation=worker.incarnation,
            lease_id=worker.lease.lease_id,
            error="InvalidCheckpointError",
            message="gone",
            retry_can_help=False,
        )
        worker.lease = None
        tell(core, worker.peer, failure)
    else:
        crash(core)
        core, worker = bench.open(), FakeWorker(incarnation="w2")
    for _ in range(5):
        turn(core, bench.clock, [worker])
    assert is_done(core, 8 + POSED)
    assert any(ASKED in problem and "reinfer" in problem for problem in core.status().problems)
    fake_checkpoint(bench.session / "checkpoints", LATER)
    assert tell(core, b"cli", Control(action="reinfer", argument=LATER))[0].ok  # type: ignore[union-attr]
    run_until(core, bench.clock, [worker], 8 + POSED)
    core.close()
    assert made_by(bench)["s1.mrcs"] == {LATER}
