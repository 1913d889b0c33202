"""RELION's conventions, written once: the only module that knows two frames at a time.

A pose is ``rotation`` (3, 3) and ``shift_angstrom`` (2,). ``rotation`` left-multiplies image xyz and gives map xyz;
the view axis is its last column. RELION's own matrix is the transpose. Angles are RELION's rot, tilt, psi in degrees
(intrinsic Z-Y-Z, pole on z). e3nn's frame has Y-X-Y angles in radians and its pole on y.
"""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

Float64 = NDArray[np.float64]

HALVES: Final = (0, 1)
"""The half-sets, as the paper counts them; RELION's rlnRandomSubset says 1 and 2."""
SUBSET_LABEL: Final = "rlnRandomSubset"

ANGLE_LABELS: Final = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
SHIFT_LABELS: Final = ("rlnOriginXAngst", "rlnOriginYAngst")
POSE_LABELS: Final = (*ANGLE_LABELS, *SHIFT_LABELS)
UNSET_ANGLES_DEG: Final = (-999.0, 999.0)

_IMAGE_TO_HEAD: Final = Rotation.from_euler("X", -90, degrees=True).as_matrix()


def euler_deg_to_rotation(rot_deg: ArrayLike, tilt_deg: ArrayLike, psi_deg: ArrayLike) -> Float64:
    """Return rotations `(n, 3, 3)` that left-multiply image xyz and give map xyz, from RELION angles `(n,)`."""
    angles = np.stack(np.broadcast_arrays(*(np.asarray(a, np.float64) for a in (rot_deg, tilt_deg, psi_deg))), -1)
    return np.asarray(Rotation.from_euler("ZYZ", angles.reshape(-1, 3), degrees=True).as_matrix(), np.float64)


def rotation_to_euler_deg(rotation: ArrayLike) -> Float64:
    """Return RELION angles `(n, 3)`: rot and psi in (-180, 180], tilt in [0, 180]. At the poles psi is 0 (gimbal)."""
    m = np.asarray(rotation, np.float64).reshape(-1, 3, 3)
    sin_tilt = np.hypot(m[:, 0, 2], m[:, 1, 2])
    tilt = np.arctan2(sin_tilt, m[:, 2, 2])
    pole = sin_tilt < 1e-9
    rot = np.where(pole, np.arctan2(-m[:, 0, 1], m[:, 1, 1]), np.arctan2(m[:, 1, 2], m[:, 0, 2]))
    psi = np.where(pole, 0.0, np.arctan2(m[:, 2, 1], -m[:, 2, 0]))
    angles = np.rad2deg(np.stack([rot, tilt, psi], axis=-1))
    angles[:, [0, 2]] = -(((-angles[:, [0, 2]]) + 180.0) % 360.0 - 180.0)
    return np.asarray(angles + 0.0, np.float64)


def rotation_to_head_frame(rotation: ArrayLike) -> Float64:
    """Return `(n, 3, 3)` targets of the Image2Sphere head, whose in-plane axis is e3nn's y: ``rotation @ Rx(-90)``.

    With these targets the head is exactly equivariant to in-plane rotations of the image by 90 degrees.
    """
    return np.asarray(np.asarray(rotation, np.float64) @ _IMAGE_TO_HEAD, np.float64)


def head_frame_to_rotation(target: ArrayLike) -> Float64:
    """Return pose rotations `(n, 3, 3)` from head-frame rotations; the inverse of `rotation_to_head_frame`."""
    return np.asarray(np.asarray(target, np.float64) @ _IMAGE_TO_HEAD.T, np.float64)


def half_set_to_random_subset(half_set: int) -> int:
    """Return RELION's rlnRandomSubset (1 or 2) of a half-set (0 or 1)."""
    return half_set + 1


def random_subset_to_half_set(random_subset: int) -> int:
    """Return the half-set (0 or 1) of RELION's rlnRandomSubset (1 or 2); anything else is a ValueError."""
    if random_subset not in (1, 2):
        raise ValueError(f"rlnRandomSubset is {random_subset}; RELION knows 1 and 2")
    return random_subset - 1


def electron_wavelength_angstrom(voltage_kv: ArrayLike) -> Float64:
    """Return the relativistic electron wavelength, as RELION computes it."""
    volt = np.asarray(voltage_kv, np.float64) * 1e3
    return np.asarray(12.2643247 / np.sqrt(volt * (1.0 + volt * 0.978466e-6)), np.float64)
