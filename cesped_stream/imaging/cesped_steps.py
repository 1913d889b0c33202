"""The preprocessing of the public `cesped` package (25.12.0), so that its items and published numbers can be had again.

Measured against the package's own output; what differs from this project's steps is in the decision page
2026-11-24-cesped-items.
"""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from cesped_stream.conventions import electron_wavelength_angstrom
from cesped_stream.imaging.ctf_correction import correct_ctf
from cesped_stream.particles.table import CtfParameters, Float64
from cesped_stream.settings import CtfCorrection


class CespedSteps:
    """Normalise, correct the CTF, resize bilinearly, cut to `image_size`, as `cesped` does it.

    Its steps are kept where they are a matter of taste: the background is outside the circle of N - 1 pixels about
    (N - 1) / 2 with the unbiased std; an image whose phases were flipped is clipped to the range it had before
    (with `exact` every corrected one is); the resize is
    bilinear without an anti-alias filter, so the particle's origin, pixel N // 2 before, is not at S // 2 after (see
    `origin_pixel`). Corrected is what is wrong: the astigmatism's axis, phase shift and flags of the data, every
    particle's own optics group, one pixel size for all groups. `exact` keeps those faults too.
    """

    def __init__(
        self,
        image_size: int,
        pixel_size_angstrom: float,
        *,
        normalise: bool,
        ctf_correction: CtfCorrection,
        wiener_regulariser: float = 0.1,
        exact: bool = False,
    ) -> None:
        """`pixel_size_angstrom` is the output's. ValueError unless it and `image_size` are positive."""
        if not pixel_size_angstrom > 0 or image_size < 1:
            raise ValueError(f"{image_size} pixels of {pixel_size_angstrom} A; both must be positive")
        self.image_size = image_size
        self.pixel_size_angstrom = pixel_size_angstrom
        self._normalise = normalise
        self._correction: CtfCorrection = ctf_correction
        self._regulariser = wiener_regulariser
        self._exact = exact

    def __call__(self, images: Tensor, ctf: CtfParameters) -> Tensor:
        """Return `(n, 1, image_size, image_size)` float32 of raw images `(n, box, box)` of one box size.

        A constant image has no std and gives NaN, as NaN pixels do; tell them apart with `image_flags` first.
        """
        outputs = torch.zeros(len(images), 1, self.image_size, self.image_size, device=images.device)
        images = images.float()
        if self._normalise:
            images = _normalised(images)
        images = self._corrected(images, ctf)
        for pixel_size in np.unique(ctf.pixel_size_angstrom).tolist():
            index = torch.from_numpy(np.flatnonzero(ctf.pixel_size_angstrom == pixel_size)).to(images.device)
            outputs[index] = self._resized(images[index], pixel_size)
        return outputs

    def origin_pixel(self, box_size: int, pixel_size_angstrom: Float64) -> Float64:
        """Return where the acquired images' pixel box_size // 2 is afterwards, in pixels from 0, `(n,)`, x and y alike.

        Equal to image_size // 2 only without a change of pixel size, and where both sides are even.
        """
        scale = np.asarray(pixel_size_angstrom, np.float64) / self.pixel_size_angstrom
        start = (np.floor(box_size * scale) - self.image_size) // 2
        short = np.floor(box_size * scale) < self.image_size
        start = np.where(short, -((self.image_size - np.floor(box_size * scale)) // 2), start)
        return np.asarray((box_size // 2 + 0.5) * scale - 0.5 - start, np.float64)

    def _corrected(self, images: Tensor, ctf: CtfParameters) -> Tensor:
        if self._correction == "none":
            return images
        ctf = _with_cesped_wavelength(_with_cesped_faults(ctf) if self._exact else ctf)
        corrected = correct_ctf(images, ctf, self._correction, wiener_regulariser=self._regulariser)
        if self._exact and images.shape[-1] % 2 == 0:
            mirrored = replace(ctf, defocus_angle_deg=-ctf.defocus_angle_deg)
            other = correct_ctf(images, mirrored, self._correction, wiener_regulariser=self._regulariser)
            corrected = _with_mean_at_nyquist(corrected, other)
        if self._correction != "phase_flip" and not self._exact:
            return corrected
        low, high = images.amin((1, 2), keepdim=True), images.amax((1, 2), keepdim=True)
        return torch.maximum(torch.minimum(corrected, high), low)

    def _resized(self, images: Tensor, pixel_size: float) -> Tensor:
        scale = pixel_size / self.pixel_size_angstrom
        resized = torch.nn.functional.interpolate(
            images[:, None], scale_factor=(scale, scale), mode="bilinear", align_corners=False, antialias=False
        )
        side, size = resized.shape[-1], self.image_size
        start = (side - size) // 2
        if side >= size:
            return resized[..., start : start + size, start : start + size]
        before = (size - side) // 2
        return torch.nn.functional.pad(resized, [before, size - side - before] * 2)


def _normalised(images: Tensor) -> Tensor:
    background = images[:, _outside(images.shape[-1]).to(images.device)]
    mean, std = background.mean(1), background.std(1)
    return (images - mean[:, None, None]) / std[:, None, None]


def _with_mean_at_nyquist(images: Tensor, mirrored: Tensor) -> Tensor:
    """Return images whose row at Nyquist is the mean of both: a whole plane has that row once, and the real part of an
    image corrected on it has the mean of the signs at +x and -x; the corner is its own mirror, at -x."""
    box = images.shape[-1]
    transform, other = torch.fft.rfft2(images), torch.fft.rfft2(mirrored)
    transform[:, box // 2] = (transform[:, box // 2] + other[:, box // 2]) / 2
    transform[:, box // 2, box // 2] = other[:, box // 2, box // 2]
    result: Tensor = torch.fft.irfft2(transform, s=(box, box))
    return result


@lru_cache(maxsize=16)
def _outside(box: int) -> Tensor:
    """Return the pixels `(box, box)` outside the circle: a grid from -box // 2 to box // 2 whose step is no whole
    pixel."""
    axis = torch.linspace(-(box // 2), box // 2, box, dtype=torch.float32)
    return (axis[:, None] ** 2 + axis**2) ** 0.5 > box // 2


def _with_cesped_wavelength(ctf: CtfParameters) -> CtfParameters:
    """Return the CTF at the voltage at which our wavelength is what `cesped` has at the given one, 3e-5 less.

    That moves the zeros by less than a thousandth of their distance, but a Fourier pixel beside one may change sign.
    """
    volt = ctf.voltage_kv * 1e3
    wavelength = 12.2639 / np.sqrt(volt + 0.97845e-6 * volt**2)
    matched = ctf.voltage_kv
    for _ in range(4):
        matched = matched * (electron_wavelength_angstrom(matched) / wavelength) ** 1.6
    return replace(ctf, voltage_kv=np.asarray(matched, np.float64))


def _with_cesped_faults(ctf: CtfParameters) -> CtfParameters:
    """Return the CTF that `cesped` corrects for: the astigmatism's angle is from the row axis, no phase shift is known,
    and images are taken to be raw."""
    raw = np.zeros(len(ctf.premultiplied), np.bool_)
    return replace(
        ctf,
        defocus_angle_deg=90 - ctf.defocus_angle_deg,
        phase_shift_deg=np.zeros(len(raw)),
        premultiplied=raw,
        phase_flipped=raw,
    )
