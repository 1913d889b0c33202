"""A simulated session: every item is there as asked, and without any of them not a byte differs."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.imaging import blobs

from cesped_stream.imaging.ctf import ctf
from cesped_stream.imaging.entry import write_entry
from cesped_stream.imaging.realism import SessionParticles, cone_axes, session_optics, simulate_session
from cesped_stream.imaging.simulate import MapProjector, simulate_particles
from cesped_stream.particles.star import read_star
from cesped_stream.settings import REALISM_PRESETS, RealismSettings, SimulationSettings

BOX, PIXEL, INF = 24, 6.0, float("inf")
CLEAN_SHA256 = {
    "particles_0.star": "762ee3c3c073b7e38282dee1891d40bf75c8f62c6ec5dc11b64e866ff0cad228",
    "particles_1.star": "c779a38cadf5e73c4fca5cd04e2d7b9732b22c5d036566a90896c9cc4103f1d8",
}
CLEAN_PIXELS = [-0.4437755346298218, 2.344865322113037, -0.26376810669898987]
"""Of a clean entry written before there was any realism."""


@pytest.fixture(scope="module")
def projector() -> MapProjector:
    return MapProjector(blobs(BOX), PIXEL)


def session(projector: MapProjector, settings: dict[str, object], **realism: object) -> list[SessionParticles]:
    return list(simulate_session(projector, SimulationSettings(**settings), RealismSettings(**realism)))


def joined(chunks: list[SessionParticles], name: str) -> np.ndarray:
    return np.concatenate([np.asarray(getattr(chunk, name)) for chunk in chunks])


def circle() -> np.ndarray:
    axis = np.arange(BOX) - BOX // 2
    return axis[:, None] ** 2 + axis**2 <= (BOX / 2) ** 2


def test_a_clean_entry_is_what_it_was_before_there_was_realism(tmp_path: Path) -> None:
    settings = SimulationSettings(num_particles=301, snr=0.5, symmetry="C2", seed=4)
    write_entry(tmp_path, blobs(BOX), PIXEL, settings, realism=RealismSettings(preset="clean", seed=9))
    for name, digest in CLEAN_SHA256.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    images = np.fromfile(tmp_path / "particles_0.mrcs", dtype="<f4", offset=1024).reshape(-1, BOX, BOX)
    np.testing.assert_allclose(images[[0, 75, 150], [3, 12, 20], [4, 12, 7]], CLEAN_PIXELS, atol=1e-4)
    assert not (tmp_path / "realism.json").exists()


def test_a_session_with_nothing_in_it_is_the_clean_simulation(projector: MapProjector) -> None:
    settings = {"num_particles": 300, "seed": 2}
    clean = list(simulate_particles(projector, SimulationSettings(**settings)))
    for ours, theirs in zip(session(projector, settings), clean, strict=True):
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.rotations, theirs.rotations)


def test_the_share_of_junk_is_exact_and_each_kind_has_its_turn(projector: MapProjector) -> None:
    chunks = session(projector, {"num_particles": 600, "snr": 0.5}, junk_fraction=0.3)
    kinds = Counter(joined(chunks, "kinds").tolist())
    assert kinds.pop("particle") == 420
    assert set(kinds.values()) == {36}
    assert set(kinds) == {"noise", "ice", "edge", "two_particles", "other_protein"}
    junk = joined(chunks, "kinds") != "particle"
    confidences = joined(chunks, "confidences")
    assert confidences[junk].mean() < 0.25
    assert confidences[~junk].mean() > 0.7
    assert (confidences >= 0).all()
    assert (confidences <= 1).all()


@pytest.mark.parametrize("kind", ["ice", "edge", "other_protein", "two_particles"])
def test_junk_has_a_contrast_and_no_likeness_to_the_pose_it_is_given(projector: MapProjector, kind: str) -> None:
    (chunk,) = session(projector, {"num_particles": 120, "snr": INF}, junk_fraction=0.5, junk_kinds=(kind,))
    junk = np.array(chunk.kinds) != "particle"
    expected = projector.project(chunk.rotations, chunk.shifts_angstrom, ctf(chunk.ctf, BOX)).numpy()
    likeness = np.array([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(chunk.images, expected, strict=True)])
    assert (likeness[~junk] > 0.97).all()
    assert np.median(likeness[junk]) < 0.6
    assert (chunk.images[junk][:, circle()].std(1) > 0.2).all()


def test_neighbours_stand_at_the_asked_distances_and_are_drawn_there(projector: MapProjector) -> None:
    settings = {"num_particles": 256, "snr": INF, "max_shift_angstrom": 0.0, "ctf": False}
    (chunk,) = session(projector, settings, neighbours=1.0, particle_diameter_angstrom=70.0)
    beside = chunk.neighbours
    distance = np.linalg.norm(beside.offsets_angstrom, axis=1)
    assert 0.8 * 70 <= distance.min() < 0.83 * 70
    assert 1.17 * 70 < distance.max() <= 1.2 * 70
    assert distance.mean() == pytest.approx(70, rel=0.03)
    assert len(distance) / 256 == pytest.approx(1.0, abs=0.2)
    (alone,) = session(projector, settings, off_centre_fraction=1e-9)
    only = [row for row in range(256) if (beside.rows == row).sum() == 1]
    axis = np.arange(BOX) - BOX // 2
    for row in only[:20]:
        added = np.clip(chunk.images[row] - alone.images[row], 0, None)
        offset = beside.offsets_angstrom[beside.rows == row][0] / PIXEL
        centre = np.array([(added * axis).sum(), (added * axis[:, None]).sum()]) / added.sum()
        assert centre @ offset / np.linalg.norm(centre) / np.linalg.norm(offset) > 0.9
    assert not np.abs(chunk.images - alone.images)[np.setdiff1d(np.arange(256), beside.rows)].any()


def test_off_centre_picks_are_the_projections_at_their_stated_origins(projector: MapProjector) -> None:
    settings = {"num_particles": 200, "snr": INF, "ctf": False}
    (chunk,) = session(projector, settings, off_centre_fraction=1.0, min_off_centre_px=2.0, max_off_centre_px=4.0)
    distance = np.linalg.norm(chunk.shifts_angstrom, axis=1) / PIXEL
    assert 2 <= distance.min() < 2.2
    assert 3.8 < distance.max() <= 4.001
    expected = projector.project(chunk.rotations, chunk.shifts_angstrom).numpy()
    away = projector.project(chunk.rotations, -chunk.shifts_angstrom).numpy()
    whole = ~chunk.clipped
    assert whole.sum() > 20
    for image, right, wrong in zip(chunk.images[whole], expected[whole], away[whole], strict=True):
        assert np.corrcoef(image.ravel(), right.ravel())[0, 1] > 0.99
        assert np.corrcoef(image.ravel(), wrong.ravel())[0, 1] < 0.9


def test_what_leaves_the_box_is_cut_and_counted_not_wrapped_round(projector: MapProjector) -> None:
    (chunk,) = session(
        projector, {"num_particles": 60, "snr": INF, "ctf": False},
        off_centre_fraction=1.0, min_off_centre_px=12.0, max_off_centre_px=12.0, particle_diameter_angstrom=70.0,
    )  # fmt: skip
    assert chunk.clipped.all()
    moved = -chunk.shifts_angstrom / PIXEL
    axis = np.arange(BOX) - BOX // 2
    ahead = axis * moved[:, :1, None] + axis[:, None] * moved[:, 1:, None]
    strength = np.abs(chunk.images)
    assert strength[ahead < -20].sum() < 0.02 * strength.sum()


def test_the_snr_is_that_asked_at_the_start_and_has_fallen_as_asked_at_the_end(projector: MapProjector) -> None:
    settings = {"num_particles": 2048, "snr": 0.5, "seed": 1, "min_defocus_angstrom": 12000.0}
    settings |= {"max_defocus_angstrom": 12000.0, "max_astigmatism_angstrom": 0.0}
    drift = {"snr_end_over_start": 0.5, "min_envelope_angstrom2": 200.0, "max_envelope_angstrom2": 200.0}
    chunks = session(projector, settings, **drift)
    white = list(simulate_particles(projector, SimulationSettings(**{**settings, "snr": INF})))
    still = list(simulate_particles(projector, SimulationSettings(**settings)))
    for which, factor in ((0, 0.5**0.0625), (-1, 0.5**0.9375)):
        # The clean simulation has the same noise: unit images of variance 1 tell its scale, and so its noise.
        noise = still[which].images - white[which].images * np.float32(np.sqrt(0.5))
        signal = chunks[which].images - noise
        assert signal[:, circle()].var(1).mean() / noise.var() == pytest.approx(0.5 * factor, rel=0.06)


def test_the_envelope_is_in_the_images_and_in_no_star(projector: MapProjector, tmp_path: Path) -> None:
    realism = RealismSettings(min_envelope_angstrom2=80.0, max_envelope_angstrom2=200.0)
    settings = SimulationSettings(num_particles=200, snr=INF)
    (chunk,) = simulate_session(projector, settings, realism)
    bfactor = chunk.ctf.bfactor_angstrom2
    assert 80 <= bfactor.min() < bfactor.max() <= 200
    assert len(set(bfactor)) == 4  # one a micrograph
    expected = projector.project(chunk.rotations, chunk.shifts_angstrom, ctf(chunk.ctf, BOX)).numpy()
    np.testing.assert_allclose(chunk.images / chunk.images.std(), expected / expected.std(), atol=1e-3)
    write_entry(tmp_path, blobs(BOX), PIXEL, settings, realism=realism)
    assert "rlnCtfBfactor" not in read_star(tmp_path / "particles_0.star")


def test_defocus_and_optics_change_along_the_session(projector: MapProjector) -> None:
    settings = {"num_particles": 1000, "snr": INF, "min_defocus_angstrom": 10000.0, "max_defocus_angstrom": 10000.0}
    chunks = session(projector, settings, defocus_drift_angstrom=4000.0, new_optics_at=0.5)
    defocus = np.concatenate([c.ctf.defocus_u_angstrom for c in chunks])
    index = joined(chunks, "index")
    assert np.polyfit(index / 999, defocus, 1)[0] == pytest.approx(4000, rel=0.05)
    groups = joined(chunks, "optics_index")
    assert set(groups[index < 450]) == {0, 1}
    assert set(groups[index >= 550]) == {2, 3}
    aberration = np.concatenate([c.ctf.spherical_aberration_mm for c in chunks])
    np.testing.assert_allclose(aberration[groups >= 2], 2.75)
    realism = RealismSettings(new_optics_at=0.5)
    assert len(set(session_optics(SimulationSettings(**settings), realism))) == 4


def test_four_of_five_views_lie_in_three_cones(projector: MapProjector) -> None:
    realism = {"preferred_fraction": 0.8, "preferred_cone_deg": 20.0}
    chunks = session(projector, {"num_particles": 4096, "snr": INF}, **realism)
    rotations = joined(chunks, "rotations")
    axes = cone_axes(RealismSettings(**realism))
    angles = np.rad2deg(np.arccos(np.clip(rotations[:, :, 2] @ axes.T, -1, 1)))
    within = angles.min(1) <= 20.0001
    by_chance = 3 * (1 - np.cos(np.deg2rad(20))) / 2
    assert within.mean() == pytest.approx(0.8 + 0.2 * by_chance, abs=0.02)
    shares = np.bincount(angles.argmin(1)[within], minlength=3) / within.sum()
    np.testing.assert_allclose(shares, 1 / 3, atol=0.04)
    cosines = np.cos(np.deg2rad(angles.min(1)[within]))
    assert cosines.mean() == pytest.approx((1 + np.cos(np.deg2rad(20))) / 2, abs=0.003)  # even on the cap
    np.testing.assert_allclose(np.linalg.det(rotations), 1, atol=1e-9)
    with pytest.raises(ValueError, match="leave one of them out"):
        next(simulate_session(projector, SimulationSettings(num_particles=2), RealismSettings(**realism),
                              rotations=rotations[:2]))  # fmt: skip


def test_a_session_entry_says_what_it_holds_and_is_the_same_every_time(tmp_path: Path) -> None:
    settings = SimulationSettings(num_particles=300, snr=0.5)
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    for folder, seed in ((first, 0), (again, 0), (other, 1)):
        write_entry(folder, blobs(BOX), PIXEL, settings, realism=RealismSettings(preset="session", seed=seed))
    for path in first.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    assert (first / "particles_0.mrcs").read_bytes() != (other / "particles_0.mrcs").read_bytes()
    tables = [read_star(first / f"particles_{half}.star") for half in (0, 1)]
    kinds = Counter(kind for table in tables for kind in table.column("cestreamKind"))
    said = json.loads((first / "realism.json").read_text())
    assert dict(kinds) == said["kinds"]
    assert kinds["particle"] == 210
    assert said["clipped"] > 0
    assert said["neighbours"] > 0
    assert said["settings"]["bad_label_fraction"] == 0  # a replay's business


def test_presets_fill_what_is_unset_and_clean_is_all_off() -> None:
    assert RealismSettings().is_clean
    assert not RealismSettings(preset="session").is_clean
    given = RealismSettings(preset="session", junk_fraction=0.1)
    assert given.junk_fraction == 0.1
    assert given.neighbours == REALISM_PRESETS["session"]["neighbours"]
    assert given.beyond_preset() == ("junk_fraction",)
    with pytest.raises(ValueError, match="exchange them"):
        RealismSettings(min_off_centre_px=9.0)
