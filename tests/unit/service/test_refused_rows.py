"""Rows that are refused are seen: how many, the first reason and the remedy, in status and in `run`'s line."""

import os
from pathlib import Path

import pytest
from rich.console import Console
from support.session_bench import BOX, Bench, fake_checkpoint, star_text, turn

from cesped_stream_service.coordinator import Coordinator
from cesped_stream_service.show import status_line, status_view
from cesped_stream_service.status import SessionStatus


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")))


def turns(core: Coordinator, bench: Bench, many: int = 8, seconds: float = 0.6) -> None:
    for _ in range(many):
        turn(core, bench.clock, [], seconds)


def shown(status: SessionStatus) -> str:
    console = Console(width=400)
    with console.capture() as capture:
        console.print(status_view(status, running=True))
    return capture.get()


def wrong_box(bench: Bench) -> str:
    return star_text("s", range(1, 25)).replace(f" {BOX}\n", f" {2 * BOX}\n")


def outside(bench: Bench) -> str:
    (bench.root / "s.mrcs").write_bytes(b"")
    return star_text("s", range(1, 25)).replace("@s.mrcs", "@../s.mrcs")


def no_regular_file(bench: Bench) -> str:
    os.mkfifo(bench.landing / "fifo.mrcs")
    return star_text("s", range(1, 25)).replace("@s.mrcs", "@fifo.mrcs")


def stack_too_late(bench: Bench) -> str:
    return star_text("s", range(1, 25)).replace("@s.mrcs", "@never.mrcs")


def ambiguous(bench: Bench) -> str:
    for folder in ("", "deep/"):
        stack = bench.landing / folder / "m/x.mrcs"
        stack.parent.mkdir(parents=True, exist_ok=True)
        stack.write_bytes((bench.landing / "s.mrcs").read_bytes())
    return star_text("s", range(1, 25)).replace("@s.mrcs", "@m/x.mrcs")


KINDS = {
    wrong_box: "correct data_optics",
    outside: "set allowed_roots",
    no_regular_file: "no regular file; give the stack itself",
    stack_too_late: "no complete stack within 60 s",
    ambiguous: "set image_root",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_refused_row_is_counted_and_told_with_its_reason_and_remedy_also_after_a_restart(
    bench: Bench, kind: object
) -> None:
    bench.land_stack("s", 24)
    (bench.landing / "deep/er").mkdir(parents=True)
    star = bench.landing / "deep/er/p.star" if kind is ambiguous else bench.landing / "p.star"
    star.write_text(kind(bench))  # type: ignore[operator]
    core = bench.open()
    turns(core, bench, 80, 1.0)
    for _ in range(2):
        status = core.status()
        assert (status.landed, status.refused_rows, status.waiting_for_stack) == (0, 24, 0)
        assert status.waits_for == (f"rows: all 24 that landed were refused in {bench.landing}",)
        (problem,) = [text for text in status.problems if "refused" in text]
        assert problem == status.problems[0]
        assert problem.startswith(f"{star}: 24 rows refused, such as row 1: ") and KINDS[kind] in problem
        assert "`requeue`" in problem
        assert "24 rows refused" in status_line(status) and KINDS[kind] in status_line(status)
        assert "24 rows refused" in shown(status)
        core.close()
        core = bench.open()
    core.close()


def test_a_star_that_was_corrected_has_no_refused_rows_any_more(bench: Bench) -> None:
    bench.land_stack("s", 24)
    (bench.landing / "s.star").write_text(wrong_box(bench))
    core = bench.open()
    turns(core, bench)
    assert core.status().refused_rows == 24
    bench.land_star("s", range(1, 25))
    turns(core, bench)
    status = core.status()
    assert (status.landed, status.refused_rows, status.first_refusal, status.problems) == (24, 0, "", ())
    assert list((bench.session / "quarantine").iterdir()) == []
    core.close()


def test_rows_refused_again_after_their_star_changed_are_counted_once(bench: Bench) -> None:
    bench.land_stack("s", 24)
    (bench.landing / "s.star").write_text(wrong_box(bench))
    core = bench.open()
    turns(core, bench)
    (bench.landing / "s.star").write_text(wrong_box(bench).replace("12.0", "13.0"))
    turns(core, bench)
    assert core.status().refused_rows == 24
    core.close()


def test_of_many_stars_with_refused_rows_three_are_told_and_the_rest_counted(bench: Bench) -> None:
    bench.land_stack("s", 24)
    for k in range(7):
        (bench.landing / f"p{k}.star").write_text(wrong_box(bench))
    core = bench.open()
    turns(core, bench, 20)
    status = core.status()
    assert status.refused_rows == 7 * 24
    assert len(status.problems) == 4
    assert status.problems[3] == "and 4 more like the last, of 96 rows"
    core.close()
