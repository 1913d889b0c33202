"""Particles that relion_project made of beta-galactosidase: an oracle's images, with CTF, shifts, and white noise."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cesped_stream.conventions import rotation_to_euler_deg
from cesped_stream.imaging.maps import crop_map, read_map, write_map
from cesped_stream.imaging.simulate import random_rotations
from cesped_stream.particles.stacks import StackReader, write_stack
from cesped_stream.particles.star import read_star, write_star
from cesped_stream.particles.table import OpticsGroup, ParticleTable
from cesped_stream.reconstruction.mask import soft_mask

SYMMETRY = "D2"
PARTICLE_RADIUS_ANGSTROM = 90.0
"""Of the circle that the SNR is stated in."""
PARTICLES_PER_MICROGRAPH = 50
LABELS = (
    *("rlnImageName", "rlnMicrographName", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"),
    *("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst", "rlnRandomSubset"),
)


@dataclass(frozen=True)
class Acquisition:
    """One optics group: how the map is sampled, what the microscope does, and how noisy the images are."""

    name: str = "first"
    box_size: int = 64
    extent_px: int = 100
    """Side of the map before it is cut to `box_size`, in the map file's voxels; above the map's, it is padded by 0."""
    voltage_kv: float = 300.0
    min_defocus_angstrom: float = 8000.0
    max_defocus_angstrom: float = 20000.0
    noise_variance: float = 1.0
    """Times that of the SNR."""


def betagal(map_file: Path, acquisition: Acquisition) -> tuple[np.ndarray, float]:
    """Return the masked map in an acquisition's box, and its pixel size in angstrom."""
    volume, pixel_size = read_map(map_file)
    volume = (volume - np.median(volume)) * soft_mask(volume, pixel_size)
    volume = np.pad(volume, (acquisition.extent_px - volume.shape[0]) // 2)
    return crop_map(volume, acquisition.box_size), pixel_size * volume.shape[0] / acquisition.box_size


def write_particles(
    folder: Path,
    map_file: Path,
    acquisition: Acquisition,
    *,
    count: int,
    snr: float,
    seed: int,
    first_micrograph: int = 0,
) -> ParticleTable:
    """Write `<name>.mrcs` and `<name>.star` of particles at random poses, shifts within 5 A; return the star's rows.

    The noise has variance `noise_variance`; `snr` is the signal's variance in the particle's circle, after the CTF,
    over variance 1. Every micrograph has particles of both half-sets.
    """
    folder.mkdir(parents=True, exist_ok=True)
    volume, pixel_size = betagal(map_file, acquisition)
    write_map(folder / "map.mrc", volume, pixel_size)
    rng = np.random.default_rng([seed, len(acquisition.name), *acquisition.name.encode()])
    star = folder / f"{acquisition.name}.star"
    write_star(star, _truth(acquisition, pixel_size, count, first_micrograph, rng))
    clean = _projected(folder, acquisition.name)
    axis = (np.arange(acquisition.box_size) - acquisition.box_size // 2) * pixel_size
    circle = axis[:, None] ** 2 + axis**2 <= PARTICLE_RADIUS_ANGSTROM**2
    clean *= np.float32((snr / clean[:, circle].var(1, dtype=np.float64).mean()) ** 0.5)
    clean += rng.standard_normal(clean.shape, np.float32) * np.float32(acquisition.noise_variance**0.5)
    write_stack(folder / f"{acquisition.name}.mrcs", clean, pixel_size)
    return read_star(star)


def _truth(
    acquisition: Acquisition, pixel_size: float, count: int, first_micrograph: int, rng: np.random.Generator
) -> ParticleTable:
    micrograph = np.arange(count) // PARTICLES_PER_MICROGRAPH
    low, high = acquisition.min_defocus_angstrom, acquisition.max_defocus_angstrom
    defocus = rng.uniform(low, high, micrograph[-1] + 1)[micrograph] + rng.uniform(-300, 300, count)
    numbers = np.stack(
        [
            *(defocus, defocus - rng.uniform(0, 400, count), rng.uniform(0, 180, count)),
            *rotation_to_euler_deg(random_rotations(count, rng)).T,
            *rng.uniform(-5, 5, (2, count)),
        ]
    ).T
    rows = [
        (
            f"{row + 1:06d}@{acquisition.name}.mrcs",
            f"micrograph_{first_micrograph + micrograph[row] + 1:05d}.mrc",
            *(f"{number:.6f}" for number in numbers[row]),
            str(1 + row % 2),
        )
        for row in range(count)
    ]
    optics = OpticsGroup(
        (
            *(("rlnOpticsGroupName", acquisition.name), ("rlnVoltage", f"{acquisition.voltage_kv:g}")),
            *(("rlnSphericalAberration", "2.7"), ("rlnAmplitudeContrast", "0.1")),
            *(("rlnImagePixelSize", f"{pixel_size:.6f}"), ("rlnImageSize", str(acquisition.box_size))),
            ("rlnImageDimensionality", "2"),
        )
    )
    return ParticleTable(LABELS, rows, (optics,), np.zeros(count, np.int64))


def _projected(folder: Path, name: str) -> np.ndarray:
    command = ["relion_project", "--i", "map.mrc", "--ang", f"{name}.star", "--o", "projected", "--ctf"]
    subprocess.run(command, cwd=folder, capture_output=True, timeout=600, check=True)
    stack = folder / "projected.mrcs"
    count = sum(1 for _ in read_star(folder / f"{name}.star").rows)
    images, _ = StackReader().read(stack, range(count))
    stack.unlink()
    (folder / "projected.star").unlink(missing_ok=True)
    return np.array(images, np.float32)
