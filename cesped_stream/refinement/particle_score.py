"""How much likelier an image shows a particle of the reference at a pose than something else, or nothing."""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cesped_stream.imaging.band import Band, BandImages, exact_product
from cesped_stream.imaging.noise_model import NoiseModel, expected_levels
from cesped_stream.imaging.shift_prior import ShiftPrior

AMPLITUDE_ERROR: Final = 0.15
"""Root mean square by which a particle's coefficients differ from the reference's, over their size: contrast differs
among images, and no reference is exact."""
POSE_ERRORS_PER_LIMIT: Final = 5.34
"""The band's limit over the displacement that the error of a pose leaves: half of the finest coefficient is then
lost."""

Float32 = NDArray[np.float32]
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

    `log_likelihood` `(n,)` is that of the pose over the noise of the model (`pose_log_likelihoods`); the shift `(n, 2)`
    adds the logarithm of its density over an even one's, where there is a prior. What an image without a particle holds
    is not known: its power in each shell may be any from the model's noise upwards, so `power_log_likelihood` is taken
    off. Ice, whose power no pose explains, falls far below 0. Of noise, whatever its power and the CTF, a pose given
    beforehand scores above t with a probability of at most exp(-t), since both sides are likelihoods of one image.
    """
    placed = 0.0 if shift_prior is None else shift_prior.log_density_at(shifts_angstrom) - shift_prior.even_log_density
    return np.asarray(log_likelihood + placed - power_log_likelihood(images, noise, rows), np.float64)


def pose_log_likelihoods(
    slices: Tensor,
    mean_power: Tensor,
    shifts_angstrom: Float64,
    images: BandImages,
    noise: NoiseModel,
    rows: Int64,
) -> Float64:
    """Return how much likelier each image `(n,)` is as a particle at its pose than as the model's noise.

    `slices` `(n, m)` complex64 are the reference's coefficients S at the rotations, about its centre, `mean_power`
    `(m,)` the mean of |S|^2 over views, `shifts_angstrom` `(n, 2)` what centres the images. The particle is the
    reference but for an error of variance u |S|^2 (`unsure_share`): y = a C S + noise of variance + a^2 C^2 u |S|^2.
    Where the CTF lets through many times the noise, a small error would else cost more than the particle gains.
    Each row's bits are its own.
    """
    variance, scale = expected_levels(images, noise, rows)
    unsure = scale.square() / variance * (mean_power * unsure_share(images.band).to(mean_power.device))
    centring = images.band.shift_phases(torch.from_numpy(shifts_angstrom).to(images.matched.device))
    real, imaginary = exact_product(images.matched, centring)
    cross = slices.real * real + slices.imag * imaginary
    norm = images.ctf_square * (slices.real.square() + slices.imag.square())
    own_power = images.power * torch.where(images.premultiplied[:, None], 1.0, images.ctf_square)  # C^2 |y|^2
    excess = images.ctf_square * unsure
    gain = 2 * scale * cross - scale.square() * norm + unsure * own_power
    ratio = (gain / (variance * (1 + excess)) - torch.log1p(excess)) * images.information[:, None]
    return np.asarray(ratio.double().cpu().numpy().sum(1), np.float64)


def expected_gains(mean_power: Tensor, images: BandImages, noise: NoiseModel, rows: Int64) -> Float64:
    """Return what each image `(n,)` tells of a particle of scale 1: the sum of C^2 |S|^2 over the noise's variance.

    With a scale a, a^2 times that is what a right pose gains over noise on average, and noise loses at a pose.
    """
    variance, _ = expected_levels(images, noise, rows)
    terms = images.ctf_square * mean_power / variance * images.information[:, None]
    return np.asarray(terms.double().cpu().numpy().sum(1), np.float64)


def unsure_share(band: Band) -> Tensor:
    """Return the variance u `(m,)` float32 of a particle's coefficients about the reference's, over their mean square.

    Amplitudes are off by `AMPLITUDE_ERROR`, and a pose's own error moves density (`POSE_ERRORS_PER_LIMIT`).
    """
    displacement = band.limit_angstrom / POSE_ERRORS_PER_LIMIT
    kept = np.exp(-4 * np.pi**2 * (band.frequencies_per_angstrom**2).sum(1) * displacement**2)
    return torch.from_numpy((AMPLITUDE_ERROR**2 + 1 - kept).astype(np.float32))


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
