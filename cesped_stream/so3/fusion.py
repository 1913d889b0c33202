"""Several distributions over poses made one: a weighted sum of their logarithms on one grid's asymmetric unit.

Every proposer (the network, the gallery) gives a `SparseDistribution` on a grid of its own order, full or asymmetric
unit. A distribution is taken as a density that is constant over each grid rotation's surroundings: a rotation on a
finer grid has the density of the coarse one nearest to it; one that stands for several has their mean. So a uniform
distribution stays uniform however irregular the two grids lie, and each step ends with a total of 1.

What a sparse distribution leaves out shares the mass that it lacks to 1, evenly. Since a logarithm makes "never" a veto
that no other proposer can outvote, a stated share of each, the floor, lies evenly over all rotations.

A pool of logarithms with free weights is Heskes 1998, "Selecting weighting factors in logarithmic opinion pools".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cesped_stream.so3.asymmetric_unit import AsymmetricUnit, asymmetric_unit
from cesped_stream.so3.distribution import SparseDistribution
from cesped_stream.so3.grids import num_rotations

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

DEFAULT_FLOOR: Final = 0.01
_TOTAL_TOLERANCE: Final = 1e-3


@dataclass(frozen=True, eq=False)
class Support:
    """What several proposers say of n particles, at the points that any of them names; e entries, by particle."""

    unit: AsymmetricUnit
    start: Int64
    """`(n,)`: a particle's entries are those from its start to the next one's; each particle has at least one."""
    row: Int64
    """`(e,)` the particle of each entry."""
    position: Int64
    """`(e,)` positions in the unit's points, ascending within a particle."""
    log_density: Float64
    """`(e, proposers)` log-probabilities of the entries."""
    rest_log_density: Float64
    """`(n, proposers)` log-probability of each point of the unit that has no entry."""
    rest_count: Int64
    """`(n,)` number of points without an entry."""


@dataclass(frozen=True, eq=False)
class _Density:
    """Values of one proposer at single points, all others of a row alike; `size` points in all."""

    size: int
    row: Int64
    position: Int64
    value: Float64
    rest: Float64
    """`(n,)`"""


def to_unit(distribution: SparseDistribution, symmetry: str, order: int) -> SparseDistribution:
    """Return the distribution on the asymmetric unit of the grid of `order`, mates' mass together.

    As the module says; the mass that was left out stays left out. Ordered best first; rows with fewer entries than
    others end in log-weight -inf at index 0. Raises ValueError where the weights of a row add to more than 1.
    """
    unit = asymmetric_unit(order, symmetry)
    density = _on_unit(distribution, symmetry, unit)
    n = len(distribution.indices)
    return _as_sparse(unit, n, density.row, density.position, _log(density.value), keep=None)


def to_full_grid(distribution: SparseDistribution, symmetry: str) -> SparseDistribution:
    """Return a distribution on the asymmetric unit as one on the full grid, each rotation with its mate's density.

    As the module says; `to_unit` takes it back. A distribution on the full grid comes back as it is.
    """
    if not distribution.asymmetric_unit:
        return distribution
    order = distribution.grid_order
    whole, unit = asymmetric_unit(order, "C1"), asymmetric_unit(order, symmetry)
    density = _entries(distribution, unit)
    row, places, source = _expanded(density.row, density.position, *_members(unit))
    full = _normalised(_Density(len(whole), row, places, density.value[source], density.rest))
    table = _as_sparse(whole, len(distribution.indices), full.row, full.position, _log(full.value), keep=None)
    return SparseDistribution(order, False, table.indices, table.log_weights)


def common_support(
    proposers: Sequence[SparseDistribution],
    symmetry: str,
    *,
    order: int | None = None,
    floor: float = DEFAULT_FLOOR,
    extra: tuple[Int64, Int64] | None = None,
) -> Support:
    """Return the proposers' log-probabilities side by side on the asymmetric unit of `order` (default: the finest).

    `proposers` speak of the same n particles in the same order. `floor` in (0, 1) is the share of each that lies evenly
    over all points. A row of NaN says nothing: it is uniform. `extra` (row, position) gives further entries, `(m,)`
    each. Raises ValueError for unequal n, for no proposers, and for a floor outside (0, 1).
    """
    _check(proposers, floor)
    unit = asymmetric_unit(max(p.grid_order for p in proposers) if order is None else order, symmetry)
    size, n = len(unit), len(proposers[0].indices)
    densities = [_on_unit(proposer, symmetry, unit) for proposer in proposers]
    # the first point of every row is an entry: no row is empty
    keys = [np.arange(n) * size, *(density.row * size + density.position for density in densities)]
    if extra is not None:
        keys.append(extra[0] * size + extra[1])
    union = np.unique(np.concatenate(keys))
    row, position = np.divmod(union, size)
    columns = [_floored(_at_keys(density, union, row), floor, size) for density in densities]
    rest = [_floored(density.rest, floor, size) for density in densities]
    count = np.bincount(row, minlength=n)
    start = np.concatenate([[0], np.cumsum(count)[:-1]])
    return Support(unit, start, row, position, np.log(np.stack(columns, 1)), np.log(np.stack(rest, 1)), size - count)


def pooled_log_density(support: Support, weights: Sequence[float] | Float64) -> tuple[Float64, Float64]:
    """Return log-probabilities `(e,)` of the entries and `(n,)` of each other point, of the pool with these weights.

    The pool is proportional to the product of the proposers' densities to the power of their weights: with a common
    temperature T and shares s, the weights are s / T. All 0 is the uniform distribution.
    """
    exponents = np.asarray(weights, np.float64)
    # no matrix product: its rounding may depend on a row's place
    entries, rest = (support.log_density * exponents).sum(axis=1), (support.rest_log_density * exponents).sum(axis=1)
    total = log_total(support, entries, rest)
    return entries - total[support.row], rest - total


def log_total(support: Support, entries: Float64, rest: Float64) -> Float64:
    """Return the logarithms `(n,)` of the sums of exponentials of entries `(e,)` and of the points without one."""
    peak = np.maximum(np.maximum.reduceat(entries, support.start), rest)
    sums = np.add.reduceat(np.exp(entries - peak[support.row]), support.start)
    return np.asarray(np.log(sums + support.rest_count * np.exp(rest - peak)) + peak, np.float64)


def fuse(
    proposers: Sequence[SparseDistribution],
    weights: Sequence[float] | Float64,
    symmetry: str,
    *,
    order: int | None = None,
    floor: float = DEFAULT_FLOOR,
    keep: int = 512,
) -> SparseDistribution:
    """Return the pool of the proposers on the asymmetric unit of `order` (default: the finest of theirs).

    `weights` are one at least 0 for each; `keep` is how many of the likeliest points are kept. Where a particle has
    fewer, entries of log-weight -inf at index 0 fill up: with one width no sum over a row knows other particles. See
    `common_support` and `pooled_log_density`. A particle's result depends on no other particle.
    """
    exponents = np.asarray(weights, np.float64)
    if exponents.shape != (len(proposers),) or not (np.isfinite(exponents) & (exponents >= 0)).all():
        raise ValueError(f"weights are {weights}; {len(proposers)} numbers, each at least 0, are needed")
    support = common_support(proposers, symmetry, order=order, floor=floor)
    log_density = pooled_log_density(support, exponents)[0]
    return _as_sparse(support.unit, len(support.start), support.row, support.position, log_density, keep)


def _check(proposers: Sequence[SparseDistribution], floor: float) -> None:
    counts = {len(proposer.indices) for proposer in proposers}
    if len(counts) != 1:
        raise ValueError(f"proposers speak of {sorted(counts)} particles; at least one proposer, all of the same")
    if not 0 < floor < 1:
        raise ValueError(f"floor is {floor}; the share of a distribution that lies evenly must be in (0, 1)")


def _log(value: Float64) -> Float64:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(value), np.float64)


def _floored(value: Float64, floor: float, size: int) -> Float64:
    return np.asarray((1 - floor) * value + floor / size, np.float64)


def _on_unit(distribution: SparseDistribution, symmetry: str, unit: AsymmetricUnit) -> _Density:
    own = asymmetric_unit(distribution.grid_order, symmetry)
    density = _entries(distribution, own)
    if not distribution.asymmetric_unit:
        density = _gathered(density, own.cell, len(own), own.cell_sizes)
    if distribution.grid_order < unit.order:
        starts, members = _sorted_by_target(*_parents(unit, own))
        row, position, source = _expanded(density.row, density.position, starts, members)
        density = _Density(len(unit), row, position, density.value[source], density.rest)
    elif distribution.grid_order > unit.order:
        target, size = _parents(own, unit)
        density = _gathered(density, target, size, np.bincount(target, minlength=size).astype(np.int64))
    return _normalised(density)


def _entries(distribution: SparseDistribution, unit: AsymmetricUnit) -> _Density:
    """Return what is stored, an asymmetric unit's at the unit's positions, and what is left for each other point."""
    n = len(distribution.indices)
    weights = np.exp(distribution.log_weights.astype(np.float64))
    weights[np.isnan(weights).any(axis=1)] = 0.0
    total = weights.sum(axis=1)
    if n and total.max() > 1 + _TOTAL_TOLERANCE:
        raise ValueError(f"row {total.argmax()}: weights add to {total.max():.6g}; normalise the log-weights to 1")
    size = len(unit) if distribution.asymmetric_unit else num_rotations(distribution.grid_order)
    stored = weights > 0
    row, places = np.nonzero(stored)[0], distribution.indices[stored]
    position = unit.cell[places] if distribution.asymmetric_unit else places
    # mates that both stand in a unit tell the same twice
    keys, value = _grouped(row * size + position, weights[stored], np.maximum)
    row, position = np.divmod(keys, size)
    rest = np.maximum(1 - total, 0) / np.maximum(size - np.bincount(row, minlength=n), 1)
    return _Density(size, row, position, value, rest)


def _gathered(density: _Density, target: Int64, size: int, cell_sizes: Int64) -> _Density:
    """Return the mean over the cells that `target` `(density.size,)` sends each point to."""
    keys = density.row * size + target[density.position]
    above_rest = (density.value - density.rest[density.row]) / cell_sizes[target[density.position]]
    keys, value = _grouped(keys, above_rest, np.add)
    row, position = np.divmod(keys, size)
    return _Density(size, row, position, np.maximum(value + density.rest[row], 0), density.rest)


def _normalised(density: _Density) -> _Density:
    n = len(density.rest)
    count = np.bincount(density.row, minlength=n)
    total = np.bincount(density.row, density.value, minlength=n) + density.rest * (density.size - count)
    total = np.where(total > 0, total, 1.0)
    return _Density(
        density.size, density.row, density.position, density.value / total[density.row], density.rest / total
    )


def _at_keys(density: _Density, keys: Int64, row: Int64) -> Float64:
    value = density.rest[row].copy()
    value[np.searchsorted(keys, density.row * density.size + density.position)] = density.value
    return value


def _grouped(keys: Int64, value: Float64, join: np.ufunc) -> tuple[Int64, Float64]:
    """Return the distinct keys, ascending, and their values joined."""
    if not len(keys):
        return keys, value
    order = np.argsort(keys, kind="stable")
    keys, value = keys[order], value[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[starts], join.reduceat(value, starts)


@lru_cache(maxsize=8)
def _parents(fine: AsymmetricUnit, coarse: AsymmetricUnit) -> tuple[Int64, int]:
    """Return for each point of the fine unit the position in the coarse one that is nearest, and how many there are."""
    return coarse.nearest(fine.rotations()), len(coarse)


@lru_cache(maxsize=8)
def _members(unit: AsymmetricUnit) -> tuple[Int64, Int64]:
    return _sorted_by_target(unit.cell, len(unit))


def _sorted_by_target(target: Int64, size: int) -> tuple[Int64, Int64]:
    """Return starts `(size + 1,)` and members: what is sent to t is members[starts[t] : starts[t + 1]]."""
    counts = np.bincount(target, minlength=size)
    return np.concatenate([[0], np.cumsum(counts)]), np.argsort(target, kind="stable")


def _expanded(row: Int64, position: Int64, starts: Int64, members: Int64) -> tuple[Int64, Int64, Int64]:
    """Return (row, member, entry that it comes from) of all members of the entries' positions."""
    counts = starts[position + 1] - starts[position]
    source = np.repeat(np.arange(len(position)), counts)
    within = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
    return row[source], members[starts[position][source] + within], source


def _as_sparse(
    unit: AsymmetricUnit, n: int, row: Int64, position: Int64, log_density: Float64, keep: int | None
) -> SparseDistribution:
    """Return entries as a table, best first, of equal ones the lowest index."""
    index = unit.points[position]
    order = np.lexsort((index, -log_density, row))
    row, index, log_density = row[order], index[order], log_density[order]
    count = np.bincount(row, minlength=n)
    rank = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    width = int(count.max(initial=1)) if keep is None else keep
    kept = rank < width
    indices = np.zeros((n, width), np.int64)
    log_weights = np.full((n, width), -np.inf, np.float32)
    indices[row[kept], rank[kept]] = index[kept]
    log_weights[row[kept], rank[kept]] = log_density[kept]
    return SparseDistribution(unit.order, True, indices, log_weights)
