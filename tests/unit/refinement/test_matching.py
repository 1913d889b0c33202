"""Refinement: from a grid's step to the noise's limit, anywhere on the sphere."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from support.matching import BOX, PIXEL_SIZE, Particles, flat_noise, molecule, particles, reference, rows

from cesped_stream.conventions import euler_deg_to_rotation
from cesped_stream.imaging.band import centred_slices
from cesped_stream.imaging.ctf import ctf
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.refinement.matching import RefinedPoses, Refiner
from cesped_stream.refinement.particle_score import power_log_likelihood
from cesped_stream.settings import RefinementSettings
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations

STEP_DEG, SHIFT_STEP = 7.3, 4.0
COUNT = 24


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def refiner(symmetry: str = "C1", resolution: float = 11.0, **settings: object) -> Refiner:
    return Refiner(
        reference(symmetry, resolution=resolution),
        RefinementSettings(**settings),
        proposal_step_deg=STEP_DEG,
        proposal_shift_step_angstrom=SHIFT_STEP,
    )


def near(truth: np.ndarray, angle_deg: float, seed: int = 0) -> np.ndarray:
    """Return rotations so far from the truth, about random axes, `(n, 1, 3, 3)`."""
    axes = np.random.default_rng(seed).normal(size=(len(truth), 3))
    axes *= np.deg2rad(angle_deg) / np.linalg.norm(axes, axis=1, keepdims=True)
    return (truth @ Rotation.from_rotvec(axes).as_matrix())[:, None]


def refined(one: Refiner, truth: Particles, starts: np.ndarray, shifts: np.ndarray | None = None) -> RefinedPoses:
    count = len(truth.rotations)
    if shifts is None:
        shifts = np.round(truth.shifts_angstrom / SHIFT_STEP)[:, None].repeat(starts.shape[1], 1) * SHIFT_STEP
    return one.refine(truth.in_band(one.band), flat_noise(), rows(count), starts, shifts)


def test_poses_end_far_below_the_grids_step_and_shifts_below_the_pixel() -> None:
    truth = particles(COUNT, snr=2.0)
    found = refined(refiner(), truth, near(truth.rotations, 4.0))
    error = angular_error_deg(truth.rotations, found.rotations, np.eye(3)[None])
    off = np.hypot(*(found.shifts_angstrom - truth.shifts_angstrom).T)
    assert np.median(error) < 1.0 and error.max() < 3.0
    assert np.median(off) < 0.5 and off.max() < 2.0  # of a pixel of 5 A
    assert not found.angle_clipped.any() and not found.shift_clipped.any()


def test_the_start_does_not_matter() -> None:
    truth = particles(COUNT, snr=1.0)
    one = refiner()
    ends = [refined(one, truth, near(truth.rotations, angle, seed)) for angle, seed in ((0.0, 0), (4.0, 1), (6.0, 2))]
    for other in ends[1:]:
        apart = angular_error_deg(ends[0].rotations, other.rotations, np.eye(3)[None])
        assert np.median(apart) < 0.3
        assert np.median(np.abs(ends[0].shifts_angstrom - other.shifts_angstrom)) < 0.15


def test_poses_at_the_poles_are_refined_as_well_as_elsewhere() -> None:
    truth = particles(COUNT, snr=2.0)
    tilts = np.where(np.arange(COUNT) % 2, 180.0, 0.5)
    at_poles = euler_deg_to_rotation(0.0, tilts, np.linspace(0, 330, COUNT))
    found, limit = (refined(refiner(), particles_at(at_poles, truth), near(at_poles, start)) for start in (4.0, 0.0))
    assert angular_error_deg(at_poles, found.rotations, np.eye(3)[None]).max() < 4.0
    assert np.median(angular_error_deg(limit.rotations, found.rotations, np.eye(3)[None])) < 0.3


def particles_at(rotations: np.ndarray, like: Particles) -> Particles:
    """Return images at given rotations with the CTFs, shifts, signal and noise variance of others."""
    projector = MapProjector(molecule(), PIXEL_SIZE)
    images = projector.project(rotations, like.shifts_angstrom, ctf(like.ctf, BOX))
    images *= 2.0**0.5 / images.var(dim=(1, 2)).mean().sqrt()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(3))
    return Particles(images + noise, like.ctf, rotations, like.shifts_angstrom)


def test_the_right_one_of_several_proposals_is_taken() -> None:
    truth = particles(COUNT, snr=2.0)
    wrong = near(truth.rotations, 60.0)
    starts = np.concatenate([wrong, near(truth.rotations, 4.0), near(truth.rotations, 120.0, 5)], axis=1)
    found = refined(refiner(), truth, starts)
    assert (found.proposal == 1).all()
    assert found.proposal_log_likelihood.shape == (COUNT, 3)
    assert (found.proposal_log_likelihood.argmax(1) == 1).all()
    assert angular_error_deg(truth.rotations, found.rotations, np.eye(3)[None]).max() < 3.0


def test_a_symmetry_mate_is_as_good_a_start() -> None:
    group = group_rotations("D2")
    truth = particles(COUNT, symmetry="D2", snr=2.0)
    one, starts = refiner("D2"), near(truth.rotations, 3.0)
    found, mates = (refined(one, truth, s) for s in (starts, group[2] @ starts))
    apart = angular_error_deg(group[2] @ found.rotations, mates.rotations, np.eye(3)[None])
    assert np.median(apart) < 0.1
    assert np.median(angular_error_deg(truth.rotations, mates.rotations, group)) < 1.0


def test_images_of_another_box_and_pixel_size_are_refined_as_well() -> None:
    truth = particles(COUNT, snr=2.0, box=48)
    one = refiner()
    found = refined(one, truth, near(truth.rotations, 4.0))
    assert np.median(angular_error_deg(truth.rotations, found.rotations, np.eye(3)[None])) < 1.0
    assert np.median(np.hypot(*(found.shifts_angstrom - truth.shifts_angstrom).T)) < 0.5


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.usefixtures("threads")
def test_a_particles_bits_depend_on_no_other_nor_on_the_batch() -> None:
    truth = particles(10, snr=1.0)
    starts = np.concatenate([near(truth.rotations, 4.0), near(truth.rotations, 50.0)], axis=1)
    together = refined(refiner(batch_size=8), truth, starts)
    for batch_size in (1, 3):
        again = refined(refiner(batch_size=batch_size), truth, starts)
        np.testing.assert_array_equal(again.rotations, together.rotations)
        np.testing.assert_array_equal(again.shifts_angstrom, together.shifts_angstrom)
        np.testing.assert_array_equal(again.log_likelihood, together.log_likelihood)
    few = [5, 9]
    part = replace(
        truth,
        images=truth.images[few],
        ctf=truth.ctf.select(np.array(few)),
        rotations=truth.rotations[few],
        shifts_angstrom=truth.shifts_angstrom[few],
    )
    alone = refined(refiner(), part, starts[few])
    np.testing.assert_array_equal(alone.rotations, together.rotations[few])


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.usefixtures("threads")
def test_what_a_pose_gains_depends_on_no_other_image() -> None:
    one, truth = refiner(), particles(13, snr=1.0)
    images = truth.in_band(one.band)
    together = one.log_likelihoods_at(images, flat_noise(), rows(13), truth.rotations, truth.shifts_angstrom)
    for part in (slice(4, 5), slice(2, 13), slice(0, 7)):
        poses = truth.rotations[part], truth.shifts_angstrom[part]
        alone = one.log_likelihoods_at(images.select(part), flat_noise(), rows(len(poses[0])), *poses)
        np.testing.assert_array_equal(alone, together[part])


def test_a_strong_signal_costs_a_right_pose_nothing_of_what_it_gains() -> None:
    """The lattice's likelihood blurs what stands far above the noise, and falls behind the image's power."""
    one, truth = refiner(), particles(COUNT, snr=50.0)
    images = truth.in_band(one.band)
    projector = MapProjector(one.reference.volume, PIXEL_SIZE)
    plain = centred_slices(projector, one.band, truth.rotations, truth.shifts_angstrom)
    scale = float((images.matched.conj() * plain).real.sum() / (images.ctf_square * plain.abs().square()).sum())
    noise = flat_noise(scale=scale)
    starts = np.round(truth.shifts_angstrom / SHIFT_STEP)[:, None] * SHIFT_STEP
    found = one.refine(images, noise, rows(COUNT), near(truth.rotations, 3.0), starts)
    own = one.log_likelihoods_at(images, noise, rows(COUNT), found.rotations, found.shifts_angstrom)
    power = power_log_likelihood(images, noise, rows(COUNT))
    assert np.median(angular_error_deg(truth.rotations, found.rotations, np.eye(3)[None])) < 1.0
    assert np.median(own - power) > 100
    assert np.median(found.log_likelihood - power) < 0


def test_what_ends_at_the_edge_of_the_search_is_told() -> None:
    truth = particles(COUNT, snr=2.0)
    far = refined(refiner(), truth, near(truth.rotations, 11.0))
    assert far.angle_clipped.mean() > 0.8
    start = near(truth.rotations, 2.0)
    off = refined(refiner(), truth, start, truth.shifts_angstrom[:, None] + [14.0, 0.0])
    assert off.shift_clipped.mean() > 0.8


def test_stages_go_on_until_the_step_supports_the_resolution() -> None:
    coarse, fine = refiner(resolution=40.0, stages=1), refiner(resolution=11.0, stages=1, radius_deg=40.0)
    assert coarse.num_stages == 1, coarse._stages
    assert fine.num_stages > 1
    limits = [len(stage.members) for stage in fine._stages]
    assert limits == sorted(limits) and limits[0] < limits[-1] == len(fine.band)


def test_little_memory_makes_batches_smaller() -> None:
    assert refiner(memory_mib=1)._batch_size() < 4
    assert refiner(memory_mib=512, batch_size=8)._batch_size() == 8


def test_a_proposal_of_no_weight_is_not_searched() -> None:
    truth, one = particles(4, snr=2.0), refiner()
    starts = np.concatenate([near(truth.rotations, 60.0), near(truth.rotations, 4.0)], axis=1)
    shifts = truth.shifts_angstrom[:, None].repeat(2, 1)
    weights = [[0.9, 0.05], [0.999, 0.001], [0.999, 0.001], [np.nan, np.nan]]
    images = truth.in_band(one.band)
    found = one.refine(images, flat_noise(), rows(4), starts, shifts, weights=weights)
    assert found.proposal.tolist() == [1, 0, 0, 0]
    assert np.isinf(found.proposal_log_likelihood[1:, 1]).all()
    assert np.isfinite(found.proposal_log_likelihood[:, 0]).all()


def test_what_does_not_fit_is_refused() -> None:
    truth, one = particles(2), refiner()
    other = truth.in_band(replace(one.band, limit_angstrom=30.0))
    with pytest.raises(ValueError, match="refiner in"):
        one.refine(other, flat_noise(), rows(2), near(truth.rotations, 1.0), truth.shifts_angstrom[:, None])
    with pytest.raises(ValueError, match="no images"):
        one.refine(
            truth.in_band(one.band).select(slice(0, 0)),
            flat_noise(),
            rows(0),
            np.zeros((0, 1, 3, 3)),
            np.zeros((0, 1, 2)),
        )
