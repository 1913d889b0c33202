"""The picture of reliability: how often what was said to be likely came true."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cesped_stream.calibration.metrics import ADVISED_PARTICLES, probability_figures, reliability_curve

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_INK = "#222222"


def draw_reliability(cases: Mapping[str, tuple[Any, Any]], within_deg: float) -> Figure:
    """Return the figure of named cases, each (probabilities `(n,)`, outcomes `(n,)`): reliability over a histogram.

    Bars are 95 % Wilson intervals of each bin's share. At most six cases. ValueError as `reliability_curve`.
    """
    if not 1 <= len(cases) <= len(_COLOURS):
        raise ValueError(f"{len(cases)} cases; 1 to {len(_COLOURS)} fit one figure")
    figure = Figure(figsize=(6.2, 7.4), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
    upper.plot([0, 1], [0, 1], color="#8a8f98", linewidth=1, linestyle="--", label="calibrated")
    for colour, (name, (probabilities, outcomes)) in zip(_COLOURS, cases.items(), strict=False):
        curve = reliability_curve(probabilities, outcomes)
        bars = np.abs(np.stack([curve.observed_share - curve.low, curve.high - curve.observed_share]))
        upper.errorbar(
            curve.mean_probability, curve.observed_share, yerr=bars, color=colour, marker="o", markersize=4,
            linewidth=1.4, capsize=2, label=f"{name}: {_figures_line(probabilities, outcomes)}",
        )  # fmt: skip
        lower.hist(probabilities, bins=np.linspace(0, 1, 41).tolist(), histtype="step", color=colour, linewidth=1.4)
    upper.set(ylabel=f"share within {within_deg:g}° of the consensus", ylim=(-0.02, 1.02), xlim=(-0.02, 1.02))
    upper.set_title("Confidence against what came true", color=_INK, fontsize=12, loc="left")
    upper.legend(frameon=False, fontsize=8.5, loc="upper left")
    lower.set(xlabel="confidence", ylabel="particles")
    return figure


def save_reliability(cases: Mapping[str, tuple[Any, Any]], within_deg: float, path: Path) -> None:
    """Draw and save as PNG."""
    draw_reliability(cases, within_deg).savefig(path, dpi=130)


def _figures_line(probabilities: Any, outcomes: Any) -> str:
    figures = probability_figures(probabilities, outcomes)
    area = "none" if figures.area_under_curve is None else f"{figures.area_under_curve:.3f}"
    few = "" if figures.num_particles >= ADVISED_PARTICLES else f" (few: chance {figures.expected_noise:.3f})"
    return (
        f"n {figures.num_particles:,}, ECE {figures.expected_calibration_error:.3f}{few}, "
        f"Brier {figures.brier_score:.3f}, AUC {area}"
    )
