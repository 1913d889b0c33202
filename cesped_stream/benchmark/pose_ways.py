"""How far off each way of making poses is: network alone, gallery alone, refined, and refined from the true poses.

Each row tells its proposers' own poses in its columns, so that one run has the figures of all ways, whatever made it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cesped_stream.benchmark.compare import Comparison
from cesped_stream.benchmark.metrics import shift_rmse_angstrom
from cesped_stream.conventions import SHIFT_LABELS, euler_deg_to_rotation
from cesped_stream.inference import PoseBatch
from cesped_stream.particles.flags import ImageFlag
from cesped_stream.particles.own_columns import (
    GALLERY_POSE,
    NETWORK_POSE,
    PROPOSER,
    REVISION,
    is_refined,
    poses_of,
)
from cesped_stream.particles.stacks import parse_image_name
from cesped_stream.particles.table import ParticleTable, thinned
from cesped_stream.pipeline import NETWORK_PROPOSER
from cesped_stream.published import MANIFEST_NAME, read_listing
from cesped_stream.reference_pair import ReferenceManifest
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations

LIMIT_ROWS: Final = 4000
REFERENCES_FOLDER: Final = "references"
"""Where a checkpoint that holds more than references holds them: a published checkpoint of its own."""
BY_PROPOSER: Final = "poses_by_proposer"
NUM_REDONE: Final = "num_redone"
_FIGURES = ("median_angular_error_deg", "mean_angular_error_deg", "fraction_within_5_deg")
_WAYS = ("network", "gallery", "refined")

Float64 = NDArray[np.float64]
Flags = NDArray[np.bool_]


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
    return "" if rows is None else ", ".join(sorted(set(rows.column(PROPOSER))))


def errors_of_ways(comparison: Comparison, rows: ParticleTable | None) -> dict[str, Any]:
    """Return summary.json's figures of each way that the rows tell a pose of; None where no row does.

    `network_`, `gallery_` and `refined_`: median and mean error, share within 5 degrees, and of how many particles:
    the network may have come later than the gallery. `poses_by_proposer` holds the same of each proposer's own rows,
    beside the errors of what it answered, so that ways can be compared on equal rows. `num_redone` rows had an earlier
    pose, which latencies are of. Shift errors are those of `metrics.shift_rmse_angstrom`, where the truth has origins.
    """
    nothing = {f"{way}_{figure}": None for way in _WAYS for figure in _FIGURES}
    nothing |= {"refined_shift_error_angstrom": None, NUM_REDONE: None}
    numbers = {f"{way}_num_particles": 0 for way in _WAYS}
    errors = comparison.errors_deg
    if rows is None or not len(errors) or not np.isfinite(errors).all():
        return nothing | numbers | {BY_PROPOSER: {}}
    made_by = np.array(rows.column(PROPOSER))
    errors_of = {
        "network": _own_errors_deg(comparison, rows, NETWORK_POSE, made_by == NETWORK_PROPOSER),
        "gallery": _own_errors_deg(comparison, rows, GALLERY_POSE, np.zeros(len(rows), np.bool_)),
        "refined": np.where([is_refined(name) for name in made_by], errors, np.nan),
    }
    found: dict[str, Any] = nothing | _of_ways(comparison, rows, errors_of, np.ones(len(rows), np.bool_))
    found[NUM_REDONE] = sum(value != "0" for value in rows.column(REVISION)) if REVISION in rows else 0
    found[BY_PROPOSER] = {
        str(name): {"num_particles": int((made_by == name).sum())}
        | figures_of("", errors[made_by == name])
        | _of_ways(comparison, rows, errors_of, made_by == name)
        for name in np.unique(made_by)
    }
    return found


def limit_of_noise(
    comparison: Comparison, refined: Callable[[ParticleTable], PoseBatch] | None, landed: ParticleTable
) -> dict[str, float | None]:
    """Return what refinement from the true poses reaches, on at most about `LIMIT_ROWS` of the inferred particles.

    `landed` are the comparison's truth rows with their stacks resolved; `refined` makes poses of the rows' own, None:
    there is no reference.
    """
    nothing: dict[str, float | None] = {f"limit_{figure}": None for figure in _FIGURES} | {"limit_num_particles": 0}
    rows = thinned(len(landed), LIMIT_ROWS)
    if refined is None or not len(rows):
        return nothing
    poses = refined(landed.select(rows))
    posed = poses.flag == ImageFlag.OK
    if not posed.any():
        return nothing
    true = comparison.true_rotations[rows[posed]]
    errors = angular_error_deg(true, poses.rotation[posed], group_rotations(comparison.symmetry))
    return nothing | {"limit_num_particles": len(errors)} | figures_of("limit_", errors)


def references_of(checkpoint: Path) -> Path | None:
    """Return the checkpoint of references that a checkpoint is or holds, None where it has none.

    UnreachableFileError, InvalidCheckpointError as `read_listing`.
    """
    inside = checkpoint / REFERENCES_FOLDER
    if (inside / MANIFEST_NAME).is_file():
        return inside
    return checkpoint if read_listing(checkpoint).kind == ReferenceManifest.manifest_kind else None


def figures_of(prefix: str, errors_deg: Float64) -> dict[str, float | None]:
    """Return median, mean and share within 5 degrees of errors `(n,)`, under `prefix`; nothing where there are none."""
    if not len(errors_deg):
        return {}
    values = (np.median(errors_deg), np.mean(errors_deg), np.mean(errors_deg <= 5))
    return {f"{prefix}{figure}": float(value) for figure, value in zip(_FIGURES, values, strict=True)}


def _of_ways(
    comparison: Comparison, rows: ParticleTable, errors_of: dict[str, Float64], chosen: Flags
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for way, errors in errors_of.items():
        told = chosen & np.isfinite(errors)
        found |= {f"{way}_num_particles": int(told.sum())} | figures_of(f"{way}_", errors[told])
        if way == "refined" and told.any() and all(label in comparison.truth for label in SHIFT_LABELS):
            moved = (comparison.truth.shifts_angstrom()[told], rows.shifts_angstrom()[told])
            found["refined_shift_error_angstrom"] = shift_rmse_angstrom(*moved)
    return found


def _own_errors_deg(comparison: Comparison, rows: ParticleTable, label: str, is_answer: Flags) -> Float64:
    """Errors `(n,)` of a proposer's own poses; where it alone made the row, `is_answer`, of the row's. NaN: none."""
    errors = np.where(is_answer, comparison.errors_deg, np.nan)
    if label not in rows:
        return errors
    angles = poses_of(rows.column(label))
    told = np.isfinite(angles).all(1)
    if told.any():
        own = euler_deg_to_rotation(*angles[told].T)
        errors[told] = angular_error_deg(comparison.true_rotations[told], own, group_rotations(comparison.symmetry))
    return errors
