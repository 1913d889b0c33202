"""From acquired particle images to what the network sees: normalise, correct the CTF, Fourier resize, crop."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cesped_stream.imaging.ctf import has_ctf
from cesped_stream.imaging.ctf_correction import correct_ctf
from cesped_stream.particles.flags import ImageFlag
from cesped_stream.particles.table import CtfParameters
from cesped_stream.settings import PreprocessSettings

LARGEST_PIXEL = 1e15


def image_flags(images: Tensor) -> NDArray[np.uint8]:
    """Return an `ImageFlag` a particle, `(n,)` uint8: NaN, Inf or constant images `(n, box, box)` get no pose.

    Pixels so large that float32 cannot hold the sum of their squares are as good as Inf.
    """
    flat = images.flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    flags = torch.full(low.shape, int(ImageFlag.OK), dtype=torch.uint8, device=flat.device)
    flags[low == high] = int(ImageFlag.CONSTANT)
    flags[(low < -LARGEST_PIXEL) | (high > LARGEST_PIXEL)] = int(ImageFlag.INF)
    flags[low.isnan()] = int(ImageFlag.NAN)
    return np.asarray(flags.cpu().numpy(), np.uint8)


def row_flags(images: Tensor, parameters: CtfParameters) -> NDArray[np.uint8]:
    """Return `image_flags` of images, and NO_CTF where the image is fine and has no CTF (`has_ctf`)."""
    flags = image_flags(images)
    flags[(flags == ImageFlag.OK) & ~has_ctf(parameters)] = ImageFlag.NO_CTF
    return flags


class Preprocessor:
    """Brings images of any box and pixel size to one side and exactly one pixel size, `pixel_size_angstrom`.

    Background (outside the particle's circle) to mean 0 and std 1, as relion_preprocess --norm; CTF correction on the
    full box (`correct_ctf`, which says what it leaves of that std); then band limit, resampling about pixel N/2 and
    crop in one trigonometric interpolation, scaled so that white noise keeps its std. What lies outside the box is 0.
    Each image's result depends on that image alone, on a CPU to the bit.
    """

    def __init__(self, settings: PreprocessSettings, pixel_size_angstrom: float) -> None:
        if not pixel_size_angstrom > 0:
            raise ValueError(f"pixel_size_angstrom is {pixel_size_angstrom}; it must be positive")
        self.settings = settings
        self.pixel_size_angstrom = pixel_size_angstrom

    def output_pixel_size_angstrom(self, box_size: int, pixel_size_angstrom: float) -> float:
        """Return the pixel size after the resize: the network's own, whatever the box and the acquired pixel size."""
        del box_size, pixel_size_angstrom
        return self.pixel_size_angstrom

    def __call__(self, images: Tensor, ctf: CtfParameters) -> Tensor:
        """Return network inputs `(n, 1, size, size)` float32 of raw images `(n, box, box)` of one box size."""
        size = self.settings.image_size
        outputs = torch.zeros(len(images), 1, size, size, device=images.device)
        pixel_sizes = np.unique(ctf.pixel_size_angstrom)
        for pixel_size in pixel_sizes.tolist():
            rows = np.flatnonzero(ctf.pixel_size_angstrom == pixel_size)
            index = torch.from_numpy(rows).to(images.device)
            part = images if len(pixel_sizes) == 1 else images[index]
            part = self._normalised(part, pixel_size) if self.settings.normalise else part.float()
            part = correct_ctf(
                part,
                ctf if len(pixel_sizes) == 1 else ctf.select(rows),
                self.settings.ctf_correction,
                wiener_regulariser=self.settings.wiener_regulariser,
            )
            outputs[index, 0] = self._resampled(part, pixel_size)
        return outputs

    def _normalised(self, images: Tensor, pixel_size: float) -> Tensor:
        return background_normalised(images, self.settings.background_radius_angstrom, pixel_size)

    def _resampled(self, images: Tensor, pixel_size: float) -> Tensor:
        box, size = images.shape[-1], self.settings.image_size
        if pixel_size == self.pixel_size_angstrom:
            return _cropped(images, size)
        along = _interpolation(box, size, self.pixel_size_angstrom / pixel_size).to(images.device)
        along = along.expand(len(images), -1, -1)
        return torch.bmm(torch.bmm(along, images), along.mT)


def background_normalised(images: Tensor, radius_angstrom: float, pixel_size_angstrom: float) -> Tensor:
    """Return images `(n, box, box)` float32 whose background has mean 0 and std 1, as relion_preprocess --norm.

    Background is what lies farther than `radius_angstrom` (0: the inscribed circle) from pixel box // 2. An image whose
    background is flat (masked) is scaled by its own std.
    """
    box = images.shape[-1]
    radius = min(radius_angstrom / pixel_size_angstrom or box / 2, box / 2)
    outside = _outside(box, radius).to(images.device)
    # Relative to a corner, float32 sums are exact enough for any offset that the images themselves can hold.
    images = images.float() - images[:, :1, :1].float()
    count = outside.sum()
    centred = images - ((images * outside).sum((1, 2), keepdim=True) / count)
    background = (centred * outside).square_().sum((1, 2), keepdim=True) / count
    whole = centred.square().mean((1, 2), keepdim=True)
    variance = torch.where(background > 1e-10 * whole, background, whole)
    return centred.div_(variance.sqrt_().clamp_(min=1e-30))


def _cropped(images: Tensor, size: int) -> Tensor:
    """Cut or zero-pad `(n, box, box)` to `(n, size, size)`, pixel box // 2 to size // 2."""
    before = size // 2 - images.shape[-1] // 2
    after = size - images.shape[-1] - before
    return torch.nn.functional.pad(images, [before, after, before, after])


@lru_cache(maxsize=16)
def _outside(box: int, radius: float) -> Tensor:
    """Return 1 at the pixels `(box, box)` farther than `radius` from pixel box // 2, else 0."""
    axis = torch.arange(box, dtype=torch.float64) - box // 2
    return (axis[:, None] ** 2 + axis**2 > radius**2).float()


@lru_cache(maxsize=16)
def _interpolation(box: int, size: int, ratio: float) -> Tensor:
    """Return `(size, box)` float32: rows sample a periodic signal of `box` pixels every `ratio` pixels about box // 2.

    Frequencies at and above either Nyquist are left out; the scale keeps the std of white noise, as an orthonormal
    Fourier crop does. Rows outside the box are 0.
    """
    where = (np.arange(size) - size // 2) * ratio
    distance = where[:, None] - (np.arange(box) - box // 2)
    highest = np.ceil(box / (2 * max(1.0, ratio)) - 1e-9) - 1
    harmonics = np.arange(1, int(highest) + 1)
    kernel = 1 + 2 * np.cos(2 * np.pi / box * distance[:, :, None] * harmonics).sum(-1)
    kernel /= (box * (2 * len(harmonics) + 1)) ** 0.5
    kernel[(where < -(box // 2) - 0.5) | (where > (box - 1) // 2 + 0.5)] = 0
    return torch.from_numpy((kernel).astype(np.float32))
