"""Several optics groups in one star: each with its own box, pixel size and noise, one reference of all."""

from dataclasses import replace

import numpy as np
import pytest
from support.optics_groups import SAMPLINGS, of_box, write_two_groups

from cesped_stream.matching import MatchedPoses, ReferenceMatcher
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.table import ParticleTable
from cesped_stream.reconstruction.reference import reference_from_rows
from cesped_stream.settings import GallerySettings, ReferenceSettings, RefinementSettings
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations

GALLERY = GallerySettings(grid_order=2, coarse_order=1, keep_fraction=0.2, batch_size=16)
ALIGNED = 240


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> ParticleTable:
    """Half 0, both groups in turn."""
    table = write_two_groups(tmp_path_factory.mktemp("groups"), 340)
    return table.select(np.flatnonzero(table.half_sets() == 0))


@pytest.fixture(scope="module")
def matcher(half: ParticleTable) -> ReferenceMatcher:
    settings = ReferenceSettings(mask_lowpass_angstrom=20.0)
    reference = reference_from_rows(half.select(range(ALIGNED)), "D2", settings, StackReader())
    return ReferenceMatcher(reference, GALLERY, RefinementSettings())


@pytest.fixture(scope="module")
def streamed(half: ParticleTable) -> ParticleTable:
    return half.select(range(ALIGNED, len(half)))


@pytest.fixture(scope="module")
def poses(matcher: ReferenceMatcher, streamed: ParticleTable) -> MatchedPoses:
    return matcher.match(streamed, StackReader())


def test_the_noise_model_knows_both_groups(matcher: ReferenceMatcher, half: ParticleTable) -> None:
    assert matcher.noise is not None
    assert len(matcher.noise.keys) == len(half.optics) == len({group.name for group in half.optics}) + 1 == 2
    assert matcher.noise.variance[:2] == pytest.approx(1.0, abs=0.5)


@pytest.mark.parametrize("group", SAMPLINGS)
def test_each_group_gets_poses_and_shifts_in_angstrom(poses: MatchedPoses, streamed: ParticleTable, group: str) -> None:
    rows = np.flatnonzero(of_box(streamed, SAMPLINGS[group][0]))
    assert len(rows) > 30
    errors = angular_error_deg(streamed.rotations()[rows], poses.rotation[rows], group_rotations("D2"))
    assert np.median(errors) < 2.0
    assert (errors < 5).mean() > 0.9
    moved = poses.shift_angstrom[rows] - streamed.shifts_angstrom()[rows]
    assert np.median(np.abs(moved)) < 1.5
    assert np.abs(moved.mean(0)).max() < 0.6, "a shift of half a pixel between the groups"


def test_a_row_of_one_group_does_not_depend_on_rows_of_the_other(
    matcher: ReferenceMatcher, poses: MatchedPoses, streamed: ParticleTable
) -> None:
    rows = np.flatnonzero(of_box(streamed, SAMPLINGS["second"][0]))
    alone = matcher.match(streamed.select(rows), StackReader())
    np.testing.assert_array_equal(alone.rotation, poses.rotation[rows])
    np.testing.assert_array_equal(alone.shift_angstrom, poses.shift_angstrom[rows])


def test_a_group_that_no_aligned_row_had_is_posed_by_its_images_own_levels(
    half: ParticleTable, streamed: ParticleTable
) -> None:
    settings = ReferenceSettings(mask_lowpass_angstrom=20.0)
    first = np.flatnonzero(of_box(half, SAMPLINGS["first"][0]))
    reference = reference_from_rows(half.select(first), "D2", settings, StackReader())
    unseen = streamed.select(np.flatnonzero(of_box(streamed, SAMPLINGS["second"][0])))
    matcher = ReferenceMatcher(reference, GALLERY, RefinementSettings())
    assert matcher.noise is not None
    # the group's signal is weaker than the aligned rows' would say: as with thicker ice
    matcher.noise = replace(matcher.noise, scale=4 * matcher.noise.scale)
    poses = matcher.match(unseen, StackReader())
    errors = angular_error_deg(unseen.rotations(), poses.rotation, group_rotations("D2"))
    assert np.median(errors) < 2.5
    part = matcher.match(unseen.select(range(10, 14)), StackReader())
    np.testing.assert_array_equal(part.rotation, poses.rotation[10:14])
    matcher.noise = replace(matcher.noise, signal_power=None)
    misled = matcher.match(unseen, StackReader())
    assert np.median(errors) < 0.8 * np.median(
        angular_error_deg(unseen.rotations(), misled.rotation, group_rotations("D2"))
    )
