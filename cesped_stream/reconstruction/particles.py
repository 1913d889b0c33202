"""What a map is made of, checked before the work begins, and the map that comes of it. No torch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cesped_stream.errors import InvalidStarError
from cesped_stream.particles.table import ParticleTable

NEEDED_COLUMNS = ("rlnImageName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnDefocusU", "rlnDefocusV")
NEEDED_NUMBERS = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
NEEDED_OPTICS = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnImagePixelSize")

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A map `(box, box, box)` (z, y, x) of so many particles, by the engine named."""

    volume: Float32
    pixel_size_angstrom: float
    num_particles: int
    engine: str


def check_particles(table: ParticleTable, weights: Float64 | None = None) -> float:
    """Return the one pixel size in angstrom of particles that can make a map.

    Raises InvalidStarError, naming the star, where a column or optics value is missing without which a map comes out
    but is wrong, where a pose is unset or no number, or where pixel sizes differ; ValueError for `weights` that are
    not one finite number of at least 0 for each particle, not all 0.
    """
    where = table.source or "particles"
    if len(table) == 0:
        raise InvalidStarError(f"{where}: no particles; a map needs at least one")
    missing = [label for label in (*NEEDED_COLUMNS, "rlnDefocusAngle") if label not in table]
    if missing:
        raise InvalidStarError(
            f"{where}: no column {', '.join(missing)}; a map made without would be wrong. Give the star that has it"
        )
    for group in table.optics:
        for label in NEEDED_OPTICS:
            group.number(label)
    _check_rows(table, where)
    if weights is not None:
        _check_weights(weights, len(table))
    sizes = np.unique(table.pixel_sizes_angstrom())
    if len(sizes) != 1:
        raise InvalidStarError(
            f"{where}: pixel sizes {', '.join(f'{size:g}' for size in sizes)} A; a map is made of particles of one "
            "pixel size, reconstruct each by itself"
        )
    return float(sizes[0])


def _check_rows(table: ParticleTable, where: str) -> None:
    unset = np.flatnonzero(~table.has_poses())
    if len(unset):
        raise InvalidStarError(
            f"{where}: row {table.first_row + int(unset[0]) + 1} and {len(unset) - 1} more have no pose (angles unset "
            "or no numbers); leave them out"
        )
    shifts = table.shifts_angstrom()
    values = {label: table.numbers(label) for label in NEEDED_NUMBERS}
    values |= {f"rlnOrigin{axis}Angst": shifts[:, k] for k, axis in enumerate("XY")}
    for label, numbers in values.items():
        wrong = np.flatnonzero(~np.isfinite(numbers))
        if len(wrong):
            raise InvalidStarError(
                f"{where}: row {table.first_row + int(wrong[0]) + 1}: {label} is {numbers[wrong[0]]}; correct the row "
                "or leave it out"
            )


def _check_weights(weights: Float64, count: int) -> None:
    if weights.shape != (count,):
        raise ValueError(f"weights are {weights.shape} for {count} particles; give one a particle")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise ValueError(
            f"weights from {weights.min():g} to {weights.max():g}; they must be finite, at least 0, and not all 0"
        )
