"""The files of an evaluation: metrics.json, maps, pictures."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cesped_stream.benchmark.evaluation_figures import save_error_figure, save_fsc_figure, save_slices_figure
from cesped_stream.benchmark.evaluation_result import Evaluation, ScoredMaps
from cesped_stream.durable import write_whole
from cesped_stream.imaging.maps import write_map

Float32 = NDArray[np.float32]

METRICS_FILE: Final = "metrics.json"
BLOCK: Final = "cesped_stream"
"""Key of our own block in metrics.json, beside the keys of the `cesped` package."""


def write_evaluation(
    evaluation: Evaluation,
    folder: Path,
    title: str,
    *,
    context: Mapping[str, Any] | None = None,
    mask: Float32 | None = None,
) -> list[Path]:
    """Write everything of an evaluation to `folder` and return the files; metrics.json is the last, and whole.

    metrics.json: `cesped`'s keys at its top (null for what has no number), and under "cesped_stream" our own block with
    `context` (what was scored, by whom) in front. Maps are `truth_half_0.mrc`, `predicted.mrc`,
    `predicted_weighted_half_1.mrc` and so on; pictures fsc.png, errors.png, slices.png. What this evaluation does not
    have, and a former one in the folder had, is removed. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, volume in _maps(evaluation.maps, mask):
        path = folder / name
        if volume is None or evaluation.maps is None:
            path.unlink(missing_ok=True)
            continue
        write_map(path, volume, evaluation.maps.truth.pixel_size_angstrom)
        written.append(path)
    written += _write_figures(evaluation, folder, title)
    write_whole(folder / METRICS_FILE, metrics_bytes(evaluation, context or {}))
    return [*written, folder / METRICS_FILE]


def metrics_bytes(evaluation: Evaluation, context: Mapping[str, Any]) -> bytes:
    """Return metrics.json's bytes; ValueError where `context` holds what JSON cannot."""
    figures = {key: value if math.isfinite(value) else None for key, value in evaluation.cesped_metrics().items()}
    content = {**figures, BLOCK: {**context, **evaluation.to_json()}}
    return json.dumps(content, indent=1, allow_nan=False).encode() + b"\n"


def _maps(maps: ScoredMaps | None, mask: Float32 | None) -> Iterator[tuple[str, Float32 | None]]:
    """Yield every map file's name with its map; None for one that this evaluation does not have."""
    yield from _named(
        "truth", None if maps is None else maps.truth.halves, None if maps is None else maps.truth.combined
    )
    for name, scores in (
        ("predicted", None if maps is None else maps.unweighted),
        ("predicted_weighted", None if maps is None else maps.weighted),
    ):
        yield from _named(name, None if scores is None else scores.halves, None if scores is None else scores.combined)
    yield "mask.mrc", mask if maps is not None else None


def _named(
    name: str, halves: tuple[Float32 | None, Float32 | None] | None, combined: Float32 | None
) -> Iterator[tuple[str, Float32 | None]]:
    for half, volume in enumerate(halves or (None, None)):
        yield f"{name}_half_{half}.mrc", volume
    yield f"{name}.mrc", combined


def _write_figures(evaluation: Evaluation, folder: Path, title: str) -> list[Path]:
    paths = {name: folder / f"{name}.png" for name in ("fsc", "errors", "slices")}
    for path in paths.values():
        path.unlink(missing_ok=True)
    written = []
    if len(evaluation.errors_deg):
        save_error_figure(evaluation, title, paths["errors"])
        written.append(paths["errors"])
    if evaluation.maps is not None:
        save_fsc_figure(evaluation.maps, title, paths["fsc"])
        save_slices_figure(evaluation.maps, title, paths["slices"])
        written += [paths["fsc"], paths["slices"]]
    return written
