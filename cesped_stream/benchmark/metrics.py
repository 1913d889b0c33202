"""Pose errors of the CESPED benchmark (the paper's section 2.3), with the spread beside the mean."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cesped_stream.so3.distance import angular_error_deg, in_plane_error_deg, rotations_to_numpy, view_error_deg
from cesped_stream.so3.grids import num_in_plane, pose_grid

Float64 = NDArray[np.float64]

_RANDOM_GRID_ORDER = 2
# The grid has axes of its own, and a group shares some: from a pose that favours none the mean is right to 0.1 degrees.
_UNRELATED_POSE = np.array([[2.0, -10.0, 11.0], [14.0, 5.0, 2.0], [-5.0, 10.0, 10.0]]) / 15


@dataclass(frozen=True)
class PoseErrors:
    """Errors in degrees of one set of particles, under the group's symmetry."""

    half_set: int | None
    """0 or 1, None for both together."""
    num_particles: int
    mean_deg: float
    """MAnE: eq. 3 read as a mean."""
    weighted_mean_deg: float | None
    """wMAnE, eq. 5: weighted by the truth's confidence; None where all of it is 0."""
    median_deg: float
    share_within_5_deg: float
    share_within_15_deg: float
    median_view_error_deg: float
    median_in_plane_error_deg: float


@dataclass(frozen=True)
class PoseMetrics:
    """Errors per half-set and together, and what drawing poses blindly would get."""

    halves: tuple[PoseErrors, ...]
    """Of the half-sets that have particles, 0 before 1."""
    together: PoseErrors
    random_mean_deg: float
    """Mean error of uniformly random poses: 126.5 without symmetry, less with. Of random views where only those were
    predicted: 90, less with symmetry."""


def pose_metrics(
    true: Any, predicted: Any, confidence: Any, half_sets: Any, group: Any, *, views_only: bool = False
) -> PoseMetrics:
    """Measure predicted poses `(n, 3, 3)` against true ones, n at least 1, under `group` `(g, 3, 3)`.

    `confidence` `(n,)` is the truth's (rlnMaxValueProbDistribution), not the prediction's; `half_sets` `(n,)` 0 or 1.
    `views_only`: the in-plane angle was given, so that a guess is a view drawn at random, not a pose.
    Raises ValueError for poses that are not finite: particles without a pose are to be counted, not averaged.
    """
    truth, poses = rotations_to_numpy(true), rotations_to_numpy(predicted)
    weights, halves = np.asarray(confidence, np.float64), np.asarray(half_sets, np.int64)
    _check(truth, poses, weights, halves)
    errors = angular_error_deg(truth, poses, group)
    views, in_plane = view_error_deg(truth, poses, group), in_plane_error_deg(truth, poses, group)

    def measured(rows: NDArray[np.bool_], half_set: int | None) -> PoseErrors:
        return _pose_errors(half_set, errors[rows], weights[rows], views[rows], in_plane[rows])

    return PoseMetrics(
        halves=tuple(measured(halves == half, half) for half in (0, 1) if (halves == half).any()),
        together=measured(np.ones(len(errors), np.bool_), None),
        random_mean_deg=random_view_mean_deg(group) if views_only else random_mean_deg(group),
    )


def mean_angular_error_deg(errors_deg: Any) -> float:
    """Return MAnE of errors `(n,)`: eq. 3, which lacks its 1/N, read as a mean."""
    return float(np.mean(np.asarray(errors_deg, np.float64)))


def weighted_mean_angular_error_deg(errors_deg: Any, confidence: Any) -> float | None:
    """Return wMAnE, eq. 5, of errors `(n,)` and the truth's confidences `(n,)`; None where all confidences are 0."""
    weights = np.asarray(confidence, np.float64)
    if weights.sum() == 0:
        return None
    return float((weights * np.asarray(errors_deg, np.float64)).sum() / weights.sum())


def halves_combined_as_cesped(halves: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Return one figure of two half-sets as the `cesped` package combines them: their mean, or weighted.

    MAnE and shift RMSE are plain means of the halves, wMAnE is weighted by each half's total confidence. NaN for none.
    """
    given = np.ones(len(halves)) if weights is None else np.asarray(weights, np.float64)
    return float((np.asarray(halves, np.float64) * given).sum() / given.sum()) if given.sum() > 0 else float("nan")


def shift_rmse_angstrom(true_shifts: Any, predicted_shifts: Any) -> float:
    """Return the root mean square length of the difference of shifts `(n, 2)` in angstrom (as the `cesped` package)."""
    difference = np.asarray(predicted_shifts, np.float64) - np.asarray(true_shifts, np.float64)
    return float(np.sqrt((difference**2).sum(-1).mean()))


def effective_number(weights: Any) -> float:
    """Return how many equal particles weights `(n,)` >= 0 are worth: (sum w)^2 / sum w^2; 0 where all are 0."""
    values = np.asarray(weights, np.float64)
    square = float((values**2).sum())
    return float(values.sum()) ** 2 / square if square > 0 else 0.0


def rms_displacement_angstrom(errors_deg: Any, radius_angstrom: Any) -> Float64:
    """Return how far pose errors `(n,)` move density at radii `(r,)` angstrom, root mean square, `(r,)`.

    A turn by e about any axis moves the points of a sphere of radius r by 2 r sin(e / 2) sqrt(2 / 3) in the root mean
    square: why a map blurs from its centre outwards (the paper's Appendix E).
    """
    chord = 2 * np.sin(np.deg2rad(np.asarray(errors_deg, np.float64)) / 2)
    return np.asarray(np.asarray(radius_angstrom, np.float64) * np.sqrt(2 / 3 * (chord**2).mean()), np.float64)


def median_displacement_angstrom(errors_deg: Any, radius_angstrom: Any) -> Float64:
    """Return how far the pose error in the middle of `(n,)` moves density at radii `(r,)`: not swayed by lost poses."""
    return rms_displacement_angstrom([np.median(np.asarray(errors_deg, np.float64))], radius_angstrom)


def random_mean_deg(group: Any) -> float:
    """Return the mean error of uniformly random poses under `group` `(g, 3, 3)`, to 0.1 degrees."""
    return mean_angular_error_deg(angular_error_deg(_UNRELATED_POSE, pose_grid(_RANDOM_GRID_ORDER), group))


def random_view_mean_deg(group: Any) -> float:
    """Return the mean angle between two uniformly random views under `group` `(g, 3, 3)`: 90 without symmetry.

    Unlike that of poses it depends on where the true view lies, so true views are averaged over too.
    """
    views = pose_grid(_RANDOM_GRID_ORDER)[:: num_in_plane(_RANDOM_GRID_ORDER), :, 2]
    mates = rotations_to_numpy(group) @ (_UNRELATED_POSE @ views.T)
    cosines = np.max(views @ mates, axis=0)
    return mean_angular_error_deg(np.rad2deg(np.arccos(cosines.clip(-1, 1))))


def _pose_errors(
    half_set: int | None, errors: Float64, weights: Float64, views: Float64, in_plane: Float64
) -> PoseErrors:
    return PoseErrors(
        half_set=half_set,
        num_particles=len(errors),
        mean_deg=mean_angular_error_deg(errors),
        weighted_mean_deg=weighted_mean_angular_error_deg(errors, weights),
        median_deg=float(np.median(errors)),
        share_within_5_deg=float(np.mean(errors <= 5)),
        share_within_15_deg=float(np.mean(errors <= 15)),
        median_view_error_deg=float(np.median(views)),
        median_in_plane_error_deg=float(np.median(in_plane)),
    )


def _check(truth: Float64, poses: Float64, weights: Float64, halves: NDArray[np.int64]) -> None:
    shapes = {len(truth), len(poses), len(weights), len(halves)}
    if len(shapes) != 1 or len(truth) == 0:
        raise ValueError(
            f"{len(truth)} true, {len(poses)} predicted poses, {len(weights)} confidences, {len(halves)} half-sets;"
            " as many of each, at least 1, are needed"
        )
    bad = np.flatnonzero(~np.isfinite(truth + poses).all(axis=(1, 2)))
    if len(bad):
        raise ValueError(f"row {bad[0]}: pose is not finite ({len(bad)} such); leave particles without a pose out")
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("confidence has values that are negative or not finite; 0 to 1 are needed")
    if not np.isin(halves, (0, 1)).all():
        raise ValueError("half_sets has values other than 0 and 1; RELION's 1 and 2 are for star files only")
