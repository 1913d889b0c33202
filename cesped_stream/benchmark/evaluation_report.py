"""The printed report of an evaluation, 80 columns wide."""

from collections.abc import Callable, Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cesped_stream.benchmark.evaluation_result import Evaluation, ScoredMaps
from cesped_stream.benchmark.map_metrics import Deltas, MapAgreement, MapScores, RegionAgreement
from cesped_stream.benchmark.metrics import PoseErrors, median_displacement_angstrom, rms_displacement_angstrom
from cesped_stream.benchmark.predictions import PredictionType
from cesped_stream.particles.own_columns import ABOVE_NOISE

_RADII_SHOWN = 8
_LEAST_OF_EACH = 30
"""Fewer poses within 15 degrees, or beyond, give an area under the curve that is chance."""


def evaluation_report(evaluation: Evaluation, title: str, notes: Sequence[str] = ()) -> RenderableType:
    """Return the report; `notes` are sentences of the caller's that follow the evaluation's own."""
    parts: list[RenderableType] = [_pose_table(evaluation, title)]
    if evaluation.maps is not None:
        parts += [Text(), _map_table(evaluation.maps, masked=False)]
        if evaluation.maps.masked:
            parts += [Text(), _map_table(evaluation.maps, masked=True)]
        if len(evaluation.errors_deg):
            parts += [Text(), _radial_table(evaluation, evaluation.maps)]
    lines = [Text(f"· {line}") for line in (*_own_notes(evaluation), *notes)]
    return Group(*parts, Text(), *lines)


def _pose_table(evaluation: Evaluation, title: str) -> Table:
    table = Table(title=f"{title}: poses ({evaluation.prediction_type}, {evaluation.symmetry})", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in ("half 0", "half 1", "together"):
        table.add_column(name, justify="right", no_wrap=True)
    coverage = evaluation.coverage
    table.add_row("particles", *(f"{one.num_particles:,}" for one in coverage))
    table.add_row("predicted", *(f"{one.num_predicted:,} ({100 * one.share:.0f} %)" for one in coverage))
    if coverage[2].num_given:
        table.add_row("given, not scored", *(f"{one.num_given:,}" for one in coverage))
    if coverage[2].num_junk:
        table.add_row("junk with a pose", *(f"{one.num_junk_predicted:,} of {one.num_junk:,}" for one in coverage))
    errors = _errors_of_columns(evaluation)
    for label, figure in _POSE_ROWS:
        table.add_row(label, *("-" if one is None else figure(one) for one in errors))
    if evaluation.shifts is not None and evaluation.prediction_type is PredictionType.SO3xR2:
        shifts = (*evaluation.shifts.halves_angstrom, evaluation.shifts.together_angstrom)
        table.add_row("shift RMSE", *("-" if value is None else f"{value:.2f} Å" for value in shifts))
    return table


_POSE_ROWS: tuple[tuple[str, Callable[[PoseErrors], str]], ...] = (
    ("mean angular error (MAnE)", lambda one: f"{one.mean_deg:.2f}°"),
    (
        "weighted by truth (wMAnE)",
        lambda one: "-" if one.weighted_mean_deg is None else f"{one.weighted_mean_deg:.2f}°",
    ),
    ("median angular error", lambda one: f"{one.median_deg:.2f}°"),
    ("within 5° / 15°", lambda one: f"{100 * one.share_within_5_deg:.0f} / {100 * one.share_within_15_deg:.0f} %"),
    ("median error of the view", lambda one: f"{one.median_view_error_deg:.2f}°"),
    ("median error in plane", lambda one: f"{one.median_in_plane_error_deg:.2f}°"),
)


def _errors_of_columns(evaluation: Evaluation) -> tuple[PoseErrors | None, ...]:
    if evaluation.poses is None:
        return None, None, None
    halves = {one.half_set: one for one in evaluation.poses.halves}
    return halves.get(0), halves.get(1), evaluation.poses.together


def _map_table(maps: ScoredMaps, *, masked: bool) -> Table:
    table = Table(title=f"Maps, {'masked' if masked else 'unmasked'}: PCC, FSC in Å")
    table.title_justify = "left"
    table.add_column("", no_wrap=True)
    for scores in (maps.unweighted, maps.weighted):
        if scores is not None:
            first = "weighted\nPCC" if scores.weighted_by else "equal weights\nPCC"
            for name in (first, "\n0.143", "\n0.5"):
                table.add_column(name, justify="right", no_wrap=True)
    weightings = [scores for scores in (maps.unweighted, maps.weighted) if scores is not None]
    for label, agreement in _MAP_ROWS:
        regions = [_region(agreement(maps, scores), masked) for scores in weightings]
        table.add_row(label, *(cell for region in regions for cell in _cells(region)))
    lost = [scores.deltas_masked if masked else scores.deltas_unmasked for scores in weightings]
    table.add_row("lost (Δ)", *(cell for one in lost for cell in _cells(one)))
    return table


_MAP_ROWS: tuple[tuple[str, Callable[[ScoredMaps, MapScores], MapAgreement | None]], ...] = (
    ("GT₀, GT₁", lambda maps, scores: maps.truth_half_to_half),
    ("V₀, V₁", lambda maps, scores: scores.half_to_half),
    ("GT, V", lambda maps, scores: scores.to_truth),
    ("GT₁, V₀", lambda maps, scores: scores.halves_to_other_truth[0]),
    ("GT₀, V₁", lambda maps, scores: scores.halves_to_other_truth[1]),
)


def _region(agreement: MapAgreement | None, masked: bool) -> RegionAgreement | None:
    if agreement is None:
        return None
    return agreement.masked if masked else agreement.unmasked


def _cells(figures: RegionAgreement | Deltas | None) -> tuple[str, str, str]:
    if figures is None:
        return "-", "-", "-"
    pearson, at_0143, at_05 = figures.pearson, figures.resolution_0143_angstrom, figures.resolution_05_angstrom
    if isinstance(figures, Deltas):
        return f"{pearson:.3f}", _angstrom(at_0143), _angstrom(at_05)
    limited = (figures.resolution_0143_at_nyquist, figures.resolution_05_at_nyquist)
    marks = ["≤" if one else "" for one in limited]
    return f"{pearson:.3f}", marks[0] + _angstrom(at_0143), marks[1] + _angstrom(at_05)


def _angstrom(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "none"


def _radial_table(evaluation: Evaluation, maps: ScoredMaps) -> Table:
    profile = maps.unweighted.radial
    table = Table(title="Error against radius (equal weights, unmasked)", title_justify="left")
    for name in ("radius, Å", "density, rms", "PCC GT₀, GT₁", "PCC GT, V", "moved: median", "rms"):
        table.add_column(name, justify="right", no_wrap=True)
    scale = float(profile.truth_rms.max()) or 1.0
    moved = rms_displacement_angstrom(evaluation.errors_deg, profile.radius_angstrom)
    middle = median_displacement_angstrom(evaluation.errors_deg, profile.radius_angstrom)
    step = -(-len(moved) // _RADII_SHOWN)
    for k in range(0, len(moved), step):
        table.add_row(
            f"{profile.radius_angstrom[k]:.0f}",
            f"{profile.truth_rms[k] / scale:.2f}",
            f"{profile.pearson_of_truth_halves[k]:.3f}",
            f"{profile.pearson_to_truth[k]:.3f}",
            f"{middle[k]:.1f} Å",
            f"{moved[k]:.1f} Å",
        )
    return table


def _own_notes(evaluation: Evaluation) -> list[str]:
    notes = []
    together = evaluation.coverage[2]
    if 0 < together.num_predicted < together.num_particles:
        notes.append(f"Partial: errors are of the {together.num_predicted:,} particles predicted; GT is of all.")
    if evaluation.poses is not None and evaluation.prediction_type is not PredictionType.S2:
        notes.append(f"A predictor that guesses blindly has a MAnE of {evaluation.poses.random_mean_deg:.1f}°.")
    if len(evaluation.errors_deg) and (evaluation.truth_confidences == 1).all():
        notes.append("The truth has no confidences: wMAnE has weights of 1.")
    notes += confidence_notes(evaluation)
    if (maps := evaluation.maps) is not None:
        notes.append("GT: map of the truth's poses; V: of the predicted ones; 0 and 1: their half-sets.")
        notes.append(f"Engine: {maps.truth.engine}. GT and V share images and so noise; GT₁ and V₀ do not.")
        notes += delta_notes(maps)
        notes.append("A resolution with ≤ is that of Nyquist: its FSC never falls below the threshold.")
        if evaluation.num_junk_in_maps:
            notes.append(f"{evaluation.num_junk_in_maps:,} rows of junk stand in the maps V, none in GT.")
    return notes


def delta_notes(maps: ScoredMaps) -> list[str]:
    """Return what a Δ below 0 means, where there is one: no map is better than the truth's."""
    deltas = maps.unweighted.deltas_unmasked
    found = (deltas.pearson, deltas.resolution_0143_angstrom, deltas.resolution_05_angstrom)
    if not any(figure < 0 for figure in found):
        return []
    return ["A Δ below 0 is the noise of the images that GT and V share; V₀ against GT₁ shares none: compare that."]


def confidence_notes(evaluation: Evaluation) -> list[str]:
    """Return in words which confidence was used, and what it tells apart; why none was, where none was."""
    confidence = evaluation.confidence
    if confidence is None:
        return [f"Confidence of the predictions: none ({evaluation.why_no_confidence})."]
    notes = [f"Confidence: {confidence.label}; {confidence.effective_number:,.0f} particles' worth of weight."]
    if evaluation.maps is not None and evaluation.maps.weighted is None:
        notes.append("No weighted map: in a half-set the confidences are all 0, or all equal.")
    near, far = confidence.num_within_15_deg, confidence.num_beyond_15_deg
    if confidence.within_15_deg_auc is not None and min(near, far) >= _LEAST_OF_EACH:
        ranked = f"{100 * confidence.within_15_deg_auc:.0f} % (AUC; {near:,} within, {far:,} beyond)"
        notes.append(f"It ranks a pose within 15° above another in {ranked}.")
    if confidence.junk_auc is not None:
        notes.append(f"It ranks a particle above junk in {100 * confidence.junk_auc:.0f} % (AUC).")
    if confidence.above_noise_junk_auc is not None:
        share = 100 * confidence.above_noise_junk_auc
        notes.append(f"{ABOVE_NOISE} ranks a particle above junk in {share:.0f} % (AUC).")
    return notes
