"""Whatever step a kill follows, and however often, the next start ends at the same canonical export."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.kills import first_and_last, played_through
from support.session_bench import (
    Bench,
    FakeReferenceTrainer,
    FakeTrainer,
    FakeWorker,
    KillAt,
    Killed,
    fake_checkpoint,
    is_done,
    star_text,
    tell,
    turn,
)

from cesped_stream.export.star import export_star
from cesped_stream.imaging.maps import write_map
from cesped_stream.particles.reference_members import ReferenceMembers
from cesped_stream.particles.star import read_star
from cesped_stream_service.coordinator import Coordinator
from cesped_stream_service.messages import Control, TrainingOrder

LANDED_BEFORE, LANDED_AFTER = 41, 50
FIRST = {"network": "i2s-000000000001", "gallery": "ref-000000000001", "both": "fus-000000000001"}
MEANWHILE = {"both": "ref-000000000001"}
"""What gives poses until the first training's last checkpoint is there."""
SECOND, THIRD = "i2s-000000000002", "i2s-000000000003"
REFERENCES = (5, 5)
"""Late aligned rows, per half: ten particles of s1, in two stars that overlap."""


@pytest.fixture
def fast_root(memory_folder: Path) -> Path:
    return memory_folder / "kill_points"


def run_session(root: Path, step: Callable[[str], None], proposer: str = "network") -> tuple[bytes, bytes, bytes, int]:
    """Run the scenario through every kill that `step` raises; return the export, its unposed part, the rows of the
    second training, and the kills.

    Aligned rows, a flagged image, another optics group and column, a copy of a star, rows that land after the
    training, late aligned stars of known particles, a training on them, and a second checkpoint that redoes
    everything.
    """
    shutil.rmtree(root, ignore_errors=True)
    bench = Bench(root, proposer=proposer)
    bench.land("aligned", 12, aligned=True)
    bench.land("s1", 20, flagged=[3, 15])
    bench.land("s2", 9, extra=["rlnCoordinateX"], optics="B", voltage=200.0)
    shutil.copy(bench.landing / "s1.star", bench.landing / "s1_again.star")
    kills = played_through(bench, step, _play)
    paths = export_star(bench.session / "poses", root / "export.star")
    trained = (bench.session / "batches" / "training_000002.star").read_bytes()
    return paths[0].read_bytes(), paths[1].read_bytes(), trained, kills


def _play(bench: Bench, core: Coordinator, life: int) -> None:
    proposer = bench.settings.proposer
    trainer = FakeTrainer(
        bench.session / "checkpoints", FIRST[proposer], first_id=MEANWHILE.get(proposer, ""), turns_between=3
    )
    roles = [trainer, FakeWorker(incarnation=f"w{life}")]
    landed = LANDED_AFTER if (bench.landing / "s3.star").exists() else LANDED_BEFORE
    asked = False
    for _ in range(200):
        turn(core, bench.clock, roles, 1.5)
        if not is_done(core, landed):
            continue
        if landed == LANDED_BEFORE:
            (bench.landing / "refined.star").write_text(star_text("s1", range(1, 7), aligned=True))
            (bench.landing / "refined_more.star").write_text(star_text("s1", range(3, 11), aligned=True))
            bench.land("s3", 9)
            landed = LANDED_AFTER
        elif (training := core.status().training) is None or training.training_id < 2:
            assert core.status().references_per_half == REFERENCES
            reply = tell(core, b"cli", Control(action="train"))[0]
            assert reply.ok, reply
        elif training.state == "done" and not asked:
            fake_checkpoint(bench.session / "checkpoints", SECOND)
            asked = True
            reply = tell(core, b"cli", Control(action="reinfer", argument=SECOND))[0]
            assert reply.ok, reply
        elif asked:
            assert core.status().references_per_half == REFERENCES
            return
    raise AssertionError(f"not done: {core.status()}")


def test_every_kill_point_ends_in_the_same_export(fast_root: Path) -> None:
    count = KillAt()
    expected = run_session(fast_root, count)
    table = read_star(fast_root / "export.star")
    names = table.column("rlnImageName")
    assert len(names) == len(set(names)) == LANDED_AFTER - 1
    revisions = dict(zip(names, table.column("cestreamRevision"), strict=True))
    given = {name for name in names if "aligned" in name or ("s1." in name and int(name[:6]) <= sum(REFERENCES))}
    assert {revisions[name] for name in given} == {"0"}
    assert {revisions[name] for name in names if name not in given} == {"1"}
    trained = read_star(fast_root / "session" / "batches" / "training_000002.star").column("rlnImageName")
    assert len(trained) == len(set(trained)) == 12 + sum(REFERENCES)
    assert count.count >= 200
    for at in range(1, count.count + 1):
        found = run_session(fast_root, KillAt(at))
        assert found[3] == 1, f"step {at}, {count.names[at - 1]}: no kill"
        assert found[:3] == expected[:3], f"killed after step {at}, {count.names[at - 1]}"


@pytest.mark.parametrize("seed", range(5))
def test_many_kills_in_a_row_end_in_the_same_export(fast_root: Path, seed: int) -> None:
    expected = run_session(fast_root, lambda name: None)
    random = np.random.default_rng(seed)

    def step(name: str) -> None:
        if random.random() < 0.05:
            raise Killed(name)

    found = run_session(fast_root, step)
    assert found[3] >= 5
    assert found[:3] == expected[:3]


@pytest.mark.parametrize("proposer", ["gallery", "both"])
@pytest.mark.parametrize("seed", range(3))
def test_kills_of_a_session_that_changes_from_references_to_another_kind_end_in_the_same_export(
    fast_root: Path, seed: int, proposer: str
) -> None:
    expected = run_session(fast_root, lambda name: None, proposer)
    trained = read_star(fast_root / "session" / "batches" / "training_000002.star").column("rlnImageName")
    assert len(trained) == len(set(trained)) == 12 + sum(REFERENCES)
    random = np.random.default_rng(seed)

    def step(name: str) -> None:
        if random.random() < 0.03:
            raise Killed(name)

    found = run_session(fast_root, step, proposer)
    assert found[3] >= 3
    assert found[:3] == expected[:3]


def run_session_of_redo(root: Path, step: Callable[[str], None]) -> tuple[bytes, int]:
    """Run a session through every kill that `step` raises, in which a second training ends while a redo with another
    checkpoint is open; return the export and the kills."""
    shutil.rmtree(root, ignore_errors=True)
    bench = Bench(root)
    bench.land("aligned", 12, aligned=True)
    bench.land("s1", 14)
    kills = played_through(bench, step, _play_redo)
    return export_star(bench.session / "poses", root / "export.star")[0].read_bytes(), kills


class TrainerOfTwo(FakeTrainer):
    """Gives each of two orders a checkpoint of its own."""

    def id_of(self, order: TrainingOrder) -> str:
        """Return what the checkpoint of an order is called."""
        return FIRST["network"] if order.training_id == 1 else THIRD


def _play_redo(bench: Bench, core: Coordinator, life: int) -> None:
    """Until the second training has ended no worker answers what is to be redone."""
    trainer = TrainerOfTwo(bench.session / "checkpoints")
    worker = FakeWorker(incarnation=f"w{life}")
    for _ in range(200):
        status = core.status()
        trained = status.training.training_id if status.training and status.training.state == "done" else 0
        waits = status.reinfer_shards_left > 0 and trained < 2
        turn(core, bench.clock, [trainer] if waits else [trainer, worker], 1.5)
        if waits and trained == 1 and core.status().checkpoint.checkpoint_id != THIRD:  # type: ignore[union-attr]
            assert tell(core, b"cli", Control(action="train"))[0].ok  # type: ignore[union-attr]
        elif trained == 1 and not waits and is_done(core, 26):
            fake_checkpoint(bench.session / "checkpoints", SECOND)
            assert tell(core, b"cli", Control(action="reinfer", argument=SECOND))[0].ok  # type: ignore[union-attr]
        elif trained == 2 and is_done(core, 26):
            return
    raise AssertionError(f"not done: {core.status()}")


def test_kills_while_a_training_ends_before_a_redo_end_in_the_same_export(fast_root: Path) -> None:
    count = KillAt()
    expected = run_session_of_redo(fast_root, count)
    table = read_star(fast_root / "export.star")
    made_by = dict(zip(table.column("rlnImageName"), table.column("cestreamCheckpoint"), strict=True))
    assert {made_by[name] for name in made_by if "s1" in name} == {SECOND}
    for at in first_and_last(count.names):
        found = run_session_of_redo(fast_root, KillAt(at))
        assert found[1] == 1, f"step {at}, {count.names[at - 1]}: no kill"
        assert found[0] == expected[0], f"killed after step {at}, {count.names[at - 1]}"


def run_session_of_sources(root: Path, step: Callable[[str], None]) -> tuple[bytes, bytes, int]:
    """Run a session through every kill that begins with a given map, makes references of all that this posed, then of
    aligned rows, late ones among them, and redoes what is in none; return the export, its unposed part, the kills."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    write_map(root / "map.mrc", np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32), 10.0)
    rebuilding = {"rebuild_rows": 20, "rebuild_least_confidence": 0.4}
    bench = Bench(root, proposer="gallery", reference=root / "map.mrc", noise_rows_per_half=20, referencing=rebuilding)
    bench.land("s1", 41, flagged=[0])
    kills = played_through(bench, step, _play_sources)
    for name in bench.session.glob("checkpoints/*/manifest.json"):
        _check_that_no_member_was_scored(bench, name.parent)
    paths = export_star(bench.session / "poses", root / "export.star")
    return paths[0].read_bytes(), paths[1].read_bytes(), kills


def _play_sources(bench: Bench, core: Coordinator, life: int) -> None:
    roles = [FakeReferenceTrainer(bench.session / "checkpoints"), FakeWorker(incarnation=f"w{life}")]
    asked = False
    for _ in range(200):
        turn(core, bench.clock, roles, 1.5)
        landed = 41 + 9 * (bench.landing / "s2.star").exists() + 6 * (bench.landing / "aligned.star").exists()
        in_use = core.status().checkpoint
        if not is_done(core, landed) or in_use is None:
            continue
        if in_use.checkpoint_id == "ref-poses-2" and landed == 41:
            bench.land("s2", 9)
        elif in_use.checkpoint_id == "ref-poses-2" and landed == 50:
            (bench.landing / "refined.star").write_text(star_text("s1", range(2, 12), aligned=True))
            bench.land("aligned", 6, aligned=True)
        elif in_use.checkpoint_id == "ref-aligned-3" and not asked:
            asked = True
            assert tell(core, b"cli", Control(action="reinfer"))[0].ok  # type: ignore[union-attr]
        elif asked:
            return
    raise AssertionError(f"not done: {core.status()}")


def _check_that_no_member_was_scored(bench: Bench, checkpoint: Path) -> None:
    members = ReferenceMembers.of(checkpoint)
    for batch in bench.session.glob("batches/batch_*.star"):
        table = read_star(batch)
        names = table.select(np.flatnonzero(members.among(table, "gold_standard"))).column("rlnImageName")
        for file in bench.session.glob("poses/poses*.star"):
            posed = read_star(file)
            made_by = dict(zip(posed.column("rlnImageName"), posed.column("cestreamCheckpoint"), strict=True))
            assert checkpoint.name not in {made_by.get(name) for name in names}


def test_kills_at_the_first_and_last_step_of_each_kind_while_references_change_end_in_the_same_export(
    fast_root: Path,
) -> None:
    count = KillAt()
    expected = run_session_of_sources(fast_root, count)
    table = read_star(fast_root / "export.star")
    made_by = dict(zip(table.column("rlnImageName"), table.column("cestreamCheckpoint"), strict=True))
    assert len(made_by) == len(table) == 41 + 9 + 6 - 1
    assert {made_by[f"{k:06d}@s1.mrcs"] for k in range(2, 12)} == {"none"}, "given by the aligned star"
    assert {made_by[f"{k:06d}@s1.mrcs"] for k in range(12, 42)} == {"ref-aligned-3"}
    assert {made_by[f"{k:06d}@s2.mrcs"] for k in range(1, 10)} == {"ref-aligned-3"}
    # After each kind of step, the first and the last time that it comes.
    for at in first_and_last(count.names):
        found = run_session_of_sources(fast_root, KillAt(at))
        assert found[2] == 1, f"step {at}, {count.names[at - 1]}: no kill"
        assert found[:2] == expected[:2], f"killed after step {at}, {count.names[at - 1]}"
