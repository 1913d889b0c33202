"""Soft masks: made of a map, a sphere, or read and checked."""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from cesped_stream.errors import InvalidStackError
from cesped_stream.imaging.maps import read_map
from cesped_stream.reconstruction.fsc import radius_of_half_transform

FILTER_EDGE_SHELLS = 2
RANGE_TOLERANCE = 1e-3
PIXEL_SIZE_TOLERANCE = 0.01
THRESHOLD_BINS = 512

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


def soft_mask(
    volume: ArrayLike,
    pixel_size_angstrom: float,
    *,
    threshold: float | None = None,
    lowpass_angstrom: float = 15.0,
    extend_pixels: float = 3.0,
    edge_pixels: float = 6.0,
) -> Float32:
    """Return a mask `(box, box, box)`, 0 to 1, of where a map `(box, box, box)` has density, as relion_mask_create.

    The map is low-passed at `lowpass_angstrom` (0: not), set to 1 where it reaches `threshold`, grown by
    `extend_pixels`, and given a raised cosine edge `edge_pixels` wide outside. Without `threshold` it is
    `automatic_threshold` of the low-passed map. Memory: about 50 bytes a voxel. ValueError for a map that is not
    cubic, or where no voxel reaches the threshold.
    """
    density = np.asarray(volume, np.float64)
    if density.ndim != 3 or len(set(density.shape)) != 1:
        raise ValueError(f"a map is cubic, got shape {density.shape}; crop or pad it")
    if lowpass_angstrom > 0:
        density = lowpassed(density, pixel_size_angstrom, lowpass_angstrom)
    limit = automatic_threshold(density) if threshold is None else threshold
    inside = density >= limit
    if not inside.any():
        raise ValueError(f"no voxel reaches the threshold {limit:g}, the largest is {density.max():g}; lower it")
    return _soft_edge(_grown(inside, extend_pixels), edge_pixels)


def automatic_threshold(volume: ArrayLike) -> float:
    """Return the density that best parts a map `(box, box, box)` into two classes, within its inscribed sphere.

    Otsu's: the variance between the classes is largest. For a map whose solvent is flat that is about half of the
    particle's mean density; the scale of the map does not matter. Source: Otsu 1979, IEEE Trans. SMC 9, 62-66.
    """
    density = np.asarray(volume, np.float64)
    values = density[_radius(density.shape[0]) <= density.shape[0] / 2]
    counts, edges = np.histogram(values, THRESHOLD_BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sum_below = np.cumsum(counts * centres)[:-1]
    sum_above = (counts * centres).sum() - sum_below
    apart = sum_above / above.clip(min=1) - sum_below / below.clip(min=1)
    return float(edges[1 + np.argmax(below * above * apart**2)])


def lowpassed(volume: ArrayLike, pixel_size_angstrom: float, resolution_angstrom: float) -> Float64:
    """Return a map `(box, box, box)` without what is finer than `resolution_angstrom`.

    A raised cosine two shells wide about the nearest shell, as RELION filters.
    """
    density = np.asarray(volume, np.float64)
    box = density.shape[0]
    shell = round(box * pixel_size_angstrom / resolution_angstrom)
    beyond = (radius_of_half_transform(box) - (shell - FILTER_EDGE_SHELLS / 2)) / FILTER_EDGE_SHELLS
    kept = (1 + np.cos(np.pi * beyond.clip(0, 1))) / 2
    return np.fft.irfftn(np.fft.rfftn(density) * kept, s=density.shape, axes=(0, 1, 2))


def read_mask(path: Path, box_size: int, pixel_size_angstrom: float) -> Float32:
    """Return a mask `(box, box, box)` for maps of this box and pixel size, clipped to 0 to 1.

    Raises UnreachableFileError where it cannot be opened, InvalidStackError where it is no cubic map, of another box
    or (by more than 1 %) pixel size, empty, or has values outside 0 to 1.
    """
    mask, pixel_size = read_map(path)
    if mask.shape[0] != box_size:
        raise InvalidStackError(f"{path}: a mask of {mask.shape[0]} pixels for maps of {box_size}; resample it")
    if abs(pixel_size / pixel_size_angstrom - 1) > PIXEL_SIZE_TOLERANCE:
        raise InvalidStackError(
            f"{path}: pixel size {pixel_size:g} A in its header, the maps have {pixel_size_angstrom:g} A; is it the "
            "mask of these particles?"
        )
    low, high = float(mask.min()), float(mask.max())
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise InvalidStackError(f"{path}: values from {low:g} to {high:g}; a mask has 0 to 1, is it a map?")
    if high <= 0:
        raise InvalidStackError(f"{path}: 0 everywhere; a mask is 1 where the particle is")
    return np.asarray(mask.clip(0, 1), np.float32)


def _grown(inside: NDArray[np.bool_], pixels: float) -> NDArray[np.bool_]:
    if pixels <= 0:
        return inside
    return np.asarray(ndimage.distance_transform_edt(~inside) < pixels, np.bool_)


def _soft_edge(inside: NDArray[np.bool_], edge_pixels: float) -> Float32:
    """1 inside, 0 from `edge_pixels` outside on, a raised cosine between."""
    distance = ndimage.distance_transform_edt(~inside)
    if edge_pixels <= 0:
        return np.asarray(inside, np.float32)
    return np.asarray((1 + np.cos(np.pi * (distance / edge_pixels).clip(0, 1))) / 2, np.float32)


def _radius(box_size: int) -> Float64:
    axis = np.arange(box_size) - box_size // 2
    return np.asarray(np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2), np.float64)
