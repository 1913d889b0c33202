"""The columns of our own in pose stars, and how their cells are written and read. No value is ever an empty cell."""

import json
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

CONFIDENCE: Final = "cestreamConfidence"
CONFIDENCE_KIND: Final = "cestreamConfidenceKind"
"""What the confidence is: `CALIBRATED`, `MASS`, "given" (the row's own rlnMaxValueProbDistribution), or `NOTHING`."""
CHECKPOINT: Final = "cestreamCheckpoint"
PROPOSER: Final = "cestreamProposer"
STATUS: Final = "cestreamStatus"
REVISION: Final = "cestreamRevision"
TOP_POSES: Final = "cestreamTopPoses"
ABOVE_NOISE: Final = "cestreamAboveNoise"
NETWORK_POSE: Final = "cestreamNetworkPose"
GALLERY_POSE: Final = "cestreamGalleryPose"
APART: Final = "cestreamApart"
"""Degrees, under the group, between the network's own pose and the gallery's."""
CLIPPED: Final = "cestreamClipped"

OWN_LABELS: Final = (
    CONFIDENCE,
    CONFIDENCE_KIND,
    CHECKPOINT,
    PROPOSER,
    STATUS,
    REVISION,
    TOP_POSES,
    ABOVE_NOISE,
    NETWORK_POSE,
    GALLERY_POSE,
    APART,
    CLIPPED,
)
"""In the order that they are written."""
PREDICTED: Final = "predicted"
GIVEN: Final = "given"
"""Of `STATUS`: who the pose is by."""
CALIBRATED: Final = "calibrated"
MASS: Final = "mass"
NOTHING: Final = "none"
NO_ABOVE_NOISE: Final = "-999.0000"
NO_APART: Final = "999.0000"
"""Cells of number columns without a number, RELION's own "unset": numbers, so that programs that filter by numbers read
the column, and on the side that a filter drops (a least height above noise, a greatest angle apart)."""
NO_POSE: Final = "[]"
REFINEMENT: Final = "refinement"
"""Last of the words of `PROPOSER` where the pose was refined against a reference."""

NEUTRAL_CELLS: Final[Mapping[str, str]] = {
    CONFIDENCE: "0.000000",
    CONFIDENCE_KIND: NOTHING,
    CHECKPOINT: NOTHING,
    PROPOSER: NOTHING,
    REVISION: "0",
    TOP_POSES: NO_POSE,
    ABOVE_NOISE: NO_ABOVE_NOISE,
    NETWORK_POSE: NO_POSE,
    GALLERY_POSE: NO_POSE,
    APART: NO_APART,
    CLIPPED: "no",
}
"""Cells of rows that say nothing: flagged ones, and those of a session that was begun before a column was."""

Float64 = NDArray[np.float64]


def is_refined(proposer: str) -> bool:
    """Return whether what `PROPOSER` says ends in a refinement: "gallery+refinement" does, "image2sphere" does not."""
    return proposer.rsplit("+", maxsplit=1)[-1] == REFINEMENT


def number_cell(value: float, unset: str) -> str:
    """Return a number's cell with 4 decimals; `unset` where it is not finite."""
    return f"{value:.4f}" if np.isfinite(value) else unset


def numbers_of(cells: Sequence[str]) -> Float64:
    """Return the numbers `(n,)` of cells by `number_cell`, however another program wrote them; NaN for an unset one,
    and for `NOTHING`, which former versions wrote."""
    numbers = np.array([np.nan if cell == NOTHING else float(cell) for cell in cells], np.float64)
    return np.where(np.isin(numbers, (float(NO_ABOVE_NOISE), float(NO_APART))), np.nan, numbers)


def list_cell(values: Float64) -> str:
    """Return an array's cell, flat: "[1.000000,2.000000]"; `NO_POSE` where a value is not finite."""
    return "[" + ",".join(f"{value:.6f}" for value in values.ravel()) + "]" if np.isfinite(values).all() else NO_POSE


def poses_of(cells: Sequence[str]) -> Float64:
    """Return the first pose `(n, 3)` (rot, tilt, psi in degrees) of cells by `list_cell`; NaN where there is none."""
    angles = np.full((len(cells), 3), np.nan)
    for row, cell in enumerate(cells):
        found = json.loads(cell)
        if found:
            angles[row] = found[:3]
    return angles
