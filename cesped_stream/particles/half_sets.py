"""Rows that are all of one half-set: nothing can be trained or compared with them, and it is said why at once."""

from dataclasses import dataclass

import numpy as np

from cesped_stream.conventions import SUBSET_LABEL, half_set_to_random_subset
from cesped_stream.errors import InvalidStarError
from cesped_stream.particles.table import ParticleTable


@dataclass(frozen=True)
class OneHalf:
    """Rows of one half-set only."""

    half_set: int
    num_rows: int
    has_subset: bool
    """They say so themselves, by rlnRandomSubset; else each is of its micrograph's half-set, by the name's hash."""
    micrographs: tuple[str, ...]
    """Some of their names, at least two where there are several."""

    def words(self, where: str) -> str:
        """Return what is wrong with the rows of `where`, and what to do."""
        many = f"all {self.num_rows} rows"
        if self.has_subset:
            subset = half_set_to_random_subset(self.half_set)
            return (
                f"{where}: {many} have {SUBSET_LABEL} {subset} and none {3 - subset}: give the star of both half-sets "
                f"(relion_refine --auto_refine writes 1 and 2), or remove the column: then {self._by_micrograph()}"
            )
        if len(self.micrographs) == 1:
            return (
                f"{where}: {many} are of one micrograph ({self.micrographs[0]}) and have no {SUBSET_LABEL}: a "
                f"micrograph is in one half-set; give more micrographs, or {SUBSET_LABEL} 1 and 2"
            )
        return (
            f"{where}: {many} have no {SUBSET_LABEL}, and by their names all their micrographs "
            f"({', '.join(self.micrographs[:2])}, ...) fall in half-set {self.half_set}; give more micrographs, or "
            f"{SUBSET_LABEL} 1 and 2"
        )

    def _by_micrograph(self) -> str:
        if len(self.micrographs) > 1:
            return "half-sets go by micrograph"
        return "half-sets go by micrograph, of which there must be more than this one"


def one_half_of(table: ParticleTable) -> OneHalf | None:
    """Return what to say of a table whose rows are all of one half-set; None where they are of both, or none."""
    halves = np.unique(table.half_sets())
    if len(halves) != 1:
        return None
    names = sorted(set(table.micrographs()))
    return OneHalf(int(halves[0]), len(table), SUBSET_LABEL in table, tuple(names))


def check_both_halves(table: ParticleTable) -> None:
    """Raise InvalidStarError where all rows are of one half-set."""
    one = one_half_of(table)
    if one is not None:
        raise InvalidStarError(one.words(table.source or "particles"))
