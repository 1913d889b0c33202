"""The fused answer beside each proposer's own, and what of them tells how sure it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cesped_stream.calibration.fusion_fit import FusionFit
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.distribution import SparseDistribution, top_poses_sparse
from cesped_stream.so3.fusion import fuse
from cesped_stream.so3.grids import grid_step_deg
from cesped_stream.so3.symmetry import group_rotations

Float64 = NDArray[np.float64]

SEPARATION_IN_GRID_STEPS: Final = 2.0
_LEAST_PROBABILITY: Final = 1e-6
_AGREEMENT_SCALE_DEG: Final = 5.0
_LARGEST_LEAD: Final = 10.0


class Proposer(StrEnum):
    """Who gives a distribution over poses."""

    NETWORK = "network"
    GALLERY = "gallery"


class Feature(StrEnum):
    """What of an answer tells how sure it is. Each grows with certainty."""

    MASS = "mass_log_odds"
    """Log-odds of the fused probability near the best pose."""
    MARGIN = "margin"
    """Logarithm of that probability over the second-best pose's."""
    ABOVE_NOISE = "above_noise"
    """How far the refined pose's score lies above what noise reaches, in standard deviations (`NoiseScores.above`)."""
    AGREEMENT = "agreement"
    """Less where the proposers' own best poses are further apart: -log(1 + angle / 5 degrees)."""
    FIT = "refined_fit"
    """Logarithm of how much better than noise the refined pose explains the image: log(1 + its log-likelihood)."""
    LEAD = "refined_lead"
    """How much likelier the refined pose is than the best end of any other proposal, in natural logarithms."""


@dataclass(frozen=True, eq=False)
class FusedAnswers:
    """Poses of n particles by the fused distribution, k each, beside what every proposer alone says."""

    distribution: SparseDistribution
    """On the asymmetric unit."""
    rotation: Float64
    """`(n, k, 3, 3)` distinct poses, best first; NaN where no proposer said anything."""
    probability: NDArray[np.float32]
    """`(n, k)`: the fused mass near each; not calibrated."""
    single: dict[Proposer, Float64]
    """`(n, 3, 3)` each proposer's own best pose; NaN where it said nothing."""
    apart_deg: Float64 | None
    """`(n,)` angle under the group between the two single answers; NaN without both; None with one proposer."""


def fuse_answers(
    proposers: Mapping[Proposer, SparseDistribution], fit: FusionFit, symmetry: str, *, k: int, keep: int = 512
) -> FusedAnswers:
    """Return fused poses of n particles: the fit's pool of the proposers, its modes two grid steps apart.

    `proposers` are the fit's. A row of NaN in one of them leaves the answer to the other; NaN in all gives NaN. A
    particle's answer depends on no other particle. ValueError for proposers that the fit does not know or lacks.
    """
    if set(proposers) != set(fit.weights):
        raise ValueError(f"proposers are {sorted(proposers)}, the weights are for {sorted(fit.weights)}; fit anew")
    group = group_rotations(symmetry)
    pooled = [proposers[Proposer(name)] for name in fit.weights]
    fused = fuse(pooled, list(fit.weights.values()), symmetry, order=fit.grid_order, floor=fit.floor, keep=keep)
    silent = np.all([np.isnan(proposer.log_weights).any(axis=1) for proposer in pooled], axis=0)
    fused.log_weights[silent] = np.nan
    separation_deg = SEPARATION_IN_GRID_STEPS * grid_step_deg(fit.grid_order)
    rotation, probability = top_poses_sparse(fused, group, k, separation_deg)
    single = {name: _best(distribution, group) for name, distribution in proposers.items()}
    both = list(single.values())
    apart = angular_error_deg(both[0], both[1], group) if len(both) == 2 else None
    return FusedAnswers(fused, rotation, probability, single, apart)


def confidence_features(
    probability: Any,
    *,
    above_noise: Any = None,
    apart_deg: Any = None,
    log_likelihood: Any = None,
    runner_up: Any = None,
) -> dict[Feature, Float64]:
    """Return what tells how sure answers are, `(n,)` each: from probabilities `(n, k)` of their distinct poses.

    `above_noise` `(n,)` is the gallery's, `apart_deg` `(n,)` the angle between the two single answers; without them
    (one proposer) those features are absent. `log_likelihood` `(n,)` is the refined pose's over noise alone,
    `runner_up` `(n,)` that of the best end of any other proposal, -inf where there was none. NaN stays NaN.
    """
    mass = np.asarray(probability, np.float64)
    first = np.clip(mass[:, 0], _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    features = {Feature.MASS: np.log(first / (1 - first))}
    if mass.shape[1] > 1:
        features[Feature.MARGIN] = np.log(first / np.clip(mass[:, 1], _LEAST_PROBABILITY, 1))
    if above_noise is not None:
        features[Feature.ABOVE_NOISE] = np.asarray(above_noise, np.float64)
    if apart_deg is not None:
        features[Feature.AGREEMENT] = -np.log1p(np.asarray(apart_deg, np.float64) / _AGREEMENT_SCALE_DEG)
    if log_likelihood is not None:
        likelihood = np.asarray(log_likelihood, np.float64)
        features[Feature.FIT] = np.log1p(np.maximum(likelihood, 0))
        if runner_up is not None:
            features[Feature.LEAD] = np.minimum(likelihood - np.asarray(runner_up, np.float64), _LARGEST_LEAD)
    return features


def _best(distribution: SparseDistribution, group: Float64) -> Float64:
    separation_deg = SEPARATION_IN_GRID_STEPS * grid_step_deg(distribution.grid_order)
    return top_poses_sparse(distribution, group, 1, separation_deg)[0][:, 0]
