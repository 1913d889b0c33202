"""The grid around any pose."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.distribution import top_poses
from cesped_stream.so3.grids import nearest_index, num_in_plane, num_rotations, pose_grid, pose_rotations
from cesped_stream.so3.symmetry import group_rotations
from cesped_stream.so3.targets import symmetric_targets

rotations = st.integers(0, 2**32 - 1).map(
    lambda seed: Rotation.random(random_state=np.random.default_rng(seed)).as_matrix()
)
symmetries = st.sampled_from(["C1", "C3", "D2", "T", "I"])
quick = settings(max_examples=50, deadline=None)


@quick
@given(rotations, st.integers(0, 2))
def test_no_grid_rotation_is_nearer_than_the_nearest(rotation: np.ndarray, order: int) -> None:
    traces = pose_grid(order).reshape(-1, 9) @ rotation.ravel()
    assert traces[nearest_index(rotation, order)[0]] >= traces.max() - 1e-12


@quick
@given(rotations, st.integers(1, 5))
def test_grid_is_never_further_than_a_grid_step(rotation: np.ndarray, order: int) -> None:
    nearest = pose_rotations(nearest_index(rotation, order), order)
    assert angular_error_deg(rotation, nearest, group_rotations("C1"))[0] < 58.6 / 2**order


@quick
@given(rotations, st.integers(0, 3), st.integers(-50, 50))
def test_turning_the_image_by_in_plane_steps_moves_the_index_by_as_many(
    rotation: np.ndarray, order: int, steps: int
) -> None:
    count = num_in_plane(order)
    start = pose_rotations(nearest_index(rotation, order), order)
    turned = start @ Rotation.from_euler("Z", -360 * steps / count, degrees=True).as_matrix()
    before, after = nearest_index(start, order)[0], nearest_index(turned, order)[0]
    assert before // count == after // count
    assert after % count == (before + steps) % count


@quick
@given(rotations, symmetries, st.integers(0, 10**6))
def test_targets_of_all_mates_of_a_pose_are_the_same(rotation: np.ndarray, symmetry: str, i: int) -> None:
    group = group_rotations(symmetry)
    dense = torch.zeros(2, num_rotations(1))
    for row, pose in enumerate((rotation, group[i % len(group)] @ rotation)):
        index, mass = symmetric_targets(pose, group, 1)
        dense[row].scatter_add_(0, index[0], mass[0])
    assert abs(float(dense[0].sum()) - 1) < 1e-5
    # rounding may send a mate that lies between two grid points to the other one: compare all but ties
    assert (dense[0] - dense[1]).abs().sum() <= 2 / len(group) + 1e-5


@quick
@given(rotations, symmetries)
def test_a_certain_pose_comes_back_whole(rotation: np.ndarray, symmetry: str) -> None:
    order, group = 2, group_rotations(symmetry)
    index, mass = symmetric_targets(rotation, group, order)
    logits = torch.full((1, num_rotations(order)), -40.0)
    logits[0].scatter_(0, index[0][mass[0] > 0], mass[0][mass[0] > 0].log())
    poses, probabilities = top_poses(logits, order, group, 1, 30.0)
    assert angular_error_deg(rotation, poses[0, 0], group)[0] < 14.7
    assert probabilities[0, 0] > 0.999
