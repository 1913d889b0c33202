"""A small molecule of any symmetry, its noisy images as coefficients, and flat noise."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from support.imaging import ctf_parameters, random_rotations

from cesped_stream.imaging.band import Band, BandImages, band_images
from cesped_stream.imaging.ctf import ctf
from cesped_stream.imaging.molecule import molecule_to_map
from cesped_stream.imaging.noise_model import NoiseModel
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.imaging.reference import Reference
from cesped_stream.particles.table import CtfParameters
from cesped_stream.so3.symmetry import group_rotations

BOX, PIXEL_SIZE = 32, 5.0


@lru_cache(maxsize=8)
def molecule(symmetry: str = "C1", box: int = BOX, pixel_size: float = PIXEL_SIZE, seed: int = 0) -> np.ndarray:
    """Return a map of 40 masses within 45 A, with their symmetry mates."""
    rng = np.random.default_rng(seed)
    group = group_rotations(symmetry)
    xyz = rng.uniform(-26, 26, (40, 3)) + np.array([4.0, 12.0, 3.0]) * (len(group) > 1)
    mates = np.concatenate([xyz @ g.T for g in group])
    return molecule_to_map(mates, np.ones(len(mates)), box, pixel_size, 12.0)


@dataclass(frozen=True, eq=False)
class Particles:
    """Images `(n, box, box)` of the molecule at known poses, noise of variance 1."""

    images: torch.Tensor
    ctf: CtfParameters
    rotations: np.ndarray
    shifts_angstrom: np.ndarray

    def in_band(self, band: Band) -> BandImages:
        return band_images(self.images, self.ctf, band)


def particles(
    count: int, *, symmetry: str = "C1", snr: float = 2.0, seed: int = 1, max_shift: float = 6.0, box: int = BOX
) -> Particles:
    """Return particles; `snr` is the variance of the signal over that of the noise, inf: a signal of variance 1."""
    rng = np.random.default_rng(seed)
    pixel_size = PIXEL_SIZE * BOX / box
    rotations, shifts = random_rotations(count, rng), rng.uniform(-max_shift, max_shift, (count, 2))
    parameters = ctf_parameters(count, pixel_size=pixel_size, seed=seed)
    projector = MapProjector(molecule(symmetry, box, pixel_size), pixel_size)
    images = projector.project(rotations, shifts, ctf(parameters, box))
    images *= (snr if np.isfinite(snr) else 1.0) ** 0.5 / images.var(dim=(1, 2)).mean().sqrt()
    if np.isfinite(snr):
        images += torch.from_numpy(rng.standard_normal(images.shape, np.float32))
    return Particles(images, parameters, rotations, shifts)


def reference(symmetry: str = "C1", *, resolution: float = 11.0, snr: float = 2.0) -> Reference:
    """Return the molecule as a reference whose projections have the power of `particles`' signal, with flat noise."""
    volume = molecule(symmetry)
    parameters = ctf_parameters(200, pixel_size=PIXEL_SIZE, seed=1)
    rotations = random_rotations(200, np.random.default_rng(9))
    projections = MapProjector(volume, PIXEL_SIZE).project(rotations, ctf=ctf(parameters, BOX))
    scale = snr**0.5 / float(projections.var(dim=(1, 2)).mean().sqrt())
    return Reference(
        volume * np.float32(scale), PIXEL_SIZE, resolution, symmetry, 0, False, np.empty(0, np.uint64), flat_noise()
    )


def flat_noise(variance: float = 1.0, scale: float = 1.0) -> NoiseModel:
    """Return noise of one variance for all groups."""
    return NoiseModel((), np.ones(1), np.full((1, 1), variance), np.full(1, scale))


def rows(count: int) -> np.ndarray:
    """Return the rows in `flat_noise` of so many particles."""
    return np.zeros(count, np.int64)
