"""The compiled loops of the backprojection on a CPU: slices laid into a transform, a transform symmetrised.

A voxel is written by one thread only, in the order of the images: the same bits for any number of threads. Compiled
code is kept beside this file, or in the user's cache folder; where neither can be written it is compiled at each start.
"""

import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from itertools import pairwise
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Complex64 = NDArray[np.complex64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

logger = logging.getLogger(__name__)


def compiled(function: Callable[..., Any]) -> Any:
    """Return `function` compiled without the GIL, from the cache where that can be read and written.

    A cache that is torn, unreadable or on a full disk costs a compilation, not the map.
    """
    plain = numba.njit(nogil=True)(function)
    try:
        cached = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        # numba found no folder that it may write to.
        return plain

    @wraps(function)
    def call(*arguments: Any) -> Any:
        if plain.signatures:
            return plain(*arguments)
        try:
            return cached(*arguments)
        except Exception as error:  # noqa: BLE001
            # Loading and saving come before the loop runs, and pickle raises anything; a real error comes again.
            logger.warning("compiled without its cache", extra={"function": function.__name__, "error": str(error)})
            return plain(*arguments)

    return call


def weighted_slices(
    transforms: Complex64,
    terms: Float64,
    moves: Float64,
    weights: Float64,
    treated: Int64,
    rows: Int64,
    columns: Int64,
    *,
    num_threads: int,
) -> Float32:
    """Return real and imaginary numerator and denominator `(3, n, pixels)` of `rfft2` `transforms` `(n, box, half)`.

    `terms` `(7, n)` are `imaging.ctf.ctf_terms`, `moves` `(n, 2)` (x, y) move the images, in pixels. `treated` `(n,)`
    says what they carry: 0 raw, 1 phase-flipped, 2 CTF-premultiplied. `rows` and `columns` `(pixels,)` are those used.
    """
    count = len(transforms)
    values = np.empty((3, count, len(rows)), np.float32)
    edges = np.linspace(0, count, num_threads + 1).astype(int).tolist()
    parts = [slice(first, last) for first, last in pairwise(edges)]
    _in_threads(
        [(transforms[k], terms[:, k], moves[k], weights[k], treated[k], rows, columns, values[:, k]) for k in parts],
        _weigh_images,
    )
    return values


def lay_slices(
    sums: Float64, values: Float32, rotations: Float64, kx: Float64, ky: Float64, *, num_threads: int
) -> None:
    """Add slices to `sums` `(side, side, reach + 1, 3)` (z, y, x from 0; real, imaginary, denominator), trilinearly.

    `values` `(3, n, pixels)`, `rotations` `(n, 3, 3)`, `kx` and `ky` `(pixels,)` in voxels of the padded transform. A
    point with x < 0 is laid at its Hermitian mate. Every thread takes a slab of z planes.
    """
    edges = slab_edges(sums.shape[0], num_threads)
    _in_threads(
        [(sums, values, rotations, kx, ky, first, last) for first, last in pairwise(edges)],
        _lay_slab,
    )


def symmetrised(sums: Float64, rotations: Float64, *, num_threads: int) -> Float64:
    """Return the sum over `rotations` `(g, 3, 3)` of the transform at each rotated point, within the padded sphere.

    `sums` as in `lay_slices`, with its x = 0 plane complete. Trilinear, as RELION symmetrises.
    """
    out = np.zeros_like(sums)
    edges = np.linspace(0, sums.shape[0], 4 * num_threads + 1).astype(int).tolist()
    _in_threads(
        [(sums, rotations, out, first, last) for first, last in pairwise(edges)],
        _symmetrise_slab,
        num_threads,
    )
    return out


def slab_edges(side: int, count: int) -> list[int]:
    """Return the first z plane of each of `count` slabs and the end, `(count + 1,)`.

    Of slices at random views the share of points in plane z falls linearly from the centre to the poles: the slabs
    get equal shares of that.
    """
    share = np.linspace(0, 1, count + 1)
    height = np.where(share < 0.5, np.sqrt(2 * share) - 1, 1 - np.sqrt(2 * (1 - share)))
    edges: list[int] = np.round((height + 1) / 2 * side).astype(int).tolist()
    return edges


def _in_threads(calls: list[tuple[Any, ...]], function: Any, num_threads: int | None = None) -> None:
    if len(calls) == 1:
        function(*calls[0])
        return
    with ThreadPoolExecutor(num_threads or len(calls)) as threads:
        for done in [threads.submit(function, *call) for call in calls]:
            done.result()


@compiled
def _weigh_images(
    transforms: Complex64,
    terms: Float64,
    moves: Float64,
    weights: Float64,
    treated: Int64,
    rows: Int64,
    columns: Int64,
    values: Float32,
) -> None:
    box = transforms.shape[1]
    along_x = np.empty(transforms.shape[2], np.complex128)
    along_y = np.empty(box, np.complex128)
    for i in range(len(transforms)):
        for k in range(len(along_x)):
            angle = -2 * math.pi * moves[i, 0] * k / box
            along_x[k] = complex(math.cos(angle), math.sin(angle))
        for k in range(box):
            angle = -2 * math.pi * moves[i, 1] * (k if 2 * k < box else k - box) / box
            along_y[k] = complex(math.cos(angle), math.sin(angle))
        for p in range(len(rows)):
            row, column = rows[p], columns[p]
            x, y = column / box, (row if 2 * row < box else row - box) / box
            square = x * x + y * y
            phase = terms[0, i] * x * x + terms[1, i] * x * y + terms[2, i] * y * y
            transfer = terms[6, i] * math.sin(phase - terms[3, i] * square * square + terms[4, i])
            if terms[5, i] != 0:
                transfer *= math.exp(terms[5, i] * square)
            if treated[i] == 1:
                transfer = abs(transfer)
            moved = transforms[i, row, column] * along_x[column] * along_y[row]
            factor = weights[i] if treated[i] == 2 else weights[i] * transfer
            values[0, i, p] = moved.real * factor
            values[1, i, p] = moved.imag * factor
            values[2, i, p] = transfer * transfer * weights[i]


@compiled
def _lay_slab(
    sums: Float64, values: Float32, rotations: Float64, kx: Float64, ky: Float64, first: int, last: int
) -> None:
    reach = sums.shape[2] - 1
    for i in range(len(rotations)):
        xx, xy, yx, yy = rotations[i, 0, 0], rotations[i, 0, 1], rotations[i, 1, 0], rotations[i, 1, 1]
        zx, zy = rotations[i, 2, 0], rotations[i, 2, 1]
        for p in range(len(kx)):
            x = xx * kx[p] + xy * ky[p]
            sign = -1.0 if x < 0 else 1.0
            z = sign * (zx * kx[p] + zy * ky[p]) + reach
            low = int(z)
            if low + 1 < first or low >= last:
                continue
            x *= sign
            y = sign * (yx * kx[p] + yy * ky[p]) + reach
            row, column = int(y), int(x)
            up_y, up_x = y - row, x - column
            real, imaginary, weight = values[0, i, p], sign * values[1, i, p], values[2, i, p]
            for plane in range(max(low, first), min(low + 2, last)):
                share_z = z - low if plane > low else 1 - (z - low)
                for line in range(2):
                    share = share_z * (up_y if line else 1 - up_y)
                    near, far = share * (1 - up_x), share * up_x
                    sums[plane, row + line, column, 0] += near * real
                    sums[plane, row + line, column, 1] += near * imaginary
                    sums[plane, row + line, column, 2] += near * weight
                    sums[plane, row + line, column + 1, 0] += far * real
                    sums[plane, row + line, column + 1, 1] += far * imaginary
                    sums[plane, row + line, column + 1, 2] += far * weight


@compiled
def _symmetrise_slab(sums: Float64, rotations: Float64, out: Float64, first: int, last: int) -> None:
    reach = sums.shape[2] - 1
    for k in range(first, last):
        for j in range(sums.shape[1]):
            for i in range(sums.shape[2]):
                kz, ky = k - reach, j - reach
                if kz * kz + ky * ky + i * i >= reach * reach:
                    continue
                for g in range(len(rotations)):
                    r = rotations[g]
                    x = r[0, 0] * i + r[0, 1] * ky + r[0, 2] * kz
                    sign = -1.0 if x < 0 else 1.0
                    x *= sign
                    y = sign * (r[1, 0] * i + r[1, 1] * ky + r[1, 2] * kz) + reach
                    z = sign * (r[2, 0] * i + r[2, 1] * ky + r[2, 2] * kz) + reach
                    low, row, column = int(z), int(y), int(x)
                    for corner in range(8):
                        a, b, c = corner >> 2, (corner >> 1) & 1, corner & 1
                        share = (z - low if a else 1 - (z - low)) * (y - row if b else 1 - (y - row))
                        share *= x - column if c else 1 - (x - column)
                        if share > 0:
                            out[k, j, i, 0] += share * sums[low + a, row + b, column + c, 0]
                            out[k, j, i, 1] += sign * share * sums[low + a, row + b, column + c, 1]
                            out[k, j, i, 2] += share * sums[low + a, row + b, column + c, 2]
