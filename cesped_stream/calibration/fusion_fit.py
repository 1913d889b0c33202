"""Fusion weights: how much each proposer's logarithms count, fitted on particles that neither has seen."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.optimize import minimize

from cesped_stream.settings import FusionSettings
from cesped_stream.so3.asymmetric_unit import asymmetric_unit
from cesped_stream.so3.distance import rotations_to_numpy
from cesped_stream.so3.distribution import SparseDistribution
from cesped_stream.so3.fusion import Support, common_support, log_total
from cesped_stream.so3.grids import grid_step_deg

Float64 = NDArray[np.float64]

_MAX_WEIGHT: Final = 20.0
_TOLERANCE: Final = 1e-9
_RIDGE: Final = 1.0
"""A weight of w costs as much as w**2 / 2 natural logarithms on all particles together: a proposer that says next to
nothing gets next to no weight, one that says something keeps its own."""

_CHANCE_GAIN: Final = 3.32
"""Natural logarithms on all particles together that one weight gains by chance in 1 of 100 fits: half of chi-squared's
99 % point (Wilks 1938)."""
_CLEAR_GAIN: Final = float(np.log(2))


class FusionFit(BaseModel):
    """Weights of the proposers' logarithms, and what they reach on the particles that they were fitted on."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    weights: dict[str, float] = Field(min_length=1)
    """By proposer, each at least 0. Their sum is 1 / temperature, their ratio how far each is believed."""
    grid_order: int = Field(ge=0)
    """Of the grid that the distributions are pooled on."""
    floor: float = Field(gt=0, lt=1)
    neighbourhood_deg: float = Field(gt=0)
    num_particles: int = Field(ge=1)
    log_likelihood: float
    """Mean natural logarithm of the pooled mass within `neighbourhood_deg` of the true pose."""
    single_log_likelihood: dict[str, float]
    """The same of each proposer alone, at the temperature that is best for it."""
    chance_log_likelihood: float
    """The same where every rotation is as likely as any other."""

    @property
    def temperature(self) -> float:
        """1 / the weights' sum: over 1 where the proposers together claim too much; infinite where none is believed."""
        total = sum(self.weights.values())
        return 1 / total if total > 0 else float("inf")

    @property
    def shares(self) -> dict[str, float]:
        """Each proposer's part of the weights' sum; even where all weights are 0."""
        total = sum(self.weights.values())
        return {name: w / total if total > 0 else 1 / len(self.weights) for name, w in self.weights.items()}

    def disagrees(self, proposer: str) -> bool:
        """Return whether nothing held out speaks for `proposer`'s answers, nor clearly for the pool that would replace
        them: alone it gains no more than chance would in 1 of 100 fits (likelihood ratio), and the pool does not make
        the true poses even twice as likely as chance.
        """
        alone = self.num_particles * (self.single_log_likelihood[proposer] - self.chance_log_likelihood)
        together = self.log_likelihood - self.chance_log_likelihood
        return alone < _CHANCE_GAIN and together < _CLEAR_GAIN


def fit_fusion(
    proposers: Mapping[str, SparseDistribution], true_rotations: Any, symmetry: str, settings: FusionSettings
) -> FusionFit:
    """Return the weights that make the true poses `(n, 3, 3)` of held-out particles likeliest.

    Maximises the mean log of the pooled mass near the truth over weights in [0, 20], one a proposer, drawn a little
    towards 0. Starts at each proposer alone, at its best temperature, so on these particles the pool is never worse
    than the better one, but for that little. The
    pooling grid is the settings', else the finest of the proposers'. Raises ValueError for unequal or too few
    particles and for poses that are not finite.
    """
    truth = rotations_to_numpy(true_rotations)
    _check(proposers, truth, settings)
    order = settings.grid_order or max(proposer.grid_order for proposer in proposers.values())
    radius_deg = settings.neighbourhood_steps * grid_step_deg(order)
    support, near = _support_with_truth(list(proposers.values()), truth, symmetry, order, radius_deg, settings.floor)
    objective = _Objective(support, near)
    count = len(proposers)
    singles = [objective.maximise(np.where(np.arange(count) == k, 1.0, 0.0), free=[k]) for k in range(count)]
    every = list(range(count))
    alone = np.stack([weights for weights, _ in singles])
    starts = [*alone, np.full(count, 1 / count), alone.sum(axis=0)]
    best, _ = max((objective.maximise(start, free=every) for start in starts), key=lambda fit: fit[1])
    return FusionFit(
        weights=dict(zip(proposers, best.tolist(), strict=True)),
        grid_order=order,
        floor=settings.floor,
        neighbourhood_deg=radius_deg,
        num_particles=len(truth),
        log_likelihood=objective.value_and_slope(best)[0],
        single_log_likelihood={
            name: objective.value_and_slope(weights)[0] for name, weights in zip(proposers, alone, strict=True)
        },
        chance_log_likelihood=objective.value_and_slope(np.zeros(count))[0],
    )


def mean_log_likelihood(
    fit: FusionFit, proposers: Mapping[str, SparseDistribution], true_rotations: Any, symmetry: str
) -> float:
    """Return the mean log of the mass that a fit's pool lays near the true poses `(n, 3, 3)` of other particles.

    `proposers` are the fit's, under the same names; ValueError where they are not.
    """
    if set(proposers) != set(fit.weights):
        raise ValueError(f"proposers are {sorted(proposers)}, the weights are for {sorted(fit.weights)}")
    truth = rotations_to_numpy(true_rotations)
    ordered = [proposers[name] for name in fit.weights]
    support, near = _support_with_truth(ordered, truth, symmetry, fit.grid_order, fit.neighbourhood_deg, fit.floor)
    return _Objective(support, near).value_and_slope(np.array(list(fit.weights.values())))[0]


class _Objective:
    """Mean log of the pooled mass near the truth, as a function of the weights."""

    def __init__(self, support: Support, near: NDArray[np.bool_]) -> None:
        self._support = support
        self._rows = support.row[near]
        self._near = support.log_density[near]
        self._starts = np.searchsorted(self._rows, np.arange(len(support.start)))

    def maximise(self, start: Float64, free: list[int]) -> tuple[Float64, float]:
        """Return the best weights with those that are not `free` held, and the value there less what they cost."""
        bounds = [(0.0, _MAX_WEIGHT) if k in free else (start[k], start[k]) for k in range(len(start))]
        found = minimize(
            lambda weights: tuple(-part for part in self._drawn(weights)),
            np.clip(start, 0, _MAX_WEIGHT),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"ftol": _TOLERANCE, "maxiter": 60},
        )
        return np.asarray(found.x, np.float64), float(-found.fun)

    def _drawn(self, weights: Float64) -> tuple[float, Float64]:
        value, slope = self.value_and_slope(weights)
        ridge = _RIDGE / len(self._starts)
        return value - ridge * float(weights @ weights) / 2, slope - ridge * weights

    def value_and_slope(self, weights: Float64) -> tuple[float, Float64]:
        support = self._support
        entries, rest = support.log_density @ weights, support.rest_log_density @ weights
        total = log_total(support, entries, rest)
        near = self._near @ weights
        peak = np.maximum.reduceat(near, self._starts)
        mass = np.exp(near - peak[self._rows])
        near_total = np.log(np.add.reduceat(mass, self._starts)) + peak
        n = len(total)
        # the slope is the mean of the logarithms near the truth less their mean everywhere
        slope = np.exp(near - near_total[self._rows]) @ self._near
        slope -= np.exp(entries - total[support.row]) @ support.log_density
        slope -= (support.rest_count * np.exp(rest - total)) @ support.rest_log_density
        return float((near_total - total).mean()), np.asarray(slope / n, np.float64)


def _support_with_truth(
    proposers: list[SparseDistribution], truth: Float64, symmetry: str, order: int, radius_deg: float, floor: float
) -> tuple[Support, NDArray[np.bool_]]:
    """Return the proposers' support with every point near the truth in it, and which entries those are."""
    unit = asymmetric_unit(order, symmetry)
    rows, positions = unit.within(truth, radius_deg)
    support = common_support(proposers, symmetry, order=order, floor=floor, extra=(rows, positions))
    size = len(unit)
    return support, np.isin(support.row * size + support.position, rows * size + positions)


def _check(proposers: Mapping[str, SparseDistribution], truth: Float64, settings: FusionSettings) -> None:
    counts = {name: len(proposer.indices) for name, proposer in proposers.items()}
    if not proposers or set(counts.values()) != {len(truth)}:
        raise ValueError(f"{len(truth)} true poses, proposers speak of {counts} particles; as many of each are needed")
    if len(truth) < settings.min_particles:
        raise ValueError(
            f"{len(truth)} held-out particles; fusion weights need {settings.min_particles} (fusion.min_particles)"
        )
    if not np.isfinite(truth).all():
        raise ValueError("a true pose is not finite; leave particles without a consensus out")
