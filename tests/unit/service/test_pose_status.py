"""What a microscopist reads of the poses so far is counted at each commit and is exact after any kill."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.session_bench import Bench, FakeWorker, Killed, crash, fake_checkpoint, run_until, tell, turn

from cesped_stream.export.star import export_star
from cesped_stream.particles.pose_tally import PoseTally
from cesped_stream.particles.star import read_star
from cesped_stream.settings import GallerySettings, RefinementSettings
from cesped_stream_service.coordinator import Coordinator
from cesped_stream_service.messages import Control
from cesped_stream_service.pose_status import pose_problems, pose_words, poses_status

REFERENCES, OTHERS = "ref-000000000001", "ref-000000000002"


class SpeakingWorker(FakeWorker):
    """Fills the columns that `FakeWorker` leaves empty, by the place of a row in its lease."""

    def turn(self, core: Coordinator) -> None:
        plain = core.handle

        def handle(peer: bytes, message: object, frames: dict[str, np.ndarray]) -> object:
            if "above_noise" in frames:
                rows = np.arange(len(frames["flag"]))
                frames["above_noise"], frames["clipped"] = rows * 1.0, (rows % 4).astype(np.uint8)
                frames["confidence"], frames["calibrated"] = rows / 10, (rows % 2).astype(np.uint8)
            return plain(peer, message, frames)  # type: ignore[arg-type]

        core.handle = handle  # type: ignore[method-assign, assignment]
        super().turn(core)
        del core.handle


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given", REFERENCES)))


def counted_again(bench: Bench) -> PoseTally:
    """What the rows on disk say."""
    return PoseTally.of(read_star(export_star(bench.session / "poses", bench.root / "all.star")[0]))


def test_the_status_counts_what_the_rows_on_disk_say(bench: Bench) -> None:
    bench.land("a", 8, aligned=True)
    bench.land("s", 30, flagged=[3])
    core = bench.open()
    run_until(core, bench.clock, [SpeakingWorker()], 38)
    found = core.status().poses
    core.close()
    assert found == poses_status(counted_again(bench))
    assert sum(found.by_proposer.values()) == found.num_refined == 29
    assert {figures.kind for figures in found.confidence} == {"calibrated", "mass"}
    assert 0 < found.num_like_noise < found.num_against_noise == 29
    assert found.num_clipped_shift > 0 and found.num_clipped_angle > 0
    written = json.loads((bench.session / "state" / "status.json").read_text())
    assert written["poses"]["num_refined"] == 29
    core = bench.open()
    assert core.status().poses == found
    core.close()


def test_redone_rows_are_counted_once_with_their_new_poses(bench: Bench) -> None:
    bench.land("s", 30)
    fake_checkpoint(bench.session / "checkpoints", OTHERS)
    core = bench.open()
    run_until(core, bench.clock, [FakeWorker()], 30)
    assert core.status().poses.num_against_noise == 0
    assert tell(core, b"cli", Control(action="reinfer", argument=OTHERS))[0].ok  # type: ignore[union-attr]
    run_until(core, bench.clock, [SpeakingWorker(incarnation="w2", name="worker 2")], 30)
    found = core.status().poses
    core.close()
    assert found == poses_status(counted_again(bench))
    assert (found.num_refined, found.num_against_noise) == (30, 30)


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_the_disk_after_kills_anywhere(bench: Bench, seed: int) -> None:
    bench.land("s", 40)
    random = np.random.default_rng(seed)

    def step(name: str) -> None:
        if random.random() < 0.06:
            raise Killed(name)

    kills = _through_kills(bench, step, 40)
    core = bench.open()
    found = core.status()
    core.close()
    assert kills > 0 and found.predicted == 40
    assert found.poses == poses_status(counted_again(bench))


def _through_kills(bench: Bench, step: Callable[[str], None], landed: int) -> int:
    for kills in range(200):
        core = None
        try:
            core = bench.open(step)
            run_until(core, bench.clock, [SpeakingWorker(incarnation=f"w{kills}")], landed)
            core.close()
            return kills
        except Killed:
            if core is not None:
                crash(core)
    raise AssertionError("killed 200 times")


def test_an_open_file_that_was_changed_from_outside_is_not_counted_until_it_is_made_again(bench: Bench) -> None:
    bench.land("s", 8)
    core = bench.open()
    run_until(core, bench.clock, [SpeakingWorker()], 8)
    core.close()
    file = bench.session / "poses" / "poses.star"
    file.write_bytes(file.read_bytes() + b"# mine\n")
    core = bench.open()
    assert core.status().poses.num_refined == 0
    for _ in range(5):
        turn(core, bench.clock, [])
    run_until(core, bench.clock, [SpeakingWorker(incarnation="w2", name="worker 2")], 8)
    assert core.status().poses.num_refined == 8
    core.close()


def clipped(shift: int, refined: int) -> PoseTally:
    return PoseTally({"made by gallery+refinement": refined, "refined": refined, "clipped shift": shift})


def clipped_angle(angle: int, both: int, refined: int) -> PoseTally:
    return PoseTally({"refined": refined, "clipped angle": angle, "clipped both": both})


@pytest.mark.parametrize(
    ("shift", "refined", "told"), [(5, 100, False), (6, 100, True), (60, 99, False), (0, 0, False)]
)
def test_many_poses_at_the_edge_of_the_shift_search_are_a_problem_with_a_remedy(
    shift: int, refined: int, told: bool
) -> None:
    problems = pose_problems(clipped(shift, refined), GallerySettings(shift_range_angstrom=15), RefinementSettings())
    assert bool(problems) is told
    if told:
        assert "6 of 100 refined poses (6 %)" in problems[0]
        assert "raise gallery.shift_range_angstrom (15 now)" in problems[0]


def test_the_remedy_for_clipped_shifts_does_not_take_the_automatic_range_for_none() -> None:
    (problem,) = pose_problems(clipped(6, 100), GallerySettings(), RefinementSettings())
    assert "give gallery.shift_range_angstrom a larger radius in angstrom than the automatic one" in problem
    assert "(0 now)" not in problem


@pytest.mark.parametrize(
    ("angle", "both", "refined", "told"), [(5, 0, 100, False), (6, 0, 100, True), (3, 3, 100, True), (60, 0, 99, False)]
)
def test_many_poses_at_the_edge_of_the_angle_search_are_a_problem_with_a_remedy(
    angle: int, both: int, refined: int, told: bool
) -> None:
    problems = pose_problems(clipped_angle(angle, both, refined), GallerySettings(), RefinementSettings(radius_deg=4))
    assert bool(problems) is told
    if told:
        assert "6 of 100 refined poses (6 %) ended at the edge of the angle search" in problems[0]
        assert "raise refinement.radius_deg (4 now), or gallery.coarse_order to 3 (2 now)" in problems[0]


def test_the_remedy_for_clipped_angles_names_only_what_can_be_raised() -> None:
    (problem,) = pose_problems(clipped_angle(6, 0, 100), GallerySettings(coarse_order=3), RefinementSettings())
    assert "set refinement.radius_deg to more degrees than the automatic one grid step, and `reinfer`" in problem
    assert "coarse_order" not in problem


def test_shifts_and_angles_that_clip_are_told_apart() -> None:
    tally = PoseTally({"refined": 100, "clipped both": 10})
    shifts, angles = pose_problems(tally, GallerySettings(), RefinementSettings())
    assert "edge of the shift search" in shifts and "edge of the angle search" in angles


def test_words_say_whether_confidence_is_a_probability() -> None:
    rows = {"confidence calibrated 80": 30, "confidence calibrated 20": 10, "confidence mass 40": 5}
    words = pose_words(poses_status(PoseTally(rows)))
    assert words["confidence"] == (
        "median 0.81, 75 % at least 0.5 of 40; median 0.41 of 5, not calibrated: a rank"
    )  # the middle of each bin
    assert pose_words(poses_status(PoseTally())) == {}
