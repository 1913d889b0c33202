"""Whether scores of new particles still look like those that confidence was fitted on. numpy only."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cesped_stream.errors import InvalidCheckpointError
from cesped_stream.settings import CalibrationSettings

Float64 = NDArray[np.float64]

SCORE_QUANTILES: Final = 101
LEAST_MOVE: Final = 0.05
LEAST_MOVED: Final = 0.1


class DriftState(StrEnum):
    """What can be said of a calibration's age."""

    TOO_FEW = "too_few"
    STEADY = "steady"
    STALE = "stale"


@dataclass(frozen=True)
class Drift:
    """How far the scores of n new particles lie from those of the fit."""

    num_particles: int
    stability_index: float
    """Population stability index over the fit's tenths, less what chance alone gives; NaN without scores."""
    largest_gap: float
    """Kolmogorov and Smirnov's: the largest difference of the cumulative distributions; NaN without scores."""
    state: DriftState


@dataclass(frozen=True, eq=False)
class FittedConfidences:
    """The confidences that both half-sets' calibrators gave the particles of their fit."""

    quantiles: Float64
    """`(101,)` even ones."""
    num_particles: int
    within_deg: float
    """What they are the probability of: a pose this near the consensus."""


def read_fitted_confidences(checkpoint: Path) -> FittedConfidences | None:
    """Return what a checkpoint's calibration (`cal-*.json`) says; None where it has none, or one without confidence.

    InvalidCheckpointError where it cannot be read.
    """
    file = next(checkpoint.glob("cal-*.json"), None)
    if file is None:
        return None
    try:
        found = [half["calibrator"] for half in json.loads(file.read_bytes())["halves"].values()]
        if None in found:
            return None
        quantiles = np.concatenate([np.asarray(part["confidence_quantiles"], np.float64) for part in found])
        count = sum(int(part["num_particles"]) for part in found)
        within_deg = float(found[0]["within_deg"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidCheckpointError(f"{file}: {error!r}; publish the checkpoint again") from None
    return FittedConfidences(np.quantile(quantiles, np.linspace(0, 1, SCORE_QUANTILES)), count, within_deg)


def confidence_drift(confidences: Sequence[float], fitted: FittedConfidences, settings: CalibrationSettings) -> Drift:
    """Return how far confidences of new particles have moved from those of the fit; as `drift_of`.

    Stale only where more than `LEAST_MOVED` of the particles moved by more than `LEAST_MOVE`: where nearly all are
    right, all confidences are nearly one, and the third decimal is no drift.
    """
    drift = drift_of(
        confidences,
        fitted.quantiles,
        fitted.num_particles,
        stale_index=settings.stale_index,
        min_particles=settings.min_drift_particles,
    )
    if drift.state is DriftState.STALE and _share_moved(np.asarray(confidences), fitted.quantiles) <= LEAST_MOVED:
        return replace(drift, state=DriftState.STEADY)
    return drift


def _share_moved(values: Float64, quantiles: Float64) -> float:
    """Return the largest difference of the cumulative distributions, one of them moved by `LEAST_MOVE`."""
    new, fit = np.sort(values), np.sort(quantiles)
    at = np.concatenate([new, fit, new + LEAST_MOVE, fit + LEAST_MOVE])

    def below(sample: Float64, moved: float) -> Float64:
        return np.asarray(np.searchsorted(sample, at - moved, side="right") / len(sample), np.float64)

    worse = below(new, LEAST_MOVE) - below(fit, 0.0)
    better = below(fit, LEAST_MOVE) - below(new, 0.0)
    return float(max(worse.max(), better.max()))


def drift_of(scores: Any, quantiles: Float64, num_fitted: int, *, stale_index: float, min_particles: int) -> Drift:
    """Compare `scores` `(n,)` with the `(101,)` even quantiles of `num_fitted` scores of the fit. NaN are left out.

    The population stability index, the sum of (p - q) log(p / q) over tenths, is 0 for equal distributions; chance
    gives it (bins - 1)(1/n + 1/num_fitted) in the mean (Yurdakul 2018), which is taken off. Credit scoring, where it
    comes from, calls 0.1 to 0.25 a shift worth looking at. Fewer than `min_particles` scores say nothing.
    """
    values = np.asarray(scores, np.float64)
    values = np.sort(values[~np.isnan(values)])
    if not len(values):
        return Drift(0, float("nan"), float("nan"), DriftState.TOO_FEW)
    raw, bins = _stability_index(values, quantiles)
    index = raw - (bins - 1) * (1 / len(values) + 1 / num_fitted)
    if len(values) < min_particles:
        state = DriftState.TOO_FEW
    else:
        state = DriftState.STALE if index > stale_index else DriftState.STEADY
    return Drift(len(values), float(index), _largest_gap(values, quantiles), state)


def _stability_index(values: Float64, quantiles: Float64) -> tuple[float, int]:
    """Return the index and the number of bins."""
    # where scores repeat, several edges are one: their tenths are one bin
    edges = np.unique(quantiles[10:-1:10])
    levels = np.linspace(0, 1, SCORE_QUANTILES)
    below = np.array([levels[quantiles <= edge].max() for edge in edges])
    expected = np.diff(np.concatenate([[0.0], below, [1.0]]))
    counts = np.diff(np.concatenate([[0], np.searchsorted(values, edges, side="right"), [len(values)]]))
    # half a case in each bin: an empty one is no infinite drift
    p = (counts + 0.5) / (len(values) + 0.5 * len(counts))
    q = (expected + 0.5 / len(values)) / (1 + 0.5 * len(counts) / len(values))
    return float(((p - q) * np.log(p / q)).sum()), len(counts)


def _largest_gap(values: Float64, quantiles: Float64) -> float:
    levels = np.linspace(0, 1, SCORE_QUANTILES)
    reached = np.searchsorted(values, quantiles, side="right") / len(values)
    # where quantiles repeat, the last level is the one reached there
    last = np.concatenate([quantiles[1:] != quantiles[:-1], [True]])
    return float(np.abs(reached - levels)[last].max())
