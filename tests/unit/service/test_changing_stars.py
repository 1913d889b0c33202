"""Stars that never stand still: replaced whole, grown, rewritten; what is taken of them, and what is told."""

import os
from pathlib import Path

import pytest
from support.session_bench import Bench, fake_checkpoint, star_text, turn

from cesped_stream_service.coordinator import Coordinator
from cesped_stream_service.settings import LandingSettings
from cesped_stream_service.watcher import Watcher


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")))


def replace_star(bench: Bench, name: str, text: str, *, same_tick: bool = False) -> None:
    """Write a star as RELION does: under another name, then renamed into place."""
    temporary, star = bench.landing / f"{name}.star.tmp", bench.landing / f"{name}.star"
    temporary.write_text(text)
    os.utime(temporary, ns=(0, temporary.stat().st_ctime_ns if same_tick else 1_000_000_000))
    os.replace(temporary, star)


def write_in_place(bench: Bench, name: str, text: str) -> None:
    """Write a star as cp does, so that no later change of its name shows."""
    star = bench.landing / f"{name}.star"
    star.write_text(text)


def turns(core: Coordinator, bench: Bench, many: int = 4) -> None:
    for _ in range(many):
        turn(core, bench.clock, [])


@pytest.fixture
def watcher(tmp_path: Path) -> Watcher:
    return Watcher(LandingSettings(folder=tmp_path, settle_seconds=4.0))


def test_a_star_that_was_renamed_into_place_is_complete_at_the_first_look(tmp_path: Path, watcher: Watcher) -> None:
    (tmp_path / "a.tmp").write_text("one")
    os.utime(tmp_path / "a.tmp", ns=(0, 1_000_000_000))
    (tmp_path / "a.tmp").rename(tmp_path / "a.star")
    assert [star.path.name for star in watcher.scan(100.0)] == ["a.star"]


def test_a_star_that_takes_the_place_of_another_file_is_complete(tmp_path: Path, watcher: Watcher) -> None:
    (tmp_path / "a.star").write_text("one")
    assert watcher.scan(100.0) == []
    (tmp_path / "b").write_text("two")
    (tmp_path / "b").replace(tmp_path / "a.star")
    assert [star.path.name for star in watcher.scan(101.0)] == ["a.star"]


def test_a_star_that_is_written_over_in_place_is_not_complete(tmp_path: Path, watcher: Watcher) -> None:
    (tmp_path / "a.star").write_text("one")
    watcher.scan(100.0)
    (tmp_path / "a.star").write_text("two and more")
    assert watcher.scan(103.0) == [] and watcher.scan(106.9) == []
    assert len(watcher.scan(107.0)) == 1


def test_a_rename_that_was_seen_settles_a_star_whose_times_and_inode_tell_nothing(
    tmp_path: Path, watcher: Watcher
) -> None:
    (tmp_path / "a.star").write_text("one")
    assert watcher.scan(100.0) == []
    (tmp_path / "a.star").write_text("two, under the inode's number of before")
    watcher.note_renamed(str(tmp_path / "a.star"))
    assert len(watcher.scan(101.0)) == 1


def test_a_star_that_is_replaced_at_every_scan_is_taken_at_every_scan(bench: Bench) -> None:
    bench.land_stack("s", 60)
    core = bench.open()
    for many in range(3, 60, 3):
        replace_star(bench, "s", star_text("s", range(many, 0, -1)))
        turn(core, bench.clock, [], 0.6)
        turn(core, bench.clock, [], 0.01)
        assert many < 12 or core.status().landed == many
    turns(core, bench)
    assert (core.status().landed, core.status().duplicates, core.status().conflicts) == (57, 0, 0)
    assert core.status().problems == ()
    core.close()


def test_a_star_that_grows_in_place_at_every_scan_gives_the_rows_that_two_looks_agree_on(bench: Bench) -> None:
    bench.land_stack("s", 100)
    core = bench.open()
    text = star_text("s", range(1, 101))
    start = text.index("000001@")
    for length in range(start - 20, len(text) - 400, 130):
        write_in_place(bench, "s", text[:length])
        turn(core, bench.clock, [], 0.6)
    status = core.status()
    complete = text[:length].count("\n000") - 1
    assert complete - 8 <= status.landed < complete
    assert status.duplicates == 0 and status.problems == ()
    (note,) = [note for note in status.notes if "s.star" in note]
    assert "growing in place" in note and f"{status.landed} rows are taken so far" in note
    write_in_place(bench, "s", text)
    turns(core, bench, 8)
    assert (core.status().landed, core.status().duplicates, core.status().notes) == (100, 0, ())
    core.close()


def test_a_row_that_was_cut_at_a_look_is_never_ingested(bench: Bench) -> None:
    bench.land_stack("s", 30)
    core = bench.open()
    text = star_text("s", range(1, 31), defocus=12345.0)
    for length in range(text.index("000001@"), len(text), 37):
        write_in_place(bench, "s", text[:length])
        turn(core, bench.clock, [], 0.6)
    turns(core, bench, 8)
    assert core.status().landed == 30 - (not text[:length].endswith("\n\n"))
    batches = "".join(path.read_text() for path in (bench.session / "batches").glob("*.star"))
    assert batches.count("12345.00 12245.00 12.0") == core.status().landed
    core.close()


def test_rows_that_change_between_the_looks_wait_and_the_others_are_taken(bench: Bench) -> None:
    bench.land_stack("s", 10)
    core = bench.open()
    for k in range(12):
        last = star_text("s", range(7, 11), defocus=9000.0 + k)
        rows = "".join(f"{line}\n" for line in last.splitlines() if "@" in line)
        write_in_place(bench, "s", star_text("s", range(1, 7)).rstrip("\n") + "\n" + rows + " \n")
        turn(core, bench.clock, [], 0.6)
    assert (core.status().landed, core.status().conflicts) == (6, 0)
    core.close()


def test_a_star_of_which_no_two_looks_agree_is_a_warning_after_ten_settle_times_that_says_why(bench: Bench) -> None:
    bench.land_stack("s", 4)
    core = bench.open()
    for k in range(22):
        write_in_place(bench, "s", star_text(f"s{k}", [1, 2], stack="s", optics=f"g{k}"))
        turn(core, bench.clock, [], 0.5)
        if k == 10:
            assert core.status().problems == ()
    (problem,) = core.status().problems
    assert "s.star: has not stood still for 10 s" in problem and "every 0.5 s" in problem
    assert "rename it when it is complete" in problem
    core.close()


def test_accepted_rows_of_a_changing_star_that_read_differently_are_judged_again_by_identity(bench: Bench) -> None:
    bench.land_stack("s", 20)
    bench.land_star("s", range(1, 6))
    core = bench.open()
    turns(core, bench)
    assert core.status().landed == 5
    for many in range(6, 16):
        write_in_place(bench, "s", star_text("s", range(20, 20 - many, -1)))
        turn(core, bench.clock, [], 0.6)
    assert core.status().landed >= 5 + 12 and core.status().duplicates == 0
    core.close()


def test_a_changing_star_whose_stack_is_late_keeps_its_rows(bench: Bench) -> None:
    core = bench.open()
    for many in range(3, 15):
        write_in_place(bench, "s", star_text("s", range(1, many + 1)))
        turn(core, bench.clock, [], 0.6)
    assert core.status().landed == 0 and core.status().waiting_for_stack > 5
    bench.land_stack("s", 20)
    for many in range(15, 21):
        write_in_place(bench, "s", star_text("s", range(1, many + 1)))
        turn(core, bench.clock, [], 0.6)
    turns(core, bench, 8)
    assert (core.status().landed, core.status().waiting_for_stack, core.status().duplicates) == (20, 0, 0)
    core.close()


def test_a_star_without_particles_that_changes_all_the_time_is_no_problem(bench: Bench) -> None:
    core = bench.open()
    for k in range(30):
        write_in_place(bench, "default_pipeline", f"data_pipeline_general\n\n_rlnPipeLineJobCounter {k}\n")
        turn(core, bench.clock, [], 0.6)
    assert core.status().problems == () and core.status().stars_left == {"pipeline": 1}
    core.close()
