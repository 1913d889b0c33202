"""What speaks against a half-set's reference before it gives poses: said, not acted upon."""

from typing import Final

import numpy as np

from cesped_stream.imaging.reference import Reference
from cesped_stream.matching import ReferenceMatcher
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.table import ParticleTable, thinned

COMPARED_ROWS: Final = 64
LEAST_ABOVE_NOISE: Final = 1.0
"""In standard deviations of noise: the median image of a map that is in the images stands higher."""
STANDARD_ERRORS: Final = 3.0
"""So far below 0 the mean gain over inverted contrast must be before contrast is doubted."""
MOST_LEFT_OUT: Final = 0.5


def map_doubts(matcher: ReferenceMatcher, table: ParticleTable, reader: StackReader, half: int) -> tuple[str, ...]:
    """Return what speaks against a given map, by at most `COMPARED_ROWS` of the half-set's images; often nothing.

    Two things show: inverted contrast, and a map that fits the images no better than noise. Hand does not (a map
    and its mirror have the same projections), and another molecule of like shape need not. The matcher must have
    learned and measured the noise. Raises what reading raises.
    """
    sample = table.select(thinned(len(table), COMPARED_ROWS))
    gain, said = matcher.over_inverted(sample, reader), []
    if len(gain) > 1 and gain.mean() < -STANDARD_ERRORS * gain.std(ddof=1) / len(gain) ** 0.5:
        said.append(
            f"half-set {half}: the images fit the given map better with their contrast inverted; is the particle's "
            "density positive in the map, and bright in the images? Else invert the map"
        )
    above = matcher.match(sample, reader).above_noise
    if np.isfinite(above).any() and (median := float(np.nanmedian(above))) < LEAST_ABOVE_NOISE:
        said.append(
            f"half-set {half}: the given map explains the images hardly better than noise (median {median:.1f} "
            "standard deviations above it); another molecule, inverted contrast, or images with too little signal?"
        )
    return tuple(said)


def rows_doubts(reference: Reference) -> tuple[str, ...]:
    """Return what speaks against a reference of aligned rows: that most of them disagree."""
    members, left_out = len(reference.members), reference.num_left_out
    if left_out <= MOST_LEFT_OUT * members:
        return ()
    return (
        f"half-set {reference.half_set}: {left_out} of {members} aligned rows agree with the map of the others no "
        "better than noise and were left out, so what is left may be noise that fits itself; are the aligned poses of "
        "these images, and the symmetry right?",
    )
