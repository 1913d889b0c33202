"""Which rows may be taken for aligned ones, and how independent that leaves their half-sets. No torch here."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from cesped_stream.conventions import SUBSET_LABEL
from cesped_stream.errors import InvalidStarError
from cesped_stream.particles.own_rows import PoseSource, pose_sources
from cesped_stream.particles.table import ParticleTable

Independence = Literal["independent", "unknown", "shared_reference"]
ORDER: Final[tuple[Independence, ...]] = ("independent", "unknown", "shared_reference")
"""From the most independent to the least."""


@dataclass(frozen=True)
class Alignment:
    """How the two half-sets of aligned rows stand to each other, as a manifest says it."""

    independence: Independence
    doubts: tuple[str, ...] = ()
    """Why it is less than what was stated, and what else speaks against the rows, a sentence each."""
    initialised_from_own_predictions: int = 0
    """Rows whose pose is a prediction of this program, or was refined from one."""


def least_independent(*found: Independence) -> Independence:
    """Return the least independent of these."""
    return max(found, key=ORDER.index)


def are_poses(table: ParticleTable) -> bool:
    """Return whether rows have poses in three dimensions: those with angles differ in tilt. 2D classes do not."""
    posed = table.has_poses()
    return bool(posed.any()) and len(np.unique(table.numbers("rlnAngleTilt")[posed])) > 1


def refuse_2d_classes(table: ParticleTable) -> None:
    """Raise InvalidStarError where rows have angles, all of one tilt: 2D classes are no poses."""
    posed = np.flatnonzero(table.has_poses())
    if len(posed) > 1 and not are_poses(table):
        tilt = table.numbers("rlnAngleTilt")[posed[0]]
        raise InvalidStarError(
            f"{table.source or 'star'}: rlnAngleTilt is {tilt:g} in all {len(posed)} rows with angles, as 2D "
            "classification leaves it; that is no pose. Give the star of a 3D refinement"
        )


def refuse_own_predictions(table: ParticleTable, option: str) -> None:
    """Raise InvalidStarError where a row's pose is a prediction of this program; `option` is what takes such rows."""
    own = np.flatnonzero((pose_sources(table) == PoseSource.OWN) & table.has_poses())
    if len(own):
        raise InvalidStarError(
            f"{table.source or 'star'}: {len(own)} of {len(table)} rows have a pose that this program predicted, the "
            f"first is row {own[0] + 1}; what is made of them confirms itself. Give the star of a refinement, leave "
            f"these rows out, or take them by {option}"
        )


def alignment_of_rows(stated: Independence, table: ParticleTable, *, halves_given: bool | None = None) -> Alignment:
    """Return what aligned rows make of the independence that their user states: it stays or falls, it never rises.

    `halves_given`: their half-sets were in the star that they came with; None: where it has rlnRandomSubset. A session
    that gave them half-sets by a hash says False. Such halves, poses predicted by this program and poses refined from
    these are `unknown` at best.
    """
    sources = pose_sources(table)[table.has_poses()]
    own, refined = (int((sources == source).sum()) for source in (PoseSource.OWN, PoseSource.REFINED_FROM_OWN))
    given = SUBSET_LABEL in table if halves_given is None else halves_given
    return alignment_of(stated, len(sources), own=own, refined=refined, halves_given=given)


def alignment_of(stated: Independence, num_rows: int, *, own: int, refined: int, halves_given: bool) -> Alignment:
    """Return the same of `num_rows` aligned rows, of which so many are `own` predictions or `refined` from such."""
    doubts = []
    if own:
        doubts.append(f"{own} of {num_rows} aligned poses are predictions of this program, no consensus")
    if refined:
        doubts.append(
            f"initialised_from_own_predictions: {refined} of {num_rows} aligned poses were refined from predictions of "
            "this program, so the halves are no more independent than these were"
        )
    if not halves_given and stated == "independent":
        doubts.append(
            "the aligned rows came without rlnRandomSubset: their half-sets are a hash of the micrographs' names, not "
            "those that they were refined in"
        )
    limit: Independence = "independent" if halves_given and not own + refined else "unknown"
    return Alignment(least_independent(stated, limit), tuple(doubts), own + refined)
