"""An entry's aligned and streamed rows, which every way of making poses gets alike, and their truth beside them."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cesped_stream.benchmark.plan import ROLE_LABEL, SOURCE_LABEL, BatchRole, ReplayPlan, tells_pose
from cesped_stream.benchmark.replay import LOG_NAME, TRUTH_NAME, Landed, replay
from cesped_stream.benchmark.replay_settings import ReplaySettings
from cesped_stream.benchmark.stream_report import with_landed_stacks
from cesped_stream.conventions import POSE_LABELS, rotation_to_euler_deg
from cesped_stream.imaging.junk import KIND_LABEL, PARTICLE
from cesped_stream.particles.star import read_star
from cesped_stream.particles.table import ParticleTable


@dataclass(frozen=True, eq=False)
class LandedRows:
    """Rows as they landed, their stacks resolved."""

    aligned: ParticleTable
    """With the poses that the stream tells, which need not be the true ones."""
    streamed: ParticleTable
    """Without poses."""
    truth: ParticleTable
    """The streamed rows' true poses, in the same order."""
    symmetry: str

    def are_particles(self) -> NDArray[np.bool_]:
        """Flags `(n,)` of the streamed rows: no junk."""
        kinds = self.truth.column(KIND_LABEL) if KIND_LABEL in self.truth else [PARTICLE] * len(self.truth)
        return np.array([kind == PARTICLE for kind in kinds], np.bool_)


def with_poses(
    table: ParticleTable, rotations: NDArray[np.float64], shifts_angstrom: NDArray[np.float64] | None = None
) -> ParticleTable:
    """Return the table with poses `(n, 3, 3)` (image xyz to map xyz) and shifts `(n, 2)`, 0 where none are given."""
    shifts = np.zeros((len(table), 2)) if shifts_angstrom is None else shifts_angstrom
    values = np.concatenate([rotation_to_euler_deg(rotations), shifts], 1).T
    texts = {label: [f"{value:.6f}" for value in each] for label, each in zip(POSE_LABELS, values, strict=True)}
    return table.with_columns(dict(texts))


def land_rows(
    plan: ReplayPlan,
    folder: Path,
    settings: ReplaySettings,
    symmetry: str,
    *,
    on_landed: Callable[[Landed], None] = lambda landed: None,
) -> LandedRows:
    """Write the plan's files into `landing` and `truth` of a folder and return their rows.

    What landed whole is taken as it is; what was cut short lands again. Raises what `replay` and reading raise.
    """
    landing, truth = folder / "landing", folder / "truth"
    if not _is_whole(plan, truth):
        shutil.rmtree(landing, ignore_errors=True)
        shutil.rmtree(truth, ignore_errors=True)
        replay(plan, landing, truth, settings, on_landed=on_landed)
    stars = [landing / batch.star_name for batch in plan.batches if batch.role is BatchRole.ALIGNED]
    known = with_landed_stacks(read_star(truth / TRUTH_NAME), landing)
    streamed = known.select(np.flatnonzero([role == BatchRole.STREAMED for role in known.column(ROLE_LABEL)]))
    hidden = [label for label in streamed.labels if tells_pose(label)]
    return LandedRows(
        aligned=with_landed_stacks(read_star(stars[0]), landing),
        streamed=streamed.without([*hidden, ROLE_LABEL, SOURCE_LABEL]),
        truth=streamed,
        symmetry=symmetry,
    )


def _is_whole(plan: ReplayPlan, truth: Path) -> bool:
    log = truth / LOG_NAME
    return log.is_file() and len(log.read_text().splitlines()) == len(plan.batches)
