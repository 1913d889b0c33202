"""Aligned rows of particles that landed before: they are their poses and half-sets, and never a second row."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from support.session_bench import (
    Bench,
    FakeReferenceTrainer,
    FakeTrainer,
    FakeWorker,
    run_until,
    star_text,
    turn,
)

from cesped_stream.export.star import export_star
from cesped_stream.imaging.maps import write_map
from cesped_stream.particles.star import read_star, write_star
from cesped_stream.particles.table import ParticleTable
from cesped_stream_service.coordinator import Coordinator
from cesped_stream_service.show import status_view


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Eight particles without poses have landed; s's odd images are of half-set 1."""
    bench = Bench(tmp_path)
    bench.land("s", 8)
    return bench


def opened(bench: Bench) -> Coordinator:
    core = bench.open()
    turns(core, bench)
    assert core.status().landed == 8
    return core


def turns(core: Coordinator, bench: Bench, many: int = 8) -> None:
    for _ in range(many):
        turn(core, bench.clock, [])


def land_refined(bench: Bench, indices: range, name: str = "refined", **star: str | float) -> None:
    text = star_text("s", indices, aligned=True, **star)  # type: ignore[arg-type]
    (bench.landing / f"{name}.star").write_text(text)


def trained_on(bench: Bench) -> ParticleTable:
    return read_star(bench.session / "batches" / "training_000001.star")


def images_of(table: ParticleTable) -> list[str]:
    return table.column("rlnImageName")


def test_a_late_aligned_star_of_known_particles_is_trained_on_and_gives_no_second_row(bench: Bench) -> None:
    core = opened(bench)
    land_refined(bench, range(1, 9))
    trainer = FakeTrainer(bench.session / "checkpoints")
    for _ in range(12):
        turn(core, bench.clock, [trainer, FakeWorker()])
    status = core.status()
    assert (status.landed, status.given, status.predicted, status.duplicates) == (8, 8, 0, 0)
    assert (status.aligned_per_half, status.references_per_half, status.problems) == ((4, 4), (4, 4), ())
    core.close()
    assert len(trainer.orders) == 1 and trained_on(bench).has_poses().all()
    assert images_of(trained_on(bench)) == [f"{i:06d}@s.mrcs" for i in range(1, 9)]
    assert trained_on(bench).half_sets().tolist() == [1, 0] * 4
    exported = read_star(export_star(bench.session / "poses", bench.root / "export.star")[0])
    assert Counter(images_of(exported)) == Counter(images_of(trained_on(bench)))
    assert set(exported.column("cestreamStatus")) == {"given"}
    assert exported.column("rlnAngleRot") == [f"{i * 7 % 180:.3f}" for i in range(1, 9)]


def test_an_aligned_star_that_lands_first_gives_the_poses_and_the_later_rows_are_duplicates(bench: Bench) -> None:
    (bench.landing / "s.star").unlink()
    land_refined(bench, range(1, 7))
    core = bench.open()
    turns(core, bench)
    bench.land_star("s", range(1, 9))
    run_until(core, bench.clock, [FakeTrainer(bench.session / "checkpoints"), FakeWorker()], 8)
    status = core.status()
    assert (status.given, status.predicted, status.duplicates) == (6, 2, 6)
    assert (status.aligned_per_half, status.references_per_half) == ((3, 3), (0, 0))
    core.close()


def test_given_and_reference_rows_are_frozen_together_in_identity_order(bench: Bench) -> None:
    core = opened(bench)
    land_refined(bench, range(3, 7))
    bench.land("a", 3, aligned=True)
    turns(core, bench, 12)
    assert (core.status().aligned_per_half, core.status().references_per_half) == ((3, 4), (2, 2))
    assert core.status().given == 3 + 4
    core.close()
    expected = [f"{i:06d}@a.mrcs" for i in range(1, 4)] + [f"{i:06d}@s.mrcs" for i in range(3, 7)]
    assert images_of(trained_on(bench)) == expected


def test_a_row_without_and_a_row_with_a_pose_in_one_star_are_a_particle_and_its_reference(tmp_path: Path) -> None:
    bench = Bench(tmp_path, aligned_quiet_seconds=0.0)
    bench.land_stack("s", 6)
    posed = [line for line in star_text("s", range(1, 7), aligned=True).splitlines() if "@" in line]
    unset = [" ".join([*line.split()[:5], "-999", "-999", "-999", *line.split()[8:]]) for line in posed]
    head = star_text("s", [], aligned=True).rstrip("\n")
    (bench.landing / "both.star").write_text("\n".join([head, *unset, *posed, posed[0]]) + "\n\n")
    (bench.landing / "both.star.done").touch()
    core = bench.open()
    turns(core, bench)
    status = core.status()
    assert (status.landed, status.references_per_half, status.duplicates) == (6, (3, 3), 1)
    core.close()
    assert len(trained_on(bench)) == 6 and trained_on(bench).has_poses().all()


def test_a_reference_delivered_again_is_a_duplicate_and_is_trained_on_once(bench: Bench) -> None:
    core = opened(bench)
    land_refined(bench, range(1, 5))
    turns(core, bench)
    land_refined(bench, range(1, 7))
    turns(core, bench)
    assert (core.status().references_per_half, core.status().duplicates) == ((3, 3), 0)
    land_refined(bench, range(1, 9), "elsewhere", extra=["rlnCoordinateX"])
    turns(core, bench)
    assert (core.status().references_per_half, core.status().duplicates) == ((4, 4), 6)
    land_refined(bench, range(6, 0, -1))
    turns(core, bench)
    core.close()
    core = bench.open()
    turns(core, bench)
    status = core.status()
    assert (status.landed, status.aligned_per_half, status.references_per_half) == (8, (4, 4), (4, 4))
    assert (status.duplicates, status.conflicts, status.pending, status.given) == (6, 0, 0, 8)
    core.close()
    batches = [read_star(path) for path in (bench.session / "batches").glob("batch_*.star")]
    assert Counter(Counter(i for table in batches for i in images_of(table)).values()) == Counter({2: 8})


def test_an_aligned_row_with_another_ctf_is_a_conflict_that_is_not_trained_on_and_told(bench: Bench) -> None:
    core = opened(bench)
    land_refined(bench, range(1, 7), defocus=8000.0)
    turns(core, bench)
    status = core.status()
    assert (status.aligned_per_half, status.references_per_half, status.conflicts) == ((0, 0), (0, 0), 6)
    (problem,) = status.problems
    assert problem.startswith("6 aligned rows are not used") and "defocus" in problem
    land_refined(bench, range(1, 9), "right")
    turns(core, bench)
    assert (core.status().references_per_half, core.status().conflicts) == ((4, 4), 6)
    core.close()


def exported(bench: Bench) -> dict[str, dict[str, str]]:
    """Return the canonical export: cells by label, by image."""
    table = read_star(export_star(bench.session / "poses", bench.root / "export.star")[0])
    rows = [dict(zip(table.labels, row, strict=True)) for row in table.rows]
    assert len({row["rlnImageName"] for row in rows}) == len(rows)
    return {row["rlnImageName"]: row for row in rows}


def subsets_of(table: ParticleTable) -> list[str]:
    return table.column("rlnRandomSubset")


def notes_of(core: Coordinator) -> str:
    return "\n".join(core.status().notes)


def test_a_half_set_by_micrograph_is_provisional_and_the_aligned_stars_is_adopted(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.land("s", 9, halves="")
    core = bench.open()
    turns(core, bench)
    land_refined(bench, range(1, 9))
    run_until(core, bench.clock, [FakeTrainer(bench.session / "checkpoints"), FakeWorker()], 9)
    status = core.status()
    assert (status.references_per_half, status.given, status.problems) == ((4, 4), 8, ())
    assert "8 particles took the half-set of the aligned star" in notes_of(core)
    assert "unknown" not in notes_of(core)
    core.close()
    assert trained_on(bench).half_sets().tolist() == [1, 0] * 4
    rows = exported(bench)
    assert [rows[f"{i:06d}@s.mrcs"]["rlnRandomSubset"] for i in range(1, 9)] == ["2", "1"] * 4
    assert rows["000009@s.mrcs"]["cestreamStatus"] == "predicted"


def test_the_aligned_split_wins_over_the_one_that_landed(bench: Bench) -> None:
    core = opened(bench)
    land_refined(bench, range(1, 9), halves="swapped")
    turns(core, bench, 12)
    status = core.status()
    assert (status.references_per_half, status.given, status.conflicts, status.problems) == ((4, 4), 8, 0, ())
    core.close()
    assert trained_on(bench).half_sets().tolist() == [0, 1] * 4
    assert exported(bench)["000001@s.mrcs"]["rlnRandomSubset"] == "1"


def test_rows_that_are_leased_while_their_consensus_comes_get_that_pose_and_the_late_result_is_refused(
    bench: Bench,
) -> None:
    bench.land("a", 8, aligned=True)
    core = bench.open()
    trainer, worker = FakeTrainer(bench.session / "checkpoints"), FakeWorker()
    for _ in range(100):
        turn(core, bench.clock, [trainer])
        if core.status().checkpoint is not None:
            break
    turn(core, bench.clock, [worker])
    assert worker.lease is not None
    land_refined(bench, range(1, 9), halves="swapped")
    turns(core, bench, 12)
    assert (core.status().leased, core.status().pending, core.status().given) == (0, 0, 16)
    turn(core, bench.clock, [worker])
    assert [ack.accepted for ack in worker.acks] == [False]
    core.close()
    assert {row["cestreamStatus"] for row in exported(bench).values()} == {"given"}


def test_rows_whose_pose_is_on_disk_get_the_consensus_pose_when_it_comes(tmp_path: Path) -> None:
    bench = Bench(tmp_path, service={"shard_rows": 5})
    bench.land("a", 8, aligned=True)
    bench.land("s", 9)
    core = bench.open()
    roles = [FakeTrainer(bench.session / "checkpoints"), FakeWorker()]
    run_until(core, bench.clock, roles, 17)
    assert (core.status().given, core.status().predicted) == (8, 9)
    land_refined(bench, range(2, 8), halves="swapped")
    run_until(core, bench.clock, roles, 17)
    for _ in range(6):
        turn(core, bench.clock, roles)
    status = core.status()
    assert (status.given, status.predicted, status.duplicates, status.conflicts) == (14, 3, 0, 0)
    core.close()
    rows = exported(bench)
    assert len(rows) == 17
    for i in range(1, 10):
        row = rows[f"{i:06d}@s.mrcs"]
        if 2 <= i < 8:
            assert (row["cestreamStatus"], row["cestreamRevision"]) == ("given", "0")
            assert row["rlnAngleRot"] == f"{i * 7 % 180:.3f}" and row["rlnRandomSubset"] == str(1 + (i + 1) % 2)
        else:
            assert row["cestreamStatus"] == "predicted"


def test_a_flagged_image_whose_consensus_comes_is_taken_out_of_unposed_and_given(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.land("a", 8, aligned=True)
    bench.land("s", 9, flagged=[1, 2, 8])
    core = bench.open()
    roles = [FakeTrainer(bench.session / "checkpoints"), FakeWorker()]
    run_until(core, bench.clock, roles, 17)
    assert core.status().unposed == 3
    land_refined(bench, range(2, 4))
    for _ in range(10):
        turn(core, bench.clock, roles)
    status = core.status()
    assert (status.unposed, status.given, status.predicted, status.pending) == (1, 10, 6, 0)
    core.close()
    core = bench.open()
    land_refined(bench, range(4, 10), "more")
    for _ in range(10):
        turn(core, bench.clock, roles)
    assert (core.status().unposed, core.status().given) == (0, 16)
    core.close()
    assert len(exported(bench)) == 17 and not (bench.root / "export_unposed.star").exists()


def job(bench: Bench, name: str, rot: float, halves: str = "odd and even", indices: range = range(1, 9)) -> None:
    """Land an aligned star whose first angle is everywhere `rot` degrees more than `star_text` has it."""
    lines = []
    for line in star_text("s", indices, aligned=True, halves=halves).splitlines():
        cells = line.split()
        if "@" in line:
            cells[5] = f"{float(cells[5]) + rot:.3f}"
        lines.append(" ".join(cells))
    (bench.landing / f"{name}.star").write_text("\n".join(lines) + "\n\n")


@pytest.mark.parametrize("consensus", ["newest", "first"])
def test_a_later_refinement_is_a_newer_consensus(tmp_path: Path, consensus: str) -> None:
    bench = Bench(tmp_path, landing={"consensus": consensus})
    bench.land_stack("s", 8)
    job(bench, "job010", 0.0)
    core = bench.open()
    turns(core, bench, 12)
    assert core.status().given == 8
    job(bench, "job020", 0.5)
    turns(core, bench, 12)
    status = core.status()
    assert (status.landed, status.given, status.duplicates, status.conflicts) == (8, 8, 0, 0)
    assert "8 rows have a newer consensus" in notes_of(core)
    assert status.aligned_per_half == (4, 4)
    core.close()
    core = bench.open()
    turns(core, bench)
    assert "8 rows have a newer consensus" in notes_of(core)
    core.close()
    more = 0.5 if consensus == "newest" else 0.0
    assert exported(bench)["000003@s.mrcs"]["rlnAngleRot"] == f"{21 + more:.3f}"


def test_the_former_job_read_again_does_not_take_the_newer_consensus_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.land_stack("s", 8)
    job(bench, "job010", 0.0)
    core = bench.open()
    turns(core, bench, 12)
    job(bench, "job020", 0.5)
    turns(core, bench, 12)
    job(bench, "job010", 0.0, indices=range(8, 0, -1))
    turns(core, bench, 12)
    assert core.status().conflicts == 0
    core.close()
    assert exported(bench)["000003@s.mrcs"]["rlnAngleRot"] == "21.500"


def test_an_aligned_star_that_is_written_again_in_its_place_is_a_newer_consensus(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.land_stack("s", 8)
    job(bench, "run_data", 0.0)
    core = bench.open()
    turns(core, bench, 12)
    job(bench, "run_data", 0.25)
    turns(core, bench, 12)
    assert (core.status().given, core.status().conflicts) == (8, 0)
    core.close()
    assert exported(bench)["000003@s.mrcs"]["rlnAngleRot"] == "21.250"


def test_another_split_of_the_references_particles_makes_them_anew_and_redoes_what_they_posed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, proposer="gallery")
    bench.land("s", 8, halves="")
    bench.land("t", 9)
    core = bench.open()
    roles = [FakeReferenceTrainer(bench.session / "checkpoints"), FakeWorker()]
    job(bench, "job010", 0.0)
    run_until(core, bench.clock, roles, 17)
    assert (core.status().given, core.status().predicted) == (8, 9)
    job(bench, "job020", 0.5, halves="swapped")
    for _ in range(30):
        turn(core, bench.clock, roles)
    status = core.status()
    assert status.checkpoint is not None and status.checkpoint.checkpoint_id == "ref-aligned-2"
    assert (status.given, status.predicted, status.reinfer_shards_left) == (8, 9, 0)
    assert "divides the particles otherwise" not in notes_of(core)
    core.close()
    rows = exported(bench)
    predicted = {row["cestreamCheckpoint"] for name, row in rows.items() if "@t" in name}
    assert predicted == {"ref-aligned-2"}
    assert [rows[f"{i:06d}@s.mrcs"]["rlnRandomSubset"] for i in range(1, 9)] == ["1", "2"] * 4


def test_rows_of_a_former_split_beside_a_newer_one_leave_independence_unknown(tmp_path: Path) -> None:
    bench = Bench(tmp_path, proposer="gallery")
    bench.land("s", 8)
    core = bench.open()
    trainer = FakeReferenceTrainer(bench.session / "checkpoints")
    job(bench, "job010", 0.0)
    for _ in range(20):
        turn(core, bench.clock, [trainer])
    job(bench, "job020", 0.5, halves="swapped", indices=range(1, 7))
    for _ in range(20):
        turn(core, bench.clock, [trainer])
    assert [order.halves_given for order in trainer.orders] == [True, False]
    assert "unknown: 2 aligned rows are of a former refinement with other half-sets" in notes_of(core)
    job(bench, "job030", 0.75, halves="swapped")
    for _ in range(20):
        turn(core, bench.clock, [trainer])
    assert "former refinement" not in notes_of(core)
    core.close()


def test_another_split_of_particles_in_references_of_predicted_poses_makes_these_anew_too(tmp_path: Path) -> None:
    write_map(tmp_path / "map.mrc", np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32), 10.0)
    rebuilding = {"rebuild_rows": 20, "rebuild_least_confidence": 0.4}
    map_file = tmp_path / "map.mrc"
    bench = Bench(tmp_path, proposer="gallery", reference=map_file, noise_rows_per_half=20, referencing=rebuilding)
    bench.land("s", 41)
    core = bench.open()
    roles = [FakeReferenceTrainer(bench.session / "checkpoints"), FakeWorker()]
    for _ in range(40):
        turn(core, bench.clock, roles)
    assert core.status().checkpoint is not None and core.status().checkpoint.checkpoint_id == "ref-poses-2"
    job(bench, "run_data", 0.0, halves="swapped", indices=range(1, 31))
    for _ in range(60):
        turn(core, bench.clock, roles)
    assert core.status().checkpoint.checkpoint_id == "ref-aligned-3"
    assert core.status().reinfer_shards_left == 0
    core.close()
    rows = exported(bench)
    assert {rows[f"{i:06d}@s.mrcs"]["cestreamCheckpoint"] for i in range(31, 42)} == {"ref-aligned-3"}


def test_a_consensus_with_half_sets_is_taken_after_one_without_also_where_the_first_stays(tmp_path: Path) -> None:
    bench = Bench(tmp_path, landing={"consensus": "first"})
    bench.land_stack("s", 8)
    job(bench, "class3d", 0.0, halves="")
    core = bench.open()
    turns(core, bench, 12)
    job(bench, "job010", 0.5)
    turns(core, bench, 12)
    job(bench, "job020", 1.0)
    turns(core, bench, 12)
    assert "unknown" not in notes_of(core)
    core.close()
    assert exported(bench)["000003@s.mrcs"]["rlnAngleRot"] == "21.500"


def test_what_is_known_of_the_aligned_rows_follows_each_adoption(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.land_stack("s", 8)
    job(bench, "class3d", 0.0, halves="")
    core = bench.open()
    turns(core, bench, 12)
    assert "unknown: 8 aligned rows" in notes_of(core)
    job(bench, "job010", 0.5)
    for _ in range(12):
        turn(core, bench.clock, [])
        core.status()
    assert "unknown" not in notes_of(core)
    core.close()


def test_particles_that_a_given_map_posed_get_the_consensus_pose(tmp_path: Path) -> None:
    write_map(tmp_path / "map.mrc", np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32), 10.0)
    bench = Bench(tmp_path, proposer="gallery", reference=tmp_path / "map.mrc", noise_rows_per_half=20)
    bench.land("s", 41)
    core = bench.open()
    roles = [FakeReferenceTrainer(bench.session / "checkpoints"), FakeWorker()]
    run_until(core, bench.clock, roles, 41)
    assert (core.status().given, core.status().predicted) == (0, 41)
    job(bench, "run_data", 0.0, halves="swapped", indices=range(1, 36))
    run_until(core, bench.clock, roles, 41)
    for _ in range(20):
        turn(core, bench.clock, roles)
    assert (core.status().given, core.status().predicted) == (35, 6)
    core.close()
    assert exported(bench)["000003@s.mrcs"]["rlnAngleRot"] == "21.000"


def test_aligned_rows_without_half_sets_leave_their_independence_unknown(bench: Bench) -> None:
    core = opened(bench)
    land_refined(bench, range(1, 9), halves="")
    trainer = FakeTrainer(bench.session / "checkpoints")
    for _ in range(12):
        turn(core, bench.clock, [trainer, FakeWorker()])
    assert "independence of the half-sets is unknown: 8 aligned rows have no rlnRandomSubset" in notes_of(core)
    assert [order.halves_given for order in trainer.orders] == [False]
    core.close()


def test_predictions_of_a_session_that_land_are_never_aligned_rows(bench: Bench) -> None:
    bench.land("a", 8, aligned=True)
    core = bench.open()
    roles = [FakeTrainer(bench.session / "checkpoints"), FakeWorker()]
    run_until(core, bench.clock, roles, 16)
    export_star(bench.session / "poses", bench.landing / "export.star")
    for _ in range(12):
        turn(core, bench.clock, roles)
    status = core.status()
    assert (status.landed, status.given, status.predicted, status.references_per_half) == (16, 8, 8, (0, 0))
    assert "8 rows of" in notes_of(core) and "predicted here: they are not taken as aligned" in notes_of(core)
    core.close()


def test_predictions_that_relion_refined_are_consensus_poses_and_the_order_says_so(bench: Bench) -> None:
    bench.land("a", 8, aligned=True)
    core = bench.open()
    roles = [FakeTrainer(bench.session / "checkpoints"), FakeWorker()]
    run_until(core, bench.clock, roles, 16)
    export_star(bench.session / "poses", bench.root / "export.star")
    posed = read_star(bench.root / "export.star")
    posed = posed.select([k for k, name in enumerate(images_of(posed)) if "@s" in name])
    refined = posed.with_columns(
        {
            "rlnAngleRot": [f"{rot + 0.1:.6f}" for rot in posed.numbers("rlnAngleRot")],
            "rlnNrOfSignificantSamples": ["3"] * len(posed),
        }
    )
    write_star(bench.landing / "run_data.star", refined)
    for _ in range(12):
        turn(core, bench.clock, roles)
    status = core.status()
    assert (status.given, status.references_per_half) == (16, (4, 4))
    assert "initialised_from_own_predictions" in notes_of(core)
    core.close()


def test_a_refined_ctf_comes_with_its_consensus_unless_it_is_to_stay(tmp_path: Path) -> None:
    for setting, expected in (("with_consensus", "10037.00"), ("keep", "10000.00")):
        bench = Bench(tmp_path / setting, landing={"refined_ctf": setting})
        bench.land("s", 8)
        core = opened(bench)
        land_refined(bench, range(1, 9), defocus=10037.0)
        turns(core, bench, 12)
        status = core.status()
        assert (status.given, status.conflicts, status.problems) == (8, 0, ())
        assert "8 aligned rows have a refined CTF" in notes_of(core)
        core.close()
        assert set(trained_on(bench).column("rlnDefocusU")) == {expected}
        assert exported(bench)["000001@s.mrcs"]["rlnDefocusU"] == expected


@pytest.mark.parametrize(
    "rewritten",
    [
        lambda line: line.replace("10000.00 9900.00 12.0", "10000.0009 9900.0003 12.00001"),
        lambda line: line.replace("mic_s.mrc", "MotionCorr/job002/Movies/mic_s.mrc"),
        lambda line: line.replace("10000.00 9900.00 12.0", "9900.00 10000.00 102.0"),
        lambda line: line.replace("2.7 0.1 2.0", "2.7 0.100000001 2.0000001"),
    ],
)
def test_the_same_values_in_other_digits_are_the_same_particle(bench: Bench, rewritten: Callable[[str], str]) -> None:
    core = opened(bench)
    text = "\n".join(map(rewritten, star_text("s", range(1, 9), aligned=True).splitlines()))
    (bench.landing / "refined.star").write_text(text + "\n\n")
    turns(core, bench, 12)
    status = core.status()
    assert (status.references_per_half, status.conflicts, status.problems) == ((4, 4), 0, ())
    assert "refined CTF" not in notes_of(core)
    core.close()


def test_a_star_that_gives_a_particle_two_poses_is_told_and_the_first_counts(bench: Bench) -> None:
    core = opened(bench)
    expanded = star_text("s", range(1, 9), aligned=True).rstrip("\n").splitlines()
    twice = [line.split() for line in expanded if "@" in line]
    twice = [[*cells[:5], str(float(cells[5]) + 90), *cells[6:]] for cells in twice]
    text = "\n".join([*expanded, *(" ".join(cells) for cells in twice)])
    (bench.landing / "expanded.star").write_text(text + "\n\n")
    turns(core, bench, 12)
    assert (core.status().given, core.status().references_per_half) == (8, (4, 4))
    assert core.status().problems[0].startswith("8 aligned rows are not used")
    assert "symmetry expanded" in core.status().problems[0]
    core.close()
    assert exported(bench)["000003@s.mrcs"]["rlnAngleRot"] == "21.000"


def test_an_aligned_star_without_half_sets_takes_those_under_which_its_particles_were_accepted(bench: Bench) -> None:
    core = opened(bench)
    land_refined(bench, range(1, 9), halves="")
    turns(core, bench, 12)
    assert (core.status().references_per_half, core.status().problems) == ((4, 4), ())
    core.close()
    assert trained_on(bench).half_sets().tolist() == [1, 0] * 4


def test_an_aligned_row_whose_pixels_changed_is_not_trained_on(bench: Bench) -> None:
    bench.land("a", 8, aligned=True)
    core = bench.open()
    run_until(core, bench.clock, [FakeTrainer(bench.session / "checkpoints"), FakeWorker()], 16)
    bench.land_stack("s", 8, seed="other pixels")
    land_refined(bench, range(1, 5))
    turns(core, bench)
    assert (core.status().references_per_half, core.status().conflicts) == ((0, 0), 4)
    core.close()


def test_a_done_marker_beside_a_late_aligned_star_starts_the_training(tmp_path: Path) -> None:
    bench = Bench(tmp_path, aligned_quiet_seconds=1000.0)
    bench.land("s", 8)
    core = opened(bench)
    land_refined(bench, range(1, 9))
    (bench.landing / "refined.star.done").touch()
    turns(core, bench, 3)
    assert len(trained_on(bench)) == 8
    core.close()


def test_the_status_view_tells_references_and_stars_that_were_passed_over(bench: Bench) -> None:
    core = opened(bench)
    land_refined(bench, range(1, 6))
    land_refined(bench, range(1, 9), "run_it007_data")
    turns(core, bench)
    console = Console(width=160)
    with console.capture() as capture:
        console.print(status_view(core.status(), running=True))
    assert "2 + 3 of 3 a half, 2 + 3 of known particles" in capture.get()
    assert "1 intermediate RELION star passed over" in capture.get()
    core.close()
