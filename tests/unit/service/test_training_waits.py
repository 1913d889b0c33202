"""What training, or a given map, would wait for in vain is said at once, with what to do."""

from pathlib import Path

import numpy as np
from support.session_bench import Bench, FakeTrainer, star_text, turn

from cesped_stream.imaging.maps import write_map
from cesped_stream_service.coordinator import Coordinator
from cesped_stream_service.messages import Control


def turns(core: Coordinator, bench: Bench, many: int = 10) -> None:
    for _ in range(many):
        turn(core, bench.clock, [], 0.5)


def half_problems(core: Coordinator) -> list[str]:
    return [text for text in core.status().problems if "all " in text and " rows " in text]


def land_of_subset_1(bench: Bench, name: str, num: int, *, aligned: bool = True) -> None:
    bench.land_stack(name, 2 * num)
    bench.land_star(name, range(2, 2 * num + 1, 2), aligned=aligned)


def test_aligned_rows_of_one_subset_are_a_problem_at_once_and_retrain_says_it_too(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    land_of_subset_1(bench, "s", 5)
    core = bench.open()
    turns(core, bench)
    (told,) = half_problems(core)
    assert told.startswith(f"{bench.landing / 's.star'}: all 5 rows have rlnRandomSubset 1 and none 2")
    assert "remove the column" in told and "a corrected star counts when it lands" in told
    reply = core.control(Control(action="train"))
    assert not reply.ok and "rlnRandomSubset 1" in reply.text
    bench.land("t", 7, aligned=True)
    turns(core, bench)
    assert half_problems(core) == [] and core.status().aligned_per_half[1] > 0
    core.close()


def test_aligned_rows_of_one_micrograph_without_subsets_are_a_problem_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.land("s", 6, aligned=True, halves="")
    core = bench.open()
    turns(core, bench)
    (told,) = half_problems(core)
    assert "all 6 rows are of one micrograph (mic_s.mrc)" in told and "give more micrographs" in told
    core.close()


def test_a_star_that_is_still_being_read_is_no_problem_yet(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.land_stack("s", 12)
    text = star_text("s", range(2, 13, 2), aligned=True)
    (bench.landing / "s.star").write_text(text.rstrip() + "\n0000")  # its next row is being written
    core = bench.open()
    turns(core, bench)
    assert core.status().aligned_per_half[0] > 0 and half_problems(core) == []
    core.close()


def test_both_half_sets_with_rows_are_no_problem(tmp_path: Path) -> None:
    bench = Bench(tmp_path, min_aligned_per_half=100)
    bench.land("s", 7, aligned=True)
    core = bench.open()
    turns(core, bench)
    assert half_problems(core) == [] and core.status().notes == ()
    core.close()


def test_a_given_map_whose_particles_are_all_of_one_subset_is_a_problem(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).random((32, 32, 32), np.float32)
    write_map(tmp_path / "map.mrc", volume, 4.0)
    bench = Bench(
        tmp_path / "b", proposer="gallery", reference=tmp_path / "map.mrc", noise_rows_per_half=20,
    )  # fmt: skip
    land_of_subset_1(bench, "s", 10, aligned=False)
    core = bench.open()
    turns(core, bench)
    assert half_problems(core) == [], "fewer than it waits for in any case"
    land_of_subset_1(bench, "t", 10, aligned=False)
    turns(core, bench)
    (told,) = half_problems(core)
    assert "and 1 more stars: all 20 rows have rlnRandomSubset 1" in told
    core.close()


def test_a_finished_aligned_star_of_too_few_rows_is_noted(tmp_path: Path) -> None:
    bench = Bench(tmp_path, min_aligned_per_half=100)
    bench.land("s", 7, aligned=True)
    core = bench.open()
    turns(core, bench)
    assert core.status().notes == (), "more may come"
    (bench.landing / "s.star.done").touch()
    turns(core, bench)
    (note,) = core.status().notes
    assert "s.star: finished" in note and "3 + 4 aligned rows of the 100" in note and "--min_aligned_per_half 3" in note
    core.close()


def test_an_aligned_star_whose_rows_are_refused_is_noted_with_the_first_reason(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (bench.landing / "s.star").write_text(star_text("s", range(1, 8), aligned=True, stack="../../../etc/passwd"))
    core = bench.open()
    turns(core, bench)
    assert core.status().refused_rows == 7
    (note,) = core.status().notes
    assert "s.star: 7 aligned rows are refused (row 1: " in note and "outside of" in note and "requeue" in note
    core.close()


def test_nothing_is_said_once_training_was_ordered(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.land("s", 7, aligned=True)
    core = bench.open()
    trainer = FakeTrainer(bench.session / "checkpoints")
    for _ in range(12):
        turn(core, bench.clock, [trainer])
    assert trainer.orders
    (bench.landing / "bad.star").write_text(star_text("s", range(1, 8), aligned=True, stack="../../../etc/passwd"))
    turns(core, bench)
    assert core.status().refused_rows == 7 and core.status().notes == () and half_problems(core) == []
    core.close()
