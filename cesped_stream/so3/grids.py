"""The SO(3) HEALPix grid of Image2Sphere: 12 * 4**order directions, 6 * 2**order in-plane angles at each.

Index = direction * in-plane angles + in-plane angle; directions in HEALPix RING order. In the head frame a grid
rotation is Ry(alpha) Rx(beta) Ry(gamma): (beta, alpha) are HEALPix's colatitude and longitude, gamma runs from 0 in
even steps. Source: Klee et al. 2023, where the in-plane angle is the slow index.
"""

from functools import lru_cache
from typing import Any

import healpy
import numpy as np
from numpy.typing import NDArray

from cesped_stream.conventions import head_frame_to_rotation, rotation_to_head_frame
from cesped_stream.so3.distance import rotations_to_numpy

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_CHUNK = 65_536
_STEP_DEG_AT_ORDER_0 = 58.6


def grid_step_deg(order: int) -> float:
    """Return the distance between neighbouring directions in degrees: the root of a HEALPix pixel's area."""
    return float(_STEP_DEG_AT_ORDER_0 / 2**order)


def num_directions(order: int) -> int:
    """Return the number of HEALPix directions of a grid."""
    return int(12 * 4**order)


def num_in_plane(order: int) -> int:
    """Return the number of in-plane angles at each direction."""
    return int(6 * 2**order)


def num_rotations(order: int) -> int:
    """Return the number of grid rotations: 72 * 8**order."""
    return num_directions(order) * num_in_plane(order)


def direction_angles(order: int) -> tuple[Float64, Float64]:
    """Return alpha and beta `(num_directions,)` in radians of the grid's directions (e3nn's, pole on y)."""
    beta, alpha = healpy.pix2ang(2**order, np.arange(num_directions(order)))
    return np.asarray(alpha, np.float64), np.asarray(beta, np.float64)


def in_plane_angles(order: int) -> Float64:
    """Return gamma `(num_in_plane,)` in radians."""
    count = num_in_plane(order)
    return np.asarray(np.arange(count) * (2 * np.pi / count), np.float64)


@lru_cache(maxsize=8)
def direction_frames(order: int) -> Float64:
    """Return Ry(alpha) Rx(beta) `(num_directions, 3, 3)`, read-only: the grid's head-frame rotations at gamma 0."""
    alpha, beta = direction_angles(order)
    frames = _turns_about_y(alpha) @ _turns_about_x(beta)
    frames.setflags(write=False)
    return frames


def head_rotations(indices: Any, order: int) -> Float64:
    """Return the head-frame rotations `(n, 3, 3)` at grid indices `(n,)`."""
    direction, in_plane = np.divmod(np.asarray(indices, np.int64).ravel(), num_in_plane(order))
    return np.asarray(direction_frames(order)[direction] @ _turns_about_y(in_plane_angles(order))[in_plane], np.float64)


def pose_rotations(indices: Any, order: int) -> Float64:
    """Return the pose rotations `(n, 3, 3)` at grid indices `(n,)`; they left-multiply image xyz and give map xyz."""
    return head_frame_to_rotation(head_rotations(indices, order))


def head_grid(order: int) -> Float64:
    """Return every grid rotation in the head frame, float64 `(num_rotations, 3, 3)`; 21 MB at order 4."""
    frames, turns = direction_frames(order), _turns_about_y(in_plane_angles(order))
    return np.asarray(np.matmul(frames[:, None], turns).reshape(-1, 3, 3), np.float64)


def pose_grid(order: int) -> Float64:
    """Return every grid rotation as a pose, float64 `(num_rotations, 3, 3)`."""
    return head_frame_to_rotation(head_grid(order))


def nearest_index(rotations: Any, order: int) -> Int64:
    """Return the index `(n,)` of the grid rotation nearest to each pose rotation `(n, 3, 3)`, array or tensor.

    Exact: the in-plane angle is solved at the direction's own pixel and its neighbours, and no other direction can
    be nearer. A tie goes to either. Bounded memory.
    """
    head = rotation_to_head_frame(rotations_to_numpy(rotations))
    parts = [_nearest_index(head[start : start + _CHUNK], order) for start in range(0, len(head), _CHUNK)]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _nearest_index(head: Float64, order: int) -> Int64:
    pixels = _candidate_pixels(head[:, :, 1], order)
    count = num_in_plane(order)
    # with Q = frame^T head, tr(Ry(gamma)^T Q) = Q_yy + (Q_xx + Q_zz) cos gamma + (Q_xz - Q_zx) sin gamma
    q = np.matmul(direction_frames(order)[pixels].transpose(0, 1, 3, 2), head[:, None])
    cosine, sine = q[..., 0, 0] + q[..., 2, 2], q[..., 0, 2] - q[..., 2, 0]
    in_plane = np.rint(np.arctan2(sine, cosine) * (count / (2 * np.pi))).astype(np.int64) % count
    gamma = in_plane_angles(order)[in_plane]
    trace = q[..., 1, 1] + cosine * np.cos(gamma) + sine * np.sin(gamma)
    best = trace.argmax(axis=1)[:, None]
    found = np.take_along_axis(pixels * count + in_plane, best, axis=1)
    return np.asarray(found[:, 0], np.int64)


def _candidate_pixels(axis: Float64, order: int) -> Int64:
    """Return pixels `(n, 9)` (all 12 at order 0), one of which holds the nearest rotation to any with this y axis."""
    if order == 0:
        return np.broadcast_to(np.arange(12), (len(axis), 12))
    nside = 2**order
    own = healpy.vec2pix(nside, axis[:, 2], axis[:, 0], axis[:, 1])
    around = healpy.get_all_neighbours(nside, own)
    return np.asarray(np.concatenate([own[None], np.where(around < 0, own, around)]).T, np.int64)


def _turns_about_y(angle: Float64) -> Float64:
    cosine, sine, zero = np.cos(angle), np.sin(angle), np.zeros_like(angle)
    rows = [cosine, zero, sine, zero, zero + 1, zero, -sine, zero, cosine]
    return np.stack(rows, axis=-1).reshape(-1, 3, 3)


def _turns_about_x(angle: Float64) -> Float64:
    cosine, sine, zero = np.cos(angle), np.sin(angle), np.zeros_like(angle)
    rows = [zero + 1, zero, zero, zero, cosine, -sine, zero, sine, cosine]
    return np.stack(rows, axis=-1).reshape(-1, 3, 3)
