"""Which particles the references of a checkpoint are made of, as its files say. No torch here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cesped_stream.errors import UnreachableFileError
from cesped_stream.particles.identities import particle_digests
from cesped_stream.particles.table import ParticleTable

PLACES = (".", "references")
"""Folders of a checkpoint in which references may lie."""

UInt64 = NDArray[np.uint64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ReferenceMembers:
    """Sorted digests of the particles in each half-set's reference; empty for networks and given maps."""

    of_half: tuple[UInt64, ...]

    @staticmethod
    def of(checkpoint: Path) -> "ReferenceMembers":
        """Return what a published checkpoint's references are made of. UnreachableFileError."""
        return ReferenceMembers((_members(checkpoint, 0), _members(checkpoint, 1)))

    def __len__(self) -> int:
        return sum(map(len, self.of_half))

    def among(self, table: ParticleTable, half_mode: Literal["gold_standard", "cross_half"]) -> Bool:
        """Return `(n,)`: the row is in the reference that would score it, its own half-set's or (cross_half) the
        other's."""
        inside = np.zeros(len(table), np.bool_)
        if len(self) == 0 or len(table) == 0:
            return inside
        digests, half_sets = particle_digests(table), table.half_sets()
        for half, members in enumerate(self.of_half):
            scored = half_sets == (half if half_mode == "gold_standard" else 1 - half)
            inside |= scored & np.isin(digests, members)
        return inside


NO_MEMBERS = ReferenceMembers((np.empty(0, np.uint64), np.empty(0, np.uint64)))


def _members(checkpoint: Path, half: int) -> UInt64:
    for place in PLACES:
        path = checkpoint / place / f"reference_{half}.members"
        try:
            return np.frombuffer(path.read_bytes(), "<u8").astype(np.uint64)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise UnreachableFileError(f"{path}: cannot be read ({error}); copy the checkpoint again") from None
    return np.empty(0, np.uint64)
