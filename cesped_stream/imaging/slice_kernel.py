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
    if num_threads == 1 or len(axes) < 2 * num_threads:
        _gather(transform, axes, kx, ky, out)
        return out
    bounds = np.linspace(0, len(axes), num_threads + 1).astype(int)
    with ThreadPoolExecutor(num_threads) as pool:
        parts = [slice(low, high) for low, high in pairwise(bounds)]
        list(pool.map(lambda part: _gather(transform, axes[part], kx, ky, out[part]), parts))
    return out


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _gather(transform: Complex64, axes: Float32, kx: Float32, ky: Float32, out: Complex64) -> None:
    reach = transform.shape[2] - 1
    one = np.float32(1)
    for i in range(axes.shape[0]):
        for k in range(kx.shape[0]):
            x = axes[i, 0, 0] * kx[k] + axes[i, 0, 1] * ky[k]
            y = axes[i, 1, 0] * kx[k] + axes[i, 1, 1] * ky[k]
            z = axes[i, 2, 0] * kx[k] + axes[i, 2, 1] * ky[k]
            mirrored = x < 0
            if mirrored:
                x, y, z = -x, -y, -z
            low_x, low_y, low_z = int(x), int(np.floor(y)), int(np.floor(z))
            up_x, up_y, up_z = np.float32(x - low_x), np.float32(y - low_y), np.float32(z - low_z)
            row_y, row_z = low_y + reach, low_z + reach
            value = np.complex64(0)
            for step_z in range(2):
                share_z = up_z if step_z else one - up_z
                for step_y in range(2):
                    share = share_z * (up_y if step_y else one - up_y)
                    row = transform[row_z + step_z, row_y + step_y]
                    value += row[low_x] * (share * (one - up_x)) + row[low_x + 1] * (share * up_x)
            out[i, k] = np.conj(value) if mirrored else value
