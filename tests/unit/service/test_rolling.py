from pathlib import Path

import pytest
from support.session_bench import Bench, FakeTrainer, FakeWorker, fake_checkpoint, run_until

from cesped_stream.errors import PermanentError
from cesped_stream.particles.star import read_star
from cesped_stream_service.coordinator import Coordinator


def identities(folder: Path) -> list[str]:
    return [image for path in sorted(folder.glob("*.star")) for image in read_star(path).column("rlnImageName")]


def test_at_every_step_the_files_are_valid_stars_that_hold_each_committed_row_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.land("aligned", 8, aligned=True)
    bench.land("s", 16, flagged=[2, 9])
    bench.land("t", 5, extra=["rlnCoordinateX"], optics="B")
    seen: set[str] = set()
    committed: list[Coordinator] = []

    def look(name: str) -> None:
        found = identities(bench.session / "poses")
        assert len(found) == len(set(found)), f"after {name}"
        assert seen <= set(found), f"after {name}"
        seen.update(found)
        if committed and name == "commit result: committed":
            status = committed[0].status()
            assert status.posed + status.unposed == len(found)

    core = bench.open(look)
    committed.append(core)
    run_until(core, bench.clock, [FakeTrainer(bench.session / "checkpoints"), FakeWorker()], 29)
    core.close()
    assert len(seen) == 29


def test_a_commit_is_durable_in_this_order(tmp_path: Path) -> None:
    bench = Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")))
    bench.land("s", 4)
    names: list[str] = []
    core = bench.open(names.append)
    run_until(core, bench.clock, [FakeWorker()], 4)
    core.close()
    start = names.index("poses.star: temporary written")
    assert names[start : start + 9] == [
        "poses.star: temporary written",
        "poses.star: temporary synced",
        "commit: folder synced",
        "commit intent: before commit",
        "commit intent: committed",
        "renamed",
        "folder synced",
        "commit result: before commit",
        "commit result: committed",
    ]


def test_shards_are_sealed_at_their_size_or_age_and_never_change(tmp_path: Path) -> None:
    bench = Bench(
        tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")), service={"shard_rows": 8, "shard_seconds": 50.0}
    )
    worker = FakeWorker()
    bench.land("s", 15)
    core = bench.open()
    run_until(core, bench.clock, [worker], 15)
    poses = bench.session / "poses"
    sealed = {path.name: path.read_bytes() for path in poses.glob("poses_*.star")}
    assert len(sealed) == 1 and (poses / "poses.star").exists()
    for _ in range(60):
        core.tick()
        bench.clock.now += 1.0
    assert not (poses / "poses.star").exists() and core.status().shards == 2
    bench.land("t", 3)
    run_until(core, bench.clock, [FakeWorker(incarnation="w2")], 18)
    assert {name: (poses / name).read_bytes() for name in sealed} == sealed
    assert len(identities(poses)) == 18
    core.close()


def test_rows_keep_every_input_column_and_gain_ours(tmp_path: Path) -> None:
    bench = Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")), service={"shard_rows": 100})
    bench.land("s", 4, flagged=[1], extra=["rlnAutopickFigureOfMerit"])
    core = bench.open()
    run_until(core, bench.clock, [FakeWorker()], 4)
    core.close()
    before = read_star(bench.landing / "s.star")
    posed = read_star(bench.session / "poses" / "poses.star")
    unposed = read_star(bench.session / "poses" / "unposed.star")
    for table, rows in ((posed, [0, 2, 3]), (unposed, [1])):
        for label in before.labels:
            assert table.column(label) == [before.column(label)[row] for row in rows], label
        assert "cestreamStack" not in table
        assert table.optics == before.optics
    assert posed.has_poses().all() and set(posed.column("rlnOriginXAngst")) == {"0.000000"}
    assert unposed.column("cestreamStatus") == ["constant"] and "rlnAngleRot" not in unposed


@pytest.mark.parametrize("aligned", [True, False])
def test_given_shifts_are_written_through(tmp_path: Path, aligned: bool) -> None:
    bench = Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")))
    bench.land("s", 4, aligned=aligned, extra=["rlnOriginXAngst", "rlnOriginYAngst"])
    core = bench.open()
    run_until(core, bench.clock, [FakeWorker()], 4)
    core.close()
    table = read_star(bench.session / "poses" / "poses.star")
    assert set(table.column("rlnOriginXAngst")) == {"0.5"} and set(table.column("rlnOriginYAngst")) == {"1.5"}
    assert set(table.column("cestreamStatus")) == {"given" if aligned else "predicted"}


def test_sealed_shards_that_the_ledger_does_not_know_are_refused_not_made_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")), service={"shard_rows": 8})
    bench.land("s", 15)
    core = bench.open()
    run_until(core, bench.clock, [FakeWorker()], 15)
    core.close()
    for path in (bench.session / "state").glob("ledger.sqlite*"):
        path.rename(tmp_path / path.name)
    with pytest.raises(PermanentError, match=r"poses_000001\.star.* is ledger_folder the one"):
        bench.open()
    for path in tmp_path.glob("ledger.sqlite*"):
        path.rename(bench.session / "state" / path.name)
    core = bench.open()
    assert core.status().posed == len(identities(bench.session / "poses")) == 15
    core.close()


def test_a_sealed_shard_whose_file_is_gone_is_told(tmp_path: Path) -> None:
    bench = Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")), service={"shard_rows": 4})
    bench.land("s", 9)
    core = bench.open()
    run_until(core, bench.clock, [FakeWorker()], 9)
    core.close()
    (bench.session / "poses" / "poses_000001.star").unlink()
    core = bench.open()
    assert any("poses_000001.star: the file is gone" in problem for problem in core.status().problems)
    fake_checkpoint(bench.session / "checkpoints", "i2s-00000000000b")
    assert core.status().shards == 2 and core.request_reinfer("i2s-00000000000b") == 1, "the other one"
    run_until(core, bench.clock, [FakeWorker(incarnation="w2")], 9)
    core.close()
