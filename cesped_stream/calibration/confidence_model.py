"""From features of an answer to a probability: a logistic score, then a monotone curve. numpy and scipy only.

The score is a ridge logistic regression whose coefficients are at least 0, since every feature grows with certainty: a
particle with more of each is never less sure. An optics group with enough particles moves and stretches its scores
(Platt 1999). Isotonic regression over bins of equal number then makes them probabilities (Zadrozny and Elkan 2002).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit

from cesped_stream.calibration.metrics import equal_bins

Float64 = NDArray[np.float64]

_MAX_KNOTS: Final = 40
_LEAST_PER_KNOT: Final = 25
_CLIPPED_SHARE: Final = 0.002
_RIDGE: Final = 1.0
_LEAST_SLOPE: Final = 0.1


class MonotoneCurve(BaseModel):
    """A probability for every score, by straight lines between knots; constant outside."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    scores: tuple[float, ...] = Field(min_length=1)
    probabilities: tuple[float, ...] = Field(min_length=1)
    num_particles: int = Field(ge=1)

    def __call__(self, scores: Float64) -> Float64:
        """Return probabilities `(n,)` of scores `(n,)`; NaN stays NaN."""
        return np.asarray(np.interp(scores, self.scores, self.probabilities), np.float64)


class FeatureWeight(BaseModel):
    """One feature's part of the score."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    low: float
    """Values are clipped to [low, high], nearly all of what was seen: nothing is extrapolated."""
    high: float
    centre: float
    scale: float = Field(gt=0)
    coefficient: float = Field(ge=0)


class GroupAdjustment(BaseModel):
    """What an optics group does to the score: offset + slope times it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    offset: float
    slope: float = Field(gt=0)
    num_particles: int = Field(ge=1)


class ConfidenceModel(BaseModel):
    """Features to score to probability."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    intercept: float
    features: dict[str, FeatureWeight]
    groups: dict[str, GroupAdjustment]
    """By optics group, of those with enough particles; the others' scores stay as they are."""
    curve: MonotoneCurve

    def scores(self, features: Mapping[str, Any]) -> Float64:
        """Return log-odds scores `(n,)` of features `(n,)` each; NaN where one that is needed is NaN.

        ValueError where a feature that the model knows is missing: other proposers need another model.
        """
        missing = sorted(set(self.features) - set(features))
        if missing:
            raise ValueError(f"features {missing} are missing, confidence was fitted with them; fit it without")
        total: Float64 = np.asarray(self.intercept, np.float64)
        for name, weight in self.features.items():
            total = total + weight.coefficient * _standardised(np.asarray(features[name], np.float64), weight)
        return total

    def probabilities(self, scores: Float64, groups: Sequence[str] | NDArray[np.str_]) -> Float64:
        """Return probabilities `(n,)` of scores `(n,)` of particles of optics groups `(n,)`; NaN stays NaN."""
        return self.curve(_adjusted(scores, np.asarray(groups), self.groups))


def fit_confidence_model(
    features: Mapping[str, Float64], right: Float64, groups: NDArray[np.str_], *, min_group_particles: int
) -> ConfidenceModel:
    """Return the model fitted on finite features `(n,)` each, outcomes `(n,)` 0 or 1, and optics groups `(n,)`.

    A group with at least `min_group_particles` has its scores adjusted; score and curve are one for all.
    """
    intercept, weights = _fit_score(features, right)
    flat = MonotoneCurve(scores=(0.0,), probabilities=(0.5,), num_particles=1)
    scores = ConfidenceModel(intercept=intercept, features=weights, groups={}, curve=flat).scores(features)
    names, counts = np.unique(groups, return_counts=True)
    large = names[counts >= min_group_particles]
    adjustments = {str(name): _fit_adjustment(scores[groups == name], right[groups == name]) for name in large}
    curve = _fit_curve(_adjusted(scores, groups, adjustments), right)
    return ConfidenceModel(intercept=intercept, features=weights, groups=adjustments, curve=curve)


def _adjusted(scores: Float64, groups: NDArray[np.str_], adjustments: Mapping[str, GroupAdjustment]) -> Float64:
    adjusted = scores
    for name, adjustment in adjustments.items():
        adjusted = np.where(groups == name, adjustment.offset + adjustment.slope * scores, adjusted)
    return adjusted


def _fit_adjustment(scores: Float64, right: Float64) -> GroupAdjustment:
    """Return the likeliest offset and slope, drawn towards 0 and 1 as by one standard deviation of 1 each."""

    def loss(parameters: Float64) -> tuple[float, Float64]:
        offset, slope = parameters
        score = offset + slope * scores
        value = np.logaddexp(0, score).sum() - right @ score + (offset**2 + (slope - 1) ** 2) / 2
        residual = expit(score) - right
        return float(value), np.array([residual.sum() + offset, scores @ residual + slope - 1])

    bounds = [(-20.0, 20.0), (_LEAST_SLOPE, 10.0)]
    found = minimize(loss, np.array([0.0, 1.0]), jac=True, method="L-BFGS-B", bounds=bounds)
    return GroupAdjustment(offset=float(found.x[0]), slope=float(found.x[1]), num_particles=len(scores))


def _fit_score(features: Mapping[str, Float64], right: Float64) -> tuple[float, dict[str, FeatureWeight]]:
    places = {name: _place_of(values) for name, values in features.items()}
    table = np.stack([_standardised(features[name], place) for name, place in places.items()], axis=1)

    def loss(parameters: Float64) -> tuple[float, Float64]:
        score = parameters[0] + table @ parameters[1:]
        value = np.logaddexp(0, score).sum() - right @ score + _RIDGE / 2 * (parameters[1:] ** 2).sum()
        residual = expit(score) - right
        return float(value), np.concatenate([[residual.sum()], table.T @ residual + _RIDGE * parameters[1:]])

    bounds = [(-20.0, 20.0), *[(0.0, 50.0)] * table.shape[1]]
    found = minimize(loss, np.zeros(1 + table.shape[1]), jac=True, method="L-BFGS-B", bounds=bounds)
    pairs = zip(places.items(), found.x[1:], strict=True)
    weights = {name: place.model_copy(update={"coefficient": float(value)}) for (name, place), value in pairs}
    return float(found.x[0]), weights


def _place_of(values: Float64) -> FeatureWeight:
    low, high = np.quantile(values, [_CLIPPED_SHARE, 1 - _CLIPPED_SHARE])
    inside = np.clip(values, low, high)
    scale = float(inside.std())
    return FeatureWeight(
        low=float(low),
        high=float(high),
        centre=float(inside.mean()),
        scale=scale if scale > 0 else 1.0,
        coefficient=0.0,
    )


def _standardised(values: Float64, weight: FeatureWeight) -> Float64:
    return np.asarray((np.clip(values, weight.low, weight.high) - weight.centre) / weight.scale, np.float64)


def _fit_curve(scores: Float64, right: Float64) -> MonotoneCurve:
    """Return the isotonic curve over bins of equal number, each share drawn to that of all by one case, and that to a
    half.

    A run of bins that isotonic regression makes equal is one knot at its mean score: scores keep their order.
    """
    order = np.argsort(scores, kind="stable")
    edges = equal_bins(scores[order], max(1, min(_MAX_KNOTS, len(order) // _LEAST_PER_KNOT)))
    count = np.diff(np.append(edges, len(order))).astype(np.float64)
    of_all = (right.sum() + 0.5) / (len(right) + 1)
    share = (np.add.reduceat(right[order], edges) + of_all) / (count + 1)
    middle = np.add.reduceat(scores[order], edges) / count
    rising = isotonic_regression(share, weights=count)
    starts = rising.blocks[:-1]
    knots = np.add.reduceat(middle * count, starts) / np.add.reduceat(count, starts)
    return MonotoneCurve(
        scores=tuple(knots.tolist()),
        probabilities=tuple(np.clip(rising.x[starts], 0, 1).tolist()),
        num_particles=len(order),
    )
