"""Pictures of an evaluation: FSC curves, the histogram of angular errors, slices of both maps."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cesped_stream.benchmark.evaluation_result import Evaluation, ScoredMaps
from cesped_stream.benchmark.figure import BLUE, GREEN, GREY, INK, ORANGE
from cesped_stream.benchmark.map_metrics import MapAgreement, MapScores
from cesped_stream.benchmark.predictions import PredictionType
from cesped_stream.benchmark.report import random_predictor_density

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]

_DPI = 130
_SMALL = 8.5
_RAREST_TICK = 7
_AXES = (("z", "x", "y"), ("y", "x", "z"), ("x", "y", "z"))
"""Axis at right angles to a slice, then those that run right and up in it."""


def save_fsc_figure(maps: ScoredMaps, title: str, path: Path) -> None:
    """Draw the FSC of the truth's halves, of the predictions' halves, and of map against truth; masked ones beside."""
    figure = _figure(11.5 if maps.masked else 7.2, 5.6, f"{title}: Fourier shell correlation")
    columns = 2 if maps.masked else 1
    for column in range(columns):
        axes = figure.add_subplot(1, columns, column + 1)
        axes.set_title("masked" if column else "unmasked", fontsize=10.5, color=INK)
        _draw_fsc(axes, maps, masked=bool(column))
    figure.subplots_adjust(left=0.09 if columns == 1 else 0.06, right=0.97, top=0.86, bottom=0.31, wspace=0.18)
    figure.savefig(path, dpi=_DPI)


def save_error_figure(evaluation: Evaluation, title: str, path: Path) -> None:
    """Draw the histogram of angular errors, of each half and of a predictor that guesses; errors of view and in plane
    stand in the report."""
    figure = _figure(7.2, 4.5, f"{title}: angular error")
    axes = figure.add_axes((0.1, 0.13, 0.86, 0.71))
    _draw_errors(axes, evaluation)
    figure.savefig(path, dpi=_DPI)


def save_slices_figure(maps: ScoredMaps, title: str, path: Path) -> None:
    """Draw the truth's map, the predictions' maps and their difference in central slices along three axes."""
    rows = _slice_rows(maps)
    figure = _figure(8.2, 0.9 + 2.55 * len(rows), f"{title}: central slices")
    grid = figure.add_gridspec(
        len(rows),
        3,
        left=0.13,
        right=0.98,
        top=1 - 0.75 / (0.9 + 2.55 * len(rows)),
        bottom=0.03,
        hspace=0.08,
        wspace=0.06,
    )
    limit = float(np.percentile(np.abs(maps.truth.combined), 99.8)) or 1.0
    for row, (label, volume) in enumerate(rows):
        for column, (across, right, up) in enumerate(_AXES):
            axes = figure.add_subplot(grid[row, column])
            _draw_slice(axes, volume, column, limit, difference=label.startswith("difference"))
            if row == 0:
                axes.set_title(f"at right angles to {across} ({right} right, {up} up)", fontsize=_SMALL, color=INK)
            if column == 0:
                axes.set_ylabel(label, fontsize=9, color=INK)
    figure.savefig(path, dpi=_DPI)


def central_slice(volume: Float32, axis: int) -> Float32:
    """Return the slice `(box, box)` of a map `(z, y, x)` through voxel box // 2, at right angles to `axis` (0 is z)."""
    return np.asarray(np.take(volume, volume.shape[axis] // 2, axis=axis))


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), facecolor="white", layout=None)
    FigureCanvasAgg(figure)
    figure.text(0.03, 1 - 0.3 / height, title, fontsize=13, weight="bold", color=INK, va="center")
    return figure


def _draw_fsc(axes: Axes, maps: ScoredMaps, *, masked: bool) -> None:
    box, pixel_size = maps.truth.halves[0].shape[0], maps.truth.pixel_size_angstrom
    frequency = np.arange(box // 2 + 1) / (box * pixel_size)
    for label, agreement, colour, style in _curves(maps):
        region = agreement.masked if masked else agreement.unmasked
        if region is not None:
            resolution = _angstrom(region.resolution_0143_angstrom)
            axes.plot(frequency, region.fsc, style, color=colour, linewidth=1.8, label=f"{label}: {resolution}")
        if masked and agreement.corrected_fsc is not None:
            axes.plot(frequency, agreement.corrected_fsc, ":", color=colour, linewidth=1.1)
    for threshold in (0.5, 0.143):
        axes.axhline(threshold, color=GREY, linewidth=0.9, linestyle="--")
        axes.text(frequency[-1], threshold + 0.015, f"{threshold:g}", fontsize=8, color=GREY, ha="right")
    axes.set(xlim=(0, frequency[-1]), ylim=(-0.1, 1.03))
    _resolution_ticks(axes, frequency)
    axes.set_xlabel("resolution, Å", fontsize=9)
    axes.set_ylabel("FSC", fontsize=9)
    _plain(axes)
    handles, labels = axes.get_legend_handles_labels()
    title = "resolution at 0.143; dotted: corrected for the mask" if masked else "resolution at 0.143"
    axes.legend(
        handles,
        labels,
        frameon=False,
        fontsize=8,
        title=title,
        title_fontsize=8,
        ncols=2,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.15),
    )


def _curves(maps: ScoredMaps) -> Sequence[tuple[str, MapAgreement, str, str]]:
    curves = [("truth, half to half", maps.truth_half_to_half, GREY, "-")]
    for scores, style in ((maps.unweighted, "-"), (maps.weighted, "--")):
        if scores is None:
            continue
        words = _weighting_words(scores)
        if scores.half_to_half is not None:
            curves.append((f"predicted, half to half{words}", scores.half_to_half, BLUE, style))
        curves.append((f"predicted against truth{words}", scores.to_truth, ORANGE, style))
        other = scores.halves_to_other_truth[0]
        if other is not None and not scores.weighted_by:
            curves.append(("predicted half 0 against truth's half 1", other, GREEN, style))
    return curves


def _weighting_words(scores: MapScores) -> str:
    return ", weighted" if scores.weighted_by else ""


def _resolution_ticks(axes: Axes, frequency: Float64) -> None:
    ticks = np.linspace(frequency[-1] / _RAREST_TICK, frequency[-1], _RAREST_TICK)
    axes.set_xticks(ticks)
    axes.set_xticklabels([f"{1 / tick:.1f}" for tick in ticks])


def _draw_errors(axes: Axes, evaluation: Evaluation) -> None:
    errors = evaluation.errors_deg
    width = 3.0 if len(errors) >= 1000 else 6.0
    edges = np.arange(0, 180.1, width)
    weights = np.full(len(errors), 1 / (len(errors) * width))
    axes.hist(errors, edges.tolist(), weights=weights, color=BLUE, alpha=0.85, label=f"predicted (n = {len(errors):,})")
    for half, style in ((0, "-"), (1, "--")):
        own = errors[evaluation.half_sets == half]
        if len(own):
            density = np.histogram(own, edges)[0] / (len(own) * width)
            axes.stairs(density, edges, color=INK, linewidth=0.9, linestyle=style, label=f"half {half}")
    for value, colour, name in ((np.mean(errors), GREEN, "mean"), (np.median(errors), ORANGE, "median")):
        axes.axvline(float(value), color=colour, linewidth=1.6, label=f"{name} {value:.1f}°")
    if evaluation.prediction_type is not PredictionType.S2:
        axes.plot(*random_predictor_density(evaluation.symmetry), color=GREY, linewidth=2, label="random predictor")
    axes.set_xlim(0, 180)
    axes.set_xticks(range(0, 181, 30))
    axes.set_xlabel(f"degrees, {evaluation.symmetry}, {evaluation.prediction_type}", fontsize=9)
    axes.set_ylabel("share per degree", fontsize=9)
    axes.legend(frameon=False, fontsize=8.5)
    _plain(axes)


def _slice_rows(maps: ScoredMaps) -> list[tuple[str, Float32]]:
    truth, scores = maps.truth.combined, maps.unweighted
    rows = [("truth", truth), ("predicted", scores.combined)]
    if maps.weighted is not None:
        rows.append(("predicted, weighted", maps.weighted.combined))
    return [*rows, ("difference, predicted − truth", scores.combined - truth)]


def _draw_slice(axes: Axes, volume: Float32, axis: int, limit: float, *, difference: bool) -> None:
    image = central_slice(volume, axis)
    low = -limit if difference else -limit / 4
    axes.imshow(
        image, cmap="RdBu_r" if difference else "gray", vmin=low, vmax=limit, origin="lower", interpolation="nearest"
    )
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)


def _angstrom(resolution: float) -> str:
    return f"{resolution:.1f} Å" if np.isfinite(resolution) else "none"
