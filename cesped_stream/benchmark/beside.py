"""Runs side by side: other replays, other presets or other tools beside this one, from their metrics.json."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cesped_stream.benchmark.evaluation_files import BLOCK, METRICS_FILE
from cesped_stream.benchmark.evaluation_page import angstrom
from cesped_stream.errors import InvalidStarError, UnreachableFileError

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Titles of the columns, and the rows."""


@dataclass(frozen=True)
class Run:
    """What one run's metrics.json says."""

    name: str
    metrics: Mapping[str, Any]

    def value(self, *keys: str) -> Any:
        """Return what stands under these nested keys of our own block; None where it was not measured."""
        found: Any = self.metrics[BLOCK]
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found


def read_run(folder: Path) -> Run:
    """Return the run whose output folder (or metrics.json) this is, called after the folder.

    Raises UnreachableFileError where there is no metrics.json, InvalidStarError where it is not one of ours.
    """
    file = folder / METRICS_FILE if folder.is_dir() else folder
    try:
        metrics = json.loads(file.read_text())
    except OSError as error:
        raise UnreachableFileError(f"{file}: {error.strerror}; name the output folder of a replay or score") from None
    except ValueError as error:
        raise InvalidStarError(f"{file}: {error}; it was cut or edited, make it again") from None
    if not isinstance(metrics, dict) or not isinstance(metrics.get(BLOCK), dict):
        raise InvalidStarError(f"{file}: no block {BLOCK!r}; `cesped`'s own metrics cannot stand beside a stream's")
    return Run(file.resolve().parent.name, metrics)


def side_by_side(runs: Sequence[Run]) -> Table:
    """Return a table of these runs, a column each; a row that no run has a figure for is left out."""
    rows = [(what, *(_text(show, run.value(*keys)) for run in runs)) for what, keys, show in _ROWS]
    return ("", *(run.name for run in runs)), [row for row in rows if any(cell != _ABSENT for cell in row[1:])]


def contained_words(runs: Sequence[Run]) -> list[str]:
    """Return a line a run of what it streamed, in its own words."""
    return [f"{run.name}: {' '.join(run.value('stream', 'contained') or ['(not stated)'])}" for run in runs]


_ABSENT = "–"
_MAP = ("maps", "unweighted", "to_truth", "unmasked")
_TOGETHER = ("poses", "together")
_SURENESS = ("stream", "sureness")


def _text(show: Callable[[Any], str], value: Any) -> str:
    return _ABSENT if value is None else show(value)


def _degrees(value: float) -> str:
    return f"{value:.1f}°"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _resolution_05(region: Mapping[str, Any]) -> str:
    found = region.get("resolution_05_angstrom")
    return _ABSENT if found is None else angstrom(found, at_nyquist=bool(region.get("resolution_05_at_nyquist")))


def _seconds(value: float) -> str:
    return f"{value:.1f} s"


_ROWS: tuple[tuple[str, tuple[str, ...], Callable[[Any], str]], ...] = (
    ("streamed particles", ("stream", "counts", "streamed"), "{:,}".format),
    ("with a predicted pose", ("stream", "counts", "inferred"), "{:,}".format),
    ("lost", ("stream", "counts", "lost"), "{:,}".format),
    ("doubled", ("stream", "counts", "doubled"), "{:,}".format),
    ("of them no particles (junk)", ("coverage", "together", "num_junk"), "{:,}".format),
    ("median angular error", (*_TOGETHER, "median_deg"), _degrees),
    ("mean angular error (MAnE)", (*_TOGETHER, "mean_deg"), _degrees),
    ("weighted mean (wMAnE)", (*_TOGETHER, "weighted_mean_deg"), _degrees),
    ("within 5°", (*_TOGETHER, "share_within_5_deg"), _percent),
    ("within 15°", (*_TOGETHER, "share_within_15_deg"), _percent),
    ("a guess's mean error", ("poses", "random_predictor_mean_deg"), _degrees),
    ("junk told by its confidence, AUC", ("confidence", "junk_auc"), "{:.2f}".format),
    ("junk told by its fit above noise, AUC", (*_SURENESS, "junk", "above_noise_area_under_curve"), "{:.2f}".format),
    ("ended at a search's edge", (*_SURENESS, "clipped", "share"), _percent),
    ("map against truth, PCC", (*_MAP, "pearson"), "{:.3f}".format),
    ("map against truth, FSC 0.5", _MAP, _resolution_05),
    ("latency, median", ("stream", "latency", "p50_seconds"), _seconds),
    ("latency with a model, median", ("stream", "latency_with_model", "p50_seconds"), _seconds),
)
