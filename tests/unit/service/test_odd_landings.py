"""What lies strangely in a landing folder is told and set aside; the rest goes on."""

import os
from pathlib import Path

import pytest
from support.session_bench import Bench, turn

from cesped_stream_service.coordinator import Coordinator


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.land("good", 5)
    return bench


def turns(core: Coordinator, bench: Bench, many: int = 8) -> None:
    for _ in range(many):
        turn(core, bench.clock, [])


def test_names_that_are_no_utf8_and_rings_of_links_are_told_and_stop_nothing(bench: Bench) -> None:
    (bench.landing / "ring.star").symlink_to(bench.landing / "ring.star")
    (bench.landing / "ring.mrcs").symlink_to(bench.landing / "ring.mrcs")
    os.mkdir(os.fsencode(bench.landing) + b"/d\xe9")
    Path(os.fsdecode(os.fsencode(bench.landing) + b"/caf\xe9.star")).write_text("data_")
    core = bench.open()
    turns(core, bench)
    status = core.status()
    assert (status.landed, len(status.problems)) == (5, 1)
    assert "passed over" in status.problems[0] and "(and 3 more)" in status.problems[0]
    assert status.model_dump_json()
    core.close()


def test_a_star_with_a_cell_that_cannot_be_written_again_is_quarantined_with_the_reason(bench: Bench) -> None:
    bench.land("bad", 3)
    star = bench.landing / "bad.star"
    star.write_text(star.read_text().replace("mic_bad.mrc", '"a"\'b c"'))
    core = bench.open()
    turns(core, bench)
    status = core.status()
    assert (status.landed, status.quarantined_stars) == (5, 1)
    assert str(star) in status.problems[0]
    core.close()


def test_stars_that_wait_for_their_stacks_hold_no_descriptor(bench: Bench) -> None:
    core = bench.open()
    turns(core, bench)
    before = len(os.listdir("/proc/self/fd"))
    for k in range(30):
        bench.land_star(f"s{k}", [1, 2])
    most = 0
    for _ in range(20):
        turns(core, bench, 1)
        most = max(most, len(os.listdir("/proc/self/fd")))
    assert core.status().waiting_for_stack == 60
    assert most <= before + 1
    core.close()
