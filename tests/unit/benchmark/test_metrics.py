"""Pose metrics of the benchmark."""

import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cesped_stream.benchmark.metrics import (
    effective_number,
    halves_combined_as_cesped,
    mean_angular_error_deg,
    median_displacement_angstrom,
    pose_metrics,
    random_mean_deg,
    random_view_mean_deg,
    rms_displacement_angstrom,
    shift_rmse_angstrom,
    weighted_mean_angular_error_deg,
)
from cesped_stream.imaging.simulate import random_rotations
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations

NONE = group_rotations("C1")
ERRORS_DEG = np.array([0.0, 4.0, 10.0, 90.0])
CONFIDENCE = np.array([1.0, 0.5, 0.5, 0.0])
HALVES = np.array([0, 0, 1, 1])


def true_poses(count: int = 4) -> np.ndarray:
    return Rotation.random(count, random_state=np.random.default_rng(0)).as_matrix()


def poses_off_by(errors_deg: np.ndarray, axis: str) -> np.ndarray:
    turns = Rotation.from_euler(axis, errors_deg[:, None], degrees=True).as_matrix()
    return true_poses(len(errors_deg)) @ turns


def test_errors_are_summarised_together_and_per_half() -> None:
    metrics = pose_metrics(true_poses(), poses_off_by(ERRORS_DEG, "Z"), CONFIDENCE, HALVES, NONE)
    together = metrics.together
    assert together.half_set is None
    assert together.num_particles == 4
    assert together.mean_deg == pytest.approx(26.0)
    assert together.weighted_mean_deg == pytest.approx((0.5 * 4 + 0.5 * 10) / 2)
    assert together.median_deg == pytest.approx(7.0)
    assert together.share_within_5_deg == 0.5
    assert together.share_within_15_deg == 0.75
    assert [half.half_set for half in metrics.halves] == [0, 1]
    assert [half.mean_deg for half in metrics.halves] == pytest.approx([2.0, 50.0])
    assert [half.weighted_mean_deg for half in metrics.halves] == pytest.approx([4 * 0.5 / 1.5, 10.0])


def test_view_and_in_plane_errors_stand_apart() -> None:
    turned = pose_metrics(true_poses(), poses_off_by(ERRORS_DEG, "Z"), CONFIDENCE, HALVES, NONE).together
    tilted = pose_metrics(true_poses(), poses_off_by(ERRORS_DEG, "Y"), CONFIDENCE, HALVES, NONE).together
    assert (turned.median_view_error_deg, turned.median_in_plane_error_deg) == pytest.approx((0, 7), abs=1e-5)
    assert (tilted.median_view_error_deg, tilted.median_in_plane_error_deg) == pytest.approx((7, 0), abs=1e-5)


def test_symmetry_mates_are_no_error() -> None:
    group = group_rotations("D2")
    mates = np.stack([g @ pose for g, pose in zip(group, true_poses(), strict=True)])
    assert pose_metrics(true_poses(), mates, CONFIDENCE, HALVES, group).together.mean_deg < 1e-5
    assert pose_metrics(true_poses(), mates, CONFIDENCE, HALVES, NONE).together.mean_deg > 90


def test_a_half_set_without_particles_is_left_out() -> None:
    metrics = pose_metrics(true_poses(), true_poses(), CONFIDENCE, [1, 1, 1, 1], NONE)
    assert [half.half_set for half in metrics.halves] == [1]


def test_weighted_mean_is_unknown_where_no_truth_has_confidence() -> None:
    assert weighted_mean_angular_error_deg([1.0, 2.0], [0.0, 0.0]) is None
    metrics = pose_metrics(true_poses(), true_poses(), np.zeros(4), HALVES, NONE)
    assert metrics.together.weighted_mean_deg is None
    assert metrics.together.mean_deg == pytest.approx(0, abs=1e-5)


def test_equation_3_is_a_mean() -> None:
    assert mean_angular_error_deg([10.0, 20.0, 60.0]) == pytest.approx(30.0)


def test_figures_can_be_written_as_json() -> None:
    metrics = pose_metrics(true_poses(), true_poses(), CONFIDENCE, HALVES, NONE)
    figures = json.loads(json.dumps([vars(half) for half in metrics.halves], allow_nan=False))
    assert [figure["num_particles"] for figure in figures] == [2, 2]


def test_a_random_predictor_without_symmetry_is_off_by_the_known_mean() -> None:
    assert random_mean_deg(NONE) == pytest.approx(np.rad2deg(np.pi / 2 + 2 / np.pi), abs=0.02)


@pytest.mark.parametrize("symmetry", ["C2", "C7", "D2", "D7", "T", "O", "I", "I3"])
def test_a_random_predictors_mean_is_that_of_random_poses(symmetry: str) -> None:
    group = group_rotations(symmetry)
    drawn = Rotation.random(40_000, random_state=np.random.default_rng(1)).as_matrix()
    errors = angular_error_deg(np.eye(3), drawn, group)
    assert random_mean_deg(group) == pytest.approx(errors.mean(), abs=0.1 + 4 * errors.std() / 200)
    metrics = pose_metrics(true_poses(), true_poses(), CONFIDENCE, HALVES, group)
    assert metrics.random_mean_deg == random_mean_deg(group)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predicted": np.full((4, 3, 3), np.nan)}, "row 0: pose is not finite"),
        ({"confidence": [1, 1, 1, -1]}, "confidence"),
        ({"confidence": [1, 1, 1, np.nan]}, "confidence"),
        ({"half_sets": [0, 1, 2, 1]}, "half_sets"),
        ({"half_sets": [0, 1]}, "2 half-sets"),
        ({"true": np.empty((0, 3, 3))}, "0 true"),
    ],
)
def test_input_that_would_falsify_a_mean_is_refused(change: dict[str, object], message: str) -> None:
    arguments = {"true": true_poses(), "predicted": true_poses(), "confidence": CONFIDENCE, "half_sets": HALVES}
    with pytest.raises(ValueError, match=message):
        pose_metrics(**{**arguments, **change}, group=NONE)


def test_cesped_combines_halves_by_mean_or_by_total_confidence() -> None:
    assert halves_combined_as_cesped([10.0, 20.0]) == 15.0
    assert halves_combined_as_cesped([10.0, 20.0], [3.0, 1.0]) == 12.5
    assert np.isnan(halves_combined_as_cesped([]))
    assert np.isnan(halves_combined_as_cesped([10.0], [0.0]))


def test_shift_rmse_is_of_the_length_of_the_difference() -> None:
    true = np.array([[0.0, 0.0], [1.0, 1.0]])
    predicted = np.array([[3.0, 4.0], [1.0, 1.0]])
    assert shift_rmse_angstrom(true, predicted) == pytest.approx(np.linalg.norm(predicted - true) / np.sqrt(2))
    assert shift_rmse_angstrom(true, predicted) == pytest.approx(np.sqrt(12.5))


def test_effective_number_counts_equal_weights_once_each() -> None:
    assert effective_number(np.full(7, 0.3)) == pytest.approx(7)
    assert effective_number([1.0, 0.0, 0.0]) == 1.0
    assert effective_number([0.0, 0.0]) == 0.0


def test_displacement_is_that_of_points_on_a_sphere_that_is_turned() -> None:
    rng = np.random.default_rng(1)
    points = rng.normal(size=(20_000, 3))
    points *= 50 / np.linalg.norm(points, axis=1, keepdims=True)
    errors = np.array([5.0, 40.0, 120.0])
    turns = Rotation.from_rotvec(np.deg2rad(errors)[:, None] * np.array([[1, 0, 0], [0, 0.6, 0.8], [0, 0, 1]]))
    moved = np.stack([points @ turn.T - points for turn in turns.as_matrix()])
    expected = np.sqrt((moved**2).sum(-1).mean())
    assert rms_displacement_angstrom(errors, [0.0, 50.0]) == pytest.approx([0.0, expected], rel=0.01)
    assert median_displacement_angstrom(errors, 50.0) == pytest.approx(
        np.sqrt((moved[1] ** 2).sum(-1).mean()), rel=0.01
    )


@pytest.mark.parametrize("symmetry", ["C1", "C3", "D2"])
def test_a_guessed_view_is_as_far_off_as_drawn_views_are(symmetry: str) -> None:
    group = group_rotations(symmetry)
    drawn, true = (random_rotations(20_000, np.random.default_rng(seed))[:, :, 2] for seed in (3, 4))
    expected = np.rad2deg(np.arccos(np.einsum("gij,nj,ni->gn", group, true, drawn).max(0).clip(-1, 1))).mean()
    assert random_view_mean_deg(group) == pytest.approx(expected, abs=0.7)
    if symmetry == "C1":
        assert random_view_mean_deg(group) == pytest.approx(90, abs=0.1)
