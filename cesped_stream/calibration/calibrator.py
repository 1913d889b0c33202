"""P(a pose is within so many degrees of the consensus), fitted on held-out particles of one half-set.

Only particles that reference and training have not seen say how sure an answer about new ones is; labels are a
consensus of other programs, so "right" means near that.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cesped_stream.calibration.confidence_model import ConfidenceModel, fit_confidence_model
from cesped_stream.calibration.drift import SCORE_QUANTILES, Drift, DriftState, drift_of
from cesped_stream.calibration.metrics import ProbabilityFigures, probability_figures
from cesped_stream.errors import InvalidCheckpointError
from cesped_stream.settings import CalibrationSettings

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HeldOutAnswers:
    """Answers for n particles of one half-set that neither its reference nor its training has seen."""

    particle_ids: Sequence[str]
    features: Mapping[str, Float64]
    """`(n,)` each; see `answers.confidence_features`."""
    errors_deg: Float64
    """`(n,)` angular error of the final pose against the consensus, under the group."""
    optics_groups: Sequence[str]
    """`(n,)` names."""
    micrographs: Sequence[str]
    """`(n,)` names: the figures are measured on whole micrographs left out."""


class CalibrationFigures(BaseModel):
    """`ProbabilityFigures` on particles left out of the fit, micrograph by micrograph."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    num_particles: int
    base_rate: float
    expected_calibration_error: float
    expected_noise: float
    brier_score: float
    area_under_curve: float | None

    @classmethod
    def of(cls, figures: ProbabilityFigures) -> "CalibrationFigures":
        """Return the same as a model that can be written."""
        return cls(**vars(figures))


class Calibrator(BaseModel):
    """From features to P(within `within_deg` of the consensus), for the answers of one half-set's models."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    half_set: int = Field(ge=0, le=1)
    """Of the model and the reference whose answers it was fitted on."""
    within_deg: float = Field(gt=0)
    model: ConfidenceModel
    score_quantiles: tuple[float, ...] = Field(min_length=SCORE_QUANTILES, max_length=SCORE_QUANTILES)
    confidence_quantiles: tuple[float, ...] = Field(min_length=SCORE_QUANTILES, max_length=SCORE_QUANTILES)
    num_particles: int = Field(ge=1)
    particles_sha256: str
    """Of the ids of the particles that it was fitted on."""
    figures: CalibrationFigures
    group_figures: dict[str, CalibrationFigures]
    """By optics group."""

    def scores(self, features: Mapping[str, Any]) -> Float64:
        """Return log-odds scores `(n,)` of features `(n,)` each, for `drift`; as `ConfidenceModel.scores`."""
        return self.model.scores(features)

    def confidence(
        self, features: Mapping[str, Any], optics_groups: Sequence[str] | NDArray[np.str_], *, half_set: int
    ) -> Float64:
        """Return P(within `within_deg` of the consensus) `(n,)` of answers of `half_set`'s models; NaN as the scores.

        InvalidCheckpointError where the answers are of the other half's models: halves share no calibrator.
        """
        if half_set != self.half_set:
            raise InvalidCheckpointError(
                f"calibrator of half-set {self.half_set}, answers of half-set {half_set}'s models: halves share "
                "nothing; take that half's own calibrator"
            )
        return self.model.probabilities(self.scores(features), optics_groups)

    def drift(self, scores: Any, settings: CalibrationSettings) -> Drift:
        """Return how far new `scores` `(n,)` have moved from those of the fit; NaN are left out."""
        return drift_of(
            scores,
            np.asarray(self.score_quantiles),
            self.num_particles,
            stale_index=settings.stale_index,
            min_particles=settings.min_drift_particles,
        )

    def is_stale(self, scores: Any, settings: CalibrationSettings) -> bool:
        """Return whether `scores` `(n,)` of new particles are so unlike the fit's that it is to be fitted anew."""
        return self.drift(scores, settings).state is DriftState.STALE


def fit_calibrator(
    answers: HeldOutAnswers, *, half_set: int, seen: Iterable[str], settings: CalibrationSettings
) -> Calibrator:
    """Return the calibrator of `half_set`'s models, fitted on answers for particles that these have not seen.

    `seen` are the ids of all particles in that half's reference and training. Features that are NaN in every row are
    left out; rows with a NaN in another, or in the error, are not fitted on. Its figures are of particles left out in
    turn. Raises ValueError where a particle was seen, where ids repeat, or where too few particles are left.
    """
    rows = _usable_rows(answers, seen, settings)
    features = {str(name): values[rows] for name, values in answers.features.items() if np.isfinite(values).any()}
    right = (answers.errors_deg[rows] <= settings.within_deg).astype(np.float64)
    groups, micrographs = np.asarray(answers.optics_groups)[rows], np.asarray(answers.micrographs)[rows]
    model = fit_confidence_model(features, right, groups, min_group_particles=settings.min_group_particles)
    left_out = _left_out_confidence(features, right, groups, micrographs, settings)
    levels, scores = np.linspace(0, 1, SCORE_QUANTILES), model.scores(features)
    figures = {
        str(name): CalibrationFigures.of(probability_figures(left_out[groups == name], right[groups == name]))
        for name in np.unique(groups)
    }
    return Calibrator(
        half_set=half_set,
        within_deg=settings.within_deg,
        model=model,
        score_quantiles=tuple(np.quantile(scores, levels).tolist()),
        confidence_quantiles=tuple(np.quantile(model.probabilities(scores, groups), levels).tolist()),
        num_particles=len(rows),
        particles_sha256=ids_sha256(answers.particle_ids[row] for row in rows),
        figures=CalibrationFigures.of(probability_figures(left_out, right)),
        group_figures=figures,
    )


def ids_sha256(particle_ids: Iterable[str]) -> str:
    """Return the SHA-256 of a set of particle ids, whatever their order."""
    return hashlib.sha256("\n".join(sorted(particle_ids)).encode()).hexdigest()


def _left_out_confidence(
    features: Mapping[str, Float64],
    right: Float64,
    groups: NDArray[np.str_],
    micrographs: NDArray[np.str_],
    settings: CalibrationSettings,
) -> Float64:
    """Return every particle's confidence by a fit without its micrograph's fold."""
    fold = _folds(micrographs, settings.folds)
    confidence = np.empty(len(right))
    for part in np.unique(fold):
        out, rest = fold == part, fold != part
        # an optics group keeps its adjustment though a fold is missing
        fewer = int(settings.min_group_particles * rest.mean())
        kept = {name: values[rest] for name, values in features.items()}
        model = fit_confidence_model(kept, right[rest], groups[rest], min_group_particles=fewer)
        scores = model.scores({name: values[out] for name, values in features.items()})
        confidence[out] = model.probabilities(scores, groups[out])
    return confidence


def _folds(micrographs: NDArray[np.str_], folds: int) -> NDArray[np.int64]:
    """Return a fold `(n,)` for each row; micrographs, in the order of their names' hashes, take the folds in turn."""
    names, which = np.unique(micrographs, return_inverse=True)
    if len(names) < 2:
        raise ValueError("all held-out particles are of one micrograph; figures need two or more to leave one out")
    shuffled = np.argsort([hashlib.sha256(str(name).encode()).hexdigest() for name in names])
    fold = np.empty(len(names), np.int64)
    fold[shuffled] = np.arange(len(names)) % folds
    return fold[which]


def _usable_rows(answers: HeldOutAnswers, seen: Iterable[str], settings: CalibrationSettings) -> NDArray[np.int64]:
    ids = list(answers.particle_ids)
    lengths = {len(ids), len(answers.errors_deg), len(answers.optics_groups), len(answers.micrographs)}
    if len(lengths | {len(values) for values in answers.features.values()}) != 1:
        raise ValueError("particle ids, features, errors, optics groups and micrographs are not of one length")
    if len(set(ids)) != len(ids):
        raise ValueError("a particle stands twice among the held-out ones; each once")
    known = set(ids) & set(seen)
    if known:
        raise ValueError(
            f"{len(known)} held-out particles are in the half's reference or training, e.g. {min(known)}; "
            "confidence fitted on them would be too high"
        )
    usable = np.isfinite(np.asarray(answers.errors_deg, np.float64))
    for values in answers.features.values():
        if np.isfinite(values).any():
            usable &= np.isfinite(values)
    if usable.sum() < settings.min_particles:
        raise ValueError(
            f"{usable.sum()} held-out particles with all features; {settings.min_particles} are needed "
            "(calibration.min_particles)"
        )
    return np.flatnonzero(usable)
