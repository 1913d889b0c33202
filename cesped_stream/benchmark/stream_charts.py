"""Charts of a stream's page as SVG: the same data give the same bytes."""

import io
from collections.abc import Callable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cesped_stream.benchmark.figure import BLUE, GREEN, GREY, INK, ORANGE, Timeline
from cesped_stream.benchmark.stream_curves import ErrorPoint, MapPoint
from cesped_stream.benchmark.stream_times import BatchLatency
from cesped_stream.calibration.metrics import ReliabilityCurve

Float64 = NDArray[np.float64]

_SIZE = (6.4, 3.9)
_RESOLUTIONS = (
    ("map against truth, FSC 0.5", "o-", BLUE, "to_truth_05"),
    ("half map against the truth's other half, 0.5", "s-", GREEN, "to_other_half_05"),
    ("half maps, 0.143 (no truth needed)", ".--", ORANGE, "half_to_half_0143"),
)
"""Label, style, colour and the name of a `MapPoint`'s figure."""


def error_chart(points: Sequence[ErrorPoint], random_mean_deg: float | None, *, by_seconds: bool = False) -> bytes:
    """Return angular error against particles seen, or against seconds since the replay began."""

    def draw(axes: Axes) -> None:
        x = _x(points, by_seconds)
        axes.plot(x, [p.mean_deg for p in points], "o-", color=BLUE, label="mean of all so far")
        axes.plot(x, [p.median_deg for p in points], "o-", color=ORANGE, label="median of all so far")
        axes.plot(x, [p.recent_median_deg for p in points], ".--", color=GREY, label="median since the point before")
        worst = max(max(p.mean_deg, p.recent_median_deg) for p in points)
        if random_mean_deg is not None and random_mean_deg < 2.5 * worst:
            axes.axhline(random_mean_deg, color=GREY, linewidth=1, linestyle=":", label="guessing (mean)")
        axes.set_ylabel("angular error, degrees")
        axes.set_ylim(0, 1.35 * worst)

    return _chart(draw, _x_label(by_seconds))


def resolution_chart(
    points: Sequence[MapPoint],
    best_05_angstrom: float | None,
    *,
    best_at_nyquist: bool = False,
    by_seconds: bool = False,
) -> bytes:
    """Return FSC resolutions of the maps so far; `best_05_angstrom`: what the truth's halves reach at 0.5.

    A hollow mark is at Nyquist: the pixel size limits that resolution, not the map.
    """

    def draw(axes: Axes) -> None:
        x = np.array(_x(points, by_seconds))
        limited = np.zeros(0, np.bool_)
        for label, style, color, name in _RESOLUTIONS:
            values = [getattr(point, f"{name}_angstrom") for point in points]
            y = np.array([np.nan if value is None else value for value in values])
            at_nyquist = np.array([getattr(point, f"{name}_at_nyquist") for point in points], np.bool_)
            axes.plot(x, y, style, color=color, label=label)
            axes.plot(x[at_nyquist], y[at_nyquist], "o", mfc="white", mec=color, zorder=3)
            limited = np.append(limited, at_nyquist)
        if limited.any():
            axes.plot([], [], "o", mfc="white", mec=INK, label="hollow: at Nyquist, or finer")
        if best_05_angstrom is not None:
            words = "the truth's own halves, 0.5" + (" (Nyquist)" if best_at_nyquist else "")
            axes.axhline(best_05_angstrom, color=INK, linewidth=1, linestyle=":", label=words)
        axes.set_ylabel("resolution, Å (lower is better)")

    return _chart(draw, _x_label(by_seconds))


def latency_chart(seconds: Sequence[float], p50: float | None, p95: float | None) -> bytes:
    """Return the distribution of latencies over particles."""

    def draw(axes: Axes) -> None:
        counts = axes.hist(list(seconds), bins=30, color=BLUE, alpha=0.85, label="particles")[0]
        axes.set_ylim(0, 1.3 * float(np.max(np.asarray(counts))))
        for value, name, color in ((p50, "p50", ORANGE), (p95, "p95", INK)):
            if value is not None:
                axes.axvline(value, color=color, linewidth=1.5, label=f"{name} {value:.1f} s")
        axes.set_ylabel("particles")

    return _chart(draw, "seconds from the batch's last byte to the pose on disk")


def batch_chart(batches: Sequence[BatchLatency], model_seconds: float | None) -> bytes:
    """Return each batch's latency against the moment it landed."""

    def draw(axes: Axes) -> None:
        x = [batch.landed_seconds for batch in batches]
        for what, color, values in (
            ("last pose of the batch", BLUE, [batch.max_seconds for batch in batches]),
            ("its median pose", GREY, [batch.p50_seconds for batch in batches]),
        ):
            axes.plot(x, [np.nan if v is None else v for v in values], ".", color=color, label=what)
        if model_seconds is not None:
            axes.axvline(model_seconds, color=ORANGE, linestyle=":", label="model published")
        axes.set_ylabel("latency, seconds")
        axes.set_ylim(0, None)

    return _chart(draw, "batch landed, seconds since the first file")


def timeline_chart(timeline: Timeline) -> bytes:
    """Return particles landed and posed against time."""

    def draw(axes: Axes) -> None:
        axes.plot(timeline.seconds, timeline.landed, color=GREY, linewidth=2, label="landed")
        axes.plot(timeline.seconds, timeline.inferred, color=GREEN, linewidth=2, label="with a pose on disk")
        for seconds, text in timeline.marks:
            axes.axvline(seconds, color=ORANGE, linewidth=1.2, linestyle=":")
            axes.annotate(
                text, (seconds, 0.02), xycoords=("data", "axes fraction"), rotation=90, fontsize=8, ha="right"
            )
        axes.set_ylabel("particles")
        axes.set_ylim(0, None)

    return _chart(draw, "seconds since the first file")


def reliability_chart(curves: Sequence[tuple[str, ReliabilityCurve]], within_deg: float) -> bytes:
    """Return the share of right poses against confidence, a line for each named curve."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="as sure as right")
        for (name, curve), color in zip(curves, (BLUE, ORANGE), strict=False):
            bars = np.abs(np.stack([curve.observed_share - curve.low, curve.high - curve.observed_share]))
            axes.errorbar(
                curve.mean_probability, curve.observed_share, yerr=bars, color=color, marker="o", markersize=4,
                linewidth=1.4, capsize=2, label=name,
            )  # fmt: skip
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel=f"share within {within_deg:g}° of the truth")

    return _chart(draw, "confidence")


def distribution_chart(groups: Sequence[tuple[str, Float64]], x_label: str, threshold: float | None = None) -> bytes:
    """Return histograms of up to three named groups of values `(n,)`, at least one value in all, over one another.

    Values above the 99 % quantile are drawn at the end; `threshold` is marked.
    """

    def draw(axes: Axes) -> None:
        whole = np.concatenate([values for _, values in groups])
        marks = [] if threshold is None else [threshold]
        low, high = min([float(whole.min()), *marks]), max([float(np.quantile(whole, 0.99)), *marks])
        edges = np.linspace(low, high if high > low else low + 1, 41).tolist()
        for (name, values), color in zip(groups, (BLUE, ORANGE, GREY), strict=False):
            if len(values):
                axes.hist(np.minimum(values, edges[-1]), bins=edges, color=color, alpha=0.6, label=name)
        for mark in marks:
            axes.axvline(mark, color=INK, linewidth=1, linestyle=":")
        axes.set_ylabel("rows")

    return _chart(draw, x_label)


def _x(points: Sequence[ErrorPoint] | Sequence[MapPoint], by_seconds: bool) -> list[float]:
    if not by_seconds:
        return [float(point.seen) for point in points]
    return [np.nan if point.seconds is None else point.seconds for point in points]


def _x_label(by_seconds: bool) -> str:
    return "seconds since the first file" if by_seconds else "streamed particles with a pose"


def _chart(draw: Callable[[Axes], None], x_label: str) -> bytes:
    style = {"font.size": 10, "svg.hashsalt": "cesped-stream", "axes.labelcolor": INK, "legend.frameon": False}
    with mpl.rc_context(style):
        figure = Figure(figsize=_SIZE, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        draw(axes)
        axes.set_xlabel(x_label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e3e6ea", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.legend(fontsize=8.5)
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()
