"""When a file may be read: by change, never by clock; and whether a stack holds what its star asks for."""

import os
from pathlib import Path

import numpy as np
import pytest

from cesped_stream.particles.landing import (
    Settled,
    SettleTracker,
    StackState,
    Waiting,
    stack_is_complete,
)
from cesped_stream.particles.stacks import write_stack


def test_file_settles_after_two_equal_looks_far_enough_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    path.write_bytes(b"one")
    tracker = SettleTracker(10.0)
    assert tracker.observe(path, 100.0) == Waiting("seen for the first time")
    assert tracker.observe(path, 109.0) == Waiting("unchanged for 9.0 of 10.0 s")
    assert isinstance(tracker.observe(path, 110.0), Settled)


def test_growing_file_waits_from_its_last_change(tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    path.write_bytes(b"one")
    tracker = SettleTracker(10.0)
    tracker.observe(path, 0.0)
    path.write_bytes(b"one more")
    assert tracker.observe(path, 50.0) == Waiting("changed since it was last seen")
    assert isinstance(tracker.observe(path, 59.9), Waiting)
    assert isinstance(tracker.observe(path, 60.0), Settled)


def test_one_look_never_settles_a_file_even_with_no_time_to_settle(tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    path.write_bytes(b"one")
    tracker = SettleTracker(0.0)
    assert isinstance(tracker.observe(path, 5.0), Waiting)
    assert isinstance(tracker.observe(path, 5.0), Settled)


def test_rewritten_file_of_the_same_size_and_time_but_another_inode_waits(tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    path.write_bytes(b"one")
    os.utime(path, ns=(0, 0))
    tracker = SettleTracker(1.0)
    tracker.observe(path, 0.0)
    other = tmp_path / "b.star"
    other.write_bytes(b"two")
    os.utime(other, ns=(0, 0))
    other.replace(path)
    assert isinstance(tracker.observe(path, 5.0), Waiting)


@pytest.mark.parametrize("year_ns", [0, 4_102_444_800 * 10**9])
def test_odd_mtimes_change_nothing(year_ns: int, tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    path.write_bytes(b"one")
    os.utime(path, ns=(year_ns, year_ns))
    tracker = SettleTracker(10.0)
    assert isinstance(tracker.observe(path, 0.0), Waiting)
    assert isinstance(tracker.observe(path, 10.0), Settled)


def test_done_marker_settles_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    path.write_bytes(b"one")
    tracker = SettleTracker(10.0)
    (tmp_path / "a.done").touch()
    assert isinstance(tracker.observe(path, 0.0), Waiting)
    (tmp_path / "a.star.done").touch()
    assert isinstance(tracker.observe(path, 0.1), Settled)


def test_vanished_file_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    path.write_bytes(b"one")
    tracker = SettleTracker(10.0)
    tracker.observe(path, 0.0)
    path.unlink()
    assert tracker.observe(path, 5.0) == Waiting("No such file or directory")
    path.write_bytes(b"one")
    assert tracker.observe(path, 20.0) == Waiting("seen for the first time")


def test_fifo_never_settles(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.star")
    tracker = SettleTracker(0.0)
    assert [tracker.observe(tmp_path / "a.star", t) for t in (0.0, 1.0)] == [Waiting("no regular file")] * 2


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    write_stack(tmp_path / "s.mrcs", np.ones((4, 8, 8), np.float32), 1.0)
    return tmp_path / "s.mrcs"


def test_stack_with_all_its_images_is_complete(stack: Path) -> None:
    assert stack_is_complete(stack, 4).state is StackState.COMPLETE
    assert stack_is_complete(stack, 2).state is StackState.COMPLETE


def test_stack_with_fewer_images_than_its_star_asks_for_is_growing(stack: Path) -> None:
    found = stack_is_complete(stack, 5)
    assert found.state is StackState.GROWING
    assert "4 images, a row asks for 5" in found.reason


@pytest.mark.parametrize("size", [0, 500, 1023, 1024, 1024 + 100, 1024 + 256, 1024 + 3 * 256, 1024 + 4 * 256 - 1, 3000])
def test_stack_of_any_other_size_than_its_header_says_is_growing(size: int, stack: Path) -> None:
    os.truncate(stack, size)
    found = stack_is_complete(stack, 1)
    assert found.state is StackState.GROWING
    assert "is it being written?" in found.reason


def test_stack_whose_header_is_not_there_yet_is_growing(stack: Path) -> None:
    stack.write_bytes(bytes(2048))
    assert stack_is_complete(stack, 1).state is StackState.GROWING


def test_missing_stack_is_missing(tmp_path: Path) -> None:
    found = stack_is_complete(tmp_path / "none.mrcs", 1)
    assert found.state is StackState.MISSING
    assert "none.mrcs" in found.reason


def test_file_that_is_no_stack_is_invalid(stack: Path, tmp_path: Path) -> None:
    stack.write_bytes(b"<html>" * 400)
    assert stack_is_complete(stack, 1).state is StackState.INVALID
    os.mkfifo(tmp_path / "fifo.mrcs")
    assert stack_is_complete(tmp_path / "fifo.mrcs", 1).state is StackState.INVALID
