"""The SO(3) grid: its order, its coverage, and the exact nearest point."""

import subprocess
import sys

import healpy
import numpy as np
import pytest
import torch
from e3nn import o3
from scipy.spatial.transform import Rotation

from cesped_stream.conventions import head_frame_to_rotation, rotation_to_head_frame
from cesped_stream.so3 import grids


def random_rotations(count: int, seed: int) -> np.ndarray:
    return Rotation.random(count, random_state=np.random.default_rng(seed)).as_matrix()


def traces(rotations: np.ndarray, grid: np.ndarray) -> np.ndarray:
    return rotations.reshape(-1, 9) @ grid.reshape(-1, 9).T


@pytest.mark.parametrize(("order", "size"), [(0, 72), (1, 576), (2, 4_608), (3, 36_864), (4, 294_912)])
def test_grid_has_the_published_number_of_rotations(order: int, size: int) -> None:
    assert grids.num_rotations(order) == size
    if order < 4:
        assert grids.head_grid(order).shape == (size, 3, 3)


def test_grid_is_e3nns_y_x_y_rotations_with_the_in_plane_angle_fastest() -> None:
    order, in_plane = 1, 12
    beta, alpha = healpy.pix2ang(2, np.arange(48))
    gamma = np.linspace(0, 2 * np.pi, in_plane + 1)[:-1]
    alpha, beta, gamma = (torch.from_numpy(a) for a in (alpha.repeat(12), beta.repeat(12), np.tile(gamma, 48)))
    expected = o3.angles_to_matrix(alpha, beta, gamma).numpy()
    np.testing.assert_allclose(grids.head_grid(order), expected, atol=1e-12)


def test_pose_grid_is_the_head_grid_in_the_pose_frame() -> None:
    np.testing.assert_allclose(rotation_to_head_frame(grids.pose_grid(1)), grids.head_grid(1), atol=1e-14)


def test_rotations_at_indices_are_those_of_the_whole_grid() -> None:
    indices = np.array([0, 5, 4_607, 1_234, 5])
    np.testing.assert_array_equal(grids.head_rotations(indices, 2), grids.head_grid(2)[indices])
    np.testing.assert_array_equal(grids.pose_rotations(indices, 2), grids.pose_grid(2)[indices])


@pytest.mark.parametrize("order", [0, 1, 2])
def test_every_grid_rotation_is_nearest_to_itself(order: int) -> None:
    found = grids.nearest_index(grids.pose_grid(order), order)
    np.testing.assert_array_equal(found, np.arange(grids.num_rotations(order)))


@pytest.mark.parametrize(("order", "count"), [(0, 4_000), (1, 4_000), (2, 2_000), (3, 400)])
def test_nearest_rotation_is_the_one_that_a_full_search_finds(order: int, count: int) -> None:
    rotations, grid = random_rotations(count, order), grids.pose_grid(order)
    found = grids.nearest_index(rotations, order)
    all_traces = traces(rotations, grid)
    assert (all_traces[np.arange(count), found] >= all_traces.max(axis=1) - 1e-12).all()


def test_nearest_rotation_is_exact_at_pixel_corners_where_directions_compete() -> None:
    order = 2
    corners = np.concatenate([healpy.boundaries(4, pixel).T for pixel in range(192)])
    axes = corners[:, [1, 2, 0]]  # healpy's pole is z, the head frame's is y
    twist = np.random.default_rng(0).uniform(0, 2 * np.pi, len(axes))
    alpha, beta = np.arctan2(axes[:, 0], axes[:, 2]), np.arccos(axes[:, 1].clip(-1, 1))
    head = o3.angles_to_matrix(*(torch.from_numpy(a) for a in (alpha, beta, twist))).numpy()
    rotations = head_frame_to_rotation(head)
    all_traces = traces(rotations, grids.pose_grid(order))
    found = grids.nearest_index(rotations, order)
    assert (all_traces[np.arange(len(found)), found] >= all_traces.max(axis=1) - 1e-12).all()


@pytest.mark.parametrize(("order", "mean_deg"), [(2, 7.1), (3, 3.5), (4, 1.7)])
def test_mean_distance_to_the_grid_is_the_known_one(order: int, mean_deg: float) -> None:
    rotations = random_rotations(3_000, 7)
    nearest = grids.pose_rotations(grids.nearest_index(rotations, order), order)
    error = np.rad2deg(Rotation.from_matrix(nearest.transpose(0, 2, 1) @ rotations).magnitude())
    assert error.mean() == pytest.approx(mean_deg, abs=0.1)


def test_tensors_and_arrays_have_the_same_nearest_rotation() -> None:
    rotations = random_rotations(50, 3)
    tensor = torch.from_numpy(rotations).requires_grad_()
    np.testing.assert_array_equal(grids.nearest_index(tensor, 3), grids.nearest_index(rotations, 3))


def test_chunks_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    rotations = random_rotations(25, 5)
    whole = grids.nearest_index(rotations, 2)
    monkeypatch.setattr(grids, "_CHUNK", 7)
    np.testing.assert_array_equal(grids.nearest_index(rotations, 2), whole)


def test_no_rotations_have_no_index() -> None:
    assert grids.nearest_index(np.empty((0, 3, 3)), 2).shape == (0,)


def test_something_else_than_rotations_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 3\)"):
        grids.nearest_index(np.zeros((4, 3)), 2)


def test_groups_and_distances_import_without_torch() -> None:
    modules = ("symmetry", "distance")
    code = f"import sys\nfor m in {modules}: __import__('cesped_stream.so3.' + m)\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
