"""Rows to poses by a reference: read, proposed, refined; each row by itself."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.matching import PIXEL_SIZE, molecule

from cesped_stream.benchmark.entries import open_entry
from cesped_stream.errors import PermanentError
from cesped_stream.imaging.entry import write_entry
from cesped_stream.imaging.noise_model import NoiseScores
from cesped_stream.imaging.reference import Reference
from cesped_stream.matching import ReferenceMatcher
from cesped_stream.particles.flags import ImageFlag
from cesped_stream.particles.stacks import StackReader, read_images, write_stack
from cesped_stream.particles.table import OpticsGroup, ParticleTable
from cesped_stream.reconstruction.reference import reference_from_map, reference_from_rows
from cesped_stream.settings import GallerySettings, ReferenceSettings, RefinementSettings, SimulationSettings
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations

GALLERY = GallerySettings(grid_order=2, coarse_order=1, keep_fraction=0.2, batch_size=16)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ParticleTable:
    """Half 0 of an entry of two optics groups."""
    folder = tmp_path_factory.mktemp("entry")
    settings = SimulationSettings(num_particles=640, snr=0.5, symmetry="D2", seed=5, particles_per_micrograph=20)
    write_entry(folder, molecule("D2"), PIXEL_SIZE, settings)
    particles = open_entry(folder).particles()
    return particles.select(np.flatnonzero(particles.half_sets() == 0))


@pytest.fixture(scope="module")
def aligned(table: ParticleTable) -> ParticleTable:
    return table.select(range(240))


@pytest.fixture(scope="module")
def streamed(table: ParticleTable) -> ParticleTable:
    return table.select(range(240, 300))


@pytest.fixture(scope="module")
def own(aligned: ParticleTable) -> Reference:
    return reference_from_rows(aligned, "D2", ReferenceSettings(mask_lowpass_angstrom=20.0), StackReader())


@pytest.fixture(scope="module")
def matcher(own: Reference) -> ReferenceMatcher:
    return ReferenceMatcher(own, GALLERY, RefinementSettings())


def test_streamed_particles_get_poses_and_shifts(matcher: ReferenceMatcher, streamed: ParticleTable) -> None:
    poses = matcher.match(streamed, StackReader())
    group = group_rotations("D2")
    refined = angular_error_deg(streamed.rotations(), poses.rotation, group)
    gallery = angular_error_deg(streamed.rotations(), poses.gallery_rotation[:, 0], group)
    assert np.median(refined) < 2.0 < np.median(gallery)
    assert (refined < 5).mean() > 0.9
    assert np.median(np.abs(poses.shift_angstrom - streamed.shifts_angstrom())) < 0.3 * PIXEL_SIZE
    assert not poses.flag.any() and (poses.proposal >= 0).all()


def test_what_lies_beyond_the_searched_shifts_is_counted(own: Reference, streamed: ParticleTable) -> None:
    wide = ReferenceMatcher(own, GALLERY, RefinementSettings()).match(streamed, StackReader())
    narrow = GALLERY.model_copy(update={"shift_range_angstrom": 2.5, "shift_step_angstrom": 1.0, "shift_prior": False})
    clipped = ReferenceMatcher(own, narrow, RefinementSettings()).match(streamed, StackReader()).shift_clipped
    distance = np.hypot(*streamed.shifts_angstrom().T)
    assert (distance > 4).sum() >= 5 and (distance < 2).sum() >= 5
    assert wide.shift_clipped.mean() < 0.05
    assert clipped[distance > 4].mean() > 0.7 and clipped[distance < 2].mean() < 0.3


def test_how_rows_are_cut_into_calls_changes_no_bit(matcher: ReferenceMatcher, streamed: ParticleTable) -> None:
    whole = matcher.match(streamed, StackReader())
    for rows in (np.array([7]), np.arange(20, 45), np.arange(60)[::-1]):
        part = matcher.match(streamed.select(rows), StackReader())
        np.testing.assert_array_equal(part.rotation, whole.rotation[rows])
        np.testing.assert_array_equal(part.shift_angstrom, whole.shift_angstrom[rows])
        np.testing.assert_array_equal(part.gallery_weight, whole.gallery_weight[rows])
        np.testing.assert_array_equal(part.particle_score, whole.particle_score[rows])
        np.testing.assert_array_equal(part.digest, whole.digest[rows])


def test_the_poses_given_in_the_rows_are_not_looked_at(matcher: ReferenceMatcher, streamed: ParticleTable) -> None:
    known = matcher.match(streamed.select(range(10)), StackReader())
    blind = streamed.select(range(10)).without(
        ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"]
    )
    np.testing.assert_array_equal(matcher.match(blind, StackReader()).rotation, known.rotation)


def test_a_particle_of_the_reference_is_refused(
    matcher: ReferenceMatcher, aligned: ParticleTable, streamed: ParticleTable
) -> None:
    mixed = ParticleTable(
        streamed.labels,
        [*streamed.rows[:3], aligned.rows[100]],
        streamed.optics,
        np.array([*streamed.optics_index[:3], aligned.optics_index[100]]),
    )
    with pytest.raises(PermanentError, match="1 of 4 particles"):
        matcher.match(mixed, StackReader())


def test_an_unusable_image_has_a_flag_and_no_pose(
    matcher: ReferenceMatcher, streamed: ParticleTable, tmp_path: Path
) -> None:
    images = read_images(streamed.select(range(4)), StackReader())[0].images.copy()
    images[1, 3, 3], images[2] = np.nan, 1.0
    stack = tmp_path.resolve() / "spoilt.mrcs"
    write_stack(stack, images, PIXEL_SIZE)
    rows = streamed.select(range(4)).with_columns(
        {"cestreamStack": [str(stack)] * 4, "rlnImageName": [f"{k}@spoilt.mrcs" for k in range(1, 5)]}
    )
    found, whole = (matcher.match(part, StackReader()) for part in (rows, streamed.select(range(4))))
    assert found.flag.tolist() == [ImageFlag.OK, ImageFlag.NAN, ImageFlag.CONSTANT, ImageFlag.OK]
    assert np.isnan(found.rotation[1:3]).all() and (found.proposal[1:3] == -1).all()
    np.testing.assert_array_equal(found.rotation[[0, 3]], whole.rotation[[0, 3]])
    assert len(matcher.match(rows.select([]), StackReader())) == 0


@pytest.mark.parametrize("column", ["rlnDefocusU", "rlnDefocusAngle", "rlnPhaseShift", "rlnCtfBfactor"])
def test_a_row_without_a_ctf_is_flagged_and_changes_no_bit_of_the_others(
    matcher: ReferenceMatcher, streamed: ParticleTable, column: str
) -> None:
    rows = streamed.select(range(5))
    values = [f"{number}" for number in rows.numbers(column, 0.0)]
    whole = matcher.match(rows.with_columns({column: values}), StackReader())
    values[2] = "-1e7" if column == "rlnCtfBfactor" else "nan"
    found = matcher.match(rows.with_columns({column: values}), StackReader())
    assert found.flag.tolist() == [0, 0, ImageFlag.NO_CTF, 0, 0] and found.digest[2].any()
    assert np.isnan(found.rotation[2]).all()
    np.testing.assert_array_equal(found.rotation[[0, 1, 3, 4]], whole.rotation[[0, 1, 3, 4]])


def test_an_optics_group_without_a_ctf_is_left_out_of_a_reference_and_of_its_noise(aligned: ParticleTable) -> None:
    optics = (*aligned.optics, OpticsGroup((*aligned.optics[0].values, ("rlnAmplitudeContrast", "10"))))
    numbers = aligned.optics_index[:60].copy()
    numbers[[3, 30]] = len(optics) - 1
    spoilt = replace(aligned.select(range(60)), optics=optics, optics_index=numbers)
    settings = ReferenceSettings(mask_lowpass_angstrom=20.0)
    made = reference_from_rows(spoilt, "D2", settings, StackReader())
    assert np.isfinite(made.volume).all() and len(made.members) == 58
    assert made.noise is not None and np.isfinite(made.noise.variance).all()


def test_noise_is_told_from_particles(own: Reference, streamed: ParticleTable, tmp_path: Path) -> None:
    matcher = ReferenceMatcher(own, GALLERY, RefinementSettings())
    assert np.isnan(matcher.match(streamed.select(range(3)), StackReader()).above_noise).all()
    matcher.measure_noise(streamed, StackReader())
    particles = matcher.match(streamed, StackReader())
    stack = tmp_path.resolve() / "noise.mrcs"
    box = molecule("D2").shape[0]
    write_stack(stack, np.random.default_rng(8).standard_normal((60, box, box), np.float32), PIXEL_SIZE)
    rows = streamed.with_columns(
        {"cestreamStack": [str(stack)] * 60, "rlnImageName": [f"{k}@noise.mrcs" for k in range(1, 61)]}
    )
    noise = matcher.match(rows, StackReader())
    assert noise.above_noise.max() < 0
    assert np.median(particles.above_noise) > noise.above_noise.max() + 2
    assert own.noise is not None
    highest = []
    for strength in (0.1, 0.2, 0.3, 0.5, 1.0):  # none of a signal that is the stronger the less noise resembles it
        matcher.noise = replace(own.noise, scale=strength * own.noise.scale)
        above = matcher.match(rows.select(range(30)), StackReader()).above_noise
        assert np.median(above) < 0 and above.max() < 3.5
        highest.append(above.max())
    assert highest[-1] < -5 < -1 < max(highest)


def test_noise_that_was_measured_for_the_signal_of_aligned_rows_tells_nothing(
    own: Reference, streamed: ParticleTable
) -> None:
    old = replace(own, of_noise=NoiseScores(mean=-30.0, std=10.0))
    poses = ReferenceMatcher(old, GALLERY, RefinementSettings()).match(streamed.select(range(3)), StackReader())
    assert np.isnan(poses.above_noise).all() and np.isfinite(poses.particle_score).all()


def test_a_given_map_works_once_it_has_learnt_the_noise(streamed: ParticleTable) -> None:
    settings = ReferenceSettings(map_lowpass_angstrom=20.0, mask_lowpass_angstrom=20.0)
    shared = reference_from_map(7 * molecule("D2"), PIXEL_SIZE, "D2", 0, settings)
    matcher = ReferenceMatcher(shared, GALLERY, RefinementSettings())
    with pytest.raises(PermanentError, match="learn_noise"):
        matcher.match(streamed, StackReader())
    with pytest.raises(PermanentError, match="5 usable images"):
        matcher.learn_noise(streamed.select(range(5)), StackReader())
    model = matcher.learn_noise(streamed, StackReader())
    assert model.variance.mean() == pytest.approx(1.0, abs=0.2)
    poses = matcher.match(streamed, StackReader())
    error = angular_error_deg(streamed.rotations(), poses.rotation, group_rotations("D2"))
    assert np.median(error) < 3.0
