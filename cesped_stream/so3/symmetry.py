"""Point groups in RELION's orientation. numpy only: the service imports this without torch."""

from functools import lru_cache
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from cesped_stream.errors import InvalidSettingsError
from cesped_stream.point_group import point_group_name

Float64 = NDArray[np.float64]

_GOLDEN: Final = (1 + 5**0.5) / 2
_X: Final = (1.0, 0.0, 0.0)
_Z: Final = (0.0, 0.0, 1.0)

# Generators as (axis, order): all that RELION's orientation says about a group, checked against its program.
_GENERATORS: Final = {
    "T": ((_Z, 3), ((0.0, 2**0.5, 1.0), 2)),
    "O": ((_Z, 4), ((1.0, 1.0, 1.0), 3)),
    "I1": ((_X, 2), ((_GOLDEN, 0.0, -1.0), 5)),
    "I2": ((_Z, 2), ((1.0, 0.0, _GOLDEN), 5)),
    "I3": ((_Z, 5), ((-1.0, 0.0, _GOLDEN), 2)),
    "I4": ((_Z, 5), ((1.0, 0.0, _GOLDEN), 2)),
}
_NUM_ROTATIONS: Final = {"T": 12, "O": 24, "I1": 60, "I2": 60, "I3": 60, "I4": 60}


def group_rotations(symmetry: str) -> Float64:
    """Return the rotations `(g, 3, 3)` of a point group, identity first; ``g @ M`` is a pose that looks like M.

    `symmetry` is RELION's name: Cn, Dn, T, O, I (which is I2) or I1 to I4; n has at most three digits. The array is
    read-only. Raises InvalidSettingsError for anything else: groups with mirrors are not of proteins.
    """
    try:
        name = point_group_name(symmetry)
    except InvalidSettingsError as error:
        raise InvalidSettingsError(f"symmetry: {error}") from None
    return _closed_group("I2" if name == "I" else name)


def reduced_rotations(rotations: ArrayLike, group: Float64) -> Float64:
    """Return of each pose `(n, 3, 3)` the equivalent one, g @ M with g of `group` `(g, 3, 3)`, nearest to the identity.

    NaN poses stay NaN. Of two equally near ones the first in the group's order is taken.
    """
    poses = np.asarray(rotations, np.float64)
    traces = np.einsum("gij,nji->ng", group, poses)
    nearest = group[np.argmax(np.round(np.nan_to_num(traces), 12), axis=1)]
    return np.asarray(nearest @ poses, np.float64)


@lru_cache(maxsize=16)
def _closed_group(name: str) -> Float64:
    if name in _GENERATORS:
        group = _closure([_turn(axis, order) for axis, order in _GENERATORS[name]])
        assert len(group) == _NUM_ROTATIONS[name]
    else:
        order = int(name[1:])
        group = np.stack([_turn(_Z, order, k) for k in range(order)])
        if name[0] == "D":
            group = np.concatenate([group, group @ _turn(_X, 2)])
    group.setflags(write=False)
    return group


def _turn(axis: tuple[float, float, float], order: int, steps: int = 1) -> Float64:
    vector = np.asarray(axis) / np.linalg.norm(axis)
    return np.asarray(Rotation.from_rotvec(vector * (2 * np.pi * steps / order)).as_matrix(), np.float64)


def _closure(generators: list[Float64]) -> Float64:
    """Return all products of the generators, identity first."""
    group = [np.eye(3)]
    fresh = group
    while fresh:
        candidates = [a @ b for a, b in product(generators, fresh)]
        fresh = []
        for candidate in candidates:
            if min(np.abs(known - candidate).max() for known in group) > 1e-6:
                group.append(candidate)
                fresh.append(candidate)
    return np.stack(group)
