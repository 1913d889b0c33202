"""Poses of some rows of a batch, and the star rows that they become."""

import math
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cesped_stream.conventions import ANGLE_LABELS, SHIFT_LABELS
from cesped_stream.particles.flags import Clipped, ImageFlag
from cesped_stream.particles.missing_columns import filled_rows, shared_columns
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
    NEUTRAL_CELLS,
    NO_ABOVE_NOISE,
    NO_APART,
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
from cesped_stream.particles.own_rows import SIGNIFICANT_SAMPLES
from cesped_stream.particles.stacks import STACK_LABEL
from cesped_stream.particles.star import read_star
from cesped_stream.particles.table import OpticsGroup, ParticleTable

from .ledger import Ledger
from .session import SessionFolder

Float64 = NDArray[np.float64]

NO_CHECKPOINT = NOTHING
PROBABILITY = "rlnMaxValueProbDistribution"

STALE_FIGURES: Mapping[str, str] = {
    "rlnLogLikeliContribution": "0.000000",
    SIGNIFICANT_SAMPLES: "0",
}
"""What a predicted row has for RELION's figures of the pose that it came with, which say nothing of the new one: how
well that pose fitted, and how many orientations mattered (0 also tells a prediction from a row that RELION refined)."""

STALE_COLUMNS: Mapping[str, str] = {
    **dict.fromkeys(ANGLE_LABELS, "the pose that was replaced"),
    **dict.fromkeys(SHIFT_LABELS, "the origin that was replaced, where the proposer gives one"),
    **{f"{label}Prior": "the centre of a local search around the pose that was replaced" for label in ANGLE_LABELS},
    **{f"rlnOrigin{axis}PriorAngst": "the centre of a search around the origin that was replaced" for axis in "XY"},
    PROBABILITY: "how sure RELION was of the pose that was replaced; the new pose's confidence stands there",
    **dict.fromkeys(STALE_FIGURES, "a figure of the pose that was replaced"),
}
"""Every input column that does not keep its value in a predicted row, and why; docs/output.md has the same list."""

FORMER_POSE_LABELS = (PROBABILITY, *STALE_FIGURES)
"""RELION's figures of the pose that a row came with."""


LANDED_NAMES = ("rlnImageName", "rlnMicrographName", "rlnOpticsGroupName")
"""What stays as a particle landed, whatever an aligned star calls it."""


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

    def in_reference(self, positions: Collection[int]) -> int:
        """Return how many rows at these positions were left out because they are in the reference that would score
        them."""
        flags = () if self.poses is None else self.poses.flag
        return sum(self.position + k in positions for k in np.flatnonzero(np.equal(flags, ImageFlag.IN_REFERENCE)))


def pose_cells(finished: Finished, row: int, revision: int) -> dict[str, str]:
    """Return the predicted columns of one row of a result, formatted so that equal poses give equal bytes.

    rlnMaxValueProbDistribution is the confidence: RELION's programs can filter on it, and on no column of ours.
    """
    poses = finished.poses
    assert poses is not None
    own = {
        **NEUTRAL_CELLS,
        CHECKPOINT: finished.checkpoint_id,
        PROPOSER: finished.proposer,
        STATUS: PREDICTED,
        REVISION: str(revision),
    }
    own = {label: own[label] for label in OWN_LABELS}
    if poses.flag[row]:
        return own | {STATUS: ImageFlag(int(poses.flag[row])).status}
    angles = {label: f"{a:.6f}" for label, a in zip(ANGLE_LABELS, poses.euler_deg[row], strict=True)}
    modes = np.concatenate([poses.top_euler_deg[row], poses.top_probability[row, :, None]], axis=1)
    own |= {
        CONFIDENCE: f"{poses.confidence[row]:.6f}",
        CONFIDENCE_KIND: CALIBRATED if poses.calibrated[row] else MASS,
        TOP_POSES: list_cell(modes),
        ABOVE_NOISE: number_cell(poses.above_noise[row], NO_ABOVE_NOISE),
        NETWORK_POSE: list_cell(poses.network_euler_deg[row]),
        GALLERY_POSE: list_cell(poses.gallery_euler_deg[row]),
        APART: number_cell(poses.apart_deg[row], NO_APART),
        CLIPPED: Clipped(int(poses.clipped[row])).text,
    }
    if poses.has_shifts:
        angles |= {label: f"{a:.6f}" for label, a in zip(SHIFT_LABELS, poses.shift_angstrom[row], strict=True)}
    return angles | {PROBABILITY: own[CONFIDENCE]} | own


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
        given = table if finished.given is None else with_landed_columns(finished.given, table)
        return _given_table(given.without([STACK_LABEL])), table.select([])
    posed = finished.posed()
    plain = table.without([STACK_LABEL])
    cells = [pose_cells(finished, row, 0) for row in range(len(table))]
    with_pose = _with_cells(_with_origins(plain.select(np.flatnonzero(posed))), _picked(cells, posed))
    renewed: dict[str, Sequence[str]] = {
        label: [cell] * len(with_pose) for label, cell in STALE_FIGURES.items() if label in with_pose
    }
    for prior, angle in prior_labels(with_pose.labels).items():
        renewed[prior] = with_pose.column(angle)
    with_pose = with_pose.with_columns(renewed)
    flagged = plain.select(np.flatnonzero(~posed)).without(ANGLE_LABELS)
    return with_pose, _with_cells(flagged, _picked(cells, ~posed))


def with_landed_columns(given: ParticleTable, landed: ParticleTable) -> ParticleTable:
    """Return the rows of an aligned star with what only the same rows had as they landed.

    Names by which other programs find a particle stay the landed ones. A column that `given` has in the row or in its
    optics group is the aligned star's, wherever it landed; of an optics group, what the aligned star only writes in
    other digits stays as it landed, so that the group is the same one.
    """
    aligned_groups = [given.optics[k] for k in given.optics_index]
    landed_groups = [landed.optics[k] for k in landed.optics_index]
    columns: dict[str, Sequence[str]] = {}
    for label in landed.labels:
        in_group = any(group.text(label) is not None for group in aligned_groups)
        if label in LANDED_NAMES or (label not in given and not in_group):
            columns[label] = landed.column(label)
    place: dict[OpticsGroup, int] = {}
    index = []
    for aligned, other in zip(aligned_groups, landed_groups, strict=True):
        texts = {label: text for label, text in other.values if label not in given}
        for label, text in aligned.values:
            if label not in texts or (label not in LANDED_NAMES and not _is_same_value(texts[label], text)):
                texts[label] = text
        index.append(place.setdefault(OpticsGroup(tuple(texts.items())), len(place)))
    return replace(given, optics=tuple(place), optics_index=np.array(index, np.int64)).with_columns(columns)


def _is_same_value(a: str, b: str) -> bool:
    try:
        return math.isclose(float(a), float(b), rel_tol=1e-6, abs_tol=1e-9)
    except ValueError:
        return a == b


def _picked(cells: list[dict[str, str]], which: NDArray[np.bool_]) -> list[dict[str, str]]:
    return [cell for cell, keep in zip(cells, which, strict=True) if keep]


def _with_cells(table: ParticleTable, cells: list[dict[str, str]]) -> ParticleTable:
    labels = list(cells[0]) if cells else []
    return table.with_columns({label: [cell[label] for cell in cells] for label in labels})


def _with_origins(table: ParticleTable) -> ParticleTable:
    missing = [label for label in SHIFT_LABELS if label not in table]
    angles = [label for label in ANGLE_LABELS if label not in table]
    return table.with_columns({label: ["0.000000"] * len(table) for label in (*angles, *missing)})


def _given_table(table: ParticleTable) -> ParticleTable:
    table = _with_origins(table)
    confidences = table.numbers(PROBABILITY, 0.0)
    modes = np.stack([*(table.numbers(label) for label in ANGLE_LABELS), confidences], axis=1)
    same = {
        CONFIDENCE_KIND: GIVEN,
        CHECKPOINT: NO_CHECKPOINT,
        PROPOSER: GIVEN,
        STATUS: GIVEN,
        REVISION: "0",
        ABOVE_NOISE: NO_ABOVE_NOISE,
        NETWORK_POSE: NO_POSE,
        GALLERY_POSE: NO_POSE,
        APART: NO_APART,
        CLIPPED: Clipped.NO.text,
    }
    columns: dict[str, Sequence[str]] = {label: [cell] * len(table) for label, cell in same.items()}
    columns[CONFIDENCE] = [f"{number:.6f}" for number in confidences]
    columns[TOP_POSES] = [list_cell(mode) for mode in modes]
    own = {label: columns[label] for label in OWN_LABELS}
    # As everywhere (eq. 10), a consensus without the figure counts fully: no filter on it drops the rows.
    figure = {} if PROBABILITY in table else {PROBABILITY: ["1.000000"] * len(table)}
    return table.with_columns(figure | own)


def joined(tables: Sequence[ParticleTable]) -> ParticleTable:
    """Return all rows in one table: the columns that `shared_columns` says, optics groups by content. Rows of one star
    have the same columns, and lose none."""
    labels = shared_columns((table.labels, used_groups(table)) for table in tables).kept
    groups = {group for table in tables for group in used_groups(table)}
    optics = {group: k for k, group in enumerate(sorted(groups, key=lambda group: group.values))}
    rows: list[tuple[str, ...]] = []
    numbers: list[int] = []
    for table in tables:
        rows.extend(filled_rows(labels, table))
        numbers.extend(optics[table.optics[k]] for k in table.optics_index)
    return ParticleTable(labels, rows, tuple(optics), np.array(numbers, np.int64))


def left_out_words(file: str, labels: Sequence[str]) -> str:
    """Return what the user is told of columns that a file cannot have."""
    return (
        f"{file}: without {', '.join(labels)}: only some of its rows had that, and RELION knows no value for the "
        "others; the session's batches/ keep it"
    )


def used_groups(table: ParticleTable) -> list[OpticsGroup]:
    """Return the optics groups that rows of the table are of."""
    return [table.optics[k] for k in sorted(set(table.optics_index.tolist()))]


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
