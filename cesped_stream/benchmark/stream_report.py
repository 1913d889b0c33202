"""Everything that is measured of a replayed stream: the evaluator's figures, and what only a stream has."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from cesped_stream.benchmark.compare import Counts
from cesped_stream.benchmark.evaluation import evaluate_poses
from cesped_stream.benchmark.evaluation_result import Evaluation
from cesped_stream.benchmark.plan import ROLE_LABEL, BatchRole
from cesped_stream.benchmark.predictions import (
    CONFIDENCE_LABELS,
    PredictionType,
    completed_table,
    has_angles,
    match_predictions,
    predicted_rotations,
)
from cesped_stream.benchmark.stream_curves import ErrorPoint, MapPoint, error_points, map_points, moments
from cesped_stream.benchmark.stream_realism import TRUE_LABEL
from cesped_stream.benchmark.stream_times import BatchLatency, Latency, StreamTimes, batch_latencies, latency_of
from cesped_stream.benchmark.sureness import RIGHT_WITHIN_DEG, Sureness, how_sure
from cesped_stream.conventions import SHIFT_LABELS
from cesped_stream.particles.stacks import STACK_LABEL, parse_image_name, read_header
from cesped_stream.particles.table import ParticleTable
from cesped_stream.reconstruction.engine import Engine
from cesped_stream.so3.symmetry import group_rotations

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
OnProgress = Callable[[str, int, int], None]

CURVES = "maps along the stream"
_IMPORT_NUMBER = re.compile(r"^\d{15,}_")


@dataclass(frozen=True, eq=False)
class StreamMeasures:
    """What came of a stream."""

    counts: Counts
    evaluation: Evaluation | None
    """None where the truth has no poses or nothing was posed."""
    why_no_maps: str
    """Empty where there are maps."""
    latency: Latency | None
    """Of streamed particles; None where no times are known."""
    latency_with_model: Latency | None
    """Of those whose batch landed when a model existed."""
    batches: Sequence[BatchLatency]
    errors: Sequence[ErrorPoint]
    maps: Sequence[MapPoint]
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the stream was and who posed it, in words and settings."""
    aligned_poses: Mapping[str, int] = field(default_factory=dict)
    """Aligned rows by how their pose was told: `true`, `random`, `jitter`, `junk`; empty where nobody says."""
    sureness: Sureness | None = None
    """None where the rows say nothing of how sure they are."""

    def to_json(self) -> dict[str, Any]:
        """Return the stream's own figures as JSON can hold them; the evaluator's are not among them."""
        return {
            **self.facts,
            "counts": asdict(self.counts),
            "aligned_poses": dict(self.aligned_poses),
            "latency": None if self.latency is None else asdict(self.latency),
            "latency_with_model": None if self.latency_with_model is None else asdict(self.latency_with_model),
            "batches": [asdict(batch) for batch in self.batches],
            "errors_along_the_stream": [asdict(point) for point in self.errors],
            "maps_along_the_stream": [asdict(point) for point in self.maps],
            "why_no_maps": self.why_no_maps,
            "sureness": None if self.sureness is None else self.sureness.to_json(),
        }


def with_landed_names(table: ParticleTable, truth: ParticleTable) -> ParticleTable:
    """Return a tool's star with its image names as they landed, where the file's name leaves no doubt.

    A tool may put folders, or like cryoSPARC's import a long number, in front of a stack's name. A name that is not
    found stays as it is (and counts as foreign).
    """
    stacks: dict[str, set[str]] = {}
    for name in truth.column("rlnImageName"):
        stack = parse_image_name(name)[1]
        stacks.setdefault(PurePosixPath(stack).name, set()).add(stack)
    known = {stack for found in stacks.values() for stack in found}
    names = []
    for text in table.column("rlnImageName"):
        index, stack = parse_image_name(text)
        plain = PurePosixPath(stack).name
        found = stacks.get(plain) or stacks.get(_IMPORT_NUMBER.sub("", plain)) or set()
        names.append(text if stack in known or len(found) != 1 else f"{index + 1:06d}@{next(iter(found))}")
    return table.with_columns({"rlnImageName": names})


def first_streamed(table: ParticleTable, truth: ParticleTable) -> ParticleTable:
    """Return the first row of each streamed particle: doubled, foreign and aligned ones are counted, not measured."""
    wanted = {parse_image_name(name) for name in truth.select(streamed(truth)).column("rlnImageName")}
    rows = []
    for row, name in enumerate(table.column("rlnImageName")):
        key = parse_image_name(name)
        if key in wanted:
            rows.append(row)
            wanted.remove(key)
    return table.select(rows)


def with_landed_stacks(truth: ParticleTable, landing: Path) -> ParticleTable:
    """Return the truth with its landed stacks' paths in `cestreamStack`."""
    names = [parse_image_name(name)[1] for name in truth.column("rlnImageName")]
    paths = {name: quote(str((landing / name).resolve())) for name in set(names)}
    return truth.with_columns({STACK_LABEL: [paths[name] for name in names]})


def why_no_maps(table: ParticleTable) -> str:
    """Return why no maps can be made of these rows, "" where they can: `cestreamStack` names their stacks."""
    stacks = [Path(unquote(stack)) for stack in sorted(set(table.column(STACK_LABEL)))]
    if gone := [stack for stack in stacks if not stack.is_file()]:
        return f"{gone[0].name} and {len(gone) - 1} more stacks that landed are gone: poses are compared only"
    if set(table.half_sets().tolist()) != {0, 1}:
        return "the streamed particles are of one half-set: there are no two half maps"
    boxes = {read_header(stack).box_size for stack in stacks}
    pixel_sizes = set(table.pixel_sizes_angstrom().tolist())
    if len(boxes) > 1 or len(pixel_sizes) > 1:
        return f"boxes of {sorted(boxes)} pixels at {sorted(pixel_sizes)} Å: one map needs one of each"
    return ""


def measure_stream(
    predicted: ParticleTable,
    truth: ParticleTable,
    counts: Counts,
    symmetry: str,
    *,
    landing: Path,
    engine: Engine | None,
    times: StreamTimes | None = None,
    model_seconds: float | None = None,
    prediction_type: PredictionType = PredictionType.SO3,
    points: int = 9,
    use_confidence: bool = True,
    within_deg: float = RIGHT_WITHIN_DEG,
    facts: Mapping[str, Any] | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> StreamMeasures:
    """Measure the poses of a replayed stream against its truth; particles that landed aligned are left out.

    `predicted`: any tool's rows, image names as they landed (`with_landed_names`). `truth`: truth.star of the replay,
    all rows. `counts`: from `compare`. `landing`: where the stacks are; without them there are no maps. `engine` None:
    poses only. A figure of merit is not taken for a confidence, only `cestreamConfidence` is. `within_deg`: what a
    calibrated one is the probability of. `times`: None where nobody recorded them, points then go by landing order.
    `model_seconds`: when there was a model. Raises InvalidStarError for what cannot be scored (`match_predictions`).
    """
    index = streamed(truth)
    known = with_landed_stacks(truth.select(index), landing)
    own = first_streamed(predicted, truth)
    reason = "maps were not asked for" if engine is None else why_no_maps(known) if len(known) else "nothing streamed"
    evaluation, errors, maps = None, list[ErrorPoint](), list[MapPoint]()
    if len(own) and _has_any(own, prediction_type) and known.has_poses().all():
        evaluation = evaluate_poses(
            known,
            own,
            symmetry=symmetry,
            prediction_type=prediction_type,
            engine=None if reason else engine,
            use_confidence=use_confidence,
            confidence_labels=CONFIDENCE_LABELS[:1],
            on_progress=on_progress,
        )
        clock = np.full(len(known), np.nan) if times is None else times.committed[index]
        errors, maps = _along(evaluation, known, own, clock, points, on_progress)
    else:
        reason = reason or "no streamed particle has a pose to compare with a true one"
    latency, with_model, batches = stream_latencies(times, index, model_seconds)
    told, sureness = _told_poses(truth), how_sure(own, known, symmetry, within_deg=within_deg)
    return StreamMeasures(
        counts, evaluation, reason, latency, with_model, batches, errors, maps, facts or {}, told, sureness
    )


def _told_poses(truth: ParticleTable) -> dict[str, int]:
    if TRUE_LABEL not in truth:
        return {}
    pairs = zip(truth.column(TRUE_LABEL), truth.column(ROLE_LABEL), strict=True)
    return dict(sorted(Counter(word for word, role in pairs if role == BatchRole.ALIGNED).items()))


def _along(
    evaluation: Evaluation,
    truth: ParticleTable,
    predicted: ParticleTable,
    clock: Float64,
    points: int,
    on_progress: OnProgress,
) -> tuple[list[ErrorPoint], list[MapPoint]]:
    """Errors (of particles) and maps (of every posed row, as a session would make them) as poses came."""
    order = _arrival(clock[evaluation.rows])
    counts = moments(len(order), points)
    errors = error_points(evaluation.errors_deg[order], clock[evaluation.rows][order], counts)
    if evaluation.maps is None:
        return errors, []
    matched = match_predictions(truth, predicted, evaluation.prediction_type)
    rotations = predicted_rotations(matched, evaluation.prediction_type, group_rotations(evaluation.symmetry))
    table = completed_table(matched, rotations, evaluation.prediction_type)
    order = _arrival(clock[matched.rows])
    counts = moments(len(order), points)
    maps = map_points(
        table.select(order),
        clock[matched.rows][order],
        counts,
        evaluation.maps.truth,
        in_session=_as_a_session(table, matched.predicted).select(order),
        on_progress=lambda done: on_progress(CURVES, done, len(order)),
    )
    return errors, maps


def _has_any(table: ParticleTable, prediction_type: PredictionType) -> bool:
    labels = prediction_type.angle_labels
    return all(label in table for label in labels) and bool(has_angles(table, labels).any())


def _as_a_session(table: ParticleTable, predicted: ParticleTable) -> ParticleTable:
    """Return the rows of a map at the shifts that the prediction's star has, 0 where it has none: no truth's shifts."""
    unset = ["0.000000"] * len(table)
    return table.with_columns(
        {label: predicted.column(label) if label in predicted else unset for label in SHIFT_LABELS}
    )


def _arrival(seconds: Float64) -> Int64:
    """Order of commits; what has no time comes last, in landing order."""
    return np.argsort(np.nan_to_num(seconds, nan=np.inf), kind="stable")


def streamed(truth: ParticleTable) -> Int64:
    """Return the truth's rows that landed without poses."""
    return np.flatnonzero([role == BatchRole.STREAMED for role in truth.column(ROLE_LABEL)])


def stream_latencies(
    times: StreamTimes | None, index: Int64, model_seconds: float | None
) -> tuple[Latency | None, Latency | None, list[BatchLatency]]:
    """Return the latency, from the last byte to the pose on disk, of the rows `index`, that of those which landed when
    there was a model, and each batch's; nothing where no times are known."""
    if times is None:
        return None, None, []
    seconds = times.latencies_seconds()[index]
    late = np.zeros(len(index), np.bool_) if model_seconds is None else times.landed[index] >= model_seconds
    return latency_of(seconds), latency_of(seconds[late]), batch_latencies(times, index)
