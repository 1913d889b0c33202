"""What a replay adds to an entry, measured on what landed; the truth keeps the real poses and says what is junk."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.imaging import blobs

from cesped_stream.benchmark.entries import Entry, open_entry
from cesped_stream.benchmark.plan import ROLE_LABEL, SOURCE_LABEL, plan_replay, tells_pose
from cesped_stream.benchmark.replay import replay
from cesped_stream.benchmark.replay_settings import ReplaySettings
from cesped_stream.benchmark.stream_realism import (
    TRUE_LABEL,
    for_demo,
    for_replay,
    for_simulation,
    in_session_order,
    labels_only,
)
from cesped_stream.errors import InvalidSettingsError
from cesped_stream.imaging.entry import write_entry
from cesped_stream.imaging.junk import KIND_LABEL
from cesped_stream.particles.own_rows import consensus_confidences
from cesped_stream.particles.stacks import StackReader, read_header, read_images, write_stack
from cesped_stream.particles.star import read_star, write_star
from cesped_stream.particles.table import OpticsGroup, ParticleTable
from cesped_stream.settings import RealismSettings, SimulationSettings
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations

BOX, COUNT = 32, 400


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Entry:
    """Simulated D2 particles in 20 micrographs, with confidences."""
    folder = tmp_path_factory.mktemp("entries") / "entry"
    settings = SimulationSettings(num_particles=COUNT, snr=0.5, symmetry="D2", particles_per_micrograph=20)
    write_entry(folder, blobs(BOX), 5.0, settings, confidences=np.full(COUNT, 0.8))
    return open_entry(folder)


def landed(entry: Entry, folder: Path, *, first_aligned: int = 200, **realism: object) -> tuple[ParticleTable, Path]:
    """Replay with realism; return the truth and the landing folder."""
    settings = ReplaySettings(first_aligned=first_aligned, batch_rows=100)
    plan = plan_replay(entry, settings, RealismSettings(**realism))
    replay(plan, folder / "landing", folder / "truth", settings)
    return read_star(folder / "truth" / "truth.star"), folder / "landing"


def told(landing: Path, truth: ParticleTable) -> tuple[ParticleTable, ParticleTable]:
    """The aligned rows as they landed, and their truth."""
    rows = [row for row, role in enumerate(truth.column(ROLE_LABEL)) if role == "aligned"]
    return read_star(landing / "aligned_0001.star"), truth.select(rows)


def images_of(table: ParticleTable, root: Path) -> np.ndarray:
    with StackReader() as reader:
        (group,) = read_images(table, reader, root=root)
    return group.images


def originals(entry: Entry, truth: ParticleTable) -> np.ndarray:
    source = entry.particles()
    place = {name: row for row, name in enumerate(source.column("rlnImageName"))}
    return images_of(source.select([place[name] for name in truth.column(SOURCE_LABEL)]), entry.folder)


def test_clean_lands_the_same_bytes_as_no_realism(entry: Entry, tmp_path: Path) -> None:
    settings = ReplaySettings(first_aligned=100)
    for name, realism in (("none", None), ("clean", RealismSettings(seed=7))):
        replay(plan_replay(entry, settings, realism), tmp_path / name / "l", tmp_path / name / "t", settings)
    for path in (tmp_path / "none").rglob("*.*"):
        if path.name != "replay.jsonl":
            assert path.read_bytes() == (tmp_path / "clean" / path.relative_to(tmp_path / "none")).read_bytes()


def test_a_session_lands_the_same_bytes_each_time_and_tells_nothing(entry: Entry, tmp_path: Path) -> None:
    realism = {"preset": "session", "preferred_cone_deg": 45.0, "first_aligned": 2}
    truth, landing = landed(entry, tmp_path / "a", **realism)
    again, second = landed(entry, tmp_path / "b", **realism)
    assert truth.rows == again.rows
    files = sorted(landing.iterdir())
    assert [path.read_bytes() for path in files] == [path.read_bytes() for path in sorted(second.iterdir())]
    assert {path.name for path in landing.glob("*.star")} >= {"aligned_0001.star", "batch_0001.star"}
    for path in landing.glob("*.star"):
        table = read_star(path)
        assert not {KIND_LABEL, TRUE_LABEL} & set(table.labels)
        assert path.name.startswith("aligned") or not [label for label in table.labels if tells_pose(label)]
    assert {KIND_LABEL, TRUE_LABEL} <= set(truth.labels)
    other, _ = landed(entry, tmp_path / "c", seed=1, **realism)
    assert other.rows != truth.rows


def test_the_asked_share_of_labels_is_random_and_the_others_are_turned_by_3_to_5_deg(
    entry: Entry, tmp_path: Path
) -> None:
    labels = {"bad_label_fraction": 0.1, "min_label_jitter_deg": 3.0, "max_label_jitter_deg": 5.0}
    truth, landing = landed(entry, tmp_path, label_symmetry_mates=True, **labels)
    seen, known = told(landing, truth)
    assert seen.column("rlnImageName") == known.column("rlnImageName")
    errors = angular_error_deg(known.rotations(), seen.rotations(), group_rotations("D2"))
    words = np.array(known.column(TRUE_LABEL))
    assert Counter(words) == {"random": 20, "jitter": 180}
    jitter = errors[words == "jitter"]
    assert 3 - 1e-4 <= jitter.min() < 3.1
    assert 4.9 < jitter.max() <= 5 + 1e-4
    assert jitter.mean() == pytest.approx(4, abs=0.15)
    assert np.median(errors[words == "random"]) > 40
    without = angular_error_deg(known.rotations(), seen.rotations(), group_rotations("C1"))
    assert (without[words == "jitter"] > 90).mean() == pytest.approx(0.75, abs=0.12)
    source = dict(zip(entry.particles().column("rlnImageName"), entry.particles().rotations(), strict=True))
    true = np.array([source[name] for name in truth.column(SOURCE_LABEL)])
    np.testing.assert_allclose(truth.rotations(), true, atol=1e-6)
    streamed = [word for word, role in zip(truth.column(TRUE_LABEL), truth.column(ROLE_LABEL), strict=True)
                if role == "streamed"]  # fmt: skip
    assert set(streamed) == {"none"}


def test_aligned_junk_is_labelled_junk(entry: Entry, tmp_path: Path) -> None:
    for labels in ({}, {"bad_label_fraction": 0.1}):
        truth, landing = landed(entry, tmp_path / f"{len(labels)}", junk_fraction=0.3, **labels)
        known = told(landing, truth)[1]
        words, kinds = np.array(known.column(TRUE_LABEL)), np.array(known.column(KIND_LABEL))
        assert (words == "junk").any()
        np.testing.assert_array_equal(words == "junk", kinds != "particle")


def test_symmetry_mates_alone_have_no_error_in_their_group(entry: Entry, tmp_path: Path) -> None:
    truth, landing = landed(entry, tmp_path, label_symmetry_mates=True)
    seen, known = told(landing, truth)
    assert angular_error_deg(known.rotations(), seen.rotations(), group_rotations("D2")).max() < 1e-4
    assert angular_error_deg(known.rotations(), seen.rotations(), group_rotations("C1")).mean() > 90


def test_junk_lands_among_the_particles_in_its_share_with_poses_and_little_confidence(
    entry: Entry, tmp_path: Path
) -> None:
    truth, landing = landed(entry, tmp_path, junk_fraction=0.3)
    kinds = np.array(truth.column(KIND_LABEL))
    junk = kinds != "particle"
    assert (~junk).sum() == COUNT
    assert junk.mean() == pytest.approx(0.3, abs=0.002)
    assert len(set(kinds[junk])) == 5
    assert consensus_confidences(truth)[junk].mean() < 0.3
    assert (consensus_confidences(truth)[~junk] == 0.8).all()
    images, before = images_of(truth, landing), originals(entry, truth)
    np.testing.assert_array_equal(images[~junk], before[~junk])
    likeness = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(images[junk], before[junk], strict=True)]
    assert np.median(np.abs(likeness)) < 0.15
    noise = kinds == "noise"
    assert images[noise].std() == pytest.approx(before[noise].std(), rel=0.15)


def test_off_centre_picks_are_moved_by_whole_pixels_and_their_origins_say_so(entry: Entry, tmp_path: Path) -> None:
    truth, landing = landed(entry, tmp_path, off_centre_fraction=0.5)
    images, before = images_of(truth, landing), originals(entry, truth)
    source = dict(zip(entry.particles().column("rlnImageName"), entry.particles().shifts_angstrom(), strict=True))
    change = truth.shifts_angstrom() - np.array([source[name] for name in truth.column(SOURCE_LABEL)])
    moves = np.rint(-change / 5.0).astype(int)
    np.testing.assert_allclose(-change / 5.0, moves, atol=1e-5)
    away = moves.any(1)
    assert away.mean() == pytest.approx(0.5, abs=0.08)
    distance = np.linalg.norm(moves[away], axis=1)
    assert distance.min() >= 5 - 0.71
    assert distance.max() <= 8 + 0.71
    for image, original, (dx, dy) in zip(images, before, moves, strict=True):
        # roll's axes are (y, x): an image moved right has an origin that brings it back to the left
        np.testing.assert_allclose(image, np.roll(original, (dy, dx), (0, 1)), atol=1e-5)
    seen, known = told(landing, truth)
    np.testing.assert_array_equal(seen.shifts_angstrom(), known.shifts_angstrom())
    said = json.loads((tmp_path / "truth" / "realism.json").read_text())
    assert said["moved"] == away.sum()
    out = np.abs(truth.shifts_angstrom() / 5.0).max(1) + 0.7 * BOX / 2 > BOX / 2
    assert 0 < said["clipped"] == (away & out).sum() < away.sum()


def test_added_noise_doubles_by_the_end_so_that_the_snr_halves(entry: Entry, tmp_path: Path) -> None:
    truth, landing = landed(entry, tmp_path, first_aligned=0, snr_end_over_start=0.5)
    added = images_of(truth, landing) - originals(entry, truth)
    assert added[:20].var() == pytest.approx(0.03, abs=0.02)
    # The noise of the entry has variance 1; SNR = signal / (1 + added).
    assert 1 / (1 + added[-40:].var()) == pytest.approx(0.5 ** (1 - 20 / COUNT), rel=0.05)
    assert abs(np.corrcoef(added[-1].ravel(), originals(entry, truth)[-1].ravel())[0, 1]) < 0.15


def test_neighbours_bring_structure_in_at_their_distance_and_leave_the_noise_level(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [(f"{k + 1:06d}@a.mrcs", "0", f"{k}", "0", str(1 + k % 2)) for k in range(60)]
    labels = ("rlnImageName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnRandomSubset")
    optics = OpticsGroup((("rlnOpticsGroupName", "a"), ("rlnImagePixelSize", "5.0"), ("rlnImageSize", "32")))
    (tmp_path / "e").mkdir()
    write_star(tmp_path / "e" / "a.star", ParticleTable(labels, rows, (optics,), np.zeros(60, np.int64)))
    images = rng.standard_normal((60, BOX, BOX)).astype(np.float32)
    images[:, 14:19, 14:19] += 20.0
    write_stack(tmp_path / "e" / "a.mrcs", images, 5.0)
    entry = open_entry(tmp_path / "e")
    truth, landing = landed(
        entry, tmp_path, first_aligned=0, neighbours=1.0, particle_diameter_angstrom=60.0
    )  # fmt: skip
    after = images_of(truth, landing)
    axis = np.arange(BOX) - BOX // 2
    distance = np.hypot(axis[:, None], axis)
    bright = (after > 8) & (distance > 5)
    assert bright.any((1, 2)).mean() == pytest.approx(1 - np.exp(-1), abs=0.2)
    places = np.broadcast_to(distance, after.shape)[bright] * 5.0
    assert 0.8 * 60 - 18 < places.min() < places.max() < 1.2 * 60 + 18
    background = after[:, distance > 5][after[:, distance > 5] < 6]
    assert background.std() == pytest.approx(1.0, abs=0.06)


def test_preferred_views_are_a_choice_of_rows_with_the_asked_share(entry: Entry, tmp_path: Path) -> None:
    truth, _ = landed(entry, tmp_path, first_aligned=0, preferred_fraction=0.8, preferred_cones=1)
    assert 40 < len(truth) < COUNT
    assert len(set(truth.column(SOURCE_LABEL))) == len(truth)
    views = np.einsum("gij,nj->ngi", group_rotations("D2"), truth.rotations()[:, :, 2])
    # Some axis has four of five views, or mates of them, within 30 degrees: the views themselves tell where.
    shares = [(np.einsum("ngi,i->ng", views, axis).max(1) > np.cos(np.deg2rad(31))).mean() for axis in views[:, 0]]
    assert max(shares) > 0.7
    uniform = np.einsum("gij,nj->ngi", group_rotations("D2"), entry.particles().rotations()[:, :, 2])
    assert max((np.einsum("ngi,i->ng", uniform, a).max(1) > np.cos(np.deg2rad(31))).mean() for a in views[:, 0]) < 0.5


def test_a_new_optics_group_begins_mid_stream(entry: Entry, tmp_path: Path) -> None:
    truth, landing = landed(entry, tmp_path, first_aligned=0, new_optics_at=0.5)
    names = [truth.optics[k].name.endswith("_later") for k in truth.optics_index]
    assert names == [False] * (COUNT // 2) + [True] * (COUNT // 2)
    first, last = (read_star(landing / f"batch_000{k}.star") for k in (1, 4))
    assert not {group.values for group in first.optics} & {group.values for group in last.optics}
    assert read_header(landing / "batch_0001.mrcs").mode == 2
    np.testing.assert_array_equal(images_of(truth, landing), originals(entry, truth))


def test_what_was_done_to_the_images_is_not_done_twice(tmp_path: Path) -> None:
    session = RealismSettings(preset="session")
    write_entry(tmp_path, blobs(16), 8.0, SimulationSettings(num_particles=40), realism=for_simulation(session))
    left = for_replay(session, tmp_path)
    assert left == labels_only(session)
    assert (left.junk_fraction, left.bad_label_fraction) == (0.0, 0.1)
    with pytest.raises(InvalidSettingsError, match=r"realism\.junk_fraction.*was simulated with realism"):
        for_replay(RealismSettings(junk_fraction=0.2), tmp_path)


def test_settings_that_a_command_cannot_follow_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingsError, match=r"realism\.bad_label_fraction: is what a replay does"):
        for_simulation(RealismSettings(bad_label_fraction=0.2))
    with pytest.raises(InvalidSettingsError, match="cannot be done to recorded images"):
        for_replay(RealismSettings(defocus_drift_angstrom=100.0), tmp_path)
    with pytest.raises(InvalidSettingsError, match=r"realism\.noise_exponent: no noise is added"):
        for_replay(RealismSettings(noise_exponent=1.0), tmp_path)
    assert for_replay(RealismSettings(noise_exponent=1.0, added_noise=0.5), tmp_path).noise_exponent == 1.0
    with pytest.raises(InvalidSettingsError, match=r"realism\.added_noise: is for recorded images"):
        for_demo(RealismSettings(added_noise=1.0))
    in_images, in_labels = for_demo(RealismSettings(preset="session"))
    assert (in_images.junk_fraction, in_images.bad_label_fraction) == (0.3, 0.0)
    assert (in_labels.junk_fraction, in_labels.bad_label_fraction) == (0.0, 0.1)
    assert for_replay(RealismSettings(preset="session"), tmp_path).max_envelope_angstrom2 == 0


def test_an_entry_that_drifts_lands_in_its_own_order_unless_another_is_asked_for(entry: Entry, tmp_path: Path) -> None:
    settings = SimulationSettings(num_particles=4, particles_per_micrograph=2)
    drifting = RealismSettings(snr_end_over_start=0.5)
    write_entry(tmp_path / "drifting", blobs(BOX), 5.0, settings, realism=drifting)
    write_entry(tmp_path / "junk", blobs(BOX), 5.0, settings, realism=RealismSettings(junk_fraction=0.5))
    assert in_session_order(ReplaySettings(), tmp_path / "drifting").order == "recorded"
    assert in_session_order(ReplaySettings(order="shuffled"), tmp_path / "drifting").order == "shuffled"
    assert in_session_order(ReplaySettings(), tmp_path / "junk").order == "shuffled"
    assert in_session_order(ReplaySettings(), entry.folder).order == "shuffled"
