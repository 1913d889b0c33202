"""References made anew of confident poses: of which rows, when, and that none of those is ever scored by them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.session_bench import (
    Bench,
    FakeReferenceTrainer,
    FakeWorker,
    crash,
    fake_references,
    run_until,
    tell,
    turn,
)

from cesped_stream.export.star import export_star
from cesped_stream.imaging.maps import write_map
from cesped_stream.particles.star import read_star
from cesped_stream.particles.table import ParticleTable
from cesped_stream.settings import TrainingSettings
from cesped_stream_service import reference_orders
from cesped_stream_service.coordinator import Coordinator
from cesped_stream_service.messages import Control
from cesped_stream_service.referencing import for_rebuilding

REBUILD = {"rebuild_rows": 10, "rebuild_least_confidence": 0.4}
"""Rows of the fake worker have a confidence of 0.46."""


def opened(tmp_path: Path, **changes: Any) -> tuple[Bench, Coordinator, list[Any]]:
    """Return a session that has posed eight aligned rows and 19 others, and its roles."""
    bench = Bench(tmp_path, proposer="gallery", **({"referencing": REBUILD} | changes))
    bench.land("aligned", 8, aligned=True)
    bench.land("s1", 19, flagged=[3])
    core = bench.open()
    roles = [FakeReferenceTrainer(bench.session / "checkpoints"), FakeWorker()]
    run_until(core, bench.clock, roles, 27)
    return bench, core, roles


def land_more(bench: Bench, core: Coordinator, roles: list[Any], landed: int, name: str = "s2", many: int = 6) -> None:
    bench.land(name, many)
    run_until(core, bench.clock, roles, landed)
    for _ in range(4):
        turn(core, bench.clock, roles)


def sources(roles: list[Any]) -> list[str]:
    return [order.source for order in roles[0].orders]


def exported(bench: Bench) -> ParticleTable:
    return read_star(export_star(bench.session / "poses", bench.root / "all.star")[0])


def names(table: ParticleTable) -> list[str]:
    return table.column("rlnImageName")


def test_references_are_made_anew_of_aligned_and_confident_rows_with_their_predicted_poses(tmp_path: Path) -> None:
    bench, core, roles = opened(tmp_path)
    assert sources(roles) == ["aligned"], "8 and 10 rows are two too few"
    assert any("so far 8 + 10" in note for note in core.status().notes)
    land_more(bench, core, roles, 33)
    assert sources(roles) == ["aligned", "poses"]
    status = core.status()
    assert status.checkpoint is not None and status.checkpoint.checkpoint_id == "ref-poses-2"
    core.close()
    made_of, posed = read_star(bench.session / "batches" / "training_000002.star"), exported(bench)
    assert names(made_of) == sorted(names(made_of), key=lambda name: (name.split("@")[1], name))
    made_by = np.array(made_of.column("cestreamCheckpoint"))
    assert (made_by == "none").sum() == 8 and set(made_by) == {"none", "ref-aligned-1"}
    assert np.bincount(made_of.half_sets()[made_by != "none"]).min() >= 10
    place = {name: k for k, name in enumerate(names(posed))}
    same = posed.select([place[name] for name in names(made_of)])
    np.testing.assert_array_equal(made_of.rotations(), same.rotations())
    np.testing.assert_array_equal(made_of.shifts_angstrom(), same.shifts_angstrom())
    assert made_of.half_sets().tolist() == same.half_sets().tolist()
    assert "000004@s1.mrcs" not in names(made_of), "it has no pose"
    for k, name in enumerate(names(made_of)):
        assert made_of.column("cestreamStack")[k].endswith(name.split("@")[1])


def test_the_next_rebuilding_waits_for_as_many_more(tmp_path: Path) -> None:
    bench, core, roles = opened(tmp_path)
    land_more(bench, core, roles, 33)
    land_more(bench, core, roles, 47, "s3", 14)
    assert sources(roles) == ["aligned", "poses"]
    land_more(bench, core, roles, 57, "s4", 10)
    assert sources(roles) == ["aligned", "poses", "poses"]
    core.close()
    made_of = read_star(bench.session / "batches" / "training_000003.star")
    assert set(made_of.column("cestreamCheckpoint")) == {"none", "ref-aligned-1", "ref-poses-2"}
    assert len(made_of) == len(set(names(made_of)))


@pytest.mark.parametrize(("changes", "why"), [({"rebuild_rows": 0}, "never"), ({"rebuild_least_confidence": 0.5}, "")])
def test_nothing_is_rebuilt_unasked_or_of_rows_that_are_not_confident(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    bench, core, roles = opened(tmp_path, referencing=REBUILD | changes)
    land_more(bench, core, roles, 47, "s2", 20)
    assert sources(roles) == ["aligned"], why
    core.close()


def test_only_the_newest_rows_of_each_half_are_taken_when_they_are_many(tmp_path: Path) -> None:
    bench, core, roles = opened(tmp_path, referencing=REBUILD | {"rebuild_rows": 30, "rebuild_max_rows": 20})
    land_more(bench, core, roles, 71, "s2", 44)
    assert sources(roles) == ["aligned", "poses"]
    core.close()
    made_of = read_star(bench.session / "batches" / "training_000002.star")
    predicted = made_of.select(np.flatnonzero(np.array(made_of.column("cestreamCheckpoint")) != "none"))
    assert np.bincount(predicted.half_sets()).tolist() == [20, 20]
    posed = [name for name in names_in_order_of_commit(bench) if "aligned" not in name]
    kept = set(names(predicted))
    assert [name in kept for name in posed].count(True) == 40
    assert not any(name in kept for name in posed[: len(posed) - 44]), "older ones than the newest 40 or so"


def names_in_order_of_commit(bench: Bench) -> list[str]:
    poses = bench.session / "poses"
    files = [*sorted(poses.glob("poses_*.star")), poses / "poses.star"]
    return [name for file in files if file.exists() for name in names(read_star(file))]


def test_a_redo_leaves_out_what_the_references_are_made_of_and_says_how_many(tmp_path: Path) -> None:
    bench, core, roles = opened(tmp_path)
    land_more(bench, core, roles, 33)
    land_more(bench, core, roles, 37, "s3", 4)
    before = exported(bench)
    assert tell(core, b"cli", Control(action="reinfer"))[0].ok  # type: ignore[union-attr]
    run_until(core, bench.clock, roles, 37)
    status = core.status()
    assert (status.quarantined, status.conflicts, status.reinfer_shards_left) == (0, 0, 0)
    members = read_star(bench.session / "batches" / "training_000002.star")
    assert any(f"{len(members) - 8} rows keep their pose in the redo" in note for note in status.notes)
    core.close()
    after, inside = exported(bench), set(names(members))
    assert names(after) == names(before)
    for row, former, name in zip(after.rows, before.rows, names(after), strict=True):
        assert row == former or name not in inside
    assert {"ref-poses-2"} == {
        made_by
        for name, made_by in zip(names(after), after.column("cestreamCheckpoint"), strict=True)
        if name not in inside
    }

    fake_references(bench.session / "checkpoints", "ref-part", members.select(range(0, len(members), 2)))
    core = bench.open()
    assert tell(core, b"cli", Control(action="reinfer", argument="ref-part"))[0].ok  # type: ignore[union-attr]
    run_until(core, bench.clock, [FakeWorker(incarnation="w2")], 37)
    core.close()
    table, inside = exported(bench), set(names(members.select(range(0, len(members), 2))))
    for k, name in enumerate(names(table)):
        status_, made_by = table.column("cestreamStatus")[k], table.column("cestreamCheckpoint")[k]
        if status_ == "predicted":
            assert (made_by == "ref-part") == (name not in inside), name


def test_members_whose_pose_was_lost_get_it_from_a_checkpoint_that_they_are_not_in(tmp_path: Path) -> None:
    bench, core, roles = opened(tmp_path, service={"shard_rows": 1000, "shard_seconds": 1e6})
    land_more(bench, core, roles, 33)
    before = exported(bench)
    crash(core)
    (bench.session / "poses" / "poses.star").write_text("edited by somebody\n")
    core = bench.open()
    roles = [FakeReferenceTrainer(bench.session / "checkpoints"), FakeWorker(incarnation="w2")]
    land_more(bench, core, roles, 39, "s3")
    core.close()
    after = exported(bench)
    made_by = dict(zip(names(after), after.column("cestreamCheckpoint"), strict=True))
    inside = set(names(read_star(bench.session / "batches" / "training_000002.star")))
    for name, former in zip(names(before), before.column("cestreamCheckpoint"), strict=True):
        assert made_by[name] == (former if name in inside else "ref-poses-2")
    assert {made_by[f"{k:06d}@s3.mrcs"] for k in range(1, 7)} <= {"ref-poses-2", "ref-poses-3"}


def test_particles_in_a_given_checkpoints_references_are_set_aside_with_the_remedy(tmp_path: Path) -> None:
    first, core, _ = opened(tmp_path / "first")
    core.close()
    made_of = read_star(first.session / "batches" / "training_000001.star")
    # The same particles land again, without poses, in a session that takes the first one's checkpoint.
    given = fake_references(tmp_path / "given", "ref-given", made_of)
    bench = Bench(tmp_path / "second", proposer="gallery", checkpoint=str(given))
    bench.landing.rmdir()
    bench.landing.symlink_to(first.landing, target_is_directory=True)
    for star in first.landing.glob("*.star"):
        star.unlink()
    bench.land_star("aligned", range(1, 9))
    bench.land_star("s1", range(4, 20))
    core = bench.open()
    run_until(core, bench.clock, [FakeWorker()], 24)
    status = core.status()
    assert (status.predicted, status.unposed, status.quarantined) == (15, 1, 8)
    assert any("in the reference that would score them" in problem for problem in status.problems)
    core.close()


def test_rebuilt_references_of_rows_that_a_shared_map_posed_stay_shared(tmp_path: Path) -> None:
    write_map(tmp_path / "map.mrc", np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32), 5.0)
    changes = {"reference": tmp_path / "map.mrc", "noise_rows_per_half": 20, "proposer": "gallery"}
    bench = Bench(tmp_path / "b", referencing=REBUILD, **changes)
    bench.land("s1", 44)
    core = bench.open()
    roles = [FakeReferenceTrainer(bench.session / "checkpoints"), FakeWorker()]
    run_until(core, bench.clock, roles, 44)
    for _ in range(6):
        turn(core, bench.clock, roles)
    core.close()
    assert sources(roles)[:2] == ["map", "poses"]
    made_of = read_star(Path(roles[0].orders[1].aligned_star))
    training = TrainingSettings(alignment="independent")
    rebuilt = for_rebuilding(training, made_of, bench.session / "checkpoints", "")
    assert (rebuilt.alignment, rebuilt.validation_fraction) == ("shared_reference", 0.0)


@pytest.mark.parametrize("damage", ["appended", "cut", "emptied"])
def test_a_shard_that_was_edited_is_named_and_left_out_of_a_rebuilt_reference(tmp_path: Path, damage: str) -> None:
    bench, core, roles = opened(tmp_path)
    shard = bench.session / "poses" / "poses_000002.star"
    text = shard.read_text()
    inside = set(names(read_star(shard)))
    shard.write_text({"appended": text + "oops\n", "cut": text[: len(text) * 2 // 3], "emptied": ""}[damage])
    land_more(bench, core, roles, 51, "s2", 24)
    assert sources(roles)[:2] == ["aligned", "poses"]
    assert any(f"{shard.name}: not the file that was committed" in problem for problem in core.status().problems)
    core.close()
    assert not inside & set(names(read_star(bench.session / "batches" / "training_000002.star")))


def test_what_keeps_a_rebuilding_from_being_frozen_costs_that_one_only(tmp_path: Path) -> None:
    bench, core, roles = opened(tmp_path)
    core.close()
    batch = bench.session / "batches" / "batch_000003.star"
    content = batch.read_text()
    batch.write_text("edited by somebody\n")
    core = bench.open()
    roles = [roles[0], FakeWorker(incarnation="w2")]
    land_more(bench, core, roles, 33)
    status = core.status()
    assert sources(roles) == ["aligned"] and status.predicted == 24 and status.state == "up to date"
    assert any("references are not made anew this time" in problem for problem in status.problems)
    batch.write_text(content)
    land_more(bench, core, roles, 53, "s3", 20)
    assert sources(roles) == ["aligned", "poses"]
    assert not any("not made anew" in problem for problem in core.status().problems)
    core.close()


def due_without_aligned_rows(tmp_path: Path, shard_rows: int) -> Bench:
    """Return a session without aligned rows that was killed as soon as a rebuilding was due."""
    given = str(fake_references(tmp_path / "given", "ref-given"))
    service = {"shard_rows": shard_rows, "shard_seconds": 1e6}
    bench = Bench(tmp_path / "b", proposer="gallery", checkpoint=given, referencing=REBUILD, service=service)
    bench.land("s1", 20)
    core = bench.open()
    run_until(core, bench.clock, [FakeWorker()], 20)
    assert any("so far 10 + 10" in note for note in core.status().notes)
    crash(core)
    return bench


def test_rows_that_are_made_again_are_counted_again(tmp_path: Path) -> None:
    bench = due_without_aligned_rows(tmp_path, shard_rows=1000)
    (bench.session / "poses" / "poses.star").write_text("edited by somebody\n")
    core = bench.open()
    assert any("so far 0 + 0" in note for note in core.status().notes)
    roles = [FakeReferenceTrainer(bench.session / "checkpoints"), FakeWorker(incarnation="w2")]
    turn(core, bench.clock, roles)
    assert not any("not made anew" in problem for problem in core.status().problems)
    run_until(core, bench.clock, roles, 20)
    for _ in range(4):
        turn(core, bench.clock, roles)
    assert sources(roles) == ["poses"]
    core.close()
    assert len(read_star(bench.session / "batches" / "training_000001.star")) == 20


def test_a_rebuilding_that_finds_too_few_rows_waits_for_the_rest(tmp_path: Path) -> None:
    bench = due_without_aligned_rows(tmp_path, shard_rows=1)
    shards = sorted((bench.session / "poses").glob("poses_*.star"))
    kept, lost = read_star(shards[0]), shards[1:]
    for shard in lost:
        shard.rename(tmp_path / shard.name)
    core = bench.open()
    roles = [FakeReferenceTrainer(bench.session / "checkpoints"), FakeWorker(incarnation="w2")]
    for _ in range(4):
        turn(core, bench.clock, roles)
    many = np.bincount(kept.half_sets(), minlength=2)
    assert sources(roles) == []
    assert any(f"so far {many[0]} + {many[1]}" in note for note in core.status().notes)
    land_more(bench, core, roles, 38, "s2", 18)
    assert sources(roles) == ["poses"]
    core.close()
    assert len(read_star(bench.session / "batches" / "training_000001.star")) == len(kept) + 18


@pytest.mark.parametrize(("looked_at", "ordered"), [(1, ["aligned"]), (4, ["aligned", "poses"])])
def test_an_order_looks_at_the_newest_shards_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looked_at: int, ordered: list[str]
) -> None:
    monkeypatch.setattr(reference_orders, "LOOKED_AT", looked_at)
    read: list[Path] = []
    monkeypatch.setattr(reference_orders, "read_star", lambda path: (read.append(path), read_star(path))[1])
    bench, core, roles = opened(tmp_path, referencing=REBUILD | {"rebuild_rows": 30, "rebuild_max_rows": 20})
    land_more(bench, core, roles, 63, "s2", 36)
    bench.land_stack("s3", 100)
    bench.land_star("s3", range(1, 100, 2))
    run_until(core, bench.clock, roles, 113)
    assert not read
    land_more(bench, core, roles, 129, "s4", 16)
    core.close()
    assert sources(roles) == ordered, "most of the newest rows are of one half-set"
    assert (len(read) <= 5) is (looked_at == 1)
