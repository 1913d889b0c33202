"""Rows of a star as Fourier coefficients: read once, cut to several bands."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cesped_stream.imaging.band import Band, BandImages, band_images
from cesped_stream.imaging.preprocess import row_flags
from cesped_stream.particles.flags import ImageFlag
from cesped_stream.particles.stacks import DIGEST_BYTES, StackReader, read_images
from cesped_stream.particles.table import CtfParameters, ParticleTable

ROWS_AT_ONCE = 256

Int64 = NDArray[np.int64]
UInt8 = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class UsableImages:
    """Raw images `(n, box, box)` of one box size of the rows `index`, in which `row_flags` finds nothing wrong."""

    index: Int64
    images: torch.Tensor


@dataclass(frozen=True, eq=False)
class BandRows:
    """The usable rows of a table in each of several bands; flags and digests of all rows."""

    images: tuple[BandImages, ...]
    """One a band; of no usable row each is empty."""
    index: Int64
    """`(usable,)`: rows of the images, ascending."""
    flag: UInt8
    """`(n,)`, `particles.flags.ImageFlag`."""
    digest: UInt8
    """`(n, 16)`: blake2b of each image's bytes in its file."""


def usable_images(table: ParticleTable, reader: StackReader, flag: UInt8, digest: UInt8) -> Iterator[UsableImages]:
    """Yield the table's usable images, at most `ROWS_AT_ONCE` at a time, filling `flag` `(n,)` and `digest` `(n, 16)`.

    Usable are those whose CTF can be computed too (`row_flags`). Raises what reading raises.
    """
    ctf = table.ctf_parameters()
    for start in range(0, len(table), ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, len(table)))
        for group in read_images(table.select(rows), reader):
            index, images = rows[group.index], torch.from_numpy(group.images)
            flag[index], digest[index] = row_flags(images, ctf.select(index)), group.digests
            good = np.flatnonzero(flag[index] == ImageFlag.OK)
            if len(good):
                kept = images if len(good) == len(images) else images[torch.from_numpy(good)]
                yield UsableImages(index[good], kept)


def images_in_bands(
    images: torch.Tensor, ctf: CtfParameters, bands: Sequence[Band], *, background_radius_angstrom: float = 0.0
) -> tuple[BandImages, ...]:
    """Return the coefficients of raw images `(n, box, box)` in each of `bands`; see `band_images`.

    Bands of one extent share the finest one's transform, which holds the coefficients of the others.
    """
    finest: dict[float, Band] = {}
    for band in sorted(bands, key=lambda band: band.limit_angstrom):
        finest.setdefault(band.extent_angstrom, band)
    whole = {
        extent: band_images(images, ctf, band, background_radius_angstrom=background_radius_angstrom)
        for extent, band in finest.items()
    }
    return tuple(whole[band.extent_angstrom].within(band.limit_angstrom) for band in bands)


def read_band_images(
    table: ParticleTable,
    bands: Sequence[Band],
    reader: StackReader,
    *,
    background_radius_angstrom: float = 0.0,
    device: torch.device | str = "cpu",
    on_images: Callable[[UsableImages], None] = lambda images: None,
) -> BandRows:
    """Return the coefficients of a table's rows in each of `bands`; boxes and pixel sizes may differ between rows.

    `on_images` is shown the raw images too, part by part: what else needs them reads them once. Memory: `ROWS_AT_ONCE`
    raw images, and 20 bytes a coefficient. Raises what reading raises.
    """
    flag, digest = np.zeros(len(table), np.uint8), np.zeros((len(table), DIGEST_BYTES), np.uint8)
    ctf = table.ctf_parameters()
    nothing = torch.zeros(0, 2, 2, device=device)
    parts = [images_in_bands(nothing, ctf.select(slice(0, 0)), bands)]
    index = [np.empty(0, np.int64)]
    for part in usable_images(table, reader, flag, digest):
        on_images(part)
        images, parameters = part.images.to(device), ctf.select(part.index)
        parts.append(images_in_bands(images, parameters, bands, background_radius_angstrom=background_radius_angstrom))
        index.append(part.index)
    rows = np.concatenate(index)
    order = torch.from_numpy(np.argsort(rows, kind="stable")).to(device)
    joined = tuple(BandImages.joined(list(found)).select(order) for found in zip(*parts, strict=True))
    return BandRows(joined, np.sort(rows), flag, digest)
