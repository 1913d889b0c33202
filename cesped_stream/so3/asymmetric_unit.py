"""The asymmetric unit of the SO(3) grid: one grid rotation for each set of symmetry mates. numpy only."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import healpy
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from cesped_stream.so3.distance import rotations_to_numpy
from cesped_stream.so3.grids import (
    direction_frames,
    nearest_index,
    num_in_plane,
    num_rotations,
    pose_rotations,
)
from cesped_stream.so3.symmetry import group_rotations

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

# On no axis and no mirror plane of any group: a direction and its mate are never equally far from it.
_MIDDLE = np.array([0.2718, 0.5361, 0.7991]) / np.linalg.norm([0.2718, 0.5361, 0.7991])
_SAME_DIRECTION = 1e-9
_BARE = 0.8
"""Share of a pixel's largest radius further than which no mate of the unit may be from a direction of the grid."""
_SAME_ROTATION = 1e-7


@dataclass(frozen=True, eq=False)
class AsymmetricUnit:
    """The grid rotations of one order that stand for all others under a point group.

    They lie at the directions that are nearer to a fixed one than their mates are, with all in-plane angles there; of
    rotations that are mates of each other the first stays. C2 and D2 map the grid onto itself: their units have
    exactly num_rotations / g points. Under other groups mates fall between grid points: the number is near that, and
    directions that the unit's mates would leave bare are in it too.
    """

    order: int
    symmetry: str
    points: Int64
    """`(m,)` grid indices, ascending. Read-only."""

    def __len__(self) -> int:
        return len(self.points)

    def rotations(self) -> Float64:
        """Return the pose rotations `(m, 3, 3)`."""
        return pose_rotations(self.points, self.order)

    def nearest(self, rotations: object) -> Int64:
        """Return for each pose rotation `(n, 3, 3)` the position `(n,)` in `points` that is nearest under the group."""
        poses = rotations_to_numpy(rotations)
        if len(self) == num_rotations(self.order):
            return nearest_index(poses, self.order)
        found = self._tree.query(_quaternions(poses))[1]
        return np.asarray(self._owner[found], np.int64)

    def within(self, rotations: object, radius_deg: float) -> tuple[Int64, Int64]:
        """Return (row, position) pairs, each once and in order: what lies within `radius_deg` of each pose `(n, 3, 3)`.

        A pose with nothing that near gets the nearest position: every row has at least one.
        """
        poses = rotations_to_numpy(rotations)
        # the chord between the unit quaternions of two rotations an angle t apart is 2 sin(t / 4)
        near = self._tree.query_ball_point(_quaternions(poses), 2 * np.sin(np.deg2rad(radius_deg) / 4))
        rows = np.repeat(np.arange(len(poses)), [len(found) for found in near])
        places = self._owner[np.concatenate([np.asarray(found, np.int64) for found in near])]
        rows = np.concatenate([rows, np.arange(len(poses))])
        keys = np.unique(rows * len(self) + np.concatenate([places, self.nearest(poses)]))
        return keys // len(self), keys % len(self)

    @cached_property
    def cell(self) -> Int64:
        """`(num_rotations,)`: for every rotation of the full grid the position in `points` that stands for it."""
        if len(self) == num_rotations(self.order):
            return np.arange(len(self))
        cell = self.nearest(pose_rotations(np.arange(num_rotations(self.order)), self.order))
        cell[self.points] = np.arange(len(self))
        return cell

    @cached_property
    def cell_sizes(self) -> Int64:
        """`(m,)`: how many rotations of the full grid each point stands for: g where the group keeps the grid."""
        return np.bincount(self.cell, minlength=len(self)).astype(np.int64)

    @cached_property
    def _mates(self) -> tuple[cKDTree, Int64]:
        return _tree_of_mates(self.points, self.order, self.symmetry)

    @property
    def _tree(self) -> cKDTree:
        return self._mates[0]

    @property
    def _owner(self) -> Int64:
        return self._mates[1]


@lru_cache(maxsize=16)
def asymmetric_unit(order: int, symmetry: str) -> AsymmetricUnit:
    """Return the asymmetric unit of the grid of `order` under `symmetry`; the whole grid for C1. Cached.

    Raises InvalidSettingsError for a symmetry that is no point group of rotations. The first use of `cell` or
    `nearest` under a symmetry takes a second or two at order 4.
    """
    group = group_rotations(symmetry)
    if len(group) == 1:
        points = np.arange(num_rotations(order))
    else:
        points = _points_at(_directions_of_the_unit(order, group), order)
        points = points[_first_of_mates(points, order, symmetry)]
    points.setflags(write=False)
    return AsymmetricUnit(order, symmetry, points)


def _directions_of_the_unit(order: int, group: Float64) -> Int64:
    """Return the directions nearer to the middle than their mates, and those that these and their mates leave bare."""
    directions = direction_frames(order)[:, :, 1]
    mates = np.matmul(directions, group.transpose(0, 2, 1))  # (g, directions, 3)
    inside = directions @ _MIDDLE >= (mates @ _MIDDLE).max(axis=0) - _SAME_DIRECTION
    bare_chord = 2 * np.sin(_BARE * healpy.max_pixrad(2**order) / 2)
    taken = mates[:, inside].reshape(-1, 3)
    chord = cKDTree(taken).query(directions)[0] if len(taken) else np.full(len(directions), np.inf)
    for bare in np.flatnonzero(chord > bare_chord):
        if chord[bare] > bare_chord:
            inside[bare] = True
            chord = np.minimum(chord, np.linalg.norm(directions - mates[:, bare, None], axis=2).min(axis=0))
    return np.flatnonzero(inside)


def _points_at(directions: Int64, order: int) -> Int64:
    return np.asarray((directions[:, None] * num_in_plane(order) + np.arange(num_in_plane(order))).ravel(), np.int64)


def _first_of_mates(points: Int64, order: int, symmetry: str) -> NDArray[np.bool_]:
    """Return which points have no mate before them; only directions on a symmetry axis have mates in the unit."""
    tree, owner = _tree_of_mates(points, order, symmetry)
    same = tree.query_ball_point(_quaternions(pose_rotations(points, order)), _SAME_ROTATION)
    return np.array([owner[found].min() == position for position, found in enumerate(same)])


def _tree_of_mates(points: Int64, order: int, symmetry: str) -> tuple[cKDTree, Int64]:
    """Return a tree over the quaternions, of both signs, of all mates of the points, and whose mate each one is."""
    group = group_rotations(symmetry)
    mates = np.matmul(group, pose_rotations(points, order)[:, None]).reshape(-1, 3, 3)
    quaternions = _quaternions(mates)
    owner = np.repeat(np.arange(len(points)), len(group))
    return cKDTree(np.concatenate([quaternions, -quaternions])), np.concatenate([owner, owner])


def _quaternions(rotations: Float64) -> Float64:
    return np.asarray(Rotation.from_matrix(rotations).as_quat(), np.float64)
