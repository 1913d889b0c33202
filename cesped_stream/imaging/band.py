"""Images as Fourier coefficients inside a resolution limit: what matching with a reference needs of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cesped_stream.imaging.ctf import ctf as ctf_of
from cesped_stream.imaging.preprocess import background_normalised
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.particles.table import CtfParameters

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

CACHED_PIXELS = 1 << 19
"""Pixels of raw images that a CPU works on at a time: 2 MiB, which its caches hold."""

_SAME_EXTENT = 1e-3


@dataclass(frozen=True)
class Band:
    """The frequencies k / extent (k whole numbers) between 0 and a resolution limit, one of each Hermitian pair.

    A real image is fixed by half of its plane: kx > 0, and ky > 0 at kx = 0. That counts the kx = 0 column half, once
    in place of its two equal halves. The mean (k = 0) is left out: it says nothing of a pose.
    """

    extent_angstrom: float
    """Side of the square whose Fourier series this is; frequencies are multiples of its inverse."""
    limit_angstrom: float
    """Finest resolution that is in the band."""

    def __post_init__(self) -> None:
        """ValueError where no frequency is inside."""
        if not 0 < self.limit_angstrom <= self.extent_angstrom:
            raise ValueError(
                f"limit {self.limit_angstrom:g} A of an extent of {self.extent_angstrom:g} A: no frequency is inside"
            )

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def reach(self) -> int:
        """Largest whole k along an axis."""
        return int(self.extent_angstrom / self.limit_angstrom + 1e-6)

    @cached_property
    def indices(self) -> Int64:
        """k as (x, y), `(m, 2)`, in order of kx then ky."""
        reach = self.reach
        kx, ky = np.meshgrid(np.arange(reach + 1), np.arange(-reach, reach + 1), indexing="ij")
        inside = kx**2 + ky**2 <= (self.extent_angstrom / self.limit_angstrom + 1e-6) ** 2
        unique = (kx > 0) | (ky > 0)
        return np.asarray(np.argwhere(inside & unique) - [0, reach], np.int64)

    @property
    def frequencies_per_angstrom(self) -> Float64:
        """`(m, 2)` (x, y), cycles an angstrom."""
        return np.asarray(self.indices / self.extent_angstrom, np.float64)

    @cached_property
    def shells(self) -> Int64:
        """Nearest whole number of cycles an extent `(m,)`, at least 1."""
        return np.asarray(np.floor(np.hypot(*self.indices.T) + 0.5), np.int64)

    def shift_phases(self, shifts_angstrom: Tensor) -> Tensor:
        """Return exp(-2 pi i f.s) `(..., m)` complex64 for shifts `(..., 2)` (x, y) that centre the images.

        Multiplied with an image's coefficients it moves the image by the shift, to the centre.
        """
        shifts = shifts_angstrom.double()
        frequencies = torch.from_numpy(self.frequencies_per_angstrom).to(shifts.device)
        angle = shifts @ (-2 * torch.pi * frequencies.T)
        return unit_phases(angle)


@dataclass(frozen=True, eq=False)
class BandImages:
    """Coefficients of n images with all that a likelihood needs, whatever the images carried: first axis n.

    With y the coefficients of a raw image, C its CTF and S a projection of the reference, y = a C S + noise.
    """

    band: Band
    matched: Tensor
    """C y `(n, m)` complex64: raw images times CTF, phase-flipped ones times |CTF|, premultiplied ones as they are."""
    ctf_square: Tensor
    """C^2 `(n, m)` float32."""
    power: Tensor
    """|y|^2 `(n, m)` float32, of premultiplied images C^2 |y|^2."""
    premultiplied: Tensor
    """`(n,)` bool."""
    information: Tensor
    """`(n,)` float32: 1, or less where the image is smaller than the band's extent, so that its coefficients are
    interpolated: independent ones over all."""

    def __len__(self) -> int:
        return len(self.matched)

    def select(self, index: Tensor | slice) -> "BandImages":
        """Return the images at `index`, a tensor of row numbers or a slice."""
        return self._each(lambda part: part[index])

    def within(self, limit_angstrom: float) -> "BandImages":
        """Return the images in the coarser band up to `limit_angstrom`; ValueError where that is finer."""
        if limit_angstrom < self.band.limit_angstrom:
            raise ValueError(f"limit {limit_angstrom:g} A of images up to {self.band.limit_angstrom:g} A")
        if limit_angstrom == self.band.limit_angstrom:
            return self
        coarser = replace(self.band, limit_angstrom=limit_angstrom)
        reach = (coarser.extent_angstrom / limit_angstrom + 1e-6) ** 2
        members = np.flatnonzero((self.band.indices**2).sum(1) <= reach)
        assert len(members) == len(coarser), "both bands are in one order"
        kept = torch.from_numpy(members).to(self.matched.device)
        return BandImages(
            coarser,
            self.matched[:, kept],
            self.ctf_square[:, kept],
            self.power[:, kept],
            self.premultiplied,
            self.information,
        )

    def to(self, device: torch.device | str) -> "BandImages":
        """Return the images on another device."""
        return self._each(lambda part: part.to(device))

    def padded(self, count: int) -> "BandImages":
        """Return `count` images: these, then empty ones."""
        missing = count - len(self)
        if missing == 0:
            return self
        return self._each(lambda part: torch.cat([part, part.new_zeros(missing, *part.shape[1:])]))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "BandImages":
        return BandImages(
            self.band,
            change(self.matched),
            change(self.ctf_square),
            change(self.power),
            change(self.premultiplied),
            change(self.information),
        )

    @staticmethod
    def joined(parts: "list[BandImages]") -> "BandImages":
        """Return the images of all parts, which are of one band, one after the other. ValueError for none."""
        if not parts or any(part.band != parts[0].band for part in parts):
            raise ValueError("images of one band are joined, at least one part")
        return BandImages(
            parts[0].band,
            torch.cat([part.matched for part in parts]),
            torch.cat([part.ctf_square for part in parts]),
            torch.cat([part.power for part in parts]),
            torch.cat([part.premultiplied for part in parts]),
            torch.cat([part.information for part in parts]),
        )


def band_images(
    images: Tensor, ctf: CtfParameters, band: Band, *, background_radius_angstrom: float = 0.0
) -> BandImages:
    """Return the coefficients in `band` of raw images `(n, box, box)` of one box size and any pixel sizes.

    Each image's background gets mean 0 and std 1 (`background_normalised`). Where the box is larger than the band's
    extent the image is cut to it, where it is smaller the image counts as 0 outside and `information` is below 1; the
    transform is taken at the band's own frequencies, so nothing is resampled. White noise of variance 1 has
    coefficients of E|y|^2 = 1 where the box is at least the extent. On the images' device; each image's result depends
    on that image alone.
    """
    count, device = len(images), images.device
    coefficients = torch.zeros(count, len(band), dtype=torch.complex64, device=device)
    information = torch.ones(count, device=device)
    step = max(1, CACHED_PIXELS // images[0].numel()) if count and device.type == "cpu" else max(1, count)
    for pixel_size in np.unique(ctf.pixel_size_angstrom).tolist():
        alike = torch.from_numpy(np.flatnonzero(ctf.pixel_size_angstrom == pixel_size)).to(device)
        for rows in torch.split(alike, step):
            part = background_normalised(images[rows], background_radius_angstrom, pixel_size)
            coefficients[rows] = _coefficients(part, pixel_size, band)
        information[alike] = _information(images.shape[-1] * pixel_size, band.extent_angstrom)
    transfer = band_ctf(ctf, band, device=device)
    flipped, premultiplied = (torch.from_numpy(state).to(device) for state in (ctf.phase_flipped, ctf.premultiplied))
    transfer = torch.where((flipped & ~premultiplied)[:, None], transfer.abs(), transfer)
    return BandImages(
        band=band,
        matched=times_real(coefficients, torch.where(premultiplied[:, None], 1.0, transfer)),
        ctf_square=transfer.square(),
        power=coefficients.real.square() + coefficients.imag.square(),
        premultiplied=premultiplied,
        information=information,
    )


def band_ctf(ctf: CtfParameters, band: Band, *, device: torch.device | str = "cpu") -> Tensor:
    """Return the CTF `(n, m)` float32 at the band's frequencies."""
    box = 2 * band.reach + 2
    same_frequencies = replace(
        ctf, pixel_size_angstrom=np.full_like(ctf.pixel_size_angstrom, band.extent_angstrom / box)
    )
    kx, ky = (torch.from_numpy(k).to(device) for k in band.indices.T)
    return ctf_of(same_frequencies, box, device=device)[:, ky % box, kx]


def band_slices(projector: MapProjector, band: Band, rotations: Float64) -> Tensor:
    """Return a map's coefficients `(n, m)` complex64 at rotations `(n, 3, 3)`, in the units of images' coefficients."""
    slices = projector.slices_at(rotations, band.frequencies_per_angstrom)
    return slices.mul_(projector.pixel_size_angstrom / band.extent_angstrom)


def centred_slices(projector: MapProjector, band: Band, rotations: Float64, shifts_angstrom: Float64) -> Tensor:
    """Return a map's coefficients `(n, m)` complex64 at poses, moved to where the particles stand in their images.

    In the units of images' coefficients.
    """
    return band_slices(projector, band, rotations) * band.shift_phases(
        torch.from_numpy(-shifts_angstrom).to(projector.device)
    )


def unit_phases(angle: Tensor) -> Tensor:
    """Return exp(i angle), complex64, of float64 angles in radians: `torch.polar` in a third of its time."""
    return torch.complex(angle.cos().float(), angle.sin().float())


def exact_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return real and imaginary part of `a b`, complex, with the same bits wherever in a tensor the numbers stand.

    Torch's own complex product rounds differently in the last elements of a thread's share.
    """
    return a.real * b.real - a.imag * b.imag, a.real * b.imag + a.imag * b.real


def times_real(values: Tensor, factors: Tensor) -> Tensor:
    """Return complex values times real factors, part by part: as `exact_product`."""
    return torch.complex(values.real * factors, values.imag * factors)


def _information(side_angstrom: float, extent_angstrom: float) -> float:
    share = side_angstrom / extent_angstrom
    return 1.0 if share > 1 - _SAME_EXTENT else share**2


def _coefficients(images: Tensor, pixel_size: float, band: Band) -> Tensor:
    """Transform `(n, m)` of images `(n, box, box)` about pixel box // 2, in units of noise of variance 1 a pixel."""
    count, box = len(images), images.shape[-1]
    along_x, along_y = (part.to(images.device) for part in _transforms(box, pixel_size, band))
    # bmm takes each image by itself, so its bits do not depend on its neighbours
    rows = torch.bmm(images, along_x.expand(count, -1, -1))
    rows = torch.view_as_complex(rows.reshape(count, box, -1, 2))
    plane = torch.bmm(along_y.expand(count, -1, -1), rows)
    kx, ky = (torch.from_numpy(k).to(images.device) for k in band.indices.T)
    return plane[:, ky + band.reach, kx]


@lru_cache(maxsize=32)
def _transforms(box: int, pixel_size: float, band: Band) -> tuple[Tensor, Tensor]:
    """Matrices `(box, 2 (reach + 1))` real (re, im of each kx) and `(2 reach + 1, box)` complex, scaled."""
    where = (np.arange(box) - box // 2) * (pixel_size / band.extent_angstrom)
    window = ((where >= -0.5 - 1e-6) & (where < 0.5 - 1e-6)) * (pixel_size / band.extent_angstrom)
    x = np.exp(-2j * np.pi * where[:, None] * np.arange(band.reach + 1)) * window[:, None]
    y = np.exp(-2j * np.pi * np.arange(-band.reach, band.reach + 1)[:, None] * where) * window
    scale = band.extent_angstrom / pixel_size
    real = np.stack([x.real, x.imag], -1).reshape(box, -1) * scale**0.5
    return torch.from_numpy(real.astype(np.float32)), torch.from_numpy((y * scale**0.5).astype(np.complex64))
