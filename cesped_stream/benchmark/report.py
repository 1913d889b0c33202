"""What a replayed session achieved: one table, one summary.json, one figure."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from scipy.spatial.transform import Rotation

from cesped_stream.benchmark.compare import Comparison
from cesped_stream.benchmark.figure import FigureData, Gallery, Timeline, random_error_density
from cesped_stream.benchmark.pose_lines import percent, sureness_lines, way_lines
from cesped_stream.benchmark.stream_report import with_landed_stacks
from cesped_stream.imaging.preprocess import Preprocessor
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.particles.stacks import StackReader, read_images
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations

Images = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class RunFacts:
    """What the session says of itself; None where it did not come to it."""

    half_mode: str
    latency_p50_seconds: float | None
    latency_p95_seconds: float | None
    latency_with_model_p50_seconds: float | None
    latency_with_model_p95_seconds: float | None
    training_seconds: float | None
    total_seconds: float
    particles_per_second: float
    """The workers' own measured rate, reading and preprocessing included."""
    checkpoint_id: str = ""
    independence: str = "unknown"
    origin: str = ""
    stopped_by: str = ""
    peak_memory_gigabytes: float = 0.0
    """Of the process that needed most."""
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    proposer: str = ""
    """What made the poses, as the rows say it; several where several did."""
    first_pose_seconds: float | None = None
    """From the last aligned row's landing to the first streamed pose on disk."""
    pose_errors: Mapping[str, Any] = field(default_factory=dict)
    """Of each way that poses were made, and of refinement from the true poses, as summary.json names them."""
    sureness: Mapping[str, Any] = field(default_factory=dict)
    """`Sureness.to_json`; nothing where the rows tell nothing."""
    entry: Mapping[str, Any] = field(default_factory=dict)
    """What streamed: box, pixel size, SNR, as the entry states it."""


def summarise(comparison: Comparison, facts: RunFacts) -> dict[str, Any]:
    """Return summary.json's contents: counts, errors (together and per half), latencies, times; None is unknown."""
    counts, metrics = comparison.counts, comparison.metrics
    together = None if metrics is None else metrics.together
    return {
        "landed": counts.landed,
        "aligned": counts.aligned,
        "streamed": counts.streamed,
        "inferred": counts.inferred,
        "unposed": counts.unposed,
        "lost": counts.lost,
        "doubled": counts.doubled,
        "foreign": counts.foreign,
        "mean_angular_error_deg": None if together is None else together.mean_deg,
        "weighted_mean_angular_error_deg": None if together is None else together.weighted_mean_deg,
        "median_angular_error_deg": None if together is None else together.median_deg,
        "share_within_5_deg": None if together is None else together.share_within_5_deg,
        "share_within_15_deg": None if together is None else together.share_within_15_deg,
        "median_view_error_deg": None if together is None else together.median_view_error_deg,
        "median_in_plane_error_deg": None if together is None else together.median_in_plane_error_deg,
        "per_half": [] if metrics is None else [asdict(half) for half in metrics.halves],
        "random_predictor_mean_deg": None if metrics is None else metrics.random_mean_deg,
        "truth_has_confidences": "rlnMaxValueProbDistribution" in comparison.truth,
        "symmetry": comparison.symmetry,
        "half_mode": facts.half_mode,
        "half_independence": facts.independence,
        "latency_p50_seconds": facts.latency_p50_seconds,
        "latency_p95_seconds": facts.latency_p95_seconds,
        "latency_with_model_p50_seconds": facts.latency_with_model_p50_seconds,
        "latency_with_model_p95_seconds": facts.latency_with_model_p95_seconds,
        "training_seconds": facts.training_seconds,
        "training_stopped_by": facts.stopped_by,
        "total_seconds": facts.total_seconds,
        "particles_per_second": facts.particles_per_second,
        "peak_memory_gigabytes": facts.peak_memory_gigabytes,
        "checkpoint": facts.checkpoint_id,
        "checkpoint_origin": facts.origin,
        "proposer": facts.proposer,
        "first_pose_seconds": facts.first_pose_seconds,
        **facts.pose_errors,
        "sureness": dict(facts.sureness),
        "stage_seconds": dict(facts.stage_seconds),
        "entry": dict(facts.entry),
    }


def write_summary(summary: Mapping[str, Any], path: Path) -> None:
    """Write summary.json."""
    path.write_text(json.dumps(summary, indent=2) + "\n")


def random_predictor_density(symmetry: str, samples: int = 200_000) -> tuple[Float64, Float64]:
    """Return degrees `(m,)` and the share per degree, there, of the errors of poses drawn uniformly at random.

    Exact without symmetry; with it, drawn from a fixed seed and counted in 3 degree bins.
    """
    if symmetry == "C1":
        degrees = np.linspace(0, 180, 181)
        return degrees, random_error_density(degrees)
    drawn = Rotation.random(samples, random_state=np.random.default_rng(0)).as_matrix()
    edges = np.arange(0, 180.1, 3.0)
    errors = angular_error_deg(np.eye(3)[None], drawn, group_rotations(symmetry))
    return (edges[1:] + edges[:-1]) / 2, np.histogram(errors, edges)[0] / (samples * 3.0)


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Return the table that a demo or a replay ends with."""
    table = Table(title="Streamed particles against the held-back truth", title_justify="left", show_header=False)
    table.add_column("what", no_wrap=True)
    table.add_column("figure", justify="right")
    for what, figure in _lines(summary):
        table.add_row(what, figure)
    return table


_KEY_LINES = (0, 1, 3, 4, 5, 6, 7, 8)
"""Lines of the table that stand in the figure too: counts, latencies, speed."""


def _lines(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    def number(key: str, unit: str, digits: int = 1) -> str:
        value = summary[key]
        return "-" if value is None else f"{value:,.{digits}f}{unit}"

    def pair(prefix: str) -> str:
        return f"{number(f'{prefix}_p50_seconds', ' s')} / {number(f'{prefix}_p95_seconds', ' s')}"

    weights = "" if summary["truth_has_confidences"] else " (weights 1)"
    lines = [
        (
            "particles landed (aligned + streamed)",
            f"{summary['landed']:,} ({summary['aligned']:,} + {summary['streamed']:,})",
        ),
        ("streamed particles inferred", f"{summary['inferred']:,}"),
        ("flagged, without a pose", f"{summary['unposed']:,}"),
        ("lost", f"{summary['lost']:,}"),
        ("doubled", f"{summary['doubled']:,}"),
        ("latency, last byte to pose on disk, p50 / p95", pair("latency")),
        ("  landed while a model existed", pair("latency_with_model")),
        ("training", number("training_seconds", " s", 0) + _ended_by(summary["training_stopped_by"])),
        ("inference", number("particles_per_second", " particles/s", 0)),
        ("peak memory of any process", number("peak_memory_gigabytes", " GB", 2)),
        ("mean angular error (MAnE)", number("mean_angular_error_deg", "°")),
        ("weighted mean angular error (wMAnE)", number("weighted_mean_angular_error_deg", "°") + weights),
        ("median angular error", number("median_angular_error_deg", "°")),
    ]
    for values in summary["per_half"]:
        lines.append((f"  half {values['half_set']}: mean / weighted / median", _half_line(values)))
    lines += [
        ("within 5° / 15°", f"{percent(summary['share_within_5_deg'])} / {percent(summary['share_within_15_deg'])}"),
        ("a random predictor's mean", number("random_predictor_mean_deg", "°")),
        *way_lines(summary),
        *sureness_lines(summary),
        ("half-sets", half_words(summary)),
        ("total", number("total_seconds", " s", 0)),
    ]
    return lines


def half_words(summary: Mapping[str, Any]) -> str:
    """Return what the half maps of these poses may be called: "gold standard" only for independent halves."""
    independence = summary["half_independence"].replace("_", " ")
    if summary["half_mode"] == "cross_half":
        return "cross half (CESPED's protocol), not gold standard"
    if independence == "independent":
        return "gold standard, independent"
    return f"own half's model, halves {independence}: not gold standard"


def _ended_by(stopped_by: str) -> str:
    return " (cut by its time budget)" if stopped_by == "minutes" else ""


def figure_data(
    comparison: Comparison,
    summary: Mapping[str, Any],
    landing: Path,
    *,
    preprocessor: Preprocessor | None,
    reference: MapProjector | None,
    timeline: Timeline | None,
    title: str,
    columns: int = 10,
) -> FigureData:
    """Collect what the figure shows; the gallery's particles are drawn at random with a fixed seed."""
    return FigureData(
        title=title,
        subtitle=_subtitle(summary),
        rotations=comparison.predicted_rotations,
        errors_by_half_deg=comparison.errors_by_half_deg(),
        random_density=random_predictor_density(comparison.symmetry),
        gallery=_gallery(comparison, landing, preprocessor, reference, columns),
        timeline=timeline,
        key_figures=tuple(_lines(summary)[k] for k in _KEY_LINES),
        note="Particles of the gallery are drawn at random, not chosen; above each is its angular error.",
    )


def _gallery(
    comparison: Comparison,
    landing: Path,
    preprocessor: Preprocessor | None,
    reference: MapProjector | None,
    columns: int,
) -> Gallery | None:
    number = len(comparison.errors_deg)
    if not number:
        return None
    shown = np.sort(np.random.default_rng(0).choice(number, min(columns, number), replace=False))
    table = with_landed_stacks(comparison.truth.select(shown), landing)
    group = read_images(table, StackReader())[0]
    shown, images = shown[group.index], group.images
    rows: list[tuple[str, Images]] = [("raw", images)]
    if preprocessor is not None:
        seen = preprocessor(torch.from_numpy(images), table.select(group.index).ctf_parameters())
        rows.append(("as the network\nsees it", seen[:, 0].numpy()))
    if reference is not None:
        poses = torch.from_numpy(comparison.predicted_rotations[shown])
        rows.append(("map at the\npredicted pose", reference.project(poses).numpy()))
        truth = torch.from_numpy(comparison.true_rotations[shown])
        rows.append(("map at the\ntrue pose", reference.project(truth).numpy()))
    return Gallery(tuple(rows), comparison.errors_deg[shown])


def _subtitle(summary: Mapping[str, Any]) -> tuple[str, ...]:
    parts = [f"{summary['inferred']:,} streamed particles", f"half-sets: {half_words(summary)}"]
    median, mean = summary["median_angular_error_deg"], summary["mean_angular_error_deg"]
    if median is not None:
        parts.append(f"angular error: median {median:.1f}°, mean {mean:.1f}°")
    stated = summary["entry"].get("stated")
    return (stated, "   ·   ".join(parts)) if stated else ("   ·   ".join(parts),)


def _half_line(values: Mapping[str, Any]) -> str:
    figures = [values[key] for key in ("mean_deg", "weighted_mean_deg", "median_deg")]
    return " / ".join("-" if figure is None else f"{figure:.1f}°" for figure in figures)
