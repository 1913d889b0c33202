"""Which aligned rows agree with the others: a map of other rows explains their image, at their pose, better than noise.

Junk and wrong poses among aligned rows blur a map, and they raise the noise that is fitted at their poses.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cesped_stream.imaging.band import Band, centred_slices
from cesped_stream.imaging.band_rows import read_band_images
from cesped_stream.imaging.noise_model import NoiseModel, whitened_weights
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.table import ParticleTable

ROWS_AT_ONCE: Final = 512
_ROUNDS: Final = 50
_LEAST_SHARE: Final = 1e-6

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


def log_likelihoods(
    table: ParticleTable,
    part: Int64,
    maps: Sequence[Float32],
    pixel_size_angstrom: float,
    limit_angstrom: float,
    noise: NoiseModel,
    reader: StackReader,
    *,
    background_radius_angstrom: float = 0.0,
    device: str = "cpu",
) -> Float64:
    """Return how much likelier each row's image is `(n,)`, as a logarithm, at its pose than as noise alone.

    Row k is compared with `maps[1 - part[k]]`, the one that it is not in, up to `limit_angstrom`. Its image must be
    usable. Memory: `ROWS_AT_ONCE` images' coefficients. Raises what reading raises.
    """
    band = Band(maps[0].shape[0] * pixel_size_angstrom, limit_angstrom)
    found = np.zeros(len(table))
    groups = noise.rows_of(table)
    for number, volume in enumerate(maps):
        projector = MapProjector(volume, pixel_size_angstrom, device=device)
        mine = np.flatnonzero(part != number)
        for start in range(0, len(mine), ROWS_AT_ONCE):
            rows = mine[start : start + ROWS_AT_ONCE]
            picked = table.select(rows)
            read = read_band_images(
                picked, [band], reader, background_radius_angstrom=background_radius_angstrom, device=device
            )
            assert len(read.index) == len(picked), "rows of a reference are usable"
            images = read.images[0]
            slices = centred_slices(projector, band, picked.rotations(), picked.shifts_angstrom())
            linear, square = whitened_weights(images, noise, groups[rows])
            power = slices.real.square() + slices.imag.square()
            score = linear * (images.matched.conj() * slices).real - square * images.ctf_square * power
            found[rows] = score.double().sum(1).cpu().numpy()
    return found


def agreeing(log_likelihood: Float64) -> NDArray[np.bool_]:
    """Return which rows `(n,)` are likelier particles at their poses than noise, given how many of all are.

    The share of the others is the one that makes all images likeliest (expectation maximisation): where every row
    agrees it falls to nothing, and no row is left out for a likelihood that noise lowered by chance.
    """
    share = 0.5
    for _ in range(_ROUNDS):
        odds = np.clip(log_likelihood + np.log((1 - share) / share), -500, 500)
        share = float(np.clip((1 / (1 + np.exp(odds))).mean(), _LEAST_SHARE, 1 - _LEAST_SHARE))
    return np.asarray(log_likelihood + np.log((1 - share) / share) >= 0, np.bool_)
