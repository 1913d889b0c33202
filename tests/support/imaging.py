"""CTF parameters, small maps and images for the imaging tests."""

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from cesped_stream.imaging.simulate import random_rotations
from cesped_stream.particles.table import CtfParameters

__all__ = ["blobs", "ctf_parameters", "random_rotations"]


def ctf_parameters(
    count: int,
    *,
    pixel_size: ArrayLike = 2.0,
    defocus: float | None = None,
    voltage_kv: ArrayLike = 300.0,
    phase_shift_deg: float = 0.0,
    amplitude_contrast: float = 0.1,
    bfactor_angstrom2: float = 0.0,
    scale: float = 1.0,
    seed: int = 0,
) -> CtfParameters:
    """Return astigmatic CTFs; `defocus` fixes their mean."""
    rng = np.random.default_rng(seed)
    mean = rng.uniform(8000, 20000, count) if defocus is None else np.full(count, defocus)
    half = rng.uniform(0, 500, count)

    def each(value: ArrayLike) -> np.ndarray:
        return np.broadcast_to(np.asarray(value, np.float64), (count,)).copy()

    return CtfParameters(
        defocus_u_angstrom=mean + half,
        defocus_v_angstrom=mean - half,
        defocus_angle_deg=rng.uniform(0, 180, count),
        phase_shift_deg=each(phase_shift_deg),
        voltage_kv=each(voltage_kv),
        spherical_aberration_mm=each(2.7),
        amplitude_contrast=each(amplitude_contrast),
        bfactor_angstrom2=each(bfactor_angstrom2),
        scale=each(scale),
        pixel_size_angstrom=each(pixel_size),
        premultiplied=np.zeros(count, bool),
        phase_flipped=np.zeros(count, bool),
    )


@lru_cache(maxsize=4)
def blobs(box: int, *, seed: int = 0) -> np.ndarray:
    """Return an asymmetric map `(box, box, box)` of smooth blobs well inside the box."""
    rng = np.random.default_rng(seed)
    axis = np.arange(box) - box // 2
    volume = np.zeros((box,) * 3)
    for centre, mass in zip(rng.uniform(-box / 5, box / 5, (12, 3)), rng.uniform(1, 3, 12), strict=True):
        z, y, x = (np.exp(-((axis - c) ** 2) / (2 * 1.6**2)) for c in centre)
        volume += mass * z[:, None, None] * y[:, None] * x
    return volume.astype(np.float32)
