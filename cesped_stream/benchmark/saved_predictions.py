"""Predicted poses on their way into a star."""

from pathlib import Path
from typing import Any, Literal

import numpy as np

from cesped_stream.benchmark.entry_folder import disk_errors
from cesped_stream.benchmark.metadata import PREDICTED_CONFIDENCE_LABEL
from cesped_stream.conventions import ANGLE_LABELS, SHIFT_LABELS, rotation_to_euler_deg
from cesped_stream.errors import InvalidSettingsError
from cesped_stream.particles.star import write_star
from cesped_stream.particles.table import Float64, ParticleTable

AnglesFormat = Literal["rotmat", "zyzEulerDegs"]
ROUNDING = 1e-3
"""How far beyond 0 to 1 a confidence may lie: sums of probabilities in half precision."""
MAX_SKEW = 1e-2
"""Largest |R R^T - 1| of what is taken for a rotation: half precision gives 2e-3."""


def prediction_columns(
    count: int, angles: Any, shifts: Any, confidence: Any, angles_format: AnglesFormat
) -> dict[str, Float64]:
    """Return star columns `(count,)` of predictions, tensors or arrays; see `ParticlesDataset.update_poses`."""
    if angles_format not in ("rotmat", "zyzEulerDegs"):
        raise ValueError(f"angles_format {angles_format!r}; it is rotmat or zyzEulerDegs")
    columns: dict[str, Float64] = {}
    if angles is not None:
        euler = _angles(angles, count, angles_format)
        columns.update(zip(ANGLE_LABELS, euler.T, strict=True))
    if shifts is not None:
        columns.update(zip(SHIFT_LABELS, _numbers("shifts", shifts, (count, 2)).T, strict=True))
    if confidence is not None:
        columns[PREDICTED_CONFIDENCE_LABEL] = _confidence(confidence, count)
    if not columns:
        raise ValueError("neither angles nor shifts nor confidence given; there is nothing to update")
    return columns


def save_predictions(path: Path, table: ParticleTable, own_star: Path, *, overwrite: bool) -> None:
    """Write the star whole. Raises InvalidSettingsError for a path that it must not be written to, FullDiskError or
    UnreachableFileError where it cannot be."""
    if path.suffix != ".star":
        raise InvalidSettingsError(f"{path}: predictions are saved as a star file; let the name end in .star")
    if path.exists() and own_star.exists() and path.samefile(own_star):
        raise InvalidSettingsError(f"{path}: is the data set's own star, with the true poses; give another name")
    if path.exists() and not overwrite:
        raise InvalidSettingsError(f"{path}: exists; give another name, or overwrite=True")
    with disk_errors(path):
        write_star(path, table)


def _angles(angles: Any, count: int, angles_format: AnglesFormat) -> Float64:
    if angles_format == "zyzEulerDegs":
        return _numbers("angles", angles, (count, 3))
    rotations = _numbers("angles", angles, (count, 3, 3))
    skew = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max((1, 2), initial=0)
    bad = np.flatnonzero((skew > MAX_SKEW) | (np.linalg.det(rotations) < 0))
    if len(bad):
        raise ValueError(
            f"angles: matrix {bad[0]} is no rotation ({len(bad)} such): its columns must be orthonormal and its "
            "determinant 1; or is it angles_format='zyzEulerDegs'?"
        )
    return rotation_to_euler_deg(_nearest_rotations(rotations))


def _nearest_rotations(matrices: Float64) -> Float64:
    left, _, right = np.linalg.svd(matrices)
    return np.asarray(left @ right, np.float64)


def _confidence(confidence: Any, count: int) -> Float64:
    values = _as_array(confidence)
    if values.shape not in ((count,), (count, 1)):
        raise ValueError(f"confidence is {values.shape} for {count} ids; give one a particle")
    figures = _numbers("confidence", values.reshape(count), (count,))
    bad = np.flatnonzero((figures < -ROUNDING) | (figures > 1 + ROUNDING))
    if len(bad):
        raise ValueError(f"confidence: {figures[bad[0]]:g} of row {bad[0]} ({len(bad)} such); it goes from 0 to 1")
    return np.clip(figures, 0, 1)


def _numbers(name: str, values: Any, shape: tuple[int, ...]) -> Float64:
    array = _as_array(values)
    if array.shape != shape:
        raise ValueError(f"{name} is {array.shape} for {shape[0]} ids; it must be {shape}")
    bad = np.flatnonzero(~np.isfinite(array.reshape(shape[0], -1)).all(1))
    if len(bad):
        raise ValueError(f"{name}: row {bad[0]} is not finite ({len(bad)} such); leave particles without a pose out")
    return array


def _as_array(values: Any) -> Float64:
    """Return float64 of an array, a list, or a tensor on any device, in any precision, with or without gradient."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, np.float64)
