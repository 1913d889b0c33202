"""Distances between poses under a point group. numpy only: the service imports this without torch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

_CHUNK = 65_536


def rotations_to_numpy(rotations: Any) -> Float64:
    """Return `(n, 3, 3)` float64 on the CPU from an array or a torch tensor of any device, `(3, 3)` as n = 1."""
    if hasattr(rotations, "detach"):
        rotations = rotations.detach().cpu().numpy()
    array = np.asarray(rotations, np.float64)
    if array.ndim not in (2, 3) or array.shape[-2:] != (3, 3):
        raise ValueError(f"rotations have shape {array.shape}; (n, 3, 3) or (3, 3) is needed")
    return array.reshape(-1, 3, 3)


def angular_error_deg(true: Any, predicted: Any, group: Any) -> Float64:
    """Return `(n,)` angles in degrees between poses and the nearest symmetry mate of the truth (the paper's eq. 4).

    `true` and `predicted` are `(n, 3, 3)` pose rotations (one of them may be a single one), `group` is
    `(g, 3, 3)` and multiplies the truth on its left. By the chord, so that errors near 0 are exact; float32 input
    is exact to its own rounding. NaN in a pose gives NaN.
    """
    return _joined(true, predicted, group, _rotation_angle)


def view_error_deg(true: Any, predicted: Any, group: Any) -> Float64:
    """Return `(n,)` angles in degrees between the view axes, of the mate that `angular_error_deg` takes."""
    return _joined(true, predicted, group, lambda mate, pose: _vector_angle(mate[:, :, 2], pose[:, :, 2]))


def in_plane_error_deg(true: Any, predicted: Any, group: Any) -> Float64:
    """Return `(n,)` in-plane angles in degrees that are left once the view axes are made one by the shortest turn.

    Of the mate that `angular_error_deg` takes. With the view error v and this one p, the whole error e obeys
    cos(e / 2) = cos(v / 2) cos(p / 2). Undefined, here 0, where the views are opposite.
    """
    return _joined(true, predicted, group, _twist_angle)


def _joined(true: Any, predicted: Any, group: Any, angle: Any) -> Float64:
    pairs = _nearest_mates(rotations_to_numpy(true), rotations_to_numpy(predicted), rotations_to_numpy(group))
    parts = [np.rad2deg(angle(mate, pose)) for mate, pose in pairs]
    return np.concatenate(parts) if parts else np.empty(0)


def _nearest_mates(true: Float64, predicted: Float64, group: Float64) -> Iterator[tuple[Float64, Float64]]:
    """Yield chunks of (nearest mate of the truth, prediction)."""
    if len(true) != len(predicted) and 1 not in (len(true), len(predicted)):
        raise ValueError(f"{len(true)} true and {len(predicted)} predicted rotations; they must be pairs")
    true, predicted = np.broadcast_arrays(true, predicted)
    for start in range(0, len(true), _CHUNK):
        truth, pose = true[start : start + _CHUNK], predicted[start : start + _CHUNK]
        # tr(g T P^T) = sum of g times P T^T, elementwise: one product for all mates
        traces = (pose @ truth.transpose(0, 2, 1)).reshape(-1, 9) @ group.reshape(-1, 9).T
        yield group[traces.argmax(axis=1)] @ truth, pose


def _rotation_angle(mate: Float64, pose: Float64) -> Float64:
    chord = np.sqrt(((mate - pose) ** 2).sum(axis=(1, 2)))
    return np.asarray(2 * np.arcsin(np.minimum(chord / 8**0.5, 1.0)), np.float64)


def _vector_angle(a: Float64, b: Float64) -> Float64:
    difference, total = np.linalg.norm(a - b, axis=1), np.linalg.norm(a + b, axis=1)
    return np.asarray(2 * np.arctan2(difference, total), np.float64)


def _twist_angle(mate: Float64, pose: Float64) -> Float64:
    turn = mate.transpose(0, 2, 1) @ pose
    sine, cosine = turn[:, 1, 0] - turn[:, 0, 1], turn[:, 0, 0] + turn[:, 1, 1]
    opposite = np.hypot(sine, cosine) < 1e-12
    return np.where(opposite, 0.0, np.abs(np.arctan2(sine, cosine)))
