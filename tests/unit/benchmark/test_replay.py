"""A replay lands every particle once, tells nothing of the streamed poses, and gives the same bytes twice."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from pydantic import ValidationError

from cesped_stream.benchmark.entries import Entry, open_entry
from cesped_stream.benchmark.plan import ROLE_LABEL, SOURCE_LABEL, BatchRole, plan_replay
from cesped_stream.benchmark.replay import Landed, replay, restore_truth
from cesped_stream.benchmark.replay_settings import ReplaySettings
from cesped_stream.errors import InvalidSettingsError, InvalidStarError
from cesped_stream.particles.stacks import StackReader, parse_image_name, read_header, write_stack
from cesped_stream.particles.star import read_star, write_star
from cesped_stream.particles.table import OpticsGroup, ParticleTable

NUM_MICROGRAPHS, PER_MICROGRAPH, BOX = 6, 5, 16
TELLING = {
    "rlnAngleRot": "12.5",
    "rlnAngleTilt": "81.0",
    "rlnAnglePsi": "-3.0",
    "rlnAngleTiltPrior": "80.0",
    "rlnOriginXAngst": "1.5",
    "rlnOriginYAngst": "-2.5",
    "rlnOriginXPriorAngst": "1.0",
    "rlnBodyPrior": "1.0",
    "rlnMaxValueProbDistribution": "0.7",
    "rlnLogLikeliContribution": "9.0",
    "rlnNrOfSignificantSamples": "4",
    "rlnClassNumber": "2",
}
KEPT = {"rlnRandomSubset": "1", "rlnDefocusU": "12000.0", "rlnBeamTiltClass": "3", "rlnAutopickFigureOfMerit": "0.4"}


def source_images(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.float32)[:, None, None] + np.zeros((1, BOX, BOX), np.float32)


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    """Six micrographs of five particles; image k is filled with k; two optics groups."""
    folder = tmp_path / "entry"
    folder.mkdir()
    count = NUM_MICROGRAPHS * PER_MICROGRAPH
    labels = ("rlnImageName", "rlnMicrographName", *TELLING, *KEPT)
    rows = [
        (f"{k + 1:06d}@particles.mrcs", f"m{k // PER_MICROGRAPH}.mrc", *TELLING.values(), *KEPT.values())
        for k in range(count)
    ]
    optics = tuple(
        OpticsGroup((("rlnOpticsGroupName", name), ("rlnImagePixelSize", "4.0"), ("rlnImageSize", str(BOX))))
        for name in ("first", "second")
    )
    write_star(folder / "particles.star", ParticleTable(labels, rows, optics, np.arange(count) % 2))
    write_stack(folder / "particles.mrcs", source_images(count), 4.0)
    return open_entry(folder)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_particle_lands_once_with_its_own_pixels_and_columns(entry: Entry, tmp_path: Path) -> None:
    settings = ReplaySettings(first_aligned=7, batch_rows=4, seed=3)
    replay(plan_replay(entry, settings), tmp_path / "landing", tmp_path / "truth", settings)
    source = entry.particles()
    truth = read_star(tmp_path / "truth" / "truth.star")
    origin = dict(zip(truth.column("rlnImageName"), truth.column(SOURCE_LABEL), strict=True))
    landed = []
    with StackReader() as reader:
        for star in sorted((tmp_path / "landing").glob("*.star")):
            table = read_star(star)
            for row, name in enumerate(table.column("rlnImageName")):
                index, stack = parse_image_name(name)
                number = parse_image_name(origin[name])[0]
                images, _ = reader.read(tmp_path / "landing" / stack, [index])
                assert (images == number).all()
                for label in ("rlnMicrographName", *KEPT):
                    assert table.column(label)[row] == source.column(label)[number]
                assert table.optics[table.optics_index[row]] == source.optics[source.optics_index[number]]
                landed.append(number)
    assert sorted(landed) == list(range(NUM_MICROGRAPHS * PER_MICROGRAPH))


def test_streamed_rows_tell_nothing_of_their_poses_and_aligned_rows_all(entry: Entry, tmp_path: Path) -> None:
    settings = ReplaySettings(first_aligned_micrographs=2, batch_rows=100)
    replay(plan_replay(entry, settings), tmp_path / "landing", tmp_path / "truth", settings)
    streamed = read_star(tmp_path / "landing" / "batch_0001.star")
    aligned = read_star(tmp_path / "landing" / "aligned_0001.star")
    assert set(streamed.labels) == {"rlnImageName", "rlnMicrographName", *KEPT}
    assert set(aligned.labels) == {"rlnImageName", "rlnMicrographName", *KEPT, *TELLING}
    assert (len(aligned), len(streamed)) == (10, 20)
    assert not set(aligned.micrographs()) & set(streamed.micrographs())
    assert (tmp_path / "landing" / "aligned_0001.star.done").exists()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_order(entry: Entry, tmp_path: Path) -> None:
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    for folder, seed in ((first, 0), (again, 0), (other, 1)):
        settings = ReplaySettings(first_aligned=5, batch_rows=4, seed=seed)
        replay(plan_replay(entry, settings), folder / "landing", folder / "truth", settings)
    assert files_of(first / "landing") == files_of(again / "landing")
    assert (first / "truth" / "truth.star").read_bytes() == (again / "truth" / "truth.star").read_bytes()
    assert files_of(first / "landing") != files_of(other / "landing")


def test_the_recorded_order_is_the_entrys_own(entry: Entry) -> None:
    plan = plan_replay(entry, ReplaySettings(order="recorded", first_aligned_micrographs=2, batch_rows=4, seed=3))
    assert plan.truth().column(SOURCE_LABEL) == entry.particles().column("rlnImageName")
    shuffled = plan_replay(entry, ReplaySettings(first_aligned_micrographs=2, batch_rows=4, seed=3))
    assert plan.truth().column(SOURCE_LABEL) != shuffled.truth().column(SOURCE_LABEL)


def test_named_micrographs_are_the_aligned_ones(entry: Entry) -> None:
    plan = plan_replay(entry, ReplaySettings(aligned_micrographs=("m4.mrc", "m1.mrc")))
    truth = plan.truth()
    aligned = [
        name for name, role in zip(truth.micrographs(), truth.column(ROLE_LABEL), strict=True) if role == "aligned"
    ]
    assert set(aligned) == {"m1.mrc", "m4.mrc"}
    with pytest.raises(InvalidSettingsError, match=r"m9\.mrc not in the entry"):
        plan_replay(entry, ReplaySettings(aligned_micrographs=("m9.mrc",)))


@pytest.mark.parametrize(("wanted", "expected"), [(1, 5), (5, 5), (6, 10), (25, 25)])
def test_first_aligned_rounds_up_to_whole_micrographs(entry: Entry, wanted: int, expected: int) -> None:
    plan = plan_replay(entry, ReplaySettings(first_aligned=wanted))
    assert plan.count(BatchRole.ALIGNED) == expected
    assert plan.num_particles == 30


@pytest.mark.parametrize(
    "choice",
    [
        {"first_aligned": 26},
        {"first_aligned": 1000},
        {"first_aligned_micrographs": 6},
        {"aligned_micrographs": tuple(f"m{k}.mrc" for k in range(6))},
        {"first_aligned": 12, "limit": 12},
    ],
)
def test_a_replay_that_would_stream_nothing_is_refused(entry: Entry, choice: dict[str, object]) -> None:
    with pytest.raises(InvalidSettingsError, match="nothing is left to stream"):
        plan_replay(entry, ReplaySettings.model_validate(choice))


def test_a_limit_lands_whole_micrographs_only(entry: Entry) -> None:
    plan = plan_replay(entry, ReplaySettings(first_aligned=5, limit=12))
    assert (plan.num_particles, plan.count(BatchRole.STREAMED)) == (15, 10)


def test_two_choices_of_the_aligned_batch_are_refused() -> None:
    with pytest.raises(ValidationError, match="give one of them"):
        ReplaySettings(first_aligned=5, first_aligned_micrographs=1)


@dataclass
class FakeClock:
    """Time passes only by waiting."""

    landing: Path
    seconds: float = 0.0
    seen: list[tuple[float, list[str]]] = field(default_factory=list)

    def now(self) -> float:
        return self.seconds

    def wait(self, seconds: float) -> None:
        self.seen.append((self.seconds, sorted(path.name for path in self.landing.iterdir())))
        self.seconds += seconds


def test_streamed_particles_land_at_the_rate_and_stacks_grow(entry: Entry, tmp_path: Path) -> None:
    settings = ReplaySettings(first_aligned=5, batch_rows=5, rate=2.0)
    clock = FakeClock(tmp_path / "landing")
    landed: list[Landed] = []
    replay(
        plan_replay(entry, settings), clock.landing, tmp_path / "truth", settings,
        on_landed=landed.append, now=clock.now, wait=clock.wait,
    )  # fmt: skip
    assert [batch.num_rows for batch in landed] == [5] * 6
    assert [batch.seconds for batch in landed] == pytest.approx([0.0, 2.5, 5.0, 7.5, 10.0, 12.5])
    lines = [json.loads(line) for line in (tmp_path / "truth" / "replay.jsonl").read_text().splitlines()]
    assert [line["seconds"] for line in lines] == [batch.seconds for batch in landed]


def test_the_star_follows_its_stack_or_leads_it(entry: Entry, tmp_path: Path) -> None:
    for star_first in (False, True):
        settings = ReplaySettings(batch_rows=30, rate=10.0, star_first=star_first)
        clock = FakeClock(tmp_path / f"landing{star_first}")
        truth = tmp_path / f"truth{star_first}"
        replay(plan_replay(entry, settings), clock.landing, truth, settings, now=clock.now, wait=clock.wait)
        while_growing = ["batch_0001.mrcs", "batch_0001.star"] if star_first else ["batch_0001.mrcs"]
        assert clock.seen[0][1] == while_growing
        assert read_header(clock.landing / "batch_0001.mrcs").num_images == 30


def test_a_growing_stack_is_short_until_its_last_piece(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cesped_stream.benchmark.replay._PIECE_BYTES", 4096)
    settings = ReplaySettings(batch_rows=30, rate=10.0)
    landing, sizes, clock = tmp_path / "landing", [], FakeClock(tmp_path / "landing")

    def wait(seconds: float) -> None:
        sizes.append((landing / "batch_0001.mrcs").stat().st_size)
        clock.wait(seconds)

    replay(plan_replay(entry, settings), landing, tmp_path / "truth", settings, now=clock.now, wait=wait)
    assert len(sizes) > 3
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == read_header(landing / "batch_0001.mrcs").file_size
    assert clock.seconds == pytest.approx(3.0)


def test_a_stop_ends_the_replay_before_the_next_star(entry: Entry, tmp_path: Path) -> None:
    settings = ReplaySettings(batch_rows=5)
    stop = Event()
    replay(
        plan_replay(entry, settings), tmp_path / "landing", tmp_path / "truth", settings,
        on_landed=lambda landed: stop.set() if landed.batch == "batch_0002" else None, stop=stop,
    )  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "landing").glob("*.star")) == ["batch_0001.star", "batch_0002.star"]


def test_the_truth_may_not_lie_in_the_landing_folder_nor_files_be_overwritten(entry: Entry, tmp_path: Path) -> None:
    settings = ReplaySettings()
    plan = plan_replay(entry, settings)
    with pytest.raises(InvalidSettingsError, match="put it outside"):
        replay(plan, tmp_path / "landing", tmp_path / "landing" / "truth", settings)
    replay(plan, tmp_path / "landing", tmp_path / "truth", settings)
    with pytest.raises(InvalidSettingsError, match=r"batch_0001\.star exists"):
        replay(plan, tmp_path / "landing", tmp_path / "truth", settings)


def test_the_truth_put_back_gives_the_source_rows(entry: Entry, tmp_path: Path) -> None:
    settings = ReplaySettings(first_aligned=5, batch_rows=7)
    plan = plan_replay(entry, settings)
    replay(plan, tmp_path / "landing", tmp_path / "truth", settings)
    truth = read_star(tmp_path / "truth" / "truth.star")
    wrong = {label: ["5.0"] * 7 for label in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnAnglePsiPrior")}
    exported = read_star(tmp_path / "landing" / "batch_0002.star").with_columns(wrong)
    restored = restore_truth(exported, truth)
    for label, value in {**TELLING, **KEPT}.items():
        assert restored.column(label) == [value] * 7
    assert "rlnAnglePsiPrior" not in restored
    stranger = exported.with_columns({"rlnImageName": ["000001@other.mrcs"] * 7})
    with pytest.raises(InvalidStarError, match=r"other\.mrcs is not in the truth"):
        restore_truth(stranger, truth)


def test_images_of_two_box_sizes_land_in_stacks_of_their_own(tmp_path: Path) -> None:
    labels = ("rlnImageName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
    rows = [(f"{k // 2 + 1:06d}@{'ab'[k % 2]}.mrcs", "0", "1", "2") for k in range(6)]
    optics = tuple(
        OpticsGroup((("rlnOpticsGroupName", name), ("rlnImagePixelSize", size), ("rlnImageSize", box)))
        for name, size, box in (("a", "4.0", "16"), ("b", "3.0", "20"))
    )
    (tmp_path / "entry").mkdir()
    write_star(tmp_path / "entry" / "x.star", ParticleTable(labels, rows, optics, np.arange(6) % 2))
    for stack, box in (("a", 16), ("b", 20)):
        write_stack(tmp_path / "entry" / f"{stack}.mrcs", np.ones((3, box, box), np.float32), 4.0)
    settings = ReplaySettings(batch_rows=6)
    plan = plan_replay(open_entry(tmp_path / "entry"), settings)
    replay(plan, tmp_path / "landing", tmp_path / "truth", settings)
    headers = [read_header(path) for path in sorted((tmp_path / "landing").glob("*.mrcs"))]
    assert sorted((header.box_size, header.num_images) for header in headers) == [(16, 3), (20, 3)]
