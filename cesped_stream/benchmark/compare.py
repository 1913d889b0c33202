"""What a session wrote, held against the truth that a replay kept back: every particle once, and how far off."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cesped_stream.benchmark.metrics import PoseMetrics, pose_metrics
from cesped_stream.benchmark.plan import ROLE_LABEL, BatchRole
from cesped_stream.imaging.junk import is_particle
from cesped_stream.particles.own_columns import PREDICTED, STATUS
from cesped_stream.particles.own_rows import consensus_confidences
from cesped_stream.particles.stacks import parse_image_name
from cesped_stream.particles.table import ParticleTable
from cesped_stream.so3.distance import angular_error_deg, in_plane_error_deg, view_error_deg
from cesped_stream.so3.symmetry import group_rotations

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Counts:
    """Particles, by identity (landed stack and index)."""

    landed: int
    aligned: int
    streamed: int
    inferred: int
    """Streamed particles with a predicted pose."""
    unposed: int
    """Streamed particles that stand in the output without a pose (flagged images)."""
    lost: int
    """Landed, and not in the output."""
    doubled: int
    """Rows of the output beyond the first of each particle."""
    foreign: int
    """In the output, and never landed."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Counts of all particles, and the poses of the n inferred ones beside the truth; junk is counted, not measured."""

    counts: Counts
    symmetry: str
    truth: ParticleTable
    """Truth rows of the inferred particles, as the other arrays are ordered."""
    half_sets: NDArray[np.int8]
    true_rotations: Float64
    predicted_rotations: Float64
    """`(n, 3, 3)`, pose frame."""
    errors_deg: Float64
    view_errors_deg: Float64
    in_plane_errors_deg: Float64
    metrics: PoseMetrics | None
    """None where nothing was inferred or the truth has no poses."""

    def errors_by_half_deg(self) -> tuple[Float64, Float64]:
        """Return the errors of half-sets 0 and 1."""
        return self.errors_deg[self.half_sets == 0], self.errors_deg[self.half_sets == 1]


def compare(exported: Sequence[ParticleTable], truth: ParticleTable, symmetry: str) -> Comparison:
    """Count every landed particle in the exported tables (posed, unposed) and measure the inferred ones.

    Identity is the landed image name: each exported row's rlnImageName must be relative to the landing folder, as it
    was in the stream. Errors are symmetry-aware (eq. 4).
    """
    place = {parse_image_name(name): row for row, name in enumerate(truth.column("rlnImageName"))}
    streamed = np.array([role == BatchRole.STREAMED for role in truth.column(ROLE_LABEL)], np.bool_)
    seen: Counter[tuple[int, str]] = Counter()
    predicted: dict[int, Float64] = {}
    for table in exported:
        keys = [parse_image_name(name) for name in table.column("rlnImageName")]
        seen.update(keys)
        posed = table.has_poses()
        status = table.column(STATUS)
        rows = [k for k, key in enumerate(keys) if posed[k] and status[k] == PREDICTED and key in place]
        rotations = table.select(rows).rotations() if rows else np.zeros((0, 3, 3))
        predicted.update({place[keys[row]]: rotation for row, rotation in zip(rows, rotations, strict=True)})
    inferred = np.array(sorted(row for row in predicted if streamed[row]), np.int64)
    counts = Counts(
        landed=len(truth),
        aligned=int((~streamed).sum()),
        streamed=int(streamed.sum()),
        inferred=len(inferred),
        unposed=sum(bool(streamed[row]) and row not in predicted for row in map(place.get, seen) if row is not None),
        lost=sum(key not in seen for key in place),
        doubled=seen.total() - len(seen),
        foreign=sum(key not in place for key in seen),
    )
    measured = inferred[is_particle(truth.select(inferred))]
    rotations = np.array([predicted[int(row)] for row in measured]).reshape(-1, 3, 3)
    return _measured(counts, truth.select(measured), rotations, symmetry)


def _measured(counts: Counts, truth: ParticleTable, predicted: Float64, symmetry: str) -> Comparison:
    group = group_rotations(symmetry)
    half_sets = truth.half_sets()
    known = len(truth) > 0 and bool(truth.has_poses().all())
    true = truth.rotations() if known else np.full((len(truth), 3, 3), np.nan)
    errors = angular_error_deg(true, predicted, group) if known else np.zeros(0)
    return Comparison(
        counts=counts,
        symmetry=symmetry,
        truth=truth,
        half_sets=half_sets,
        true_rotations=true,
        predicted_rotations=predicted,
        errors_deg=errors,
        view_errors_deg=view_error_deg(true, predicted, group) if known else np.zeros(0),
        in_plane_errors_deg=in_plane_error_deg(true, predicted, group) if known else np.zeros(0),
        metrics=pose_metrics(true, predicted, consensus_confidences(truth), half_sets, group) if known else None,
    )
