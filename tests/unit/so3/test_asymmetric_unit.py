"""The asymmetric unit of the grid: what stands for what."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cesped_stream.errors import InvalidSettingsError
from cesped_stream.so3.asymmetric_unit import asymmetric_unit
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.grids import grid_step_deg, nearest_index, num_in_plane, num_rotations, pose_grid, pose_rotations
from cesped_stream.so3.symmetry import group_rotations


def random_rotations(count: int, seed: int) -> np.ndarray:
    return Rotation.random(count, random_state=np.random.default_rng(seed)).as_matrix()


def errors_to_unit(rotations: np.ndarray, order: int, symmetry: str) -> np.ndarray:
    """All angles `(n, m)` to the unit's points, by definition."""
    points = asymmetric_unit(order, symmetry).rotations()
    group = group_rotations(symmetry)
    return np.stack([angular_error_deg(rotation, points, group) for rotation in rotations])


def test_without_symmetry_the_unit_is_the_whole_grid() -> None:
    unit = asymmetric_unit(1, "C1")
    np.testing.assert_array_equal(unit.points, np.arange(num_rotations(1)))
    np.testing.assert_array_equal(unit.cell, np.arange(num_rotations(1)))


@pytest.mark.parametrize(("symmetry", "size"), [("C2", 2), ("D2", 4)])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_groups_that_keep_the_grid_divide_it_evenly(symmetry: str, size: int, order: int) -> None:
    unit = asymmetric_unit(order, symmetry)
    assert len(unit) * size == num_rotations(order)
    assert (unit.cell_sizes == size).all()
    poses, stands_for = pose_grid(order)[::37], unit.rotations()[unit.cell[::37]]
    assert angular_error_deg(poses, stands_for, group_rotations(symmetry)).max() < 1e-5


@pytest.mark.parametrize("symmetry", ["C3", "C7", "D3", "T", "O", "I"])
def test_other_groups_leave_near_that_many_and_no_two_are_mates(symmetry: str) -> None:
    order, size = 2, len(group_rotations(symmetry))
    unit = asymmetric_unit(order, symmetry)
    assert len(unit) == pytest.approx(num_rotations(order) / size, rel=0.6)
    points = unit.rotations()[:: max(1, len(unit) // 40)]
    errors = errors_to_unit(points, order, symmetry)
    assert (np.sort(errors, axis=1)[:, 1] > 1e-3).all()
    np.testing.assert_allclose(errors.min(axis=1), 0, atol=1e-5)


@pytest.mark.parametrize("symmetry", ["C2", "C3", "C5", "D2", "D3", "D7", "T", "O", "I"])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_no_pose_is_further_than_a_grid_step_from_the_unit(symmetry: str, order: int) -> None:
    rotations, group = random_rotations(1500, 5), group_rotations(symmetry)
    whole = angular_error_deg(rotations, pose_rotations(nearest_index(rotations, order), order), group_rotations("C1"))
    unit = asymmetric_unit(order, symmetry)
    apart = angular_error_deg(rotations, unit.rotations()[unit.nearest(rotations)], group)
    assert apart.mean() < 1.05 * whole.mean()
    assert apart.max() < grid_step_deg(order)


@pytest.mark.parametrize("symmetry", ["C1", "C3", "D2", "D7", "T", "O", "I"])
def test_nearest_point_is_the_one_that_a_full_search_under_the_group_finds(symmetry: str) -> None:
    rotations = random_rotations(40, 1)
    errors = errors_to_unit(rotations, 2, symmetry)
    found = asymmetric_unit(2, symmetry).nearest(rotations)
    np.testing.assert_allclose(errors[np.arange(40), found], errors.min(axis=1), atol=1e-6)


@pytest.mark.parametrize("symmetry", ["C1", "C5", "D2", "O"])
def test_every_grid_rotation_belongs_to_the_nearest_point_and_a_point_to_itself(symmetry: str) -> None:
    unit = asymmetric_unit(1, symmetry)
    np.testing.assert_array_equal(unit.cell[unit.points], np.arange(len(unit)))
    assert unit.cell_sizes.sum() == num_rotations(1)
    grid = pose_grid(1)[::11]
    errors = errors_to_unit(grid, 1, symmetry)
    np.testing.assert_allclose(errors[np.arange(len(grid)), unit.cell[::11]], errors.min(axis=1), atol=1e-6)


@pytest.mark.parametrize("symmetry", ["C1", "D2", "T"])
def test_what_lies_within_a_radius_is_what_distances_say_each_once(symmetry: str) -> None:
    rotations = random_rotations(12, 2)
    rows, positions = asymmetric_unit(2, symmetry).within(rotations, 21.0)
    expected = np.nonzero(errors_to_unit(rotations, 2, symmetry) <= 21.0)
    np.testing.assert_array_equal(rows, expected[0])
    np.testing.assert_array_equal(positions, expected[1])


def test_a_pose_with_nothing_near_gets_the_nearest() -> None:
    rotations = random_rotations(9, 3)
    unit = asymmetric_unit(1, "D2")
    rows, positions = unit.within(rotations, 0.01)
    np.testing.assert_array_equal(rows, np.arange(9))
    np.testing.assert_array_equal(positions, unit.nearest(rotations))


def test_all_in_plane_angles_of_a_direction_are_in_the_unit_or_none_is() -> None:
    unit = asymmetric_unit(2, "C3")
    _, counts = np.unique(unit.points // num_in_plane(2), return_counts=True)
    assert (counts == num_in_plane(2)).all()


def test_points_cannot_be_changed_and_an_unknown_symmetry_is_refused() -> None:
    with pytest.raises(ValueError, match="read-only"):
        asymmetric_unit(1, "D2").points[0] = 5
    with pytest.raises(InvalidSettingsError, match="H3"):
        asymmetric_unit(1, "H3")
