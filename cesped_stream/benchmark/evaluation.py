"""Predicted poses held against the truth: errors of poses, and of the maps that they give (the paper's section 2.3).

The one evaluator: the benchmark, the replay of a stream and any tool's star go through it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cesped_stream.benchmark.evaluation_result import Evaluation, PredictedConfidence, ScoredMaps, ShiftErrors
from cesped_stream.benchmark.map_metrics import MapAgreement, MapScores, compare_maps, deltas, radial_profile
from cesped_stream.benchmark.metrics import (
    PoseMetrics,
    effective_number,
    pose_metrics,
    shift_rmse_angstrom,
)
from cesped_stream.benchmark.predictions import (
    CONFIDENCE_LABELS,
    MatchedPredictions,
    PredictionType,
    completed_table,
    match_predictions,
    predicted_rotations,
    prediction_confidence,
)
from cesped_stream.benchmark.truth_maps import OnProgress, TruthMaps
from cesped_stream.benchmark.truth_maps import truth_maps as made_truth_maps
from cesped_stream.calibration.metrics import area_under_curve
from cesped_stream.conventions import SHIFT_LABELS
from cesped_stream.errors import InvalidSettingsError, InvalidStarError
from cesped_stream.particles.own_columns import ABOVE_NOISE, numbers_of
from cesped_stream.particles.own_rows import consensus_confidences
from cesped_stream.particles.table import ParticleTable
from cesped_stream.reconstruction.engine import Engine, Reconstruction
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations

__all__ = ["Evaluation", "PredictionType", "ScoredMaps", "TruthMaps", "evaluate_poses"]

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Halves = tuple[Float32 | None, Float32 | None]


def evaluate_poses(
    truth: ParticleTable,
    predicted: ParticleTable,
    *,
    symmetry: str,
    prediction_type: PredictionType = PredictionType.SO3,
    engine: Engine | None = None,
    mask: Float32 | None = None,
    use_confidence: bool = True,
    confidence_labels: Sequence[str] = CONFIDENCE_LABELS,
    truth_maps: TruthMaps | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Evaluation:
    """Score predictions against a truth, matched by image name; partial predictions are scored where they are.

    `truth` has poses, half-sets, CTF, `cestreamStack` and, where it is simulated, `cestreamKind`. `engine` makes the
    maps, None: poses only. `mask` `(box, box, box)` from 0 to 1 adds masked figures beside the unmasked ones.
    `use_confidence` adds a map weighted by the predictions' confidence, which stands in the first of
    `confidence_labels` that is there; an unusable one counts as none (`why_no_confidence`).
    `truth_maps` saves making them.
    Raises InvalidStarError for predictions that are not of this truth, or that lack a column (`match_predictions`),
    InvalidSettingsError for a symmetry or a mask that does not fit, and what the engine raises.
    """
    group = group_rotations(symmetry)
    matched = match_predictions(truth, predicted, prediction_type)
    rotations = predicted_rotations(matched, prediction_type, group)
    errors = angular_error_deg(matched.truth.rotations(), rotations, group)
    confidence, why_none = _usable_confidence(matched.predicted, confidence_labels if use_confidence else ())
    own = np.flatnonzero(matched.is_particle)
    scored = None
    if engine is not None and len(matched.rows):
        known = truth_maps or made_truth_maps(truth, symmetry, engine, on_progress=on_progress)
        scoring = _Scoring(engine, symmetry, known, mask, on_progress)
        scored = scoring.of(completed_table(matched, rotations, prediction_type), confidence)
    return Evaluation(
        symmetry=symmetry.upper(),
        prediction_type=prediction_type,
        use_confidence=use_confidence,
        coverage=matched.coverage,
        rows=matched.rows[own],
        half_sets=matched.truth.half_sets()[own],
        errors_deg=errors[own],
        truth_confidences=consensus_confidences(matched.truth)[own],
        poses=_pose_metrics(matched.truth.select(own), rotations[own], group, prediction_type),
        shifts=_shift_errors(matched, own),
        confidence=_confidence(confidence, matched, errors),
        why_no_confidence=why_none,
        maps=scored,
        num_junk_in_maps=int((~matched.is_particle).sum()) if scored is not None else 0,
    )


@dataclass(frozen=True, eq=False)
class _Scoring:
    """Makes maps of predictions and scores them against the truth's."""

    engine: Engine
    symmetry: str
    truth: TruthMaps
    mask: Float32 | None
    on_progress: OnProgress

    def of(self, table: ParticleTable, confidence: tuple[Float64, str] | None) -> ScoredMaps:
        half_to_half = self.truth.half_to_half(self._checked_mask())
        rows = tuple(np.flatnonzero(table.half_sets() == half) for half in (0, 1))
        plain = self._scores(table, rows, None, half_to_half)
        useful = confidence is not None and all(_tells_apart(confidence[0][of_half]) for of_half in rows)
        weighted = self._scores(table, rows, confidence, half_to_half) if useful else None
        return ScoredMaps(self.truth, half_to_half, plain, weighted, self.mask is not None)

    def _scores(
        self,
        table: ParticleTable,
        rows: tuple[Int64, ...],
        confidence: tuple[Float64, str] | None,
        truth_half_to_half: MapAgreement,
    ) -> MapScores:
        weights = np.ones(len(table)) if confidence is None else confidence[0]
        halves = self._maps(table, rows, None if confidence is None else weights)
        present = [volume for volume in halves if volume is not None]
        combined = np.asarray(sum(present) / np.float32(len(present)), np.float32)
        to_truth = self._against(combined, self.truth.combined)
        return MapScores(
            weighted_by="" if confidence is None else confidence[1],
            effective_number=effective_number(weights),
            halves=halves,
            combined=combined,
            half_to_half=self._half_to_half(*halves),
            to_truth=to_truth,
            halves_to_truth=self._halves_against(halves, (self.truth.combined, self.truth.combined)),
            halves_to_other_truth=self._halves_against(halves, (self.truth.halves[1], self.truth.halves[0])),
            deltas_unmasked=deltas(truth_half_to_half.unmasked, to_truth.unmasked),
            deltas_masked=None
            if truth_half_to_half.masked is None or to_truth.masked is None
            else deltas(truth_half_to_half.masked, to_truth.masked),
            radial=radial_profile(combined, self.truth.combined, self.truth.halves, self.truth.pixel_size_angstrom),
        )

    def _maps(self, table: ParticleTable, rows: tuple[Int64, ...], weights: Float64 | None) -> Halves:
        before = (0, len(rows[0]))
        zero, one = (
            self._map(table, of_half, weights, done_before) if len(of_half) else None
            for of_half, done_before in zip(rows, before, strict=True)
        )
        return zero, one

    def _map(self, table: ParticleTable, rows: Int64, weights: Float64 | None, done_before: int) -> Float32:
        what = f"{'maps' if weights is None else 'weighted maps'} of the predictions"
        made = self.engine.reconstruct(
            table.select(rows),
            self.symmetry,
            weights=None if weights is None else weights[rows],
            on_progress=lambda done: self.on_progress(what, done_before + done, len(table)),
        )
        return self._checked_volume(made)

    def _half_to_half(self, zero: Float32 | None, one: Float32 | None) -> MapAgreement | None:
        if zero is None or one is None:
            return None
        return compare_maps(zero, one, self.truth.pixel_size_angstrom, self.mask, halves=True)

    def _against(self, volume: Float32, other: Float32) -> MapAgreement:
        return compare_maps(volume, other, self.truth.pixel_size_angstrom, self.mask)

    def _halves_against(
        self, halves: Halves, others: tuple[Float32, Float32]
    ) -> tuple[MapAgreement | None, MapAgreement | None]:
        zero, one = (
            None if volume is None else self._against(volume, other)
            for volume, other in zip(halves, others, strict=True)
        )
        return zero, one

    def _checked_mask(self) -> Float32 | None:
        wanted = self.truth.halves[0].shape
        if self.mask is not None and self.mask.shape != wanted:
            raise InvalidSettingsError(
                f"mask: {self.mask.shape} voxels, the maps have {wanted}; make the mask on the maps' box"
            )
        return self.mask

    def _checked_volume(self, made: Reconstruction) -> Float32:
        wanted = self.truth.halves[0].shape
        if made.volume.shape != wanted:
            raise InvalidStarError(f"maps of the predictions are {made.volume.shape}, of the truth {wanted} voxels")
        return made.volume


def _usable_confidence(predicted: ParticleTable, labels: Sequence[str]) -> tuple[tuple[Float64, str] | None, str]:
    """Return the confidence, or None and why there is none."""
    if not labels:
        return None, "not to be used"
    try:
        found = prediction_confidence(predicted, labels)
    except InvalidStarError as error:
        return None, str(error)
    return found, "" if found is not None else f"the predictions have no {' or '.join(labels)}"


def _tells_apart(confidence: Float64) -> bool:
    """Whether weights by these confidences make another map than equal weights; none at all do too."""
    return len(confidence) == 0 or bool(confidence.max() > 0 and (confidence != confidence[0]).any())


def _pose_metrics(
    truth: ParticleTable, rotations: Float64, group: Float64, prediction_type: PredictionType
) -> PoseMetrics | None:
    if not len(truth):
        return None
    views_only = prediction_type is PredictionType.S2
    return pose_metrics(
        truth.rotations(), rotations, consensus_confidences(truth), truth.half_sets(), group, views_only=views_only
    )


def _shift_errors(matched: MatchedPredictions, own: Int64) -> ShiftErrors | None:
    if not len(own) or any(label not in matched.predicted for label in SHIFT_LABELS):
        return None
    true, predicted = matched.truth.shifts_angstrom()[own], matched.predicted.shifts_angstrom()[own]
    halves = matched.truth.half_sets()[own]
    zero, one = (
        shift_rmse_angstrom(true[halves == half], predicted[halves == half]) if (halves == half).any() else None
        for half in (0, 1)
    )
    return ShiftErrors((zero, one), shift_rmse_angstrom(true, predicted))


def _confidence(
    confidence: tuple[Float64, str] | None, matched: MatchedPredictions, errors_deg: Float64
) -> PredictedConfidence | None:
    if confidence is None:
        return None
    values, label = confidence
    particle = matched.is_particle
    above_noise = numbers_of(matched.predicted.column(ABOVE_NOISE)) if ABOVE_NOISE in matched.predicted else None
    told = above_noise is not None and bool(np.isfinite(above_noise).all())
    near = particle & (errors_deg <= 15)
    return PredictedConfidence(
        label=label,
        effective_number=effective_number(values),
        junk_auc=area_under_curve(values, particle),
        above_noise_junk_auc=area_under_curve(above_noise, particle) if above_noise is not None and told else None,
        within_15_deg_auc=area_under_curve(values[particle], near[particle]),
        num_within_15_deg=int(near.sum()),
        num_beyond_15_deg=int((particle & ~near).sum()),
    )
