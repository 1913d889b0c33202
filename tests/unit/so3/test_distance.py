"""Angular error (eq. 4) and its parts."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cesped_stream.so3 import distance
from cesped_stream.so3.distance import angular_error_deg, in_plane_error_deg, view_error_deg
from cesped_stream.so3.symmetry import group_rotations

NONE = group_rotations("C1")


def random_rotations(count: int, seed: int) -> np.ndarray:
    return Rotation.random(count, random_state=np.random.default_rng(seed)).as_matrix()


def turn(axis: str, angle_deg: float) -> np.ndarray:
    return Rotation.from_euler(axis, angle_deg, degrees=True).as_matrix()


@pytest.mark.parametrize("symmetry", ["C1", "C5", "D3", "T", "I"])
def test_error_is_equation_4(symmetry: str) -> None:
    true, predicted, group = random_rotations(40, 1), random_rotations(40, 2), group_rotations(symmetry)
    traces = np.einsum("gij,njk,nik->ng", group, true, predicted)
    expected = np.rad2deg(np.arccos(((traces - 1) / 2).clip(-1, 1))).min(axis=1)
    np.testing.assert_allclose(angular_error_deg(true, predicted, group), expected, atol=1e-6)


@pytest.mark.parametrize("angle_deg", [1e-7, 1e-5, 0.01, 1.0, 90.0, 179.9, 180.0])
def test_error_is_exact_from_nothing_to_half_a_turn(angle_deg: float) -> None:
    true = random_rotations(20, 3)
    predicted = true @ Rotation.from_rotvec(np.deg2rad(angle_deg) * np.array([0.36, 0.48, 0.8])).as_matrix()
    np.testing.assert_allclose(angular_error_deg(true, predicted, NONE), angle_deg, rtol=1e-6)


def test_mates_are_made_on_the_left_of_the_truth() -> None:
    true, group = random_rotations(10, 4), group_rotations("C4")
    left = turn("Z", 90) @ true
    right = true @ turn("Z", 90)
    assert angular_error_deg(true, left, group).max() < 1e-6
    assert angular_error_deg(true, right, group).min() > 1


def test_float32_tensors_are_measured_to_their_own_rounding() -> None:
    true = random_rotations(10, 5)
    predicted = true @ turn("Y", 0.01)
    tensors = (torch.tensor(true, dtype=torch.float32), torch.tensor(predicted, dtype=torch.float32))
    np.testing.assert_allclose(angular_error_deg(*tensors, torch.from_numpy(NONE.copy())), 0.01, atol=2e-5)


def test_one_pose_is_measured_against_many() -> None:
    many = random_rotations(6, 6)
    one = many[2]
    np.testing.assert_allclose(
        angular_error_deg(one, many, NONE), angular_error_deg(np.stack([one] * 6), many, NONE), atol=1e-12
    )


def test_different_numbers_of_poses_are_refused() -> None:
    with pytest.raises(ValueError, match="2 true and 3 predicted"):
        angular_error_deg(random_rotations(2, 0), random_rotations(3, 0), NONE)


def test_no_poses_have_no_errors() -> None:
    assert angular_error_deg(np.empty((0, 3, 3)), np.empty((0, 3, 3)), NONE).shape == (0,)


def test_a_pose_of_nan_has_an_error_of_nan_and_the_others_theirs() -> None:
    true = random_rotations(3, 7)
    predicted = true.copy()
    predicted[1] = np.nan
    np.testing.assert_array_equal(np.isnan(angular_error_deg(true, predicted, group_rotations("D2"))), [0, 1, 0])


def test_chunks_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    true, predicted, group = random_rotations(11, 8), random_rotations(11, 9), group_rotations("T")
    whole = angular_error_deg(true, predicted, group)
    monkeypatch.setattr(distance, "_CHUNK", 4)
    np.testing.assert_allclose(angular_error_deg(true, predicted, group), whole, rtol=1e-12)


def test_a_turn_about_the_view_axis_is_in_plane_error_only() -> None:
    true = random_rotations(10, 10)
    predicted = true @ turn("Z", -25)
    np.testing.assert_allclose(in_plane_error_deg(true, predicted, NONE), 25, atol=1e-9)
    np.testing.assert_allclose(view_error_deg(true, predicted, NONE), 0, atol=1e-6)


def test_a_tilt_is_view_error_only() -> None:
    true = random_rotations(10, 11)
    predicted = true @ turn("Z", 40) @ turn("Y", 25) @ turn("Z", -40)
    np.testing.assert_allclose(in_plane_error_deg(true, predicted, NONE), 0, atol=1e-6)
    np.testing.assert_allclose(view_error_deg(true, predicted, NONE), 25, atol=1e-9)


def test_opposite_views_leave_no_in_plane_error_to_speak_of() -> None:
    assert in_plane_error_deg(np.eye(3), turn("Y", 180), NONE) == [0.0]
    assert view_error_deg(np.eye(3), turn("Y", 180), NONE)[0] == pytest.approx(180)


def test_parts_are_of_the_mate_that_the_whole_error_takes() -> None:
    true, predicted, group = random_rotations(200, 12), random_rotations(200, 13), group_rotations("O")
    whole, view, in_plane = (
        np.deg2rad(error(true, predicted, group)) for error in (angular_error_deg, view_error_deg, in_plane_error_deg)
    )
    np.testing.assert_allclose(np.cos(whole / 2), np.cos(view / 2) * np.cos(in_plane / 2), atol=1e-9)
