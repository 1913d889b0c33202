"""Distinct poses of a distribution over the grid."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.distribution import SparseDistribution, sparse_distribution, top_poses, top_poses_sparse
from cesped_stream.so3.grids import nearest_index, num_rotations, pose_grid, pose_rotations
from cesped_stream.so3.symmetry import group_rotations


def random_logits(rows: int, order: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, num_rotations(order), generator=torch.Generator().manual_seed(rows)) * scale


def slow_top_poses(row: np.ndarray, order: int, group: np.ndarray, k: int, separation_deg: float):  # type: ignore[no-untyped-def]
    """The definition, by distances to the whole grid."""
    grid = pose_grid(order)
    probability = torch.from_numpy(row).softmax(0).numpy().astype(np.float64)
    free = np.ones(len(grid), bool)
    poses, masses = [], []
    for _ in range(k):
        best = int(np.where(free, probability, -1).argmax())
        near = angular_error_deg(grid[best], grid, group) <= separation_deg + 1e-6
        poses.append(grid[best])
        masses.append(probability[near & free].sum())
        free &= ~near
    return np.stack(poses), np.array(masses)


@pytest.mark.parametrize(
    ("order", "symmetry", "separation_deg"),
    [
        (1, "C1", 40.0),
        (2, "C1", 15.0),
        (2, "C2", 31.0),
        (2, "D3", 20.0),
        (1, "O", 35.0),
        (2, "I", 25.0),
        (2, "C1", 100.0),
    ],
)
def test_modes_are_those_of_greedy_suppression_over_the_whole_grid(
    order: int, symmetry: str, separation_deg: float
) -> None:
    logits, group = random_logits(2, order), group_rotations(symmetry)
    poses, probabilities = top_poses(logits, order, group, 3, separation_deg)
    for row in range(2):
        expected_poses, expected = slow_top_poses(logits[row].numpy(), order, group, 3, separation_deg)
        np.testing.assert_allclose(poses[row], expected_poses, atol=1e-12)
        np.testing.assert_allclose(probabilities[row], expected, rtol=1e-4, atol=1e-7)


def test_best_pose_is_the_likeliest_grid_rotation() -> None:
    logits = random_logits(5, 2)
    poses, _ = top_poses(logits, 2, group_rotations("C1"), 2, 15.0)
    np.testing.assert_array_equal(poses[:, 0], pose_grid(2)[logits.argmax(1).numpy()])


def test_symmetry_mates_of_a_pose_are_one_mode_with_all_their_mass() -> None:
    order, group = 3, group_rotations("D2")
    rotations = Rotation.random(2, random_state=np.random.default_rng(3)).as_matrix()
    logits = torch.full((1, num_rotations(order)), -20.0)
    for rotation, logit in zip(rotations, (8.0, 7.0), strict=True):
        logits[0, nearest_index(group @ rotation, order)] = logit
    poses, probabilities = top_poses(logits, order, group, 2, 12.0)
    assert angular_error_deg(rotations, poses[0], group).max() < 7
    weights = np.exp([8.0, 7.0])
    np.testing.assert_allclose(probabilities[0], weights / weights.sum(), rtol=1e-3)
    _, without = top_poses(logits, order, group_rotations("C1"), 2, 12.0)
    np.testing.assert_allclose(without[0, 0], probabilities[0, 0] / 4, rtol=1e-3)


def test_mass_counts_once_where_the_neighbourhoods_of_mates_overlap() -> None:
    order, group = 1, group_rotations("C7")
    along_the_axis = nearest_index(np.eye(3), order)
    logits = random_logits(1, order)
    logits[0, along_the_axis] = 9.0
    poses, probabilities = top_poses(logits, order, group, 2, 40.0)
    expected_poses, expected = slow_top_poses(logits[0].numpy(), order, group, 2, 40.0)
    np.testing.assert_allclose(poses[0], expected_poses, atol=1e-12)
    np.testing.assert_allclose(probabilities[0], expected, rtol=1e-4)
    assert probabilities[0, 0] < 1


@pytest.mark.parametrize("symmetry", ["C1", "T"])
def test_modes_are_further_apart_than_the_separation(symmetry: str) -> None:
    group = group_rotations(symmetry)
    poses, probabilities = top_poses(random_logits(3, 2), 2, group, 4, 25.0)
    for row in poses:
        for i in range(4):
            assert all(angular_error_deg(row[i], row[j], group)[0] > 25.0 for j in range(i))
    assert (probabilities.sum(axis=1) <= 1 + 1e-6).all()


def test_equal_logits_give_the_lowest_index() -> None:
    poses, _ = top_poses(torch.zeros(1, num_rotations(1)), 1, group_rotations("C1"), 1, 30.0)
    np.testing.assert_array_equal(poses[0, 0], pose_grid(1)[0])


def test_all_mass_belongs_to_one_mode_where_the_separation_is_half_a_turn() -> None:
    poses, probabilities = top_poses(random_logits(2, 1), 1, group_rotations("C1"), 3, 180.0)
    np.testing.assert_allclose(probabilities, [[1, 0, 0]] * 2, atol=1e-5)
    np.testing.assert_array_equal(poses[:, 1], poses[:, 0])
    np.testing.assert_array_equal(poses[:, 2], poses[:, 0])


@pytest.mark.parametrize("symmetry", ["C1", "D2"])
def test_a_row_gives_the_same_bits_alone_and_among_others(symmetry: str) -> None:
    logits, group = random_logits(9, 2), group_rotations(symmetry)
    poses, probabilities = top_poses(logits, 2, group, 3, 15.0)
    for row in range(9):
        alone_poses, alone = top_poses(logits[row : row + 1], 2, group, 3, 15.0)
        np.testing.assert_array_equal(alone_poses[0], poses[row])
        np.testing.assert_array_equal(alone[0], probabilities[row])


def test_chunks_of_rows_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, group = random_logits(5, 1), group_rotations("C3")
    whole = top_poses(logits, 1, group, 2, 40.0)
    monkeypatch.setattr("cesped_stream.so3.distribution._MAX_DOT_PRODUCTS", 300)
    parts = top_poses(logits, 1, group, 2, 40.0)
    np.testing.assert_array_equal(parts[0], whole[0])
    np.testing.assert_array_equal(parts[1], whole[1])


def test_logits_of_nan_give_a_probability_of_nan_and_harm_no_other_row() -> None:
    logits, group = random_logits(3, 1), group_rotations("C2")
    expected = top_poses(logits, 1, group, 2, 40.0)[1]
    logits[1] = torch.nan
    found = top_poses(logits, 1, group, 2, 40.0)[1]
    assert np.isnan(found[1, 0])
    np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize(("k", "separation_deg"), [(0, 10.0), (1, 0.0), (1, 181.0)])
def test_senseless_requests_are_refused(k: int, separation_deg: float) -> None:
    with pytest.raises(ValueError, match="separation_deg"):
        top_poses(random_logits(1, 0), 0, group_rotations("C1"), k, separation_deg)


def test_logits_of_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 576\).*\(b, 4608\)"):
        top_poses(random_logits(1, 1), 2, group_rotations("C1"), 1, 10.0)


def test_sparse_distribution_holds_the_likeliest_rotations_best_first() -> None:
    logits = random_logits(3, 1)
    sparse = sparse_distribution(logits, 1, 20)
    probability = logits.softmax(1).numpy()
    np.testing.assert_array_equal(sparse.indices[:, 0], probability.argmax(1))
    np.testing.assert_allclose(np.exp(sparse.log_weights), -np.sort(-probability, axis=1)[:, :20], rtol=1e-5)
    assert not sparse.asymmetric_unit
    np.testing.assert_array_equal(sparse.rotations()[2, 7], pose_rotations(sparse.indices[2, 7], 1)[0])


def test_sparse_distribution_may_hold_the_whole_grid() -> None:
    sparse = sparse_distribution(random_logits(2, 0), 0, 1_000)
    assert sparse.indices.shape == (2, 72)
    np.testing.assert_allclose(np.exp(sparse.log_weights).sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("symmetry", ["C1", "D3", "O"])
def test_modes_of_a_sparse_distribution_of_the_whole_grid_are_the_dense_ones(symmetry: str) -> None:
    logits, group = random_logits(4, 1), group_rotations(symmetry)
    poses, probabilities = top_poses(logits, 1, group, 3, 40.0)
    found, masses = top_poses_sparse(sparse_distribution(logits, 1, 10**6), group, 3, 40.0)
    np.testing.assert_array_equal(found, poses)
    np.testing.assert_allclose(masses, probabilities, rtol=1e-4, atol=1e-7)


def test_modes_of_a_sparse_distribution_see_only_what_it_stores() -> None:
    indices, logs = np.array([[700, 3, 4000]]), np.log(np.array([[0.5, 0.3, 0.1]], np.float32))
    sparse = SparseDistribution(2, False, indices, logs)
    poses, probabilities = top_poses_sparse(sparse, group_rotations("C1"), 4, 1.0)
    np.testing.assert_array_equal(poses[0], pose_rotations([700, 3, 4000, 700], 2))
    np.testing.assert_allclose(probabilities[0], [0.5, 0.3, 0.1, 0.0], rtol=1e-6)


def test_equal_sparse_weights_give_the_lowest_index() -> None:
    sparse = SparseDistribution(1, False, np.array([[9, 4, 300]]), np.log(np.full((1, 3), 0.2, np.float32)))
    poses, _ = top_poses_sparse(sparse, group_rotations("C1"), 1, 1.0)
    np.testing.assert_array_equal(poses[0, 0], pose_rotations([4], 1)[0])


def test_a_sparse_row_of_nan_has_no_pose_and_one_of_padding_no_mass() -> None:
    logs = np.array([[np.nan, np.nan], [np.log(0.5), -np.inf], [-np.inf, -np.inf]], np.float32)
    sparse = SparseDistribution(1, True, np.array([[0, 1], [5, 0], [0, 0]]), logs)
    poses, probabilities = top_poses_sparse(sparse, group_rotations("D2"), 2, 20.0)
    assert np.isnan(poses[0]).all()
    assert np.isnan(probabilities[0]).all()
    np.testing.assert_allclose(probabilities[1:], [[0.5, 0], [0, 0]], rtol=1e-6)
