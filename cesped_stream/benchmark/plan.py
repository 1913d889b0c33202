"""Plan of a replay: which of an entry's particles land when, in which files, and which columns they keep."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from cesped_stream.benchmark.entries import Entry
from cesped_stream.benchmark.replay_settings import ReplaySettings
from cesped_stream.benchmark.stream_images import ImageEdits
from cesped_stream.benchmark.stream_realism import TRUTH_ONLY, StreamRealism, with_used_optics
from cesped_stream.errors import InvalidSettingsError
from cesped_stream.particles.stacks import STACK_LABEL, read_header
from cesped_stream.particles.table import ParticleTable
from cesped_stream.settings import RealismSettings

Int64 = NDArray[np.int64]

POSE_PREFIXES = ("rlnAngle", "rlnOrigin")
POSE_SUFFIX = "Prior"
POSE_LABELS = (
    "rlnMaxValueProbDistribution",
    "rlnLogLikeliContribution",
    "rlnNrOfSignificantSamples",
    "rlnClassNumber",
)
ROLE_LABEL = "cestreamReplayRole"
SOURCE_LABEL = "cestreamSourceImage"


class BatchRole(StrEnum):
    """Whether a batch lands with its poses (aligned) or without (streamed)."""

    ALIGNED = "aligned"
    STREAMED = "streamed"


@dataclass(frozen=True)
class PlannedStack:
    """One stack file of a batch: images of one box size, `rows` of the entry in order."""

    name: str
    rows: Int64


@dataclass(frozen=True)
class PlannedBatch:
    """One star file and its stacks."""

    name: str
    role: BatchRole
    stacks: tuple[PlannedStack, ...]

    @property
    def num_rows(self) -> int:
        """Rows of its star."""
        return sum(len(stack.rows) for stack in self.stacks)

    @property
    def star_name(self) -> str:
        """File name of its star in the landing folder."""
        return f"{self.name}.star"


@dataclass(frozen=True)
class ReplayPlan:
    """Everything that will land, in order, and what is known of it."""

    source: ParticleTable
    batches: tuple[PlannedBatch, ...]
    told: ParticleTable | None = None
    """The source's rows as the stream tells them, where that is not the truth: bad labels."""
    images: ImageEdits | None = None
    """What happens to the images on their way; None: nothing."""
    realism: dict[str, object] | None = None
    """Settings and counts of what was added; None: nothing."""

    @property
    def num_particles(self) -> int:
        """Particles that land in all."""
        return sum(batch.num_rows for batch in self.batches)

    def count(self, role: BatchRole) -> int:
        """Return how many particles land in this role."""
        return sum(batch.num_rows for batch in self.batches if batch.role is role)

    def truth(self) -> ParticleTable:
        """Return every landing row, in order, with all the entry's columns, under its landed image name."""
        batches = [(batch, self.landed_rows(batch, keep_poses=True)) for batch in self.batches]
        index = np.concatenate([_rows(batch) for batch in self.batches])
        landed = [name for _, table in batches for name in table.column("rlnImageName")]
        roles = [str(batch.role) for batch in self.batches for _ in range(batch.num_rows)]
        source = self.source.select(index)
        columns: dict[str, Sequence[str]] = {
            SOURCE_LABEL: source.column("rlnImageName"),
            "rlnImageName": landed,
            ROLE_LABEL: roles,
        }
        return source.without([STACK_LABEL]).with_columns(columns)

    def landed_rows(self, batch: PlannedBatch, *, keep_poses: bool | None = None) -> ParticleTable:
        """Return a batch's star as it lands; poses are kept in the aligned role unless said otherwise."""
        rows = self.source if self.told is None or keep_poses is not None else self.told
        table = rows.select(_rows(batch)).without([STACK_LABEL, *TRUTH_ONLY])
        if self.told is not None:
            table = with_used_optics(table)  # a group that comes mid-stream is not known before
        if not (batch.role is BatchRole.ALIGNED if keep_poses is None else keep_poses):
            table = table.without([label for label in table.labels if tells_pose(label)])
        names = [f"{k + 1:06d}@{s.name}" for s in batch.stacks for k in range(len(s.rows))]
        return table.with_columns({"rlnImageName": names})


def tells_pose(label: str) -> bool:
    """Return whether a column holds a pose or tells of one, or what a row shows: what streamed rows do not have."""
    return label.startswith(POSE_PREFIXES) or label.endswith(POSE_SUFFIX) or label in (*POSE_LABELS, *TRUTH_ONLY)


def plan_replay(
    entry: Entry, settings: ReplaySettings, realism: RealismSettings | None = None, *, symmetry: str | None = None
) -> ReplayPlan:
    """Return what will land: micrographs in a seeded or the recorded order, the aligned ones first, cut into batches.

    A micrograph's particles stay together and in their order; rows of a star without micrographs are taken one by
    one. Raises InvalidSettingsError where the aligned micrographs are not in the entry, have no poses, or are all.

    `realism` (what `for_replay` leaves of it) adds what real sessions contain; `symmetry` is then the entry's, where
    it states none (C1 where neither does).
    """
    stream = StreamRealism(realism or RealismSettings(), entry.symmetry or symmetry or "C1")
    table = stream.chosen(entry.particles())
    units = _units(table)
    order = units if settings.order == "recorded" else _shuffled(units, settings.seed)
    if settings.limit:
        order = order[: _units_holding([len(u) for u in order], settings.limit)]
    aligned, streamed = _split(table, order, settings)
    if not len(streamed):
        raise InvalidSettingsError(
            f"{entry.name}: all {len(aligned):,} particles that land are aligned, nothing is left to stream; let fewer "
            f"land aligned (first_aligned, first_aligned_micrographs, aligned_micrographs){_or_more(settings)}"
        )
    if len(aligned) and not table.select(aligned).has_poses().all():
        raise InvalidSettingsError(f"{entry.name}: aligned particles need angles; some rows have none")
    boxes = _box_sizes(table)
    batches = [_batch("aligned_0001", BatchRole.ALIGNED, aligned, boxes, settings)] if len(aligned) else []
    for start in range(0, len(streamed), settings.batch_rows):
        name = f"batch_{start // settings.batch_rows + 1:04d}"
        rows = streamed[start : start + settings.batch_rows]
        batches.append(_batch(name, BatchRole.STREAMED, rows, boxes, settings))
    if stream.realism.is_clean:
        return ReplayPlan(table, tuple(batches))
    dressed = stream.dressed(table, aligned, np.concatenate([aligned, streamed]), boxes)
    return ReplayPlan(dressed.source, tuple(batches), dressed.told, dressed.images, dressed.facts)


def _or_more(settings: ReplaySettings) -> str:
    return ", or more in all (limit)" if settings.limit else ""


def _rows(batch: PlannedBatch) -> Int64:
    return np.concatenate([stack.rows for stack in batch.stacks])


def _units(table: ParticleTable) -> list[Int64]:
    if "rlnMicrographName" not in table:
        return [np.array([row], np.int64) for row in range(len(table))]
    members: dict[str, list[int]] = {}
    for row, name in enumerate(table.column("rlnMicrographName")):
        members.setdefault(name, []).append(row)
    return [np.array(rows, np.int64) for rows in members.values()]


def _shuffled(units: list[Int64], seed: int) -> list[Int64]:
    return [units[k] for k in np.random.default_rng(seed).permutation(len(units))]


def _units_holding(sizes: list[int], particles: int) -> int:
    """Return how many leading units hold at least so many particles (all, where they do not suffice)."""
    return int(np.searchsorted(np.cumsum(sizes), particles)) + 1


def _split(table: ParticleTable, order: list[Int64], settings: ReplaySettings) -> tuple[Int64, Int64]:
    none = np.zeros(0, np.int64)
    if settings.aligned_micrographs:
        names = table.micrographs()
        first = {names[unit[0]]: k for k, unit in enumerate(order)}
        absent = [name for name in settings.aligned_micrographs if name not in first]
        if absent:
            raise InvalidSettingsError(
                f"aligned_micrographs: {', '.join(absent)} not in the entry; it has {', '.join(sorted(first)[:5])}, .."
            )
        chosen = [first[name] for name in settings.aligned_micrographs]
    elif settings.first_aligned:
        chosen = list(range(_units_holding([len(u) for u in order], settings.first_aligned)))
    else:
        chosen = list(range(settings.first_aligned_micrographs))
    first_ones = set(chosen)
    aligned = [unit for k, unit in enumerate(order) if k in first_ones]
    streamed = [unit for k, unit in enumerate(order) if k not in first_ones]
    return np.concatenate([none, *aligned]), np.concatenate([none, *streamed])


def _box_sizes(table: ParticleTable) -> Int64:
    stacks = table.column(STACK_LABEL)
    boxes = {stack: read_header(Path(unquote(stack))).box_size for stack in set(stacks)}
    return np.array([boxes[stack] for stack in stacks], np.int64)


def _batch(name: str, role: BatchRole, rows: Int64, boxes: Int64, settings: ReplaySettings) -> PlannedBatch:
    """Cut a batch's rows into stacks of one box size and at most `batch_rows` images."""
    parts: list[Int64] = []
    for box in dict.fromkeys(boxes[rows].tolist()):
        of_box = rows[boxes[rows] == box]
        parts += np.split(of_box, range(settings.batch_rows, len(of_box), settings.batch_rows))
    names = [f"{name}.mrcs" if k == 0 else f"{name}_stack{k + 1}.mrcs" for k in range(len(parts))]
    return PlannedBatch(name, role, tuple(map(PlannedStack, names, parts)))
