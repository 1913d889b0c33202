"""Targets of the loss: one mass per symmetry mate."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cesped_stream.so3.grids import nearest_index, num_rotations, pose_grid
from cesped_stream.so3.symmetry import group_rotations
from cesped_stream.so3.targets import symmetric_targets


def random_rotations(count: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(Rotation.random(count, random_state=np.random.default_rng(seed)).as_matrix())


def dense(index: torch.Tensor, mass: torch.Tensor, order: int) -> torch.Tensor:
    return torch.zeros(len(index), num_rotations(order)).scatter_add_(1, index, mass)


@pytest.mark.parametrize("symmetry", ["C1", "C3", "D2", "I"])
def test_mass_is_even_over_the_nearest_grid_points_of_all_mates(symmetry: str) -> None:
    order, group, rotations = 2, group_rotations(symmetry), random_rotations(5, 0)
    index, mass = symmetric_targets(rotations, group, order)
    expected = torch.zeros(5, num_rotations(order))
    grid = pose_grid(order).reshape(-1, 9)
    for row, rotation in enumerate(rotations.numpy()):
        for mate in group @ rotation:
            expected[row, int((grid @ mate.ravel()).argmax())] += 1 / len(group)
    torch.testing.assert_close(dense(index, mass, order), expected)
    assert index.dtype == torch.int64
    assert mass.dtype == torch.float32


def test_mates_on_one_grid_point_add_up_in_the_first_of_them() -> None:
    group = group_rotations("C7")
    near_pole = torch.eye(3, dtype=torch.float64)[None]
    index, mass = symmetric_targets(near_pole, group, 0)
    points, counts = np.unique(index.numpy()[0], return_counts=True)
    assert len(points) < 7
    for point, count in zip(points, counts, strict=True):
        masses = mass[0, index[0] == int(point)]
        torch.testing.assert_close(masses, torch.tensor([float(count) / 7] + [0.0] * (int(count) - 1)))


def test_masses_of_a_particle_add_to_one() -> None:
    _, mass = symmetric_targets(random_rotations(30, 1), group_rotations("O"), 1)
    torch.testing.assert_close(mass.sum(1), torch.ones(30))


def test_without_symmetry_the_target_is_the_nearest_grid_point() -> None:
    rotations = random_rotations(9, 2)
    index, mass = symmetric_targets(rotations, group_rotations("C1"), 3)
    np.testing.assert_array_equal(index[:, 0], nearest_index(rotations, 3))
    assert (mass == 1).all()
