"""Aligned rows of particles that landed before without poses: trained on, and never a second row of the output."""

from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console
from support.session_bench import Bench, FakeTrainer, FakeWorker, run_until, star_text, turn

from cesped_stream.export.star import export_star
from cesped_stream.particles.star import read_star
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
    run_until(core, bench.clock, [trainer, FakeWorker()], 8)
    status = core.status()
    assert (status.landed, status.given, status.predicted, status.duplicates) == (8, 0, 8, 0)
    assert (status.aligned_per_half, status.references_per_half, status.problems) == ((4, 4), (4, 4), ())
    core.close()
    assert len(trainer.orders) == 1 and trained_on(bench).has_poses().all()
    assert images_of(trained_on(bench)) == [f"{i:06d}@s.mrcs" for i in range(1, 9)]
    assert trained_on(bench).half_sets().tolist() == [1, 0] * 4
    exported = read_star(export_star(bench.session / "poses", bench.root / "export.star")[0])
    assert Counter(images_of(exported)) == Counter(images_of(trained_on(bench)))
    assert set(exported.column("cestreamStatus")) == {"predicted"}


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
    assert core.status().given == 3
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
    assert (status.duplicates, status.conflicts, status.pending) == (6, 0, 8)
    core.close()
    batches = [read_star(path) for path in (bench.session / "batches").glob("batch_*.star")]
    assert Counter(Counter(i for table in batches for i in images_of(table)).values()) == Counter({2: 8})


def test_an_aligned_row_with_another_ctf_is_a_conflict_that_is_not_trained_on_and_told(bench: Bench) -> None:
    core = opened(bench)
    land_refined(bench, range(1, 7), defocus=9000.0)
    turns(core, bench)
    status = core.status()
    assert (status.aligned_per_half, status.references_per_half, status.conflicts) == ((0, 0), (0, 0), 6)
    (problem,) = status.problems
    assert problem.startswith("6 aligned rows are not trained on") and "CTF" in problem
    land_refined(bench, range(1, 9), "right")
    turns(core, bench)
    assert (core.status().references_per_half, core.status().conflicts) == ((4, 4), 6)
    core.close()


def test_the_half_set_for_life_wins_over_a_late_aligned_star_and_the_rows_are_told(bench: Bench) -> None:
    core = opened(bench)
    other = star_text("s", range(5, 8), aligned=True, halves="swapped").splitlines()
    rows = [*star_text("s", range(1, 5), aligned=True).rstrip("\n").splitlines(), *(r for r in other if "@" in r)]
    (bench.landing / "refined.star").write_text("\n".join(rows) + "\n")
    turns(core, bench)
    core.close()
    core = bench.open()
    (bench.landing / "refined.star").write_text("\n".join([*rows[:-2], rows[-1], rows[-2]]) + "\n")
    turns(core, bench)
    status = core.status()
    assert (status.references_per_half, status.aligned_per_half, status.conflicts) == ((2, 2), (2, 2), 3)
    (problem,) = status.problems
    assert problem.startswith("3 aligned rows are not trained on") and "rlnRandomSubset" in problem
    assert "land the aligned star first" in problem and str(bench.landing / "refined.star") in problem
    core.close()


def test_an_aligned_star_without_half_sets_takes_those_under_which_its_particles_were_accepted(bench: Bench) -> None:
    core = opened(bench)
    land_refined(bench, range(1, 9), halves="")
    turns(core, bench, 12)
    assert (core.status().references_per_half, core.status().problems) == ((4, 4), ())
    core.close()
    assert trained_on(bench).half_sets().tolist() == [1, 0] * 4


def test_half_sets_by_micrograph_win_over_those_that_an_aligned_star_gives_later(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.land("s", 8, halves="")
    core = opened(bench)
    land_refined(bench, range(1, 9))
    turns(core, bench)
    status = core.status()
    assert sorted(status.references_per_half) == [0, 4]
    assert status.problems[0].startswith("4 aligned rows are not trained on")
    core.close()


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
