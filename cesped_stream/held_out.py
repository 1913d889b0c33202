"""Confidence of a half-set's models, fitted on aligned particles that they have not seen: the other half-set's.

Nothing of those particles goes into a model: one monotone curve, and how much each proposer counts, cross between the
halves.
"""

import logging
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cesped_stream.calibration.answers import confidence_features
from cesped_stream.calibration.calibrator import Calibrator, HeldOutAnswers, fit_calibrator
from cesped_stream.imaging.noise_model import optics_key
from cesped_stream.imaging.reference import UInt64
from cesped_stream.matching import Float64, MatchedPoses, ReferenceMatcher
from cesped_stream.particles.identities import particle_digests
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.table import ParticleTable
from cesped_stream.reconstruction.agreement import agreeing
from cesped_stream.settings import CalibrationSettings
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations

logger = logging.getLogger(__name__)

SURELY_A_PARTICLE: Final = 2.0
"""In standard deviations of noise above it."""
MOST_WRONG_LABELS: Final = 0.25
"""Share of held-out rows of wrong labels above which none is taken for wrong: so many mean something else, another
frame or conformation, and that counts."""
LEAST_RIGHT: Final = 0.02
"""Share of held-out poses that must be right. With fewer, a curve has next to nothing to tell right from wrong by, and
labels in another frame than the reference are likelier than so bad a reference."""
ONE_FRAME: Final = "are both half-sets in one frame (origin, axes, hand)?"


@dataclass(frozen=True)
class TooFew:
    """Why nothing was fitted."""

    why: str


def held_out_rows(table: ParticleTable, half: int, most: int) -> ParticleTable:
    """Return at most `most` rows with poses, evenly spread, of the half-set that the models of `half` have not seen."""
    rows = np.flatnonzero((table.half_sets() == 1 - half) & table.has_poses())
    return evenly(table.select(rows), most)


def evenly(table: ParticleTable, most: int) -> ParticleTable:
    """Return at most `most` rows, evenly spread."""
    count = min(most, len(table))
    return table.select(np.arange(count) * len(table) // max(count, 1))


def too_few(table: ParticleTable, half: int, settings: CalibrationSettings) -> TooFew | None:
    """Return why confidence of the models of `half` cannot be fitted on these rows, or None where it can."""
    micrographs = len(set(table.micrographs()))
    if len(table) >= settings.min_particles and micrographs > 1:
        return None
    return TooFew(
        f"half-set {half}: {len(table)} held-out particles of {micrographs} micrographs; confidence needs "
        f"{settings.min_particles} (calibration.min_particles) of two or more"
    )


def features_of(found: MatchedPoses, apart_deg: Float64 | None = None) -> dict[str, Float64]:
    """Return what tells how sure each pose is, `(n,)` each; the mass is that of the proposal it was refined from."""
    rows = np.arange(len(found))
    weights = found.gallery_weight.clip(0, 1)  # a float32 sum may be a few 1e-6 above 1
    own = weights[rows, found.proposal.clip(0)]
    others = weights.copy()
    others[rows, found.proposal.clip(0)] = 0
    own[found.proposal < 0] = np.nan
    features = confidence_features(
        np.stack([own, others.max(axis=1)], axis=1),
        above_noise=found.above_noise,
        apart_deg=apart_deg,
        log_likelihood=found.log_likelihood,
        runner_up=found.runner_up,
    )
    return {str(name): values for name, values in features.items()}


def optics_names(table: ParticleTable) -> list[str]:
    """Return what names each row's optics group, `(n,)`, in whatever star it stands."""
    keys = [optics_key(group) for group in table.optics]
    return [keys[k] for k in table.optics_index]


def errors_deg(table: ParticleTable, rotations: Float64, symmetry: str) -> Float64:
    """Return how far rotations `(n, 3, 3)` are from the rows' own poses, `(n,)` degrees; NaN where they are."""
    errors = np.full(len(table), np.nan)
    known = np.isfinite(rotations).all(axis=(1, 2))
    errors[known] = angular_error_deg(table.rotations()[known], rotations[known], group_rotations(symmetry))
    return errors


def fit_confidence(
    table: ParticleTable,
    found: MatchedPoses,
    features: dict[str, Float64],
    matcher: ReferenceMatcher,
    reader: StackReader,
    seen: UInt64,
    settings: CalibrationSettings,
) -> Calibrator | TooFew:
    """Return the calibrator of a half-set's models from their poses of held-out rows, or why there is none.

    `matcher` holds the half-set's reference. Rows whose own pose is what is wrong (`_wrong_labels`) are not fitted on.
    `seen` are the `particle_digests` of all that these models have seen; ValueError where a row is among them.
    """
    half = matcher.reference.half_set
    usable = np.flatnonzero(np.isfinite(found.rotation).all(axis=(1, 2)))
    few = too_few(table.select(usable), half, settings)
    if few is not None:
        return few
    errors = errors_deg(table, found.rotation, matcher.reference.symmetry)
    right = int((errors[usable] <= settings.within_deg).sum())
    if right < LEAST_RIGHT * len(usable):
        return TooFew(
            f"half-set {half}: {right} of {len(usable)} held-out particles are within {settings.within_deg:g} degrees "
            f"of their own poses; confidence needs {100 * LEAST_RIGHT:g} %: {ONE_FRAME}"
        )
    doubted = usable[_wrong_labels(matcher, table.select(usable), reader, found.above_noise[usable])]
    doubted = doubted[errors[doubted] > settings.within_deg]
    said = {"half": half, "rows": len(usable), "wrong_labels": len(doubted)}
    if len(doubted) <= MOST_WRONG_LABELS * len(usable):
        errors[doubted] = np.nan
        logger.info("confidence is fitted", extra=said)
    else:
        logger.warning("too many held-out rows disagree with the reference to be wrong labels: all count", extra=said)
    least = int(settings.min_particles * (1 - MOST_WRONG_LABELS))
    answers = HeldOutAnswers(
        particle_ids=[str(digest) for digest in particle_digests(table).tolist()],
        features=features,
        errors_deg=errors,
        optics_groups=optics_names(table),
        micrographs=table.micrographs(),
    )
    allowed = settings.model_copy(update={"min_particles": least})  # as many were there before wrong labels went
    return fit_calibrator(answers, half_set=half, seen=map(str, seen.tolist()), settings=allowed)


def _wrong_labels(
    matcher: ReferenceMatcher, table: ParticleTable, reader: StackReader, above_noise: Float64
) -> NDArray[np.bool_]:
    """Which rows `(n,)`, all of a usable image, surely show the particle, but not at their own poses.

    The reference explains the image at the row's own pose no better than noise does (`agreeing`), at another one far
    better. To count them as errors would take the share of wrong aligned poses off every confidence. Junk that is no
    surer at any pose than noise stays; junk that resembles the particle goes, where its own pose does not fit it.
    """
    return np.asarray(~agreeing(matcher.own_log_likelihoods(table, reader)) & (above_noise > SURELY_A_PARTICLE))
