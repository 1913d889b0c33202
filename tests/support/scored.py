"""A small simulated entry, and predictions of its particles that are wrong by as much as asked."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from support.imaging import blobs

from cesped_stream.benchmark.entries import open_entry
from cesped_stream.conventions import rotation_to_euler_deg
from cesped_stream.imaging.entry import write_entry
from cesped_stream.particles.table import ParticleTable
from cesped_stream.settings import SimulationSettings

BOX = 24
PIXEL_SIZE_ANGSTROM = 8.0
ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")


def small_entry(folder: Path, *, num_particles: int = 120, symmetry: str = "C1", seed: int = 3) -> Path:
    """Write an entry of blobs with confidences between 0.2 and 1 and return its folder."""
    settings = SimulationSettings(num_particles=num_particles, snr=1.0, symmetry=symmetry, seed=seed)
    confidences = np.random.default_rng(seed).uniform(0.2, 1.0, num_particles).round(6)
    write_entry(folder, blobs(BOX), PIXEL_SIZE_ANGSTROM, settings, confidences=confidences)
    return folder


def truth_of(folder: Path) -> ParticleTable:
    """Return the entry's particles."""
    return open_entry(folder).particles()


def with_rotations(table: ParticleTable, rotations: NDArray[np.float64]) -> ParticleTable:
    """Return the table at these poses, nine digits an angle."""
    angles = rotation_to_euler_deg(rotations)
    return table.with_columns({label: [f"{a:.9f}" for a in angles[:, k]] for k, label in enumerate(ANGLES)})


def turned(table: ParticleTable, degrees: float | NDArray[np.float64], *, seed: int = 0) -> ParticleTable:
    """Return the table with each pose turned by `degrees` about an axis of its own, drawn at random."""
    axes = np.random.default_rng(seed).normal(size=(len(table), 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    turns = Rotation.from_rotvec(np.deg2rad(np.broadcast_to(degrees, len(table)))[:, None] * axes).as_matrix()
    return with_rotations(table, table.rotations() @ turns)
