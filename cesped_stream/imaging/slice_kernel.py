"""Central slices on a CPU: the trilinear gather of `MapProjector`, compiled.

Imported where it is used: numba is slow to import.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from numba import njit
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Complex64 = NDArray[np.complex64]


def gather_slices(transform: Complex64, axes: Float32, kx: Float32, ky: Float32, *, num_threads: int = 1) -> Complex64:
    """Return `(n, m)` samples of a half transform `(2 r + 1, 2 r + 1, r + 1)` (z, y, x >= 0) at kx and ky along `axes`.

    `axes` `(n, 3, 2)` are the first two columns of image-to-map rotations times the padding; all samples must lie
    within the radius r - 1. The same bits for any number of threads: a slice is one thread's.
    """
    out = np.empty((len(axes), len(kx)), np.complex64)
    values, samples = (_real_pairs(array) for array in (transform, out))
    if num_threads == 1 or len(axes) < 2 * num_threads:
        _gather(values, axes, kx, ky, samples)
        return out
    bounds = np.linspace(0, len(axes), num_threads + 1).astype(int)
    with ThreadPoolExecutor(num_threads) as pool:
        parts = [slice(low, high) for low, high in pairwise(bounds)]
        list(pool.map(lambda part: _gather(values, axes[part], kx, ky, samples[part]), parts))
    return out


def _real_pairs(array: Complex64) -> Float32:
    return np.ascontiguousarray(array).view(np.float32).reshape(*array.shape, 2)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _gather(values: Float32, axes: Float32, kx: Float32, ky: Float32, samples: Float32) -> None:
    reach = values.shape[2] - 1
    one = np.float32(1)
    for i in range(axes.shape[0]):
        for k in range(kx.shape[0]):
            x = axes[i, 0, 0] * kx[k] + axes[i, 0, 1] * ky[k]
            y = axes[i, 1, 0] * kx[k] + axes[i, 1, 1] * ky[k]
            z = axes[i, 2, 0] * kx[k] + axes[i, 2, 1] * ky[k]
            sign = one
            if x < 0:  # the other half of the transform: its conjugate
                x, y, z, sign = -x, -y, -z, -one
            floor_y, floor_z = np.floor(y), np.floor(z)
            low_x, low_y, low_z = int(x), int(floor_y) + reach, int(floor_z) + reach
            up_x, up_y, up_z = np.float32(x - low_x), np.float32(y - floor_y), np.float32(z - floor_z)
            real, imaginary = np.float32(0), np.float32(0)
            for step_z in range(2):
                share_z = up_z if step_z else one - up_z
                for step_y in range(2):
                    share = share_z * (up_y if step_y else one - up_y)
                    low, high = share * (one - up_x), share * up_x
                    row_z, row_y = low_z + step_z, low_y + step_y
                    real += values[row_z, row_y, low_x, 0] * low + values[row_z, row_y, low_x + 1, 0] * high
                    imaginary += values[row_z, row_y, low_x, 1] * low + values[row_z, row_y, low_x + 1, 1] * high
            samples[i, k, 0] = real
            samples[i, k, 1] = imaginary * sign
