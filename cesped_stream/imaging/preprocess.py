"""From acquired particle images to what the network sees: normalise, phase flip, Fourier resize, crop."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cesped_stream.imaging.ctf import ctf as ctf_of
from cesped_stream.particles.flags import ImageFlag
from cesped_stream.particles.table import CtfParameters
from cesped_stream.settings import PreprocessSettings


def image_flags(images: Tensor) -> NDArray[np.uint8]:
    """Return an `ImageFlag` a particle, `(n,)` uint8: NaN, Inf or constant images get no pose."""
    flat = images.flatten(1)
    flags = torch.full((len(flat),), int(ImageFlag.OK), dtype=torch.uint8)
    flags[(flat.amax(1) == flat.amin(1)).cpu()] = int(ImageFlag.CONSTANT)
    flags[flat.isinf().any(1).cpu()] = int(ImageFlag.INF)
    flags[flat.isnan().any(1).cpu()] = int(ImageFlag.NAN)
    return np.asarray(flags.numpy(), np.uint8)


class Preprocessor:
    """Brings images of any box and pixel size to one side and one pixel size, `pixel_size_angstrom`.

    Background (outside the particle's circle) to mean 0 and std 1, as relion_preprocess --norm; phase flip on the full
    box, not where the data are premultiplied or flipped already; Fourier crop or pad, which keeps the std of white
    noise; crop about pixel N/2. Each image's result depends on that image alone.
    """

    def __init__(self, settings: PreprocessSettings, pixel_size_angstrom: float) -> None:
        if pixel_size_angstrom <= 0:
            raise ValueError(f"pixel_size_angstrom is {pixel_size_angstrom}; it must be positive")
        self.settings = settings
        self.pixel_size_angstrom = pixel_size_angstrom

    def resized_box(self, box_size: int, pixel_size_angstrom: float) -> int:
        """Return the even side that a box is resized to: the nearest to the network's pixel size."""
        return max(2, 2 * round(box_size * pixel_size_angstrom / self.pixel_size_angstrom / 2))

    def output_pixel_size_angstrom(self, box_size: int, pixel_size_angstrom: float) -> float:
        """Return the true pixel size after the resize; it differs from the network's by up to 1 part in the box."""
        return box_size * pixel_size_angstrom / self.resized_box(box_size, pixel_size_angstrom)

    def __call__(self, images: Tensor, ctf: CtfParameters) -> Tensor:
        """Return network inputs `(n, 1, size, size)` float32 of raw images `(n, box, box)` of one box size."""
        box, size = images.shape[-1], self.settings.image_size
        outputs = images.new_zeros(len(images), 1, size, size, dtype=torch.float32)
        for pixel_size in np.unique(ctf.pixel_size_angstrom):
            rows = np.flatnonzero(ctf.pixel_size_angstrom == pixel_size)
            index = torch.from_numpy(rows).to(images.device)
            part = self._normalise(images[index].float(), float(pixel_size))
            part = self._resize(part, ctf.select(rows), self.resized_box(box, float(pixel_size)))
            outputs[index, 0] = _crop(part, size)
        return outputs

    def _normalise(self, images: Tensor, pixel_size: float) -> Tensor:
        box = images.shape[-1]
        radius = self.settings.background_radius_angstrom / pixel_size or box / 2
        outside = _outside(box, min(radius, box / 2)).to(images.device)
        background = images.flatten(1)[:, outside].double()
        mean, std = background.mean(1), background.std(1, correction=0).clamp(min=1e-30)
        return ((images.double() - mean[:, None, None]) / std[:, None, None]).float()

    def _resize(self, images: Tensor, ctf: CtfParameters, target: int) -> Tensor:
        box = images.shape[-1]
        transform = torch.fft.rfft2(torch.roll(images, (-(box // 2),) * 2, (-2, -1)), norm="ortho")
        if self.settings.ctf_correction == "phase_flip":
            flips = ~(ctf.premultiplied | ctf.phase_flipped)
            if flips.any():
                sign = torch.sign(ctf_of(ctf, box, device=images.device))
                keep = torch.from_numpy(~flips).to(images.device)[:, None, None]
                transform = transform * torch.where(keep, torch.ones_like(sign), sign)
        if target == box:
            resized = transform
        else:
            resized = transform.new_zeros(len(images), target, target // 2 + 1)
            half = min(box, target) // 2
            resized[:, :half, : half + 1] = transform[:, :half, : half + 1]
            resized[:, -half:, : half + 1] = transform[:, -half:, : half + 1]
        output = torch.fft.irfft2(resized, s=(target, target), norm="ortho")
        return torch.roll(output, (target // 2,) * 2, (-2, -1))


def _crop(images: Tensor, size: int) -> Tensor:
    """Cut or zero-pad `(n, box, box)` to `(n, size, size)`, pixel box // 2 to size // 2."""
    start = images.shape[-1] // 2 - size // 2
    low, high = max(0, start), min(images.shape[-1], start + size)
    output = images.new_zeros(len(images), size, size)
    output[:, low - start : high - start, low - start : high - start] = images[:, low:high, low:high]
    return output


@lru_cache(maxsize=16)
def _outside(box: int, radius: float) -> Tensor:
    """Return flat indices of the pixels farther than `radius` from pixel box // 2."""
    axis = torch.arange(box, dtype=torch.float64) - box // 2
    return torch.nonzero((axis[:, None] ** 2 + axis**2 > radius**2).flatten()).flatten()
