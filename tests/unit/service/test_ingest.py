import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.session_bench import BOX, Bench, FakeWorker, fake_checkpoint, run_until, star_text, turn

from cesped_stream.particles.star import read_star
from cesped_stream_service import ingest as ingest_module
from cesped_stream_service.coordinator import Coordinator


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")))


def turns(core: Coordinator, bench: Bench, many: int = 8) -> None:
    for _ in range(many):
        turn(core, bench.clock, [])


def reasons(bench: Bench) -> str:
    return "".join(path.read_text() for path in sorted((bench.session / "quarantine").glob("*.json")))


def batch_images(bench: Bench) -> list[str]:
    return [i for p in sorted((bench.session / "batches").glob("*.star")) for i in read_star(p).column("rlnImageName")]


def test_a_star_delivered_three_times_counts_once_and_its_copies_are_counted(bench: Bench) -> None:
    bench.land("s", 5)
    for copy in ("copy", "another"):
        (bench.landing / f"{copy}.star").write_text(star_text("s", range(1, 6)))
    core = bench.open()
    turns(core, bench)
    status = core.status()
    assert (status.landed, status.duplicates, status.conflicts, status.stars) == (5, 10, 0, 3)
    os.utime(bench.landing / "copy.star", (0, 0))
    turns(core, bench)
    assert (core.status().landed, core.status().duplicates) == (5, 10)
    core.close()


def test_one_row_that_cannot_be_used_is_refused_and_the_other_99_go_on(bench: Bench) -> None:
    bench.land_stack("s", 100)
    text = star_text("s", range(1, 101))
    row = next(line for line in text.splitlines() if line.startswith("000042@"))
    (bench.landing / "s.star").write_text(text.replace(row, row.replace("10000.00", "nan")))
    core = bench.open()
    turns(core, bench, 30)
    assert (core.status().landed, core.status().refused_rows) == (99, 1)
    assert len(set(batch_images(bench))) == 99 and "000042@s.mrcs" not in batch_images(bench)
    assert '"row": 42' in reasons(bench) and "s.star: row 42, rlnDefocusU: 'nan' is no finite number" in reasons(bench)
    turns(core, bench)
    assert (core.status().landed, core.status().refused_rows) == (99, 1)
    core.close()


def test_a_part_of_nothing_but_unusable_rows_stops_no_other(bench: Bench) -> None:
    bench.land_stack("s", 20)
    text = star_text("s", range(1, 21))
    for k in range(1, 9):
        text = text.replace(f"{k:06d}@", "0@")
    (bench.landing / "s.star").write_text(text)
    core = bench.open()
    turns(core, bench, 20)
    assert (core.status().landed, core.status().refused_rows) == (12, 8)
    core.close()


def test_rows_that_name_a_stack_of_several_images_and_none_of_them_are_refused(bench: Bench) -> None:
    bench.land_stack("s", 4)
    bench.land_stack("one", 1)
    (bench.landing / "s.star").write_text(star_text("s", range(1, 5)).replace("000003@", ""))
    (bench.landing / "one.star").write_text(star_text("one", [1]).replace("000001@", ""))
    core = bench.open()
    turns(core, bench)
    assert (core.status().landed, core.status().refused_rows) == (4, 1)
    assert '"row": 3' in reasons(bench) and "holds 4 images, and 's.mrcs' names none of them" in reasons(bench)
    core.close()


def test_rows_of_a_stack_that_can_never_be_read_are_refused_at_once(bench: Bench) -> None:
    bench.land_star("s", range(1, 4))
    (bench.landing / "s.mrcs").write_bytes(b"\x1f\x8b\x08" + bytes(5000))
    core = bench.open()
    turns(core, bench)
    assert (core.status().landed, core.status().refused_rows) == (0, 3)
    assert "is compressed (gzip)" in reasons(bench)
    core.close()


def test_a_row_twice_in_one_star_counts_once(bench: Bench) -> None:
    bench.land_stack("s", 3)
    bench.land_star("s", [1, 2, 2, 3, 1])
    core = bench.open()
    turns(core, bench)
    assert (core.status().landed, core.status().duplicates, core.status().conflicts) == (3, 2, 0)
    core.close()


def test_the_same_particle_with_another_ctf_or_optics_is_a_conflict_and_the_first_wins(bench: Bench) -> None:
    bench.land("s", 4)
    core = bench.open()
    turns(core, bench)
    (bench.landing / "other_ctf.star").write_text(star_text("s", [1, 2], defocus=9000.0))
    (bench.landing / "other_optics.star").write_text(star_text("s", [3], voltage=200.0))
    (bench.landing / "renumbered.star").write_text(star_text("s", [4]).replace("10000.00", "1.0e4"))
    turns(core, bench)
    assert (core.status().landed, core.status().conflicts, core.status().duplicates) == (4, 3, 4)
    assert read_star(bench.session / "batches" / "batch_000001.star").column("rlnDefocusU") == ["10000.00"] * 4
    core.close()


def test_a_stack_that_was_replaced_conflicts_by_its_pixels_and_a_touched_one_does_not(bench: Bench) -> None:
    bench.land("s", 4)
    bench.land("t", 4)
    core = bench.open()
    run_until(core, bench.clock, [FakeWorker()], 8)
    os.utime(bench.landing / "t.mrcs", (1, 1))
    bench.land_stack("s", 4, seed="other pixels")
    for name in "st":
        (bench.landing / f"{name}_again.star").write_text(star_text(name, range(1, 5)))
    turns(core, bench)
    assert (core.status().landed, core.status().duplicates, core.status().conflicts) == (8, 8, 4)
    core.close()


def test_a_renamed_copy_of_a_stack_is_a_new_identity_and_reported_as_a_likely_copy(bench: Bench) -> None:
    bench.land("s", 4)
    core = bench.open()
    run_until(core, bench.clock, [FakeWorker()], 4)
    shutil.copy(bench.landing / "s.mrcs", bench.landing / "t.mrcs")
    bench.land_star("t", range(1, 5))
    run_until(core, bench.clock, [FakeWorker(incarnation="w2")], 8)
    assert (core.status().likely_copies, core.status().duplicates) == (1, 0)
    core.close()


def test_a_growing_star_is_read_from_where_it_was_left_and_a_changed_one_by_identity(bench: Bench) -> None:
    bench.land_stack("s", 20)
    core = bench.open()
    for many in (3, 9, 14):
        bench.land_star("s", range(1, many + 1))
        turns(core, bench)
        assert core.status().landed == many
    bench.land_star("s", range(20, 0, -1))
    turns(core, bench)
    assert (core.status().landed, core.status().duplicates, core.status().conflicts) == (20, 0, 0)
    core.close()
    core = bench.open()
    turns(core, bench)
    assert (core.status().landed, core.status().duplicates) == (20, 0)
    assert len(batch_images(bench)) == len(set(batch_images(bench))) == 20
    core.close()


def test_rows_wait_for_their_stack_and_the_others_go_on(bench: Bench) -> None:
    bench.land_stack("here", 3)
    here, late = star_text("here", range(1, 4)), star_text("late", range(1, 4))
    rows = [line for line in late.splitlines() if "@" in line]
    (bench.landing / "both.star").write_text(here.rstrip("\n") + "\n" + "\n".join(rows) + "\n\n")
    core = bench.open()
    turns(core, bench)
    status = core.status()
    assert (status.landed, status.waiting_for_stack) == (3, 3)
    assert "both.star: 3 rows wait for their stack" in status.problems[0] and "late.mrcs" in status.problems[0]
    core.close()
    core = bench.open()
    bench.land_stack("late", 3)
    turns(core, bench)
    status = core.status()
    assert (status.landed, status.waiting_for_stack, status.duplicates, status.problems) == (6, 0, 0, ())
    core.close()


def test_a_stack_that_grows_image_by_image_is_taken_when_it_is_whole(bench: Bench) -> None:
    bench.land("s", 4)
    whole = (bench.landing / "s.mrcs").read_bytes()
    core = bench.open()
    image = 4 * 8 * 8
    for length in (500, 1024, 1024 + image // 2, 1024 + 2 * image):
        (bench.landing / "s.mrcs").write_bytes(whole[:length])
        turns(core, bench, 4)
        assert core.status().landed == 0
    (bench.landing / "s.mrcs").write_bytes(whole)
    turns(core, bench, 2)
    assert core.status().landed == 0, "not settled yet"
    turns(core, bench)
    assert core.status().landed == 4
    core.close()


def test_an_index_beyond_the_stack_waits_alone_is_quarantined_with_a_reason_and_can_be_requeued(bench: Bench) -> None:
    bench.land_stack("s", 3)
    bench.land_star("s", [1, 2, 3, 7])
    core = bench.open()
    turns(core, bench)
    assert (core.status().landed, core.status().waiting_for_stack) == (3, 1)
    for _ in range(70):
        turn(core, bench.clock, [], 1.0)
    status = core.status()
    assert (status.landed, status.waiting_for_stack, status.refused_rows) == (3, 0, 1)
    assert "3 images, a row asks for 7" in reasons(bench) and '"row": 4' in reasons(bench)
    core.close()
    core = bench.open()
    turns(core, bench)
    assert (core.status().refused_rows, core.status().waiting_for_stack) == (1, 0)
    bench.land_stack("s", 7)
    assert "1 stars" in core.requeue(str(bench.landing / "s.star"))
    turns(core, bench)
    status = core.status()
    assert (status.landed, status.refused_rows, status.duplicates, reasons(bench)) == (4, 0, 0, "")
    core.close()


@pytest.mark.parametrize("name", ["../secret.mrcs", "/etc/passwd", "link.mrcs", "fifo.mrcs"])
def test_a_stack_outside_the_allowed_roots_is_refused_with_its_row_and_never_opened(bench: Bench, name: str) -> None:
    (bench.root / "secret.mrcs").write_bytes(b"secret")
    (bench.landing / "link.mrcs").symlink_to(bench.root / "secret.mrcs")
    os.mkfifo(bench.landing / "fifo.mrcs")
    bench.land_stack("s", 2)
    text = star_text("s", [1, 2])
    (bench.landing / "s.star").write_text(text.replace("000002@s.mrcs", f"000002@{name}"))
    core = bench.open()
    turns(core, bench)
    status = core.status()
    assert (status.landed, status.refused_rows, status.waiting_for_stack) == (1, 1, 0)
    assert '"row": 2' in reasons(bench)
    core.close()


def test_a_wrong_star_is_set_aside_with_a_reason_until_it_changes(bench: Bench) -> None:
    bench.land("good", 2)
    bench.land("bad", 3)
    good = (bench.landing / "bad.star").read_text()
    (bench.landing / "bad.star").write_text(good.replace("A 1 300.0", "A 1 0.0"))
    core = bench.open()
    turns(core, bench)
    status = core.status()
    assert (status.landed, status.quarantined_stars) == (2, 1)
    assert "rlnVoltage" in reasons(bench) and "rlnVoltage" in status.problems[0]
    (bench.landing / "bad.star").write_text(good)
    turns(core, bench)
    assert (core.status().landed, core.status().quarantined_stars, core.status().problems) == (5, 0, ())
    assert reasons(bench) == ""
    core.close()


def test_a_star_cut_in_its_last_row_gives_its_whole_rows_and_says_that_it_is_cut(bench: Bench) -> None:
    bench.land("s", 5)
    whole = (bench.landing / "s.star").read_text()
    (bench.landing / "s.star").write_text(whole[: whole.index("000005@") + 15])
    core = bench.open()
    turns(core, bench)
    assert core.status().landed == 4
    assert any("cut" in problem for problem in core.status().problems)
    (bench.landing / "s.star").write_text(whole)
    turns(core, bench)
    assert (core.status().landed, core.status().problems) == (5, ())
    core.close()


def test_a_star_that_stays_cut_is_quarantined_after_the_timeout_and_keeps_its_whole_rows(bench: Bench) -> None:
    bench.land("s", 5)
    whole = (bench.landing / "s.star").read_text()
    (bench.landing / "s.star").write_text(whole[: whole.index("000005@") + 15])
    core = bench.open()
    for _ in range(80):
        turn(core, bench.clock, [], 1.0)
    assert (core.status().landed, core.status().quarantined_stars) == (4, 1)
    assert "cut" in reasons(bench)
    core.close()


def test_rows_that_came_from_a_star_survive_its_deletion_and_rewriting(bench: Bench) -> None:
    bench.land("s", 5)
    core = bench.open()
    turns(core, bench)
    (bench.landing / "s.star").unlink()
    run_until(core, bench.clock, [FakeWorker()], 5)
    assert core.status().posed == 5
    core.close()


def test_a_vanished_landing_folder_is_a_problem_and_not_an_empty_one(bench: Bench) -> None:
    bench.land("s", 3)
    core = bench.open()
    turns(core, bench)
    bench.landing.rename(bench.root / "away")
    turns(core, bench)
    assert core.status().landed == 3
    assert str(bench.landing) in core.status().problems[0]
    (bench.root / "away").rename(bench.landing)
    bench.land("t", 2)
    turns(core, bench)
    assert (core.status().landed, core.status().duplicates, core.status().problems) == (5, 0, ())
    core.close()


def test_a_star_that_changes_while_it_is_read_is_read_again_when_it_is_settled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.land("s", 20)
    read, first = ingest_module.read_tail, [True]

    def read_while_it_changes(path: Path, *rest: Any, **options: Any) -> Iterator[Any]:
        for part in read(path, *rest, **options):
            if first:
                bench.land_star("s", range(20, 0, -1), defocus=12345.0)
                first.clear()
            yield part

    monkeypatch.setattr(ingest_module, "read_tail", read_while_it_changes)
    core = bench.open()
    turns(core, bench, 12)
    core.close()
    tables = [read_star(path) for path in (bench.session / "batches").glob("*.star")]
    assert sum(map(len, tables)) == 20 and {d for t in tables for d in t.column("rlnDefocusU")} == {"12345.00"}


def test_a_star_that_vanishes_before_it_is_read_is_not_waited_for_for_ever(bench: Bench) -> None:
    bench.land("s", 3)
    core = bench.open()
    turns(core, bench, 1)
    stars = core._watcher.scan(bench.clock.now + 5.0)
    assert core._work is not None
    core._work.ingest.stars_landed(stars, bench.clock.now)
    (bench.landing / "s.star").unlink()
    turns(core, bench, 3)
    assert core.status().stars_waiting == 1 and "s.star" in core.status().problems[0]
    for _ in range(70):
        turn(core, bench.clock, [], 1.0)
    assert (core.status().stars_waiting, core.status().problems, core.status().quarantined_stars) == (0, (), 0)
    core.close()


def test_odd_file_times_change_nothing(bench: Bench) -> None:
    for name, seconds in (("old", 0), ("future", 4_102_444_800)):
        bench.land(name, 2)
        for suffix in ("star", "mrcs"):
            os.utime(bench.landing / f"{name}.{suffix}", (seconds, seconds))
    core = bench.open()
    turns(core, bench)
    assert core.status().landed == 4
    core.close()


def test_a_done_marker_ends_every_wait(bench: Bench) -> None:
    bench.land("s", 3)
    (bench.landing / "s.star.done").touch()
    core = bench.open()
    turns(core, bench, 1)
    assert core.status().landed == 3
    core.close()


def test_stacks_are_found_below_the_image_root(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    bench = Bench(tmp_path / "bench", landing={"image_root": images})
    bench.land_stack("s", 2)
    (bench.landing / "s.mrcs").rename(images / "s.mrcs")
    bench.land_star("s", [1, 2])
    core = bench.open()
    turns(core, bench)
    assert core.status().landed == 2
    core.close()


def test_rows_with_varying_tilt_are_given_poses_and_2d_classes_are_not(bench: Bench) -> None:
    bench.land("aligned", 4, aligned=True)
    bench.land("classes", 4, aligned=True)
    star = bench.landing / "classes.star"
    lines = [line.split() for line in star.read_text().splitlines()]
    flat = [" ".join([*cells[:6], "0.0", *cells[7:]]) if "@" in "".join(cells) else " ".join(cells) for cells in lines]
    star.write_text("\n".join(flat) + "\n")
    core = bench.open()
    turns(core, bench)
    assert core.status().aligned_per_half == (2, 2)
    assert (core.status().landed, core.status().given) == (8, 4)
    core.close()


def test_only_the_stars_that_the_setting_names_are_aligned(tmp_path: Path) -> None:
    bench = Bench(tmp_path, landing={"aligned": "first*.star"})
    bench.land("first_1", 4, aligned=True)
    bench.land("second", 4, aligned=True)
    core = bench.open()
    turns(core, bench)
    assert core.status().aligned_per_half == (2, 2)
    core.close()


def test_a_large_star_is_split_and_leaves_time_for_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.land("large", 200)
    bench.land("small", 3)
    parts: list[int] = []
    take = ingest_module.Acceptance.take
    monkeypatch.setattr(
        ingest_module.Acceptance,
        "take",
        lambda self, record, star, *rest: (parts.append(star.path.name), take(self, record, star, *rest))[1],
    )
    core = bench.open()
    turns(core, bench, 12)
    assert core.status().landed == 203
    assert parts.index("small.star") <= 2
    sizes = [len(read_star(path)) for path in (bench.session / "batches").glob("*.star")]
    assert max(sizes) == 7 and sum(sizes) == 203
    core.close()


def test_waiting_rows_in_memory_are_bounded_and_none_is_lost(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_module, "MAX_WAITING_ROWS", 20)
    bench.land_star("s", range(1, 101))
    core = bench.open()
    turns(core, bench, 12)
    assert 20 <= core.status().waiting_for_stack < 30
    bench.land_stack("s", 100)
    turns(core, bench, 40)
    assert (core.status().landed, core.status().waiting_for_stack, core.status().duplicates) == (100, 0, 0)
    core.close()


def test_half_sets_are_for_life_and_written_out(bench: Bench) -> None:
    bench.land_stack("s", 6)
    text = star_text("s", range(1, 7))
    lines = [
        " ".join([*line.split()[:5], *line.split()[6:]]) if "@" in line else line
        for line in text.splitlines()
        if "RandomSubset" not in line
    ]
    (bench.landing / "s.star").write_text("\n".join(lines).replace("_rlnOpticsGroup #7", "_rlnOpticsGroup #6") + "\n")
    core = bench.open()
    turns(core, bench)
    core.close()
    table = read_star(bench.session / "batches" / "batch_000001.star")
    assert np.array_equal(table.half_sets(), table.without(["rlnRandomSubset"]).half_sets())
    assert len(set(table.column("rlnRandomSubset"))) == 1


def test_optics_without_an_image_size_get_the_stacks_box_since_relion_needs_it(bench: Bench) -> None:
    bench.land_stack("s", 2)
    text = star_text("s", [1, 2]).replace("_rlnImageSize #7\n", "").replace(f"0.1 2.0 {BOX}\n", "0.1 2.0\n")
    (bench.landing / "s.star").write_text(text)
    core = bench.open()
    turns(core, bench)
    (group,) = read_star(bench.session / "batches" / "batch_000001.star").optics
    assert (group.text("rlnImageSize"), group.text("rlnImageDimensionality")) == (str(BOX), "2")
    core.close()


def test_optics_that_name_another_box_than_the_stack_has_are_refused(bench: Bench) -> None:
    bench.land_stack("s", 2)
    (bench.landing / "s.star").write_text(star_text("s", [1, 2]).replace(f" {BOX}\n", f" {2 * BOX}\n"))
    core = bench.open()
    turns(core, bench)
    assert core.status().landed == 0
    assert f"box of {BOX} pixels, optics group 'A' has rlnImageSize {2 * BOX}; correct data_optics" in reasons(bench)
    core.close()


def test_stars_of_relions_iterations_are_not_ingested_and_status_says_so_in_words(bench: Bench) -> None:
    bench.land_stack("s", 4)
    for name in ("run_it001_data", "run_ct5_it012_half1_data"):
        (bench.landing / f"{name}.star").write_text(star_text("s", range(1, 5), aligned=True))
    core = bench.open()
    turns(core, bench)
    status = core.status()
    assert (status.landed, status.stars, status.stars_waiting, status.problems) == (0, 0, 0, ())
    assert any("2 intermediate RELION stars passed over" in note for note in status.notes)
    core.close()


@pytest.mark.parametrize(("label", "column"), [("rlnDefocusU", "_rlnDefocusU #3"), ("rlnVoltage", "_rlnVoltage #3")])
def test_a_star_without_its_ctf_is_set_aside_by_name_and_gives_no_row(bench: Bench, label: str, column: str) -> None:
    bench.land("s", 2)
    star = bench.landing / "s.star"
    star.write_text(star.read_text().replace(column, f"_rlnSomething #{column[-1]}"))
    core = bench.open()
    turns(core, bench)
    status = core.status()
    assert (status.landed, status.quarantined_stars) == (0, 1)
    assert str(star) in status.problems[0] and label in status.problems[0]
    assert label in reasons(bench)
    core.close()
