"""The noise of images by optics group: a spectrum and the scale of the signal, from residuals."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cesped_stream.errors import PermanentError
from cesped_stream.imaging.band import Band, BandImages
from cesped_stream.particles.table import OpticsGroup, ParticleTable

ROUNDS = 3
LEAST_COEFFICIENTS = 20
PRIOR_ROWS = 10
"""Each group is fitted together with as many average images: alone, one wrong row's scale is 0, and no view tells."""
LEAST_VARIANCE = 1e-6
LEAST_OWN_SCALE = 0.1
"""Of the groups' mean scale: the least that an image of an unseen group can be given."""

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_NUMBERS = ("rlnImagePixelSize", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")


def optics_key(group: OpticsGroup) -> str:
    """Return what makes two optics groups of different stars the same: name, microscope and what the images carry."""
    numbers = (f"{group.number(label, 0.0):g}" for label in _NUMBERS)
    return " ".join([group.name, *numbers, str(group.ctf_premultiplied), str(group.phase_flipped)])


@dataclass(frozen=True)
class NoiseScores:
    """What images of nothing but noise reach: mean and spread of their particle scores."""

    mean: float
    std: float
    hardest: bool = False
    """Measured for a signal so strong that noise reaches most, which holds for every CTF. False in references that were
    published before 2026-12: theirs is for the signal and the CTFs of their aligned rows, and tells nothing of others.
    """

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values; of a reference published before 2026-12 those that it had."""
        values = {"mean": self.mean, "std": self.std}
        return {**values, "hardest": True} if self.hardest else values

    def above(self, score: Float64) -> Float64:
        """Return how far particle scores `(n,)` stand above what noise reaches, in standard deviations.

        Noise goes t beyond it with a probability of about exp(-t), a normal deviate z beyond 0 with exp(-z^2 / 2): so
        t is sqrt(2 t) standard deviations, and as many below 0 where the score falls short of it by t.
        """
        beyond = score - (self.mean + self.std)
        return np.asarray(np.sign(beyond) * np.sqrt(2 * np.abs(beyond)), np.float64)


@dataclass(frozen=True, eq=False)
class NoiseModel:
    """Of each optics group the noise variance by frequency and a, the scale of the reference in its images."""

    keys: tuple[str, ...]
    """`optics_key` of each group."""
    frequencies_per_angstrom: Float64
    """`(s,)`, ascending."""
    variance: Float64
    """`(groups + 1, s)` of coefficients (`BandImages`); the last row is the mean of the groups."""
    scale: Float64
    """`(groups + 1,)`."""
    signal_power: Float64 | None = None
    """`(s,)`: mean |S|^2 of the reference's views. Without it, images of unseen groups get the mean scale."""

    def rows_of(self, table: ParticleTable) -> Int64:
        """Return each particle's row in `variance` `(n,)`; groups that were not seen get the last, the mean.

        Their images' levels of noise and signal are then their own (`own_levels`).
        """
        place = {key: row for row, key in enumerate(self.keys)}
        rows = [place.get(optics_key(group), len(self.keys)) for group in table.optics]
        return np.array(rows, np.int64)[table.optics_index]

    def variance_in(self, band: Band) -> Tensor:
        """Return `(groups + 1, m)` float32, linear between frequencies and constant beyond the first and last."""
        return self._in(band, self.variance)

    def signal_power_in(self, band: Band) -> Tensor | None:
        """Return the reference's mean power `(m,)` float32, or None where it is not known."""
        return None if self.signal_power is None else self._in(band, self.signal_power[None])[0]

    def _in(self, band: Band, rows: Float64) -> Tensor:
        at = np.hypot(*band.frequencies_per_angstrom.T)
        values = [np.interp(at, self.frequencies_per_angstrom, row) for row in rows]
        return torch.from_numpy(np.stack(values).astype(np.float32))

    def to_json(self) -> dict[str, Any]:
        """Return the model as plain values."""
        return {
            "keys": list(self.keys),
            "frequencies_per_angstrom": self.frequencies_per_angstrom.tolist(),
            "variance": self.variance.tolist(),
            "scale": self.scale.tolist(),
            "signal_power": None if self.signal_power is None else self.signal_power.tolist(),
        }

    @staticmethod
    def from_json(values: dict[str, Any]) -> "NoiseModel":
        """Return the model of `to_json`; PermanentError where it is none."""
        try:
            arrays = (np.array(values[name], np.float64) for name in ("frequencies_per_angstrom", "variance", "scale"))
            frequencies, variance, scale = arrays
            keys = tuple(str(key) for key in values["keys"])
            power = values.get("signal_power")
            signal = None if power is None else np.array(power, np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise PermanentError(f"noise model: {error!r}; write it again") from error
        if variance.shape != (len(keys) + 1, len(frequencies)) or scale.shape != (len(keys) + 1,):
            raise PermanentError(f"noise model: {len(keys)} groups, variance {variance.shape}; write it again")
        if signal is not None and signal.shape != frequencies.shape:
            raise PermanentError(f"noise model: signal power {signal.shape}, {len(frequencies)} shells; write it again")
        return NoiseModel(keys, frequencies, variance, scale, signal)


def fit_noise(images: BandImages, centred_slices: Tensor, groups: Int64, keys: Sequence[str]) -> NoiseModel:
    """Return the noise model of images whose poses are known or predicted, by maximum likelihood.

    `centred_slices` `(n, m)` complex64 are the reference's coefficients at each image's pose, moved to where the
    particle stands in the image. `groups` `(n,)` index `keys`. Variances are those of the residual y - a C S, not of
    the corners, which hold neighbours. Few coefficients in a shell share with their neighbours (`LEAST_COEFFICIENTS`).
    A group of few images leans on all of them: the sums of `PRIOR_ROWS` average ones are added to its own.
    PermanentError for a group of none.
    """
    shells = torch.from_numpy(images.band.shells)
    count = int(shells.max()) + 1
    linear = (images.matched.conj() * centred_slices).real.cpu()
    square = (centred_slices.real.square() + centred_slices.imag.square()).cpu()
    norm, weight = square * images.ctf_square.cpu(), _residual_weight(images).cpu()
    power = images.power.cpu()
    parts = (power, weight * linear, weight * norm, weight, linear, norm)
    rows_of = [torch.from_numpy(np.flatnonzero(groups == group)) for group in range(len(keys))]
    if none := [key for key, rows in zip(keys, rows_of, strict=True) if not len(rows)]:
        raise PermanentError(f"optics group {none[0]!r}: no image to fit the noise on; leave the group out")

    def shell_sums(rows: Tensor) -> Float64:
        by_shell = torch.zeros(len(parts), count, dtype=torch.float64)
        for number, values in enumerate(parts):
            by_shell[number].index_add_(0, shells, values[rows].sum(0, dtype=torch.float64))
        return by_shell[:, 1:].numpy()

    own = [shell_sums(rows) for rows in rows_of]
    prior = np.sum(own, 0) * (PRIOR_ROWS / len(square))
    fitted = [_maximum_likelihood(sums + prior) for sums in own]
    variance, scale = np.stack([part[0] for part in fitted]), np.array([part[1] for part in fitted])
    variance = np.concatenate([variance, np.exp(np.log(variance).mean(0))[None]])
    scale = np.append(scale, scale.mean())
    per_shell = torch.bincount(shells, minlength=count)[1:].clamp(min=1) * len(square)
    signal = torch.zeros(count, dtype=torch.float64).index_add_(0, shells, square.sum(0, dtype=torch.float64))[1:]
    frequencies = np.arange(1, count) / images.band.extent_angstrom
    return NoiseModel(tuple(keys), frequencies, variance, scale, (signal / per_shell).numpy())


def _residual_weight(images: BandImages) -> Tensor:
    """What a coefficient's residual is multiplied by in `power`: 1, of premultiplied images C^2."""
    return torch.where(images.premultiplied[:, None], images.ctf_square, 1.0)


def _maximum_likelihood(sums: Float64) -> tuple[Float64, float]:
    """Variance `(shells,)` and scale from sums `(6, shells)`: power, u Re(y* C S), u |C S|^2, u, the same without u."""
    power, weighted_linear, weighted_norm, weight, linear, norm = sums
    scale = 0.0
    for _ in range(ROUNDS):
        residual = power - 2 * scale * weighted_linear + scale**2 * weighted_norm
        variance = _pooled(residual, weight).clip(LEAST_VARIANCE)
        scale = float((linear / variance).sum() / max((norm / variance).sum(), 1e-30))
        scale = max(scale, 0.0)
    return variance, scale


def _pooled(residual: Float64, weight: Float64) -> Float64:
    """Residual over weight, a shell of too little weight together with its neighbours."""
    values = np.empty_like(residual)
    for shell in range(len(residual)):
        low, high = shell, shell + 1
        while weight[low:high].sum() < LEAST_COEFFICIENTS and high - low < len(residual):
            low, high = max(0, low - 1), min(len(residual), high + 1)
        values[shell] = residual[low:high].sum() / max(weight[low:high].sum(), 1e-30)
    return values


def noise_images(like: BandImages, noise: NoiseModel, rows: Int64, *, seed: int = 0) -> BandImages:
    """Return images of nothing but noise with the model's spectrum and the CTFs of `like`; `seed` fixes them.

    `rows` `(n,)` are the images' rows in `noise`.
    """
    generator, device = torch.Generator().manual_seed(seed), like.matched.device
    white = torch.view_as_complex(torch.randn((*like.matched.shape, 2), generator=generator) / 2**0.5).to(device)
    coefficients = white * noise.variance_in(like.band).to(device)[torch.from_numpy(rows).to(device)].sqrt()
    power = coefficients.real.square() + coefficients.imag.square()
    power *= torch.where(like.premultiplied[:, None], like.ctf_square, 1.0)
    return replace(like, matched=coefficients * like.ctf_square.sqrt(), power=power)


def whitened_weights(images: BandImages, noise: NoiseModel, rows: Int64) -> tuple[Tensor, Tensor]:
    """Return 2 a / variance and a^2 / variance, both `(n, m)` float32 times `information`, of images in groups `rows`.

    log p = sum (first Re[(C y)* S]) - sum (second C^2 |S|^2), up to a constant of the image.
    """
    variance, scale = expected_levels(images, noise, rows)
    precision = images.information[:, None] / variance
    return 2 * scale * precision, scale.square() * precision


def expected_levels(images: BandImages, noise: NoiseModel, rows: Int64) -> tuple[Tensor, Tensor]:
    """Return the noise's variance `(n, m)` and the scale a `(n, 1)` of images in groups `rows`.

    Those of unseen groups are by each image's own levels (`own_levels`).
    """
    device = images.matched.device
    index = torch.from_numpy(rows).to(device)
    variance = noise.variance_in(images.band).to(device)[index]
    scale = torch.from_numpy(noise.scale.astype(np.float32)).to(device)[index, None]
    signal = noise.signal_power_in(images.band)
    if signal is not None and (rows == len(noise.keys)).any():
        level, own_scale = own_levels(images, variance, signal.to(device), scale)
        unseen = (index == len(noise.keys))[:, None]
        variance, scale = torch.where(unseen, variance * level, variance), torch.where(unseen, own_scale, scale)
    return variance, scale


def own_levels(images: BandImages, variance: Tensor, signal_power: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each image's own power says: factor of `variance` `(n, m)`, and a instead of `scale`, both `(n, 1)`.

    |y|^2 / variance is regressed on C^2 |S|^2 / variance with the mean |S|^2 of all views, `signal_power` `(m,)`:
    the intercept is the noise's level, the slope a^2. Coefficients count by the spread that their power has (it is
    exponential); `scale` is a prior, of a^2 with a spread as large as itself. Nothing but the image enters.
    """
    weight = _residual_weight(images)
    signal = images.ctf_square * signal_power / variance
    power = images.power / variance
    usual = scale.square()
    level, slope = torch.ones_like(usual), usual
    for _ in range(ROUNDS):
        count = images.information[:, None] * weight / (level + slope * signal).square()
        seen = images.information[:, None] * power / (level + slope * signal).square()
        total = count.sum(1, keepdim=True).clamp(min=1e-20)
        mean_signal, mean_power = ((part.sum(1, keepdim=True) / total) for part in (count * signal, seen))
        spread = (count * (signal - mean_signal).square()).sum(1, keepdim=True)
        covariance = (seen * (signal - mean_signal)).sum(1, keepdim=True)
        slope = (covariance + 1 / usual) / (spread + 1 / usual.square())
        slope = torch.maximum(slope, LEAST_OWN_SCALE**2 * usual)
        level = (mean_power - slope * mean_signal).clamp(min=LEAST_OWN_SCALE)
    return level, slope.sqrt()
