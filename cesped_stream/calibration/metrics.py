"""How good probabilities are: calibration error, Brier score, area under the ROC curve, reliability. numpy only.

A probability p is calibrated where a share p of such cases come true (Guo et al. 2017, "On calibration of modern neural
networks"). Calibration alone is no merit: the base rate for everyone is calibrated and says nothing, so the Brier
score and the area under the curve belong beside it.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Float64 = NDArray[np.float64]

ADVISED_PARTICLES: Final = 2_000
"""With fewer, the calibration error of even perfect probabilities is large: see `expected_noise`."""
DEFAULT_BINS: Final = 10


@dataclass(frozen=True, eq=False)
class ReliabilityCurve:
    """Cases in order of probability, cut into bins of equal number; `(bins,)` each, lowest first."""

    mean_probability: Float64
    observed_share: Float64
    count: NDArray[np.int64]
    low: Float64
    """Lower end of the 95 % Wilson interval of the observed share."""
    high: Float64

    @property
    def calibration_error(self) -> float:
        """The expected calibration error: the mean over cases of their bin's |observed share - mean probability|."""
        gap = np.abs(self.observed_share - self.mean_probability)
        return float((self.count * gap).sum() / self.count.sum())


@dataclass(frozen=True)
class ProbabilityFigures:
    """How good probabilities of n cases are."""

    num_particles: int
    base_rate: float
    """Share of cases that came true."""
    expected_calibration_error: float
    expected_noise: float
    """What the calibration error of perfectly calibrated probabilities like these would be, by chance alone."""
    brier_score: float
    """Lower is better; predicting the base rate gets base_rate (1 - base_rate)."""
    area_under_curve: float | None


def reliability_curve(probabilities: Any, outcomes: Any, num_bins: int = DEFAULT_BINS) -> ReliabilityCurve:
    """Return the reliability of `probabilities` `(n,)` in [0, 1] of `outcomes` `(n,)`, true or false.

    Bins hold equal numbers, to 1, except that equal probabilities are never parted; fewer bins then, and n at most.
    Raises ValueError where n is 0, the lengths differ, or a probability is no number in [0, 1].
    """
    p, y = _checked(probabilities, outcomes)
    order = np.argsort(p, kind="stable")
    p, y = p[order], y[order]
    starts = equal_bins(p, num_bins)
    count = np.diff(np.concatenate([starts, [len(p)]])).astype(np.int64)
    share = np.add.reduceat(y, starts) / count
    low, high = wilson_interval(share, count)
    return ReliabilityCurve(np.add.reduceat(p, starts) / count, share, count, low, high)


def equal_bins(ascending: Float64, num_bins: int) -> NDArray[np.int64]:
    """Return the starts of bins of equal number, to 1, over ascending values `(n,)`, n at least 1.

    Equal values are never parted: there may be fewer bins.
    """
    edges = (np.arange(1, num_bins) * len(ascending)) // num_bins
    edges = np.unique(np.searchsorted(ascending, ascending[edges], side="left"))
    return np.concatenate([[0], edges[edges > 0]]).astype(np.int64)


def wilson_interval(share: Float64, count: NDArray[np.int64], z: float = 1.96) -> tuple[Float64, Float64]:
    """Return the ends `(b,)` of the interval of shares observed in `count` cases (Wilson 1927); z = 1.96 is 95 %."""
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count.astype(np.float64) ** 2))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def expected_calibration_error(probabilities: Any, outcomes: Any, num_bins: int = DEFAULT_BINS) -> float:
    """Return the ECE over bins of equal number; `ADVISED_PARTICLES` or more make it mean something.

    Raises ValueError as `reliability_curve`.
    """
    return reliability_curve(probabilities, outcomes, num_bins).calibration_error


def expected_noise(probabilities: Any, num_bins: int = DEFAULT_BINS) -> float:
    """Return the ECE that calibrated probabilities `(n,)` like these have by chance, outcomes being drawn from them.

    Each bin's observed share is taken as normal about its mean probability.
    """
    p = np.sort(np.asarray(probabilities, np.float64))
    curve = reliability_curve(p, np.zeros(len(p)), num_bins)
    starts = np.cumsum(curve.count) - curve.count
    variance = np.add.reduceat(p * (1 - p), starts) / curve.count**2
    return float((curve.count * np.sqrt(2 / np.pi * variance)).sum() / len(p))


def brier_score(probabilities: Any, outcomes: Any) -> float:
    """Return the mean of (probability - outcome)**2 over n cases, n at least 1 (Brier 1950)."""
    p, y = _checked(probabilities, outcomes)
    return float(np.mean((p - y) ** 2))


def area_under_curve(scores: Any, positive: Any) -> float | None:
    """Return the area under the ROC curve of `scores` `(n,)`: P(a positive scores above a negative), ties half.

    `positive` `(n,)` is true or false. None where one of the two kinds is missing: there is nothing to tell apart.
    Raises ValueError for scores that are NaN and for unequal lengths. By ranks (Mann and Whitney 1947).
    """
    values, is_positive = np.asarray(scores, np.float64), np.asarray(positive, np.bool_)
    if values.shape != is_positive.shape or values.ndim != 1:
        raise ValueError(f"scores have shape {values.shape}, positive {is_positive.shape}; two equal (n,) are needed")
    if np.isnan(values).any():
        raise ValueError(f"row {np.isnan(values).argmax()}: the score is NaN; leave such rows out and count them apart")
    num_positive = int(is_positive.sum())
    num_negative = len(values) - num_positive
    if num_positive == 0 or num_negative == 0:
        return None
    rank_sum = float(rankdata(values)[is_positive].sum())
    return (rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def probability_figures(probabilities: Any, outcomes: Any, num_bins: int = DEFAULT_BINS) -> ProbabilityFigures:
    """Measure `probabilities` `(n,)` against `outcomes` `(n,)`, n at least 1; ValueError as `reliability_curve`."""
    p, y = _checked(probabilities, outcomes)
    return ProbabilityFigures(
        num_particles=len(p),
        base_rate=float(y.mean()),
        expected_calibration_error=expected_calibration_error(p, y, num_bins),
        expected_noise=expected_noise(p, num_bins),
        brier_score=brier_score(p, y),
        area_under_curve=area_under_curve(p, y > 0),
    )


def _checked(probabilities: Any, outcomes: Any) -> tuple[Float64, Float64]:
    p, y = np.asarray(probabilities, np.float64), np.asarray(outcomes, np.float64)
    if p.shape != y.shape or p.ndim != 1 or len(p) == 0:
        raise ValueError(f"probabilities have shape {p.shape}, outcomes {y.shape}; two equal (n,), n >= 1, are needed")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"row {(~((p >= 0) & (p <= 1))).argmax()}: no probability in [0, 1]; leave such rows out")
    if not np.isin(y, (0, 1)).all():
        raise ValueError(f"row {(~np.isin(y, (0, 1))).argmax()}: outcome is {y[~np.isin(y, (0, 1))][0]}; true or false")
    return p, y
