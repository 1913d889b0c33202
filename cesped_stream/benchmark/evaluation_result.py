"""What an evaluation measured, under names of our own and under those of the `cesped` package."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cesped_stream.benchmark.map_metrics import MapAgreement, MapScores, RegionAgreement
from cesped_stream.benchmark.metrics import (
    PoseMetrics,
    halves_combined_as_cesped,
    median_displacement_angstrom,
    rms_displacement_angstrom,
)
from cesped_stream.benchmark.predictions import Coverage, PredictionType
from cesped_stream.benchmark.truth_maps import TruthMaps

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ScoredMaps:
    """The truth's maps and those of the predictions."""

    truth: TruthMaps
    truth_half_to_half: MapAgreement
    """GT_0 against GT_1."""
    unweighted: MapScores
    weighted: MapScores | None
    """Of particles weighted by their predicted confidence; None where there is none, where it tells no two particles of
    a half apart, or where it is not to be used."""
    masked: bool
    """Whether there are masked figures beside the unmasked ones."""

    @property
    def as_cesped(self) -> MapScores:
        """The maps that the `cesped` package would score: weighted where there is a confidence to use."""
        return self.weighted or self.unweighted


@dataclass(frozen=True)
class ShiftErrors:
    """Root mean square length of the shift's error in angstrom; None for a half-set without predictions."""

    halves_angstrom: tuple[float | None, float | None]
    together_angstrom: float


@dataclass(frozen=True)
class PredictedConfidence:
    """What the predictions say of themselves."""

    label: str
    """The column it was read from."""
    effective_number: float
    """(sum w)^2 / sum w^2 over all predicted rows."""
    junk_auc: float | None
    """Chance that a particle has a higher confidence than a row of junk; None without predictions of both."""
    within_15_deg_auc: float | None
    """Chance that a pose within 15 degrees has a higher confidence than one that is not; None without both."""
    above_noise_junk_auc: float | None = None
    """The same chance of `cestreamAboveNoise`; None without that column, or where a row has no value."""
    num_within_15_deg: int = 0
    num_beyond_15_deg: int = 0


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Everything measured. Pose errors are of the predicted particles only, junk and given poses left out."""

    symmetry: str
    prediction_type: PredictionType
    use_confidence: bool
    coverage: tuple[Coverage, Coverage, Coverage]
    """Of half-set 0, of half-set 1, of both together."""
    rows: NDArray[np.int64]
    """`(n,)`: the truth's rows that the arrays below are of."""
    half_sets: NDArray[np.int8] = field(repr=False)
    errors_deg: Float64 = field(repr=False)
    """`(n,)`, eq. 4."""
    truth_confidences: Float64 = field(repr=False)
    """`(n,)`: rlnMaxValueProbDistribution, the weights of wMAnE; 1 where the truth has none."""
    poses: PoseMetrics | None
    """None where no particle was predicted."""
    shifts: ShiftErrors | None
    """None where the predictions hold no shifts."""
    confidence: PredictedConfidence | None
    """None where the predictions hold no confidence."""
    maps: ScoredMaps | None
    """None where no maps were asked for or nothing was predicted."""
    why_no_confidence: str = ""
    """Why `confidence` is None: none there, not to be used, or of values that no confidence has."""
    num_junk_in_maps: int = 0
    """Predicted rows that are no particles, and stand in the maps all the same: a session would not know."""

    def cesped_metrics(self) -> dict[str, float]:
        """Return the figures under the names of the `cesped` package."""
        return cesped_metrics(self)

    def to_json(self) -> dict[str, Any]:
        """Return everything measured as JSON can hold it, maps left out."""
        return evaluation_json(self)


def cesped_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Return the figures under the keys of the `cesped` package, its spelling and its mixtures included.

    As there: MAnE and shift RMSE are means of the two halves, wMAnE is weighted by the halves' total confidences; the
    maps are weighted by the predicted confidence where there is one to use; with a mask, GT_* and half2half_* are of
    masked maps, mapVsGT_resolution* of unmasked ones, and mapVsGT_correlaton_diff is a masked figure less an unmasked
    one. Unlike there: resolutions are of shells rounded, not cut, to whole numbers, and infinite where its are
    negative; psi of S2 predictions is not scored. shiftsRMSE is of whatever shifts the stars
    hold, predicted or not. NaN stands for what was not measured.
    """
    nothing = dict.fromkeys(_CESPED_MAP_KEYS, math.nan)
    return _cesped_poses(evaluation) | (nothing if evaluation.maps is None else _cesped_maps(evaluation.maps))


def evaluation_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return everything measured, maps and per-particle arrays left out, as JSON can hold it: None for no number."""
    halves = {f"half_{half}": None for half in (0, 1)}
    poses = evaluation.poses
    maps = evaluation.maps
    return {
        "symmetry": evaluation.symmetry,
        "prediction_type": str(evaluation.prediction_type),
        "use_confidence": evaluation.use_confidence,
        "coverage": {
            name: {**_json(one), "share": one.share}
            for name, one in zip(("half_0", "half_1", "together"), evaluation.coverage, strict=True)
        },
        "poses": None
        if poses is None
        else {
            **halves,
            **{f"half_{half.half_set}": _json(half) for half in poses.halves},
            "together": _json(poses.together),
            "random_predictor_mean_deg": poses.random_mean_deg,
            "rms_displacement_per_radius": float(rms_displacement_angstrom(evaluation.errors_deg, 1.0)),
        },
        "shifts": _shifts_json(evaluation),
        "confidence": _json(evaluation.confidence),
        "why_no_confidence": evaluation.why_no_confidence or None,
        "maps": None if maps is None else _maps_json(evaluation, maps),
    }


def _shifts_json(evaluation: Evaluation) -> dict[str, Any]:
    """No error is told of shifts that stand in the predictions but are none: given or landed ones."""
    predicted = evaluation.shifts is not None and evaluation.prediction_type is PredictionType.SO3xR2
    nothing = {"halves_angstrom": None, "together_angstrom": None}
    return {"predicted": predicted, **(_json(evaluation.shifts) if predicted else nothing)}


def _maps_json(evaluation: Evaluation, maps: ScoredMaps) -> dict[str, Any]:
    return {
        "engine": maps.truth.engine,
        "pixel_size_angstrom": maps.truth.pixel_size_angstrom,
        "box_size": maps.truth.halves[0].shape[0],
        "masked": maps.masked,
        "num_junk_in_maps": evaluation.num_junk_in_maps,
        "truth": {
            "num_particles": list(maps.truth.num_particles),
            "half_to_half": _json(maps.truth_half_to_half),
        },
        "unweighted": _scores_json(evaluation, maps.unweighted),
        "weighted": None if maps.weighted is None else _scores_json(evaluation, maps.weighted),
        "as_cesped": "unweighted" if maps.weighted is None else "weighted",
    }


def _scores_json(evaluation: Evaluation, scores: MapScores) -> dict[str, Any]:
    radii = scores.radial.radius_angstrom
    content: dict[str, Any] = _json(scores)
    if len(evaluation.errors_deg):
        errors = evaluation.errors_deg
        content["radial"]["rms_displacement_angstrom"] = _json(rms_displacement_angstrom(errors, radii))
        content["radial"]["median_displacement_angstrom"] = _json(median_displacement_angstrom(errors, radii))
    return content


def _json(value: Any) -> Any:
    """Dataclasses as dictionaries without their maps, arrays as lists, None for what JSON has no number for."""
    if dataclasses.is_dataclass(value):
        fields = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
        if isinstance(value, RegionAgreement):
            fields |= {name: getattr(value, name) for name in _NYQUIST_FLAGS}
        return {name: _json(content) for name, content in fields.items() if name not in _MAP_FIELDS}
    if isinstance(value, np.ndarray):
        return [_json(float(number)) for number in value]
    if isinstance(value, tuple):
        return [_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_MAP_FIELDS = ("halves", "combined")
_NYQUIST_FLAGS = ("resolution_0143_at_nyquist", "resolution_05_at_nyquist")
_CESPED_MAP_KEYS = (
    *("GT_correlation", "GT_resolution0143", "GT_resolution05"),
    *("half2half_resolution", "half2half_resolution05", "half2half_correlation"),
    *("mapVsGT_correlaton_masked", "mapVsGT_correlaton_unmasked", "mapVsGT_resolution", "mapVsGT_resolution05"),
    *("mapVsGT_correlaton_diff_masked", "mapVsGT_correlaton_diff"),
)


def _cesped_poses(evaluation: Evaluation) -> dict[str, float]:
    halves = [] if evaluation.poses is None else list(evaluation.poses.halves)
    confidences = [float(evaluation.truth_confidences[evaluation.half_sets == half.half_set].sum()) for half in halves]
    weighted = [0.0 if half.weighted_mean_deg is None else half.weighted_mean_deg for half in halves]
    shifts = () if evaluation.shifts is None else evaluation.shifts.halves_angstrom
    return {
        "meanAngularError": halves_combined_as_cesped([half.mean_deg for half in halves]),
        "wMeanAngularError": halves_combined_as_cesped(weighted, confidences),
        "shiftsRMSE": halves_combined_as_cesped([rmse for rmse in shifts if rmse is not None]),
    }


def _cesped_maps(maps: ScoredMaps) -> dict[str, float]:
    scores = maps.as_cesped
    truth = _masked_if_any(maps.truth_half_to_half)
    halves = None if scores.half_to_half is None else _masked_if_any(scores.half_to_half)
    unmasked, masked = scores.to_truth.unmasked, scores.to_truth.masked
    masked_pearson = math.nan if masked is None else masked.pearson
    figures = (
        *(truth.pearson, truth.resolution_0143_angstrom, truth.resolution_05_angstrom),
        math.nan if halves is None else halves.resolution_0143_angstrom,
        math.nan if halves is None else halves.resolution_05_angstrom,
        math.nan if halves is None else halves.pearson,
        *(masked_pearson, unmasked.pearson, unmasked.resolution_0143_angstrom, unmasked.resolution_05_angstrom),
        *(truth.pearson - masked_pearson, truth.pearson - unmasked.pearson),
    )
    return dict(zip(_CESPED_MAP_KEYS, figures, strict=True))


def _masked_if_any(agreement: MapAgreement) -> RegionAgreement:
    return agreement.masked or agreement.unmasked
