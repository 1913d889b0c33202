"""One figure of a streamed session: particles, orientations, errors and progress."""

from dataclasses import dataclass
from pathlib import Path

import healpy
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Images = NDArray[np.float32]

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#E69F00", "#009E73", "#8a8f98", "#222222"
_STYLE_SIZE = 9.5
_WIDTH_INCHES, _GALLERY_ROW_INCHES = 15.0, 1.42
_MOLLWEIDE_NSIDE = 8
_ZOOM_DEG = 30


@dataclass(frozen=True, eq=False)
class Gallery:
    """Rows of images to show above one another, one column a particle."""

    rows: tuple[tuple[str, Images], ...]
    """(what it is, images `(n, box, box)`), top row first."""
    errors_deg: Float64
    """Angular error `(n,)` of each shown particle."""


@dataclass(frozen=True, eq=False)
class Timeline:
    """Particle counts against seconds since the replay began, all `(t,)`."""

    seconds: Float64
    landed: NDArray[np.int64]
    inferred: NDArray[np.int64]
    marks: tuple[tuple[float, str], ...] = ()
    """Moments to name, e.g. (215.0, "model published")."""


@dataclass(frozen=True, eq=False)
class FigureData:
    """What the figure shows; a panel whose data are None or empty is left out with a word."""

    title: str
    subtitle: tuple[str, ...]
    rotations: Float64
    """Predicted pose rotations `(n, 3, 3)`."""
    errors_by_half_deg: tuple[Float64, ...]
    random_density: tuple[Float64, Float64]
    """(degrees, share per degree) of a predictor that guesses uniformly at random, with the entry's symmetry."""
    gallery: Gallery | None = None
    timeline: Timeline | None = None
    key_figures: tuple[tuple[str, str], ...] = ()
    """(what, figure) lines to print beside the plots."""
    note: str = ""


def draw_figure(data: FigureData) -> Figure:
    """Return the figure: gallery on top, then orientations, errors, and counts against time."""
    rows = len(data.gallery.rows) if data.gallery else 1
    gallery, plots = _GALLERY_ROW_INCHES * rows, 4.3
    height = gallery + plots + 2.3
    figure = Figure(figsize=(_WIDTH_INCHES, height), facecolor="white", layout=None)
    FigureCanvasAgg(figure)
    figure.text(0.035, 1 - 0.34 / height, data.title, fontsize=17, weight="bold", color=INK, va="center")
    for k, line in enumerate(data.subtitle):
        figure.text(0.035, 1 - (0.66 + 0.23 * k) / height, line, fontsize=10.5, color="#555555", va="center")
    grid = figure.add_gridspec(
        2, 3, height_ratios=[gallery, plots], left=0.05, right=0.975, top=1 - 1.28 / height, bottom=0.82 / height,
        hspace=0.55 / ((gallery + plots) / 2), wspace=0.2,
    )  # fmt: skip
    _draw_gallery(figure, grid[0, :], data.gallery)
    left = grid[1, 0].subgridspec(3, 1, height_ratios=[2.3, 0.12, 1.5], hspace=0.3)
    _draw_orientations(figure, left[0], left[1], data.rotations)
    _write_key_figures(figure.add_subplot(left[2]), data.key_figures)
    _draw_errors(figure.add_subplot(grid[1, 1]), data.errors_by_half_deg, data.random_density)
    _draw_timeline(figure.add_subplot(grid[1, 2]), data.timeline)
    figure.text(0.035, 0.2 / height, data.note, fontsize=8.5, color="#555555", va="center")
    return figure


def save_figure(data: FigureData, path: Path) -> None:
    """Draw and save as PNG."""
    draw_figure(data).savefig(path, dpi=130)


def random_error_density(degrees: Float64) -> Float64:
    """Return the density per degree of a random predictor's angular error without symmetry: (1 - cos t) / pi per
    radian on [0, 180]."""
    return np.asarray((1 - np.cos(np.deg2rad(degrees))) / 180.0, np.float64)


def _draw_gallery(figure: Figure, place: SubplotSpec, gallery: Gallery | None) -> None:
    if gallery is None or not len(gallery.errors_deg):
        axes = figure.add_subplot(place)
        _say_nothing_to_show(axes, "no streamed particle with a pose")
        return
    columns = len(gallery.errors_deg)
    inner = place.subgridspec(len(gallery.rows), columns, hspace=0.05, wspace=0.05)
    for row, (label, images) in enumerate(gallery.rows):
        for column in range(columns):
            axes = figure.add_subplot(inner[row, column])
            low, high = np.percentile(images[column], [0.5, 99.5])
            axes.imshow(images[column], cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_visible(False)
            if column == 0:
                axes.set_ylabel(label, fontsize=_STYLE_SIZE, color=INK)
            if row == 0:
                word = "off by " if column == 0 else ""
                axes.set_title(f"{word}{gallery.errors_deg[column]:.1f}°", fontsize=_STYLE_SIZE, color=INK, pad=4)


def _draw_orientations(figure: Figure, place: SubplotSpec, scale: SubplotSpec, rotations: Float64) -> None:
    axes = figure.add_subplot(place, projection="mollweide")
    axes.set_title("Views of the streamed particles, as predicted", fontsize=11, color=INK, pad=12)
    if not len(rotations):
        return
    counts = view_counts(rotations)
    lon, lat = np.linspace(-np.pi, np.pi, 361), np.linspace(-np.pi / 2, np.pi / 2, 181)
    lon_centre, lat_centre = np.meshgrid((lon[1:] + lon[:-1]) / 2, (lat[1:] + lat[:-1]) / 2)
    pixels = healpy.ang2pix(_MOLLWEIDE_NSIDE, np.pi / 2 - lat_centre, lon_centre % (2 * np.pi))
    relative = counts[pixels] / counts.mean()
    mesh = axes.pcolormesh(lon, lat, relative, cmap="viridis", vmin=0, rasterized=True, shading="flat")
    axes.grid(True, color="white", alpha=0.25, linewidth=0.5)
    axes.set_xticks(np.deg2rad([-120, -60, 0, 60, 120]))
    axes.set_xticklabels(["−120°", "−60°", "rot 0°", "60°", "120°"], fontsize=7.5, color="white")
    axes.set_yticks(np.deg2rad([-60, -30, 0, 30, 60]))
    axes.set_yticklabels(["tilt 150°", "120°", "90°", "60°", "30°"], fontsize=7.5)
    bar = figure.colorbar(mesh, cax=figure.add_subplot(scale), orientation="horizontal")
    bar.set_label("density relative to uniform", fontsize=_STYLE_SIZE)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def view_counts(rotations: Float64) -> Float64:
    """Return how many view axes fall on each HEALPix pixel (nside 8, RING), `(768,)`, smoothed over neighbours."""
    axis = rotations[:, :, 2]
    pixels = healpy.vec2pix(_MOLLWEIDE_NSIDE, axis[:, 0], axis[:, 1], axis[:, 2])
    counts = np.bincount(pixels, minlength=healpy.nside2npix(_MOLLWEIDE_NSIDE)).astype(np.float64)
    around = healpy.get_all_neighbours(_MOLLWEIDE_NSIDE, np.arange(len(counts)))
    present = around >= 0
    return np.asarray((2 * counts + (counts[around] * present).sum(0)) / (2 + present.sum(0)), np.float64)


def _draw_errors(axes: Axes, by_half: tuple[Float64, ...], random_density: tuple[Float64, Float64]) -> None:
    together = np.concatenate([np.zeros(0), *by_half])
    width = 3.0 if len(together) >= 1000 else 6.0
    edges = np.arange(0, 180.1, width)
    _title(axes, "Angular error of the streamed particles", "degrees", "share per degree")
    if len(together):
        weights = np.full(len(together), 1 / (len(together) * width))
        axes.hist(
            together,
            edges.tolist(),
            weights=weights,
            color=BLUE,
            alpha=0.85,
            label=f"predicted (n = {len(together):,})",
        )
        for half, (errors, style) in enumerate(zip(by_half, ("-", "--"), strict=False)):
            if len(errors):
                axes.step(*_outline(errors, edges), color=INK, linewidth=0.9, linestyle=style, label=f"half {half}")
        median = float(np.median(together))
        axes.axvline(median, color=ORANGE, linewidth=1.6, label=f"median {median:.1f}°")
    axes.plot(*random_density, color=GREY, linewidth=2, label="random predictor")
    axes.set_xlim(0, 180)
    axes.set_xticks(range(0, 181, 30))
    axes.legend(frameon=False, fontsize=_STYLE_SIZE)
    if len(together) >= 1000 and np.median(together) < _ZOOM_DEG / 2:
        _draw_small_errors(axes.inset_axes((0.36, 0.2, 0.6, 0.36)), together)


def _draw_small_errors(axes: Axes, errors: Float64) -> None:
    edges = np.arange(0, _ZOOM_DEG + 0.5, 1.0)
    axes.hist(errors, edges.tolist(), weights=np.full(len(errors), 1 / len(errors)), color=BLUE, alpha=0.85)
    axes.axvline(float(np.median(errors)), color=ORANGE, linewidth=1.2)
    axes.set_title(f"the same to {_ZOOM_DEG}°", fontsize=8.5, color=INK)
    axes.set_xlim(0, _ZOOM_DEG)
    axes.tick_params(labelsize=7.5)
    axes.spines[["top", "right"]].set_visible(False)


def _outline(errors: Float64, edges: Float64) -> tuple[Float64, Float64]:
    density, _ = np.histogram(errors, edges)
    return edges, np.append(density, 0) / (len(errors) * (edges[1] - edges[0]))


def _draw_timeline(axes: Axes, timeline: Timeline | None) -> None:
    _title(axes, "Landed and posed", "seconds since the first file", "particles")
    if timeline is None or not len(timeline.seconds):
        _say_nothing_to_show(axes, "not recorded")
        return
    axes.fill_between(timeline.seconds, timeline.inferred, timeline.landed, color=GREY, alpha=0.18, linewidth=0)
    axes.plot(timeline.seconds, timeline.landed, color=GREY, linewidth=2, label="landed")
    axes.plot(timeline.seconds, timeline.inferred, color=GREEN, linewidth=2, label="with a pose on disk")
    top = max(1, int(timeline.landed.max()))
    for seconds, text in timeline.marks:
        axes.axvline(seconds, color=ORANGE, linewidth=1.2, linestyle=":")
        side = "left" if seconds < 0.1 * timeline.seconds[-1] else "right"
        axes.text(seconds, top * 0.03, f" {text}", rotation=90, fontsize=8.5, color="#8a5a00", va="bottom", ha=side)
    axes.set_ylim(0, top * 1.06)
    axes.set_xlim(0, float(timeline.seconds[-1]) or 1)
    axes.legend(frameon=False, fontsize=_STYLE_SIZE, loc="upper left")


def _write_key_figures(axes: Axes, lines: tuple[tuple[str, str], ...]) -> None:
    axes.set_axis_off()
    for k, (what, figure) in enumerate(lines):
        y = 0.78 - 0.135 * k
        axes.text(0.0, y, what.strip(), transform=axes.transAxes, fontsize=9, color="#555555", va="center")
        axes.text(1.0, y, figure, transform=axes.transAxes, fontsize=9, color=INK, va="center", ha="right")


def _title(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=11, color=INK)
    axes.set_xlabel(x, fontsize=_STYLE_SIZE)
    axes.set_ylabel(y, fontsize=_STYLE_SIZE)
    axes.tick_params(labelsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)


def _say_nothing_to_show(axes: Axes, why: str) -> None:
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color=GREY)
