"""When each particle of a replay had landed and when its pose was on disk, and the latencies that follow."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cesped_stream.benchmark.plan import ROLE_LABEL, BatchRole
from cesped_stream.errors import InvalidStarError, UnreachableFileError
from cesped_stream.particles.stacks import parse_image_name
from cesped_stream.particles.table import ParticleTable

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

ImageKey = tuple[int, str]
"""(index, landed stack) of one image."""


@dataclass(frozen=True, eq=False)
class StreamTimes:
    """Per row of a replay's truth, seconds since the replay began; NaN where it is not known."""

    landed: Float64
    """`(n,)`: the last byte of the row's batch was written."""
    committed: Float64
    """`(n,)`: the row's pose was on disk."""
    batch: Int64
    """`(n,)`: which batch, counted from 0 in landing order; -1 where it never landed."""
    batch_names: tuple[str, ...]

    def latencies_seconds(self) -> Float64:
        """Return `(n,)`: from the last byte of a particle's batch to its pose on disk."""
        return self.committed - self.landed


@dataclass(frozen=True)
class Latency:
    """Distribution over particles, seconds; None where nothing was measured."""

    num_particles: int
    p50_seconds: float | None
    p95_seconds: float | None
    max_seconds: float | None


@dataclass(frozen=True)
class BatchLatency:
    """One streamed batch."""

    batch: str
    num_particles: int
    landed_seconds: float
    p50_seconds: float | None
    max_seconds: float | None
    """When its last pose was on disk, after its last byte."""


def stream_times(log: Path, truth: ParticleTable, committed: Mapping[ImageKey, float]) -> StreamTimes:
    """Return the times of every row of `truth` (in landing order) from a replay's log `replay.jsonl`.

    `committed` gives, by landed image, the reading of the monotonic clock when its pose was on disk. Both clocks must
    be of one machine since its start. Raises UnreachableFileError or InvalidStarError where the log is none.
    """
    lines = _read_log(log)
    landed, batch = np.full(len(truth), np.nan), np.full(len(truth), -1, np.int64)
    row = 0
    for number, line in enumerate(lines):
        rows = slice(row, row + int(line["rows"]))
        landed[rows], batch[rows] = line["seconds"], number
        row = rows.stop
    begun = float(lines[0]["monotonic_seconds"]) - float(lines[0]["seconds"]) if lines else 0.0
    clock = [committed.get(parse_image_name(name), np.nan) for name in truth.column("rlnImageName")]
    return StreamTimes(landed, np.array(clock, np.float64) - begun, batch, tuple(str(line["batch"]) for line in lines))


def first_pose_seconds(times: StreamTimes, truth: ParticleTable) -> float | None:
    """Return how long after the last aligned row landed the first streamed particle's pose was on disk.

    None where no streamed pose is known, or nothing was aligned.
    """
    roles = np.array(truth.column(ROLE_LABEL))
    aligned, streamed = times.landed[roles == BatchRole.ALIGNED], times.committed[roles == BatchRole.STREAMED]
    aligned, streamed = aligned[np.isfinite(aligned)], streamed[np.isfinite(streamed)]
    if not len(aligned) or not len(streamed):
        return None
    return float(streamed.min() - aligned.max())


def latency_of(seconds: Float64) -> Latency:
    """Return the distribution of latencies `(n,)` in seconds, unknown ones (NaN) left out."""
    known = seconds[np.isfinite(seconds)]
    if not len(known):
        return Latency(0, None, None, None)
    return Latency(len(known), *(float(q) for q in np.quantile(known, (0.5, 0.95, 1.0))))


def batch_latencies(times: StreamTimes, rows: Int64) -> list[BatchLatency]:
    """Return the latency of each batch among the truth's `rows`, in landing order."""
    found = []
    for number in np.unique(times.batch[rows]).tolist():
        if number < 0:
            continue
        own = rows[times.batch[rows] == number]
        latency = latency_of(times.latencies_seconds()[own])
        landed = float(times.landed[own[0]])
        name = times.batch_names[number]
        found.append(BatchLatency(name, len(own), landed, latency.p50_seconds, latency.max_seconds))
    return found


def _read_log(log: Path) -> Sequence[Mapping[str, Any]]:
    try:
        lines: list[Mapping[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()]
    except OSError as error:
        raise UnreachableFileError(f"{log}: {error.strerror}; is this a replay's output?") from None
    except ValueError as error:
        raise InvalidStarError(f"{log}: {error}; the replay's log was cut, replay again") from None
    return lines
