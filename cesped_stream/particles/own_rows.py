"""Rows that this program posed, wherever they turn up again: they are never taken for a consensus."""

from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cesped_stream.particles.own_columns import CHECKPOINT, GIVEN, NOTHING, STATUS
from cesped_stream.particles.table import ParticleTable

SIGNIFICANT_SAMPLES: Final = "rlnNrOfSignificantSamples"
"""RELION's expectation step writes 1 or more here. A predicted row has 0, or lacks the column."""


class PoseSource(IntEnum):
    """Who made the pose that a star's row has."""

    FOREIGN = 0
    """Another program; a row of ours whose pose was given is such a row too."""
    OWN = 1
    """This program: a prediction, no consensus."""
    REFINED_FROM_OWN = 2
    """RELION, which refined a prediction of this program: a consensus that is not independent of it."""


def pose_sources(table: ParticleTable) -> NDArray[np.int8]:
    """Return `(n,)` the `PoseSource` of each row, whether it has a pose or not.

    A row is a prediction of ours where its `cestreamStatus` is anything but "given" or its `cestreamCheckpoint` is not
    "none". RELION keeps these columns when it refines such rows, and then notes how many orientations mattered.
    """
    own = np.zeros(len(table), np.bool_)
    for label, foreign in ((STATUS, GIVEN), (CHECKPOINT, NOTHING)):
        if label in table:
            own |= np.array([cell != foreign for cell in table.column(label)], np.bool_)
    sources = np.where(own, PoseSource.OWN, PoseSource.FOREIGN).astype(np.int8)
    if own.any():
        refined = own & (table.numbers(SIGNIFICANT_SAMPLES, 0.0) >= 1)
        sources[refined] = PoseSource.REFINED_FROM_OWN
    return sources


def consensus_confidences(table: ParticleTable) -> NDArray[np.float64]:
    """Return `(n,)` rlnMaxValueProbDistribution where a consensus wrote it, 1 where there is none (eq. 10).

    In rows that this program predicted the column holds its own confidence, which weighs no label.
    """
    confidences = table.numbers("rlnMaxValueProbDistribution", 1.0)
    return np.where(pose_sources(table) == PoseSource.OWN, 1.0, confidences)
