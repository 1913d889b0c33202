"""How much likelier an image shows a particle of the reference at a pose than something else, or nothing."""

import numpy as np
import torch
from numpy.typing import NDArray

from cesped_stream.imaging.band import BandImages
from cesped_stream.imaging.noise_model import NoiseModel, expected_levels
from cesped_stream.imaging.shift_prior import ShiftPrior

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


def particle_scores(
    log_likelihood: Float64,
    shifts_angstrom: Float64,
    images: BandImages,
    noise: NoiseModel,
    rows: Int64,
    shift_prior: ShiftPrior | None,
) -> Float64:
    """Return the log-likelihood ratio `(n,)` of a particle at a pose and of an image without one.

    `log_likelihood` `(n,)` is that of the pose over the noise of the model; the shift `(n, 2)` adds the logarithm of
    its density over an even one's, where there is a prior. What an image without a particle holds is not known: its
    power in each shell may be any from the model's noise upwards, so `power_log_likelihood` is taken off. Ice, whose
    power no pose explains, falls far below 0.
    """
    placed = 0.0 if shift_prior is None else shift_prior.log_density_at(shifts_angstrom) - shift_prior.even_log_density
    return np.asarray(log_likelihood + placed - power_log_likelihood(images, noise, rows), np.float64)


def power_log_likelihood(images: BandImages, noise: NoiseModel, rows: Int64) -> Float64:
    """Return how much likelier each image `(n,)` is as noise of its own power than as the model's noise, at least 0.

    In a shell of m coefficients whose mean power is s times the model's, s > 1, that is m (s - 1 - ln s). `rows` `(n,)`
    are the images' rows in `noise`.
    """
    variance, _ = expected_levels(images, noise, rows)
    expected = variance * torch.where(images.premultiplied[:, None], images.ctf_square, 1.0)
    order = np.argsort(images.band.shells, kind="stable")
    starts = np.flatnonzero(np.diff(images.band.shells[order], prepend=-1))
    power, sums, squares = (
        np.add.reduceat(part.double().cpu().numpy()[:, order], starts, axis=1)
        for part in (images.power, expected, expected.square())
    )
    count = sums**2 / squares.clip(1e-300) * images.information.double().cpu().numpy()[:, None]
    ratio = np.maximum(power / sums.clip(1e-300), 1.0)
    return np.asarray((count * (ratio - 1 - np.log(ratio))).sum(1), np.float64)
