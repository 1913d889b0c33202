"""Distributions over the SO(3) grid: their sparse form, and the distinct poses that they favour."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import healpy
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from cesped_stream.conventions import rotation_to_head_frame
from cesped_stream.so3.distance import rotations_to_numpy
from cesped_stream.so3.grids import (
    direction_frames,
    in_plane_angles,
    num_directions,
    num_in_plane,
    num_rotations,
    pose_rotations,
)

_MAX_DOT_PRODUCTS = 2**22
_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class SparseDistribution:
    """The k likeliest grid rotations of each of n particles, best first; what is left out has no weight."""

    grid_order: int
    asymmetric_unit: bool
    """True where every symmetry mate's weight stands at one of them; False on the full grid."""
    indices: NDArray[np.int64]
    """`(n, k)` grid indices."""
    log_weights: NDArray[np.float32]
    """`(n, k)` natural logarithms; on the full grid their exponentials add to at most 1."""

    def rotations(self) -> NDArray[np.float64]:
        """Return the pose rotations `(n, k, 3, 3)`."""
        return pose_rotations(self.indices, self.grid_order).reshape(*self.indices.shape, 3, 3)


def sparse_distribution(logits: Tensor, order: int, k: int) -> SparseDistribution:
    """Return the k likeliest rotations of logits `(n, num_rotations)` with their log-probabilities."""
    _check_logits(logits, order)
    values, indices = logits.detach().float().log_softmax(dim=1).topk(min(k, logits.shape[1]), dim=1)
    return SparseDistribution(order, False, indices.cpu().numpy(), values.cpu().numpy())


def top_poses(
    logits: Tensor, order: int, group: Any, k: int, separation_deg: float
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return the k best distinct poses `(b, k, 3, 3)` of logits `(b, num_rotations)`, and their probabilities `(b, k)`.

    A mode is the likeliest grid rotation left (of equal ones the lowest index). Its probability is the mass within
    `separation_deg` of it or of any of its symmetry mates (`group` `(g, 3, 3)` acts on the left), less what an earlier
    mode took; all that is then out of the search. So modes are further apart than `separation_deg` under the group, and
    probabilities add to at most 1. `separation_deg` below a grid step may miss the mates' grid points. Where no
    rotation is left, the first pose stands again, with probability 0. A float32 sum just above 1 is 1. A row depends on
    no other row; NaN logits give probability NaN.
    """
    _check_logits(logits, order)
    if k < 1 or not 0 < separation_deg <= 180:
        raise ValueError(f"k is {k} and separation_deg {separation_deg}; at least 1, and in (0, 180], are needed")
    mates = rotations_to_numpy(group)
    rows = max(1, _MAX_DOT_PRODUCTS // (len(mates) * num_directions(order)))
    starts = range(0, len(logits), rows)
    parts = [_top_modes(logits[i : i + rows].detach(), order, mates, k, separation_deg) for i in starts]
    indices, probabilities = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    return pose_rotations(indices, order).reshape(*indices.shape, 3, 3), probabilities.clip(0, 1)


def top_poses_sparse(
    distribution: SparseDistribution, group: Any, k: int, separation_deg: float
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return the k best distinct poses `(n, k, 3, 3)` of a sparse distribution, and their probabilities `(n, k)`.

    As `top_poses`, with what the distribution stores in place of the whole grid: what it leaves out has no
    probability. On an asymmetric unit a pose's mass holds its mates' already. Row by row; entries of log-weight -inf
    are none; a row of NaN gives NaN for both.
    """
    if k < 1 or not 0 < separation_deg <= 180:
        raise ValueError(f"k is {k} and separation_deg {separation_deg}; at least 1, and in (0, 180], are needed")
    mates = rotations_to_numpy(group)
    n, stored = distribution.indices.shape
    indices, probabilities = np.zeros((n, k), np.int64), np.zeros((n, k), np.float32)
    rows = max(1, _MAX_DOT_PRODUCTS // (len(mates) * stored))
    for start in range(0, n, rows):
        part = slice(start, start + rows)
        indices[part], probabilities[part] = _top_entries(distribution, part, mates, k, separation_deg)
    poses = pose_rotations(indices, distribution.grid_order).reshape(n, k, 3, 3)
    poses[np.isnan(probabilities[:, 0])] = np.nan
    return poses, probabilities.clip(0, 1)


def _top_entries(
    distribution: SparseDistribution, part: slice, mates: NDArray[np.float64], k: int, separation_deg: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    indices, left = distribution.indices[part], np.exp(distribution.log_weights[part].astype(np.float64))
    nothing = np.asarray(np.isnan(left).any(axis=1, keepdims=True))
    left[nothing | (left == 0)] = -1.0  # taken, or never there
    rotations = pose_rotations(indices, distribution.grid_order).reshape(*indices.shape, 3, 3)
    rows, least_trace = np.arange(len(indices)), 1 + 2 * np.cos(np.deg2rad(separation_deg)) - _TOLERANCE
    found: list[NDArray[np.int64]] = []
    masses: list[NDArray[np.float64]] = []
    for _ in range(k):
        # of equal ones the lowest index, as on the whole grid
        peak = left.max(axis=1)
        best = np.where(left == peak[:, None], indices, num_rotations(distribution.grid_order)).argmin(axis=1)
        orbit = np.matmul(mates, rotations[rows, best][:, None]).reshape(len(rows), -1, 9)
        traces = np.matmul(orbit, rotations.reshape(len(rows), -1, 9).transpose(0, 2, 1)).max(axis=1)
        near = traces >= least_trace
        masses.append(np.where(near, left.clip(min=0), 0.0).sum(axis=1))
        left[near] = -1.0
        index = indices[rows, best]
        found.append(np.where(peak < 0, found[0], index) if found else index)
    probabilities = np.stack(masses, axis=1).astype(np.float32)
    probabilities[nothing[:, 0]] = np.nan
    return np.stack(found, axis=1), probabilities


def _check_logits(logits: Tensor, order: int) -> None:
    if logits.ndim != 2 or len(logits) == 0 or logits.shape[1] != num_rotations(order):
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}; (b, {num_rotations(order)}) needed at order {order}, b >= 1"
        )


def _top_modes(
    logits: Tensor, order: int, mates: NDArray[np.float64], k: int, separation_deg: float
) -> tuple[Tensor, Tensor]:
    batch, size = logits.shape
    # the last column stands for places outside a neighbourhood; -1 marks what an earlier mode took
    left = torch.nn.functional.pad(logits.float().softmax(dim=1), (0, 1))
    left[:, size] = -1.0
    indices: list[Tensor] = []
    probabilities: list[Tensor] = []
    for _ in range(k):
        best, index = left[:, :size].max(dim=1)
        around = _neighbourhood(index, order, mates, separation_deg).view(batch, -1)
        if len(mates) > 1:
            around = _without_repeats(around, size)
        mass = left.gather(1, around).double().clamp(min=0).sum(dim=1).float()
        left.scatter_(1, around, -1.0)
        none_left = best < 0
        indices.append(torch.where(none_left, indices[0], index) if indices else index)
        probabilities.append(torch.where(none_left, 0.0, mass))
    return torch.stack(indices, dim=1), torch.stack(probabilities, dim=1)


def _without_repeats(indices: Tensor, outside: int) -> Tensor:
    ordered = indices.sort(dim=1).values
    repeats = torch.zeros_like(ordered, dtype=torch.bool)
    repeats[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return ordered.masked_fill(repeats, outside)


def _neighbourhood(index: Tensor, order: int, mates: NDArray[np.float64], radius_deg: float) -> Tensor:
    """Return grid indices `(b, g, places)` within `radius_deg` of each mate of grid rotations `index` `(b,)`.

    A rotation's neighbours lie at the directions within the radius of its own, and there within the radius of the
    in-plane angle that fits best. Places further away hold num_rotations.
    """
    device, count, radius = index.device, num_in_plane(order), np.deg2rad(radius_deg)
    poses = np.matmul(mates, pose_rotations(index.cpu().numpy(), order)[:, None])
    head = torch.from_numpy(rotation_to_head_frame(poses)).to(device)
    frames = torch.tensor(direction_frames(order), device=device)
    near = (head[..., 1] @ frames[:, :, 1].T).topk(_directions_within(order, radius_deg), dim=-1, sorted=False).indices
    # with Q = frame^T head: trace = Q_yy + (Q_xx + Q_zz) cos gamma + (Q_xz - Q_zx) sin gamma
    q = torch.matmul(frames[near].transpose(-1, -2), head[:, :, None])
    cosine, sine = q[..., 0, 0] + q[..., 2, 2], q[..., 0, 2] - q[..., 2, 0]
    reach = int(radius * count / (2 * np.pi) + 0.5 + _TOLERANCE)
    offsets = torch.arange(count) if 2 * reach + 1 >= count else torch.arange(-reach, reach + 1)
    middle = torch.round(torch.atan2(sine, cosine) * (count / (2 * np.pi))).long()
    in_plane = (middle[..., None] + offsets.to(device)) % count
    gamma = torch.tensor(in_plane_angles(order), device=device)[in_plane]
    trace = q[..., 1, 1, None] + cosine[..., None] * gamma.cos() + sine[..., None] * gamma.sin()
    inside = trace >= 1 + 2 * np.cos(radius) - _TOLERANCE
    return torch.where(inside, near[..., None] * count + in_plane, num_rotations(order)).flatten(2)


@lru_cache(maxsize=16)
def _directions_within(order: int, radius_deg: float) -> int:
    """Return a number of grid directions that no disc of this radius exceeds."""
    centres = direction_frames(order)[:, :, 1]
    reach = min(np.pi, np.deg2rad(radius_deg) + healpy.max_pixrad(2**order) + _TOLERANCE)
    counts = cKDTree(centres).query_ball_point(centres, 2 * np.sin(reach / 2) + _TOLERANCE, return_length=True)
    return int(np.max(counts))
