"""How independent half-sets are that aligned rows came with: never more than the rows themselves deserve."""

from dataclasses import dataclass
from typing import Final, Literal

from cesped_stream.conventions import SUBSET_LABEL
from cesped_stream.particles.own_rows import PoseSource, pose_sources
from cesped_stream.particles.table import ParticleTable

Independence = Literal["independent", "shared_reference", "unknown"]

INITIALISED_FROM_OWN_PREDICTIONS: Final = (
    "initialised_from_own_predictions: poses of its aligned rows are RELION's refinement of poses that a session "
    "predicted, so they are no consensus of their own"
)
HALVES_BY_HASH: Final = (
    f"aligned rows without {SUBSET_LABEL}: the half-sets of the refinement that aligned them, if it had any, are not "
    "known"
)


@dataclass(frozen=True)
class Alignment:
    """What a checkpoint's manifest says of the rows that it is made of."""

    independence: Independence
    doubts: tuple[str, ...] = ()


def alignment_of(stated: Independence, *, halves_given: bool, from_own_predictions: bool) -> Alignment:
    """Return how independent the halves are and what speaks against it: `stated` by the settings, and at best `unknown`
    where rows came without rlnRandomSubset or go back to predictions of ours."""
    doubts = []
    if from_own_predictions:
        doubts.append(INITIALISED_FROM_OWN_PREDICTIONS)
    if not halves_given and stated == "independent":
        doubts.append(HALVES_BY_HASH)
    is_lowered = stated == "independent" and bool(doubts)
    return Alignment("unknown" if is_lowered else stated, tuple(doubts))


def alignment_of_rows(stated: Independence, table: ParticleTable) -> Alignment:
    """Return the same of a star's rows as they came."""
    refined = (pose_sources(table) == PoseSource.REFINED_FROM_OWN) & table.has_poses()
    return alignment_of(stated, halves_given=SUBSET_LABEL in table, from_own_predictions=bool(refined.any()))
