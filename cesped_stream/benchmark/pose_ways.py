"""How far off each way of making poses is: network alone, gallery alone, refined, and refined from the true poses."""

import json
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cesped_stream.benchmark.compare import Comparison
from cesped_stream.benchmark.metrics import shift_rmse_angstrom
from cesped_stream.conventions import euler_deg_to_rotation
from cesped_stream.inference import PoseBatch
from cesped_stream.particles.flags import ImageFlag
from cesped_stream.particles.stacks import parse_image_name
from cesped_stream.particles.table import ParticleTable
from cesped_stream.pipeline import NETWORK_PROPOSER
from cesped_stream.reference_proposer import PROPOSER as REFERENCE_PROPOSER
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations

PROPOSER_LABEL, TOP_POSES_LABEL = "cestreamProposer", "cestreamTopPoses"
LIMIT_ROWS = 1000

Float64 = NDArray[np.float64]


def inferred_rows(comparison: Comparison, exported: Sequence[ParticleTable]) -> ParticleTable | None:
    """Return the exported rows of the inferred particles, ordered as the comparison; None where there are none."""
    place = {parse_image_name(name): row for row, name in enumerate(comparison.truth.column("rlnImageName"))}
    for table in exported:
        keys = [parse_image_name(name) for name in table.column("rlnImageName")]
        found = {place[key]: row for row, key in enumerate(keys) if key in place}
        if place and len(found) == len(place):
            return table.select([found[row] for row in range(len(place))])
    return None


def proposers_of(rows: ParticleTable | None) -> str:
    """Return what made the rows' poses, joined by commas."""
    return "" if rows is None else ", ".join(sorted(set(rows.column(PROPOSER_LABEL))))


def errors_of_ways(comparison: Comparison, rows: ParticleTable | None) -> dict[str, float | None]:
    """Return summary.json's figures of what made the poses; None where another way did, or nothing is known.

    Shift errors are those of `metrics.shift_rmse_angstrom`, where the truth has origins.
    """
    made = proposers_of(rows)
    found: dict[str, float | None] = dict.fromkeys(
        (
            "network_median_angular_error_deg",
            "gallery_median_angular_error_deg",
            "refined_median_angular_error_deg",
            "refined_mean_angular_error_deg",
            "refined_fraction_within_5_deg",
            "refined_shift_error_angstrom",
        )
    )
    errors = comparison.errors_deg
    if rows is None or not len(errors) or not np.isfinite(errors).all():
        return found
    if made == NETWORK_PROPOSER:
        found["network_median_angular_error_deg"] = float(np.median(errors))
    elif made == REFERENCE_PROPOSER:
        found["gallery_median_angular_error_deg"] = float(np.median(_first_mode_errors_deg(comparison, rows)))
        found |= _figures("refined", errors)
        if "rlnOriginXAngst" in comparison.truth:
            moved = (comparison.truth.shifts_angstrom(), rows.shifts_angstrom())
            found["refined_shift_error_angstrom"] = shift_rmse_angstrom(*moved)
    return found


def limit_of_noise(
    comparison: Comparison, refined: Callable[[ParticleTable], PoseBatch], landed: ParticleTable
) -> dict[str, float | None]:
    """Return what refinement from the true poses reaches, on at most about `LIMIT_ROWS` of the inferred particles.

    `landed` are the comparison's truth rows with their stacks resolved; `refined` makes poses of the rows' own.
    """
    keys = ("limit_median_angular_error_deg", "limit_mean_angular_error_deg", "limit_fraction_within_5_deg")
    rows = np.arange(0, len(landed), -(-len(landed) // LIMIT_ROWS) or 1)
    if not len(rows):
        return dict.fromkeys(keys)
    poses = refined(landed.select(rows))
    posed = poses.flag == ImageFlag.OK
    if not posed.any():
        return dict.fromkeys(keys)
    true = comparison.true_rotations[rows[posed]]
    return _figures("limit", angular_error_deg(true, poses.rotation[posed], group_rotations(comparison.symmetry)))


def _figures(name: str, errors_deg: Float64) -> dict[str, float | None]:
    return {
        f"{name}_median_angular_error_deg": float(np.median(errors_deg)),
        f"{name}_mean_angular_error_deg": float(np.mean(errors_deg)),
        f"{name}_fraction_within_5_deg": float(np.mean(errors_deg <= 5)),
    }


def _first_mode_errors_deg(comparison: Comparison, rows: ParticleTable) -> Float64:
    angles = np.array([json.loads(text)[:3] for text in rows.column(TOP_POSES_LABEL)], np.float64)
    return angular_error_deg(
        comparison.true_rotations, euler_deg_to_rotation(*angles.T), group_rotations(comparison.symmetry)
    )
