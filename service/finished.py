"""Poses of some rows of a batch, and the star rows that they become."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cesped_stream.conventions import ANGLE_LABELS, SHIFT_LABELS
from cesped_stream.particles.flags import Clipped, ImageFlag
from cesped_stream.particles.own_columns import (
    ABOVE_NOISE,
    APART,
    CALIBRATED,
    CHECKPOINT,
    CLIPPED,
    CONFIDENCE,
    CONFIDENCE_KIND,
    GALLERY_POSE,
    GIVEN,
    MASS,
    NETWORK_POSE,
    NO_POSE,
    NOTHING,
    OWN_LABELS,
    PREDICTED,
    PROPOSER,
    REVISION,
    STATUS,
    TOP_POSES,
    list_cell,
    number_cell,
)
from cesped_stream.particles.stacks import STACK_LABEL
from cesped_stream.particles.star import NEUTRAL_VALUES, read_star, row_filler, union_of_labels
from cesped_stream.particles.table import ParticleTable

from .ledger import Ledger
from .session import SessionFolder

Float64 = NDArray[np.float64]

NO_CHECKPOINT = NOTHING
FORMER_POSE_LABELS = ("rlnMaxValueProbDistribution", "rlnLogLikeliContribution", "rlnNrOfSignificantSamples")
"""RELION's figures of the pose that a row came with: they say nothing of a predicted one."""


@dataclass(frozen=True, eq=False)
class Poses:
    """A result's arrays, as the message `Result` describes them; n rows, k poses a row."""

    euler_deg: Float64
    confidence: Float64
    top_euler_deg: Float64
    top_probability: Float64
    flag: NDArray[np.uint8]
    digest: NDArray[np.uint8]
    shift_angstrom: Float64
    calibrated: NDArray[np.uint8]
    above_noise: Float64
    network_euler_deg: Float64
    gallery_euler_deg: Float64
    apart_deg: Float64
    clipped: NDArray[np.uint8]

    @property
    def has_shifts(self) -> bool:
        """Return whether the proposer gives shifts: it does for all of a result's rows, or for none."""
        return bool(np.isfinite(self.shift_angstrom[self.flag == 0]).all())


@dataclass(frozen=True, eq=False)
class Finished:
    """Rows [first_row, first_row + num_rows) of a batch, ready to commit. `poses` is None for given poses: the rows'
    own, or those of `given`, the same rows with the poses of an aligned star.

    `shard_id` and `position` say which committed rows are redone; shard_id 0 is a first pose.
    """

    batch_id: int
    first_row: int
    num_rows: int
    poses: Poses | None = None
    lease_id: int = 0
    checkpoint_id: str = NO_CHECKPOINT
    proposer: str = GIVEN
    worker: str = ""
    compute_seconds: float = 0.0
    shard_id: int = 0
    position: int = 0
    given: ParticleTable | None = None

    def posed(self) -> NDArray[np.bool_]:
        """Return `(n,)`: the row has a pose (its image is not flagged)."""
        if self.poses is None:
            return np.ones(self.num_rows, np.bool_)
        return np.asarray(self.poses.flag == 0, np.bool_)

    def in_reference(self) -> int:
        """Return how many rows were left out because they are in the reference that would score them."""
        return 0 if self.poses is None else int((self.poses.flag == ImageFlag.IN_REFERENCE).sum())


def pose_cells(finished: Finished, row: int, revision: int) -> dict[str, str]:
    """Return the predicted columns of one row of a result, formatted so that equal poses give equal bytes."""
    poses = finished.poses
    assert poses is not None
    own = {
        CONFIDENCE: "0.000000",
        CONFIDENCE_KIND: NOTHING,
        CHECKPOINT: finished.checkpoint_id,
        PROPOSER: finished.proposer,
        STATUS: PREDICTED,
        REVISION: str(revision),
        TOP_POSES: NO_POSE,
        ABOVE_NOISE: NOTHING,
        NETWORK_POSE: NO_POSE,
        GALLERY_POSE: NO_POSE,
        APART: NOTHING,
        CLIPPED: Clipped.NO.text,
    }
    if poses.flag[row]:
        return own | {STATUS: ImageFlag(int(poses.flag[row])).status}
    angles = {label: f"{a:.6f}" for label, a in zip(ANGLE_LABELS, poses.euler_deg[row], strict=True)}
    modes = np.concatenate([poses.top_euler_deg[row], poses.top_probability[row, :, None]], axis=1)
    own |= {
        CONFIDENCE: f"{poses.confidence[row]:.6f}",
        CONFIDENCE_KIND: CALIBRATED if poses.calibrated[row] else MASS,
        TOP_POSES: list_cell(modes),
        ABOVE_NOISE: number_cell(poses.above_noise[row]),
        NETWORK_POSE: list_cell(poses.network_euler_deg[row]),
        GALLERY_POSE: list_cell(poses.gallery_euler_deg[row]),
        APART: number_cell(poses.apart_deg[row]),
        CLIPPED: Clipped(int(poses.clipped[row])).text,
    }
    if poses.has_shifts:
        angles |= {label: f"{a:.6f}" for label, a in zip(SHIFT_LABELS, poses.shift_angstrom[row], strict=True)}
    return angles | own


def origin_cells(table: ParticleTable, row: int) -> dict[str, str]:
    """Return the origin that a row keeps where nothing predicts one: its own, or 0."""
    return {label: table.column(label)[row] if label in table else "0.000000" for label in SHIFT_LABELS}


def prior_labels(labels: Sequence[str]) -> dict[str, str]:
    """Return the priors among `labels`, each with the angle or origin that it must equal once that is predicted."""
    priors = {f"{angle}Prior": angle for angle in ANGLE_LABELS}
    priors |= {f"rlnOrigin{axis}PriorAngst": f"rlnOrigin{axis}Angst" for axis in "XY"}
    return {prior: label for prior, label in priors.items() if prior in labels}


def output_tables(table: ParticleTable, finished: Finished) -> tuple[ParticleTable, ParticleTable]:
    """Return (rows with a pose, rows without) of `table`, the finished rows of a batch star, with their columns."""
    if finished.poses is None:
        given = table if finished.given is None else finished.given
        return given_rows(given), table.select([])
    posed = finished.posed()
    plain = table.without([STACK_LABEL])
    cells = [pose_cells(finished, row, 0) for row in range(len(table))]
    with_pose = _with_cells(_with_origins(plain.select(np.flatnonzero(posed))), _picked(cells, posed))
    former = [label for label in FORMER_POSE_LABELS if label in with_pose]
    renewed: dict[str, Sequence[str]] = {
        label: ["0" if label == "rlnNrOfSignificantSamples" else "0.000000"] * len(with_pose) for label in former
    }
    for prior, angle in prior_labels(with_pose.labels).items():
        renewed[prior] = with_pose.column(angle)
    with_pose = with_pose.with_columns(renewed)
    flagged = plain.select(np.flatnonzero(~posed)).without(ANGLE_LABELS)
    return with_pose, _with_cells(flagged, _picked(cells, ~posed))


def _picked(cells: list[dict[str, str]], which: NDArray[np.bool_]) -> list[dict[str, str]]:
    return [cell for cell, keep in zip(cells, which, strict=True) if keep]


def _with_cells(table: ParticleTable, cells: list[dict[str, str]]) -> ParticleTable:
    labels = list(cells[0]) if cells else []
    return table.with_columns({label: [cell[label] for cell in cells] for label in labels})


def _with_origins(table: ParticleTable) -> ParticleTable:
    missing = [label for label in SHIFT_LABELS if label not in table]
    angles = [label for label in ANGLE_LABELS if label not in table]
    return table.with_columns({label: ["0.000000"] * len(table) for label in (*angles, *missing)})


def given_rows(table: ParticleTable) -> ParticleTable:
    """Return rows with given poses as they stand in a pose file."""
    table = _with_origins(table.without([STACK_LABEL]))
    confidences = table.numbers("rlnMaxValueProbDistribution", 0.0)
    modes = np.stack([*(table.numbers(label) for label in ANGLE_LABELS), confidences], axis=1)
    same = {
        CONFIDENCE_KIND: GIVEN,
        CHECKPOINT: NO_CHECKPOINT,
        PROPOSER: GIVEN,
        STATUS: GIVEN,
        REVISION: "0",
        ABOVE_NOISE: NOTHING,
        NETWORK_POSE: NO_POSE,
        GALLERY_POSE: NO_POSE,
        APART: NOTHING,
        CLIPPED: Clipped.NO.text,
    }
    columns: dict[str, Sequence[str]] = {label: [cell] * len(table) for label, cell in same.items()}
    columns[CONFIDENCE] = [f"{number:.6f}" for number in confidences]
    columns[TOP_POSES] = [list_cell(mode) for mode in modes]
    return table.with_columns({label: columns[label] for label in OWN_LABELS})


def joined(tables: Sequence[ParticleTable]) -> ParticleTable:
    """Return all rows in one table: union of the columns, RELION's neutral values, optics groups by content."""
    labels = tables[0].labels
    for table in tables[1:]:
        labels = union_of_labels(labels, table.labels)
    groups = {table.optics[k] for table in tables for k in set(table.optics_index.tolist())}
    optics = {group: k for k, group in enumerate(sorted(groups, key=lambda group: group.values))}
    rows: list[tuple[str, ...]] = []
    numbers: list[int] = []
    for table in tables:
        rows.extend(aligned_to(labels, table))
        numbers.extend(optics[table.optics[k]] for k in table.optics_index)
    return ParticleTable(labels, rows, tuple(optics), np.array(numbers, np.int64))


def aligned_to(
    labels: tuple[str, ...], table: ParticleTable, neutral: Mapping[str, str] = NEUTRAL_VALUES
) -> list[tuple[str, ...]]:
    """Return the table's rows in the order of `labels`; `row_filler` says what a missing column gets."""
    if labels == table.labels:
        return table.rows
    fill = row_filler(labels, table.labels, neutral)
    return [fill(row) for row in table.rows]


class BatchTables:
    """Reads batch stars, keeping the last few in memory; the half-sets are those that the ledger has now."""

    def __init__(self, folder: SessionFolder, ledger: Ledger, keep: int = 6) -> None:
        self._folder = folder
        self._ledger = ledger
        self._keep = keep
        self._tables: OrderedDict[int, ParticleTable] = OrderedDict()

    def __getitem__(self, batch_id: int) -> ParticleTable:
        if batch_id not in self._tables:
            table = read_star(self._folder.batch_star(batch_id))
            self._tables[batch_id] = table.with_half_sets(self._ledger.half_sets(batch_id))
            while len(self._tables) > self._keep:
                self._tables.popitem(last=False)
        self._tables.move_to_end(batch_id)
        return self._tables[batch_id]

    def forget(self) -> None:
        """Read everything again when it is asked for: half-sets have changed."""
        self._tables.clear()

    def rows(self, batch_id: int, first_row: int, num_rows: int) -> ParticleTable:
        return self[batch_id].select(range(first_row, first_row + num_rows))
