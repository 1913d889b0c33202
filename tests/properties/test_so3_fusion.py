"""Pooling distributions knows no frame, no order of particles or proposers, and loses no mass."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cesped_stream.so3.asymmetric_unit import asymmetric_unit
from cesped_stream.so3.distribution import SparseDistribution
from cesped_stream.so3.fusion import common_support, fuse, pooled_log_density, to_full_grid, to_unit
from cesped_stream.so3.grids import num_rotations

seeds = st.integers(0, 2**32 - 1)
symmetries = st.sampled_from(["C1", "C2", "C5", "D2", "D3", "T", "O", "I"])
orders = st.integers(0, 2)
quick = settings(max_examples=25, deadline=None)


def distribution(seed: int, order: int, symmetry: str, rows: int = 3) -> SparseDistribution:
    """The likeliest entries, any number, on the full grid or the unit."""
    rng = np.random.default_rng(seed)
    in_unit = bool(rng.integers(2))
    places = asymmetric_unit(order, symmetry).points if in_unit else np.arange(num_rotations(order))
    k = int(rng.integers(1, min(40, len(places)) + 1))
    logits = rng.normal(scale=rng.uniform(0, 6), size=(rows, len(places)))
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    best = np.argsort(-logs, axis=1)[:, :k]
    return SparseDistribution(order, in_unit, places[best], np.take_along_axis(logs, best, axis=1).astype(np.float32))


@quick
@given(seeds, seeds, orders, orders, symmetries, st.floats(0, 3), st.floats(0, 3))
def test_a_pool_has_total_one_for_any_weights(
    a: int, b: int, order_a: int, order_b: int, symmetry: str, weight_a: float, weight_b: float
) -> None:
    support = common_support([distribution(a, order_a, symmetry), distribution(b, order_b, symmetry)], symmetry)
    entries, rest = pooled_log_density(support, (weight_a, weight_b))
    total = np.bincount(support.row, np.exp(entries)) + support.rest_count * np.exp(rest)
    np.testing.assert_allclose(total, 1, rtol=1e-9)


@quick
@given(seeds, seeds, orders, symmetries)
def test_the_order_of_proposers_does_not_matter(a: int, b: int, order: int, symmetry: str) -> None:
    one, other = distribution(a, order, symmetry), distribution(b, 1, symmetry)
    forth = fuse([one, other], (0.7, 1.6), symmetry, keep=10**6)
    back = fuse([other, one], (1.6, 0.7), symmetry, keep=10**6)
    np.testing.assert_allclose(forth.log_weights, back.log_weights, atol=1e-4)


@quick
@given(seeds, orders, symmetries)
def test_one_proposer_of_weight_one_stays_itself(seed: int, order: int, symmetry: str) -> None:
    alone = to_unit(distribution(seed, order, symmetry), symmetry, order)
    pooled = fuse([alone], (1.0,), symmetry, floor=1e-9, keep=1)
    np.testing.assert_allclose(pooled.log_weights[:, 0], alone.log_weights[:, 0], atol=1e-3)


@quick
@given(seeds, symmetries, st.integers(0, 2))
def test_any_mate_of_a_grid_rotation_says_the_same(seed: int, symmetry: str, order: int) -> None:
    """Of groups that keep the grid: the mates' indices are known exactly."""
    symmetry = {"I": "C2", "T": "D2"}.get(symmetry, symmetry)
    unit = asymmetric_unit(order, symmetry)
    rng = np.random.default_rng(seed)
    one = distribution(seed, order, symmetry)
    mates = one.indices.copy()
    for place in np.ndindex(*mates.shape):
        mates[place] = rng.choice(np.flatnonzero(unit.cell == unit.cell[mates[place]]))
    moved = SparseDistribution(order, True, mates, one.log_weights)
    still = SparseDistribution(order, True, one.indices, one.log_weights)
    np.testing.assert_array_equal(to_unit(moved, symmetry, order).indices, to_unit(still, symmetry, order).indices)


@quick
@given(seeds, orders, symmetries)
def test_unfolding_and_folding_again_changes_nothing(seed: int, order: int, symmetry: str) -> None:
    one = to_unit(distribution(seed, order, symmetry), symmetry, order)
    again = to_unit(to_full_grid(one, symmetry), symmetry, order)
    np.testing.assert_allclose(again.log_weights, one.log_weights, atol=1e-3)


@quick
@given(seeds, orders, symmetries, st.floats(1.1, 4))
def test_a_larger_weight_never_flattens_the_peak(seed: int, order: int, symmetry: str, factor: float) -> None:
    one = distribution(seed, order, symmetry)
    cool, warm = (fuse([one], (weight,), symmetry, keep=1).log_weights for weight in (factor, 1.0))
    assert (cool >= warm - 1e-5).all()


def test_the_uniform_distribution_is_no_opinion() -> None:
    one = distribution(5, 2, "D2")
    nothing = SparseDistribution(1, False, np.zeros((3, 1), np.int64), np.full((3, 1), -np.log(576), np.float32))
    both, alone = fuse([one, nothing], (1, 1), "D2", keep=20), fuse([one], (1,), "D2", keep=20)
    assert both.log_weights == pytest.approx(alone.log_weights, abs=1e-5)
