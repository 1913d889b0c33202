import os
from pathlib import Path

import pytest

from cesped_stream_service.settings import LandingSettings
from cesped_stream_service.watcher import FileEvents, Watcher


@pytest.fixture
def watcher(tmp_path: Path) -> Watcher:
    return Watcher(LandingSettings(folder=tmp_path, settle_seconds=4.0))


def test_a_star_is_settled_when_two_scans_far_enough_apart_see_no_change(tmp_path: Path, watcher: Watcher) -> None:
    star = tmp_path / "deep" / "er" / "a.star"
    star.parent.mkdir(parents=True)
    star.write_text("one")
    assert watcher.scan(100.0) == [] and watcher.stars_unsettled == 1
    assert watcher.scan(103.9) == []
    star.write_text("two!")
    assert watcher.scan(104.0) == [] and watcher.scan(107.9) == []
    (landed,) = watcher.scan(108.0)
    assert (landed.path, landed.landed, landed.done) == (star, 104.0, False)
    assert watcher.scan(109.0) == [landed]


def test_a_done_marker_settles_at_once(tmp_path: Path, watcher: Watcher) -> None:
    (tmp_path / "a.star").write_text("one")
    (tmp_path / "a.star.done").touch()
    (landed,) = watcher.scan(100.0)
    assert landed.done


def test_hidden_names_fifos_and_other_files_are_passed_over(tmp_path: Path, watcher: Watcher) -> None:
    (tmp_path / ".a.star").write_text("one")
    (tmp_path / "a.txt").write_text("one")
    os.mkfifo(tmp_path / "b.star")
    (tmp_path / "c.star").mkdir()
    (tmp_path / "ring").symlink_to(tmp_path)
    watcher.scan(100.0)
    assert watcher.scan(200.0) == [] and watcher.stars_unsettled == 0


INTERMEDIATE = (
    "run_it001_data.star",
    "run_ct5_it012_data.star",
    "run_it003_half1_data.star",
    "job_it025_half2_data.star",
)
FINAL = ("run_data.star", "run_ct5_data.star", "run_it01_data.star", "run_it001_data.star.star", "run_half1_data.star")


def test_stars_of_relions_iterations_are_passed_over_and_counted(tmp_path: Path, watcher: Watcher) -> None:
    for name in (*INTERMEDIATE, *FINAL):
        (tmp_path / name).write_text("one")
    watcher.scan(100.0)
    assert {star.path.name for star in watcher.scan(200.0)} == set(FINAL)
    assert (watcher.stars_passed_over, watcher.stars_unsettled) == (len(INTERMEDIATE), 0)
    (tmp_path / INTERMEDIATE[0]).unlink()
    watcher.scan(201.0)
    assert watcher.stars_passed_over == len(INTERMEDIATE) - 1


@pytest.mark.parametrize(
    "aligned", ["Class3D/run_it025_data.star", "*/run_it025*", "{folder}/Class3D/run_it025_data.star"]
)
def test_an_iterations_star_that_the_setting_names_is_taken(tmp_path: Path, aligned: str) -> None:
    watcher = Watcher(LandingSettings(folder=tmp_path, aligned=aligned.format(folder=tmp_path)))
    (tmp_path / "Class3D").mkdir()
    for name in ("run_it025_data.star", "run_it024_data.star"):
        (tmp_path / "Class3D" / name).write_text("one")
    watcher.scan(100.0)
    assert [star.path.name for star in watcher.scan(200.0)] == ["run_it025_data.star"]
    assert watcher.stars_passed_over == 1


def test_twenty_thousand_files_at_once_are_all_found(tmp_path: Path, watcher: Watcher) -> None:
    for k in range(2000):
        (tmp_path / f"{k}.star").touch()
    watcher.scan(1.0)
    assert len(watcher.scan(9.0)) == 2000


def test_a_stack_is_watched_from_when_it_is_first_seen(tmp_path: Path, watcher: Watcher) -> None:
    stack = tmp_path / "a.mrcs"
    assert not watcher.stack_is_settled(stack, 10.0)
    stack.write_bytes(b"1")
    watcher.scan(20.0)
    assert not watcher.stack_is_settled(stack, 21.0)
    assert watcher.stack_is_settled(stack, 24.0) and watcher.since(stack, 99.0) == 20.0


def test_file_events_are_a_hint_that_is_taken_once(tmp_path: Path) -> None:
    import time

    events = FileEvents(tmp_path)
    try:
        assert not events.take()
        (tmp_path / "a.star").write_text("one")
        deadline = time.monotonic() + 5.0
        while not (hinted := events.take()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert hinted
    finally:
        events.close()


def test_a_folder_that_cannot_be_watched_is_polled(tmp_path: Path) -> None:
    events = FileEvents(tmp_path / "nowhere")
    assert not events.take()
    events.close()


def test_a_rename_into_place_is_told_by_its_path(tmp_path: Path) -> None:
    import time

    renamed: list[str] = []
    events = FileEvents(tmp_path, renamed.append)
    try:
        (tmp_path / "a.tmp").write_text("one")
        (tmp_path / "a.tmp").rename(tmp_path / "a.star")
        deadline = time.monotonic() + 5.0
        while not renamed and time.monotonic() < deadline:
            time.sleep(0.01)
        assert renamed == [str(tmp_path / "a.star")]
    finally:
        events.close()
