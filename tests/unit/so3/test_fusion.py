"""Distributions lifted, folded and pooled, against dense definitions over the whole grid."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cesped_stream.so3.asymmetric_unit import asymmetric_unit
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.distribution import SparseDistribution, sparse_distribution, top_poses_sparse
from cesped_stream.so3.fusion import common_support, fuse, pooled_log_density, to_full_grid, to_unit
from cesped_stream.so3.grids import num_rotations, pose_grid, pose_rotations
from cesped_stream.so3.symmetry import group_rotations


def random_rotations(count: int, seed: int) -> np.ndarray:
    return Rotation.random(count, random_state=np.random.default_rng(seed)).as_matrix()


def peaked(rotations: np.ndarray, order: int, symmetry: str, width_deg: float, k: int = 10**6) -> SparseDistribution:
    """On the full grid, around rotations and all their mates."""
    grid, group = pose_grid(order), group_rotations(symmetry)
    errors = np.stack([angular_error_deg(rotation, grid, group) for rotation in rotations])
    return sparse_distribution(torch.from_numpy(-((errors / width_deg) ** 2) / 2), order, k)


def random_distribution(rows: int, order: int, k: int, seed: int) -> SparseDistribution:
    logits = torch.randn(rows, num_rotations(order), generator=torch.Generator().manual_seed(seed)) * 3
    return sparse_distribution(logits, order, k)


def dense(distribution: SparseDistribution, size: int) -> np.ndarray:
    """Probabilities `(n, size)` over the grid (AU: at the unit's grid indices), the rest spread over `size` points."""
    n, _ = distribution.indices.shape
    table = np.full((n, num_rotations(distribution.grid_order)), np.nan)
    weights = np.exp(distribution.log_weights.astype(np.float64))
    for row in range(n):
        stored = weights[row] > 0
        table[row, distribution.indices[row, stored]] = weights[row, stored]
        empty = np.isnan(table[row])
        left = size - stored.sum()
        table[row, empty] = max(1 - weights[row].sum(), 0) / left if left else 0
    return table


@pytest.mark.parametrize("symmetry", ["C1", "C2", "D2", "C3", "T"])
def test_folding_keeps_all_mass_and_puts_mates_together(symmetry: str) -> None:
    rotations = random_rotations(4, 1)
    folded = to_unit(peaked(rotations, 2, symmetry, 12.0), symmetry, 2)
    assert folded.asymmetric_unit
    np.testing.assert_allclose(np.exp(folded.log_weights).sum(axis=1), 1, rtol=1e-5)
    group = group_rotations(symmetry)
    assert angular_error_deg(rotations, folded.rotations()[:, 0], group).max() < 15
    assert np.isin(folded.indices, asymmetric_unit(2, symmetry).points).all()


@pytest.mark.parametrize("symmetry", ["C2", "D2"])
def test_folding_adds_the_mass_of_mates_where_the_group_keeps_the_grid(symmetry: str) -> None:
    full, unit = random_distribution(3, 1, 100, 2), asymmetric_unit(1, symmetry)
    folded = dense(to_unit(full, symmetry, 1), len(unit))[:, unit.points]
    whole = dense(full, num_rotations(1))
    expected = np.stack([np.bincount(unit.cell, row, minlength=len(unit)) for row in whole])
    np.testing.assert_allclose(folded, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("symmetry", ["C1", "D2", "C3", "O"])
def test_a_symmetric_distribution_survives_folding_and_unfolding(symmetry: str) -> None:
    in_unit = to_unit(peaked(random_rotations(3, 3), 1, symmetry, 25.0), symmetry, 1)
    full = to_full_grid(in_unit, symmetry)
    assert not full.asymmetric_unit
    np.testing.assert_allclose(np.exp(full.log_weights).sum(axis=1), 1, rtol=1e-5)
    again, size = to_unit(full, symmetry, 1), len(asymmetric_unit(1, symmetry))
    np.testing.assert_allclose(dense(again, size), dense(in_unit, size), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("symmetry", ["C1", "D2", "C3"])
@pytest.mark.parametrize(("source", "target"), [(1, 2), (1, 3), (2, 1), (3, 2)])
def test_another_grid_order_keeps_the_total_and_the_place(symmetry: str, source: int, target: int) -> None:
    rotations, group = random_rotations(4, 4), group_rotations(symmetry)
    lifted = to_unit(peaked(rotations, source, symmetry, 20.0), symmetry, target)
    np.testing.assert_allclose(np.exp(lifted.log_weights).sum(axis=1), 1, rtol=1e-5)
    weights = np.exp(lifted.log_weights.astype(np.float64))
    spread = [
        (weights[i] * angular_error_deg(rotations[i], lifted.rotations()[i], group)).sum() for i in range(4)
    ]  # fmt: skip
    direct = to_unit(peaked(rotations, target, symmetry, 20.0), symmetry, target)
    weights = np.exp(direct.log_weights.astype(np.float64))
    expected = [
        (weights[i] * angular_error_deg(rotations[i], direct.rotations()[i], group)).sum() for i in range(4)
    ]  # fmt: skip
    np.testing.assert_allclose(spread, expected, atol=6.0)


@pytest.mark.parametrize("symmetry", ["C1", "C3", "D2", "I"])
@pytest.mark.parametrize("order", [1, 2])
def test_uniform_stays_uniform_on_any_grid(symmetry: str, order: int) -> None:
    uniform = sparse_distribution(torch.zeros(1, num_rotations(1)), 1, 10)
    everywhere = sparse_distribution(torch.zeros(1, num_rotations(1)), 1, 10**6)
    for distribution in (uniform, everywhere):
        found = to_unit(distribution, symmetry, order)
        np.testing.assert_allclose(np.exp(found.log_weights), 1 / len(asymmetric_unit(order, symmetry)), rtol=1e-4)


@pytest.mark.parametrize("symmetry", ["C1", "D2", "D3"])
def test_the_pool_is_the_weighted_sum_of_logarithms_over_the_whole_unit(symmetry: str) -> None:
    unit, floor, weights = asymmetric_unit(2, symmetry), 0.02, (0.7, 1.9)
    first, second = random_distribution(5, 2, 40, 5), to_unit(random_distribution(5, 1, 30, 6), symmetry, 1)
    fused = fuse([first, second], weights, symmetry, floor=floor, keep=10**6)
    logs = []
    for distribution in (first, second):
        probability = dense(to_unit(distribution, symmetry, 2), len(unit))[:, unit.points]
        logs.append(np.log((1 - floor) * probability + floor / len(unit)))
    expected = np.exp(weights[0] * logs[0] + weights[1] * logs[1])
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(dense(fused, len(unit))[:, unit.points], expected, rtol=2e-4, atol=1e-10)


def test_the_points_outside_the_support_hold_what_is_missing_to_one() -> None:
    support = common_support([random_distribution(4, 1, 5, 7), random_distribution(4, 1, 9, 8)], "C1")
    entries, rest = pooled_log_density(support, (1.0, 0.5))
    total = np.bincount(support.row, np.exp(entries)) + support.rest_count * np.exp(rest)
    np.testing.assert_allclose(total, 1, rtol=1e-12)
    assert (support.rest_count > 500).all()


def test_a_weight_of_nothing_leaves_the_other_proposer_alone() -> None:
    one, other = random_distribution(3, 1, 50, 9), random_distribution(3, 1, 50, 10)
    np.testing.assert_array_equal(
        fuse([one, other], (1.0, 0.0), "C1", floor=1e-6, keep=20).indices, one.indices[:, :20]
    )


def test_what_one_proposer_never_saw_can_be_outvoted() -> None:
    truth = random_rotations(1, 11)
    right, wrong = peaked(truth, 2, "C1", 10.0, k=20), peaked(truth @ pose_rotations([77], 1), 2, "C1", 10.0, k=5)
    poses, _ = top_poses_sparse(fuse([right, wrong], (1.0, 0.5), "C1"), group_rotations("C1"), 1, 20.0)
    assert angular_error_deg(truth, poses[:, 0], group_rotations("C1"))[0] < 10


def test_a_proposer_of_nan_says_nothing_about_its_row_only() -> None:
    one, other = random_distribution(3, 1, 50, 12), random_distribution(3, 1, 50, 13)
    holed = SparseDistribution(1, False, one.indices, one.log_weights.copy())
    holed.log_weights[1] = np.nan
    fused = fuse([holed, other], (1.0, 1.0), "C1", keep=30)
    np.testing.assert_array_equal(fused.indices[1], fuse([other], (1.0,), "C1", keep=30).indices[1])
    np.testing.assert_array_equal(
        fused.log_weights[[0, 2]], fuse([one, other], (1.0, 1.0), "C1", keep=30).log_weights[[0, 2]]
    )


def test_agreement_sharpens_and_disagreement_leaves_two_modes() -> None:
    group, truth = group_rotations("D2"), random_rotations(1, 14)
    one, far = peaked(truth, 2, "D2", 15.0, k=200), peaked(truth @ pose_rotations([99], 1), 2, "D2", 15.0, k=200)
    agreed = top_poses_sparse(fuse([one, one], (1.0, 1.0), "D2"), group, 2, 30.0)[1]
    alone = top_poses_sparse(fuse([one], (1.0,), "D2"), group, 2, 30.0)[1]
    split = top_poses_sparse(fuse([one, far], (1.0, 1.0), "D2"), group, 2, 30.0)[1]
    assert agreed[0, 0] > alone[0, 0] > split[0, 0]
    assert split[0, 1] > 0.1


@pytest.mark.parametrize("symmetry", ["C1", "T"])
def test_a_particle_has_the_same_bits_alone_and_among_others(symmetry: str) -> None:
    one, other = random_distribution(6, 1, 40, 15), random_distribution(6, 2, 25, 16)
    together = fuse([one, other], (0.8, 0.6), symmetry, keep=25)
    for row in range(6):
        alone = fuse([_row(one, row), _row(other, row)], (0.8, 0.6), symmetry, keep=25)
        np.testing.assert_array_equal(alone.indices[0], together.indices[row])
        np.testing.assert_array_equal(alone.log_weights[0], together.log_weights[row])


def _row(distribution: SparseDistribution, row: int) -> SparseDistribution:
    part = slice(row, row + 1)
    return SparseDistribution(
        distribution.grid_order,
        distribution.asymmetric_unit,
        distribution.indices[part],
        distribution.log_weights[part],
    )


def test_mates_that_both_stand_in_a_unit_count_once() -> None:
    unit = asymmetric_unit(1, "D2")
    point = int(unit.points[5])
    mate = int(np.flatnonzero(unit.cell == 5)[-1])
    logs = np.log(np.array([[0.4, 0.4, 0.2]], np.float32))
    tied = SparseDistribution(1, True, np.array([[point, mate, unit.points[9]]]), logs)
    found = to_unit(tied, "D2", 1)
    np.testing.assert_array_equal(found.indices[0], unit.points[[5, 9]])
    np.testing.assert_allclose(np.exp(found.log_weights[0]), [2 / 3, 1 / 3], rtol=1e-6)


def test_senseless_requests_are_refused() -> None:
    one, two = random_distribution(2, 1, 5, 17), random_distribution(3, 1, 5, 18)
    with pytest.raises(ValueError, match=r"\[2, 3\] particles"):
        fuse([one, two], (1, 1), "C1")
    with pytest.raises(ValueError, match="floor"):
        fuse([one], (1,), "C1", floor=0.0)
    with pytest.raises(ValueError, match="weights"):
        fuse([one], (-1,), "C1")
    with pytest.raises(ValueError, match="row 1: weights add to"):
        fuse([SparseDistribution(1, False, one.indices, one.log_weights + 3)], (1,), "C1")
