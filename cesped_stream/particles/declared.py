"""What two stars say of the same image: whether they mean the same particle, a refined CTF, or contradict each other.

Who a particle is, its stack and index say. Micrograph, optics and CTF are compared by value and within the precision
of the programs that write them: RELION rewrites -27.372625 as -27.37262, other tools keep 32 bits of a defocus, and
a micrograph gains the folder of its job.
"""

import hashlib
import json
from dataclasses import dataclass
from enum import IntEnum
from pathlib import PurePosixPath
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cesped_stream.conventions import ANGLE_LABELS, SUBSET_LABEL
from cesped_stream.particles.table import ParticleTable

Float64 = NDArray[np.float64]

MICROGRAPH_LABEL: Final = "rlnMicrographName"

REFINED_CTF_LABELS: Final = (
    *("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift", "rlnCtfBfactor", "rlnCtfScalefactor"),
)
"""What a CTF refinement changes of a particle."""

MAX_DEFOCUS_CHANGE_ANGSTROM: Final = 1000.0
"""CTF refinement moves most particles by some hundred; another particle's defocus lies thousands away."""
OPTICS_TOLERANCE: Final = 1e-3
"""Of voltage, Cs, contrast and pixel size, relative: 1.06 and 1.0605 A are the same pixel."""
CTF_TOLERANCE: Final = 0.05
"""Of defocus and astigmatism in angstrom, phase shift in degrees, B factor in square angstrom."""
SCALE_TOLERANCE: Final = 1e-4
ANGLE_TOLERANCE_DEG: Final = 1e-3
SHIFT_TOLERANCE_ANGSTROM: Final = 1e-3


class Difference(IntEnum):
    """Between two rows of one image."""

    NONE = 0
    REFINED_CTF = 1
    """Defocus, astigmatism, phase shift, B factor or scale moved as a CTF refinement moves them."""
    CONTRADICTION = 2
    """Another micrograph, other optics, or a defocus that no refinement moves that far."""


@dataclass(frozen=True, eq=False)
class DeclaredValues:
    """Of n rows: `micrographs` by file name (empty where the star names none), `optics` (n, 6), `ctf` (n, 6), pose
    `angles_deg` (n, 3) and `shift_angstrom` (n, 2), NaN where there is no pose; `half_sets` (n,), 0 or 1, by
    rlnRandomSubset where the star `has_subset`, else by the micrograph's name."""

    micrographs: tuple[str, ...]
    optics: Float64
    ctf: Float64
    angles_deg: Float64
    shift_angstrom: Float64
    half_sets: NDArray[np.int8]
    has_subset: bool

    @classmethod
    def of(cls, table: ParticleTable) -> "DeclaredValues":
        """Return the values of a table's rows. InvalidStarError where its CTF is not complete."""
        ctf = table.ctf_parameters()
        twice = 2 * np.deg2rad(ctf.defocus_angle_deg)
        half = (ctf.defocus_u_angstrom - ctf.defocus_v_angstrom) / 2
        mean = (ctf.defocus_u_angstrom + ctf.defocus_v_angstrom) / 2
        optics = (
            *(ctf.voltage_kv, ctf.spherical_aberration_mm, ctf.amplitude_contrast, ctf.pixel_size_angstrom),
            *(ctf.premultiplied.astype(np.float64), ctf.phase_flipped.astype(np.float64)),
        )
        # The astigmatism as a vector: U and V may change places where the angle turns by 90 degrees.
        moving = (mean, half * np.cos(twice), half * np.sin(twice), ctf.phase_shift_deg, ctf.bfactor_angstrom2)
        names = table.column(MICROGRAPH_LABEL) if MICROGRAPH_LABEL in table else [""] * len(table)
        angles = np.full((len(table), 3), np.nan)
        posed = table.has_poses()
        if posed.any():
            angles[posed] = np.stack([table.numbers(label) for label in ANGLE_LABELS], axis=1)[posed]
        return cls(
            micrographs=tuple(PurePosixPath(name).name for name in names),
            optics=np.stack(optics, axis=1),
            ctf=np.stack([*moving, ctf.scale], axis=1),
            angles_deg=angles,
            shift_angstrom=np.where(posed[:, None], table.shifts_angstrom(), np.nan),
            half_sets=table.half_sets(),
            has_subset=SUBSET_LABEL in table,
        )

    def hashes(self) -> list[bytes]:
        """Return 8 bytes a row of what declares a particle; rows with equal bytes are equal, others may be."""
        rows = zip(self.micrographs, self.optics.tolist(), self.ctf.tolist(), strict=True)
        return [hashlib.blake2b(json.dumps(row).encode(), digest_size=8).digest() for row in rows]

    def difference(self, row: int, other: "DeclaredValues", other_row: int) -> Difference:
        """Return how another star's row of the same image differs from this one, poses aside."""
        ours, theirs = self.micrographs[row], other.micrographs[other_row]
        if ours and theirs and ours != theirs:
            return Difference.CONTRADICTION
        off = np.abs(self.optics[row] - other.optics[other_row])
        if (off > OPTICS_TOLERANCE * np.abs(self.optics[row]) + 1e-9).any():
            return Difference.CONTRADICTION
        moved = np.abs(self.ctf[row] - other.ctf[other_row])
        if moved[0] > MAX_DEFOCUS_CHANGE_ANGSTROM:
            return Difference.CONTRADICTION
        return (
            Difference.REFINED_CTF
            if moved[:-1].max() > CTF_TOLERANCE or moved[-1] > SCALE_TOLERANCE
            else (Difference.NONE)
        )

    def is_same_pose(self, row: int, other: "DeclaredValues", other_row: int) -> bool:
        """Return whether the other row has the same angles, turns of 360 degrees aside, and the same origin."""
        turned = np.abs((self.angles_deg[row] - other.angles_deg[other_row] + 180) % 360 - 180)
        moved = np.abs(self.shift_angstrom[row] - other.shift_angstrom[other_row])
        return bool(turned.max() <= ANGLE_TOLERANCE_DEG and moved.max() <= SHIFT_TOLERANCE_ANGSTROM)
