"""The evaluator's figures as parts of an HTML page: tables, pictures, and what they may be called."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cesped_stream.benchmark import html
from cesped_stream.benchmark.evaluation_figures import save_error_figure, save_fsc_figure, save_slices_figure
from cesped_stream.benchmark.evaluation_report import confidence_notes, delta_notes
from cesped_stream.benchmark.evaluation_result import Evaluation, ScoredMaps
from cesped_stream.benchmark.map_metrics import MapAgreement, RegionAgreement
from cesped_stream.benchmark.metrics import PoseErrors
from cesped_stream.benchmark.predictions import PredictionType


def pose_table(evaluation: Evaluation) -> str:
    """Return the angular errors, of each half-set and together; nothing where none was measured."""
    if evaluation.poses is None:
        return ""
    halves = {half.half_set: half for half in evaluation.poses.halves}
    columns = (halves.get(0), halves.get(1), evaluation.poses.together)

    def row(what: str, read: Any) -> list[str]:
        return [what, *("–" if one is None else read(one) for one in columns)]

    rows = [
        row("particles", lambda e: f"{e.num_particles:,}"),
        row("mean (MAnE)", lambda e: _deg(e.mean_deg)),
        row("weighted by the truth's confidence (wMAnE)", lambda e: _deg(e.weighted_mean_deg)),
        row("median", lambda e: _deg(e.median_deg)),
        row("within 5° / 15°", _shares),
        row("view axis, median", lambda e: _deg(e.median_view_error_deg)),
        row("in plane, median", lambda e: _deg(e.median_in_plane_error_deg)),
    ]
    if evaluation.shifts is not None and evaluation.prediction_type is PredictionType.SO3xR2:
        shifts = (*evaluation.shifts.halves_angstrom, evaluation.shifts.together_angstrom)
        rows.append(["shift, RMSE", *("–" if s is None else f"{s:.2f} Å" for s in shifts)])
    guess = f"A predictor that guesses has a mean error of {evaluation.poses.random_mean_deg:.1f}°."
    return html.table(("angular error", "half 0", "half 1", "together"), rows) + html.paragraph(guess, "soft")


def map_table(maps: ScoredMaps) -> str:
    """Return how the maps compare with the truth's, unmasked and, where there is a mask, masked."""
    scores = maps.unweighted
    lines: list[tuple[str, MapAgreement | None]] = [
        ("truth: half 0 against half 1 (what is there to be reached)", maps.truth_half_to_half),
        ("map against truth (shares images, and so noise)", scores.to_truth),
        ("half map 0 against the truth's half 1 (no image in both)", scores.halves_to_other_truth[0]),
        ("half map 1 against the truth's half 0 (no image in both)", scores.halves_to_other_truth[1]),
        ("half map 0 against half map 1", scores.half_to_half),
    ]
    if maps.weighted is not None:
        lines.append((f"map weighted by {maps.weighted.weighted_by} against truth", maps.weighted.to_truth))
    rows = [
        [
            what if region == "unmasked" else f"masked, uncorrected for the mask: {what}",
            *_figures(getattr(agreement, region)),
        ]
        for region in (("unmasked", "masked") if maps.masked else ("unmasked",))
        for what, agreement in lines
        if agreement is not None
    ]
    for what, agreement in lines:
        if agreement is not None and agreement.corrected_resolution_0143_angstrom is not None:
            corrected = angstrom(agreement.corrected_resolution_0143_angstrom)
            rows.append([f"masked, corrected for the mask: {what}", "–", "–", corrected])
    return html.table(("maps", "PCC", "FSC 0.5", "FSC 0.143"), rows)


def evaluation_pictures(evaluation: Evaluation, title: str) -> list[str]:
    """Return the FSC curves, the error histogram and slices of the maps as pictures of the page."""
    drawn: list[tuple[str, Any]] = []
    if len(evaluation.errors_deg):
        drawn.append(
            ("Angular errors of each half-set beside a guess.", lambda p: save_error_figure(evaluation, title, p))
        )
    maps = evaluation.maps
    if maps is not None:
        drawn.append(("Fourier shell correlations.", lambda p: save_fsc_figure(maps, title, p)))
        drawn.append(("Central slices of the maps.", lambda p: save_slices_figure(maps, title, p)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        found = []
        for text, save in drawn:
            save(path)
            found.append(html.picture(path.read_bytes(), "image/png", text))
    return found


def caveats(evaluation: Evaluation, facts: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know before believing the figures.

    `facts`: `half_words` (what the half maps may be called) and `alignment_limit_angstrom` (None: not known).
    """
    said = [f"Half-sets: {facts['half_words']}."]
    limit = facts.get("alignment_limit_angstrom")
    said += confidence_notes(evaluation)
    if evaluation.maps is not None:
        said += delta_notes(evaluation.maps)
        known = "not known here" if limit is None else f"{limit:.1f} Å (the finest that the alignment used)"
        said += [
            f"These maps are provisional. Alignment limit: {known}. Half maps of aligned images agree out to the limit "
            "of their alignment even where the images are pure noise, so that half-map FSC is no validation by itself.",
            "A map and the truth's map of the same images share their noise; the lines in which no image is in both "
            "do not. No mask was used."
            if not evaluation.maps.masked
            else "A map and the truth's map of the same images share their noise; the lines in which no image is in "
            "both do not.",
        ]
        if evaluation.prediction_type is not PredictionType.SO3xR2:
            said.append(
                "Maps take the shifts of the truth, as the benchmark does where only rotations are predicted: "
                "a session has none, and its maps would be worse."
            )
        if evaluation.num_junk_in_maps:
            said.append(f"{evaluation.num_junk_in_maps:,} rows of junk are in the maps, as they would be in a session.")
    said.append(
        "The truth is exact: the particles were simulated at these poses."
        if facts.get("simulated")
        else "The truth is the entry's own poses: those of a recorded data set are a consensus of its refinement, with "
        "errors of its own."
    )
    return said


def angstrom(value: float | None, *, at_nyquist: bool = False) -> str:
    """Return a resolution in words; infinite and None are a dash, one that only the pixel size limits says so."""
    if value is None or value == float("inf"):
        return "–"
    return f"<= {value:.1f} Å (Nyquist)" if at_nyquist else f"{value:.1f} Å"


def _figures(agreement: RegionAgreement) -> tuple[str, str, str]:
    at_05 = angstrom(agreement.resolution_05_angstrom, at_nyquist=agreement.resolution_05_at_nyquist)
    at_0143 = angstrom(agreement.resolution_0143_angstrom, at_nyquist=agreement.resolution_0143_at_nyquist)
    return f"{agreement.pearson:.3f}", at_05, at_0143


def _shares(errors: PoseErrors) -> str:
    return f"{100 * errors.share_within_5_deg:.0f} % / {100 * errors.share_within_15_deg:.0f} %"


def _deg(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}°"


def facts_table(rows: Sequence[tuple[str, str]]) -> str:
    """Return a table of what was done, two columns; rows without a figure are left out."""
    return html.table(("", ""), [row for row in rows if row[1]])
