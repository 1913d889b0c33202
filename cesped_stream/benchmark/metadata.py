"""The rows of one star as typed columns, with predictions written over them."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from cesped_stream.conventions import ANGLE_LABELS, SHIFT_LABELS, UNSET_ANGLES_DEG, euler_deg_to_rotation
from cesped_stream.errors import InvalidStarError
from cesped_stream.particles.missing_columns import NEUTRAL_VALUES
from cesped_stream.particles.own_rows import PoseSource, pose_sources
from cesped_stream.particles.stacks import STACK_LABEL, parse_image_name, resolve_stack
from cesped_stream.particles.star import read_star
from cesped_stream.particles.table import OPTICS_GROUP_LABEL, Float64, Int64, ParticleTable

CONFIDENCE_LABEL: Final = "rlnMaxValueProbDistribution"
PREDICTED_CONFIDENCE_LABEL: Final = "rlnParticleFigureOfMerit"
GIVEN_FIGURE_LABEL: Final = "cestreamGivenFigureOfMerit"

Column = NDArray[Any] | list[str]


def read_rows(star: Path, image_root: Path | None = None) -> ParticleTable:
    """Return all rows of a star, each stack's real path (percent encoded) in `cestreamStack`.

    Names are looked for under `image_root`, else beside the star, else in the one parent folder where they exist; a
    stack may lie anywhere. Raises InvalidStarError, UnreachableFileError or ForbiddenPathError.
    """
    table = read_star(star)
    if len(table) == 0:
        raise InvalidStarError(f"{star}: has no particle row; is it the right star?")
    stacks: dict[str, str] = {}
    column = []
    for text in table.column("rlnImageName"):
        name = parse_image_name(text)[1]
        if name not in stacks:
            stack = resolve_stack(name, star=star, image_root=image_root, allowed_roots=(Path("/"),))
            stacks[name] = quote(str(stack))
        column.append(stacks[name])
    return table.with_columns({STACK_LABEL: column})


class Metadata:
    """Columns of a table: int64 or float64 `(n,)` where every text of it is a number, else the texts.

    rlnOpticsGroup is among them, counted from 1. What is updated is seen at once; the table that was given is not
    changed.
    """

    def __init__(self, table: ParticleTable) -> None:
        self._table = table
        shown = (label for label in table.labels if label != STACK_LABEL)
        self.columns: dict[str, Column] = {label: _typed(table.column(label)) for label in shown}
        self.columns[OPTICS_GROUP_LABEL] = table.optics_index + 1
        self._new: dict[str, NDArray[np.bool_]] = {}
        self._row_of: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self._table)

    @property
    def ids(self) -> list[str]:
        """The particles' ids: rlnImageName as the star has it."""
        return self._table.column("rlnImageName")

    @property
    def updated(self) -> NDArray[np.bool_]:
        """`(n,)`: rows of which a column was updated."""
        return np.asarray(np.any([np.zeros(len(self), np.bool_), *self._new.values()], axis=0), np.bool_)

    def row(self, row: int) -> dict[str, Any]:
        """Return one row as Python numbers and texts."""
        return {
            label: column[row].item() if isinstance(column, np.ndarray) else column[row]
            for label, column in self.columns.items()
        }

    def rows(self, rows: Int64) -> dict[str, Column]:
        """Return the columns of some rows, in that order."""
        return {
            label: column[rows] if isinstance(column, np.ndarray) else [column[row] for row in rows]
            for label, column in self.columns.items()
        }

    def rows_of(self, ids: Sequence[str]) -> Int64:
        """Return the row of each id; InvalidStarError names ids that the star has not, or has twice. Zeros before an
        index do not matter."""
        if self._row_of is None:
            self._row_of = {_identity(text): row for row, text in enumerate(self.ids)}
        rows = [self._row_of.get(_identity(text), -1) for text in ids]
        repeated = self._repeated_ids
        self._refuse_repeated([text for text in ids if _identity(text) in repeated])
        unknown = [text for text, row in zip(ids, rows, strict=True) if row < 0]
        if unknown:
            shown = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            raise InvalidStarError(
                f"{self._table.source or 'star'}: {len(unknown)} of {len(ids)} ids are no rlnImageName of its "
                f"{len(self)} rows: {shown}; give the ids that the data set gave"
            )
        return np.array(rows, np.int64)

    @cached_property
    def _repeated_ids(self) -> dict[str, list[int]]:
        """The rows of each id that stands in several."""
        rows_of: dict[str, list[int]] = {}
        for row, text in enumerate(self.ids):
            rows_of.setdefault(_identity(text), []).append(row)
        return {identity: rows for identity, rows in rows_of.items() if len(rows) > 1}

    def _refuse_repeated(self, ids: Sequence[str]) -> None:
        """Raise InvalidStarError where there is an id: it stands in several rows, and a prediction is of one."""
        if ids:
            first = [str(row + 1) for row in self._repeated_ids[_identity(ids[0])][:5]]
            raise InvalidStarError(
                f"{self._table.source or 'star'}: rlnImageName {ids[0]!r} stands in rows {', '.join(first)}, and "
                f"{len(ids)} of these ids in several; a prediction is of one row, and the others would keep their true "
                "poses. Is the star symmetry-expanded? Give it with each image once"
            )

    def rotations(self, rows: Int64) -> Float64:
        """Return pose rotations `(n, 3, 3)`, image to map; NaN where a row has no pose."""
        rotations = np.full((len(rows), 3, 3), np.nan)
        known = np.flatnonzero(self.has_poses(rows))
        if len(known):
            rotations[known] = euler_deg_to_rotation(*(self._number(label, rows[known]) for label in ANGLE_LABELS))
        return rotations

    def has_poses(self, rows: Int64) -> NDArray[np.bool_]:
        """Return `(n,)`: all three angles are there, finite and not RELION's "unset"."""
        if any(label not in self.columns for label in ANGLE_LABELS):
            return np.zeros(len(rows), np.bool_)
        angles = np.stack([self._number(label, rows) for label in ANGLE_LABELS])
        return np.asarray((np.isfinite(angles) & ~np.isin(angles, UNSET_ANGLES_DEG)).all(0), np.bool_)

    def shifts_angstrom(self, rows: Int64) -> Float64:
        """Return the shifts `(n, 2)` (x, y) that centre the images; 0 where the star has none."""
        return np.stack([self._number(label, rows, 0.0) for label in SHIFT_LABELS], axis=-1)

    def confidences(self, rows: Int64) -> Float64:
        """Return rlnMaxValueProbDistribution `(n,)`, 1 where no consensus wrote one, 0 for rows without a pose."""
        given = np.where(self._predicted_before[rows], 1.0, self._number(CONFIDENCE_LABEL, rows, 1.0))
        return np.where(self.has_poses(rows), given, 0.0)

    @cached_property
    def _predicted_before(self) -> NDArray[np.bool_]:
        """`(n,)`: rows that came with a prediction of this program, whose probability is no consensus's."""
        return np.asarray(pose_sources(self._table) == PoseSource.OWN, np.bool_)

    def update(self, rows: Int64, columns: Mapping[str, Float64]) -> None:
        """Write numbers `(len(rows),)` into columns; a column that the star lacks is made, neutral in other rows.

        A figure of merit that the star came with (a picker's, say) is kept under cestreamGivenFigureOfMerit, and rows
        without a prediction get 0.
        """
        for label, values in columns.items():
            if label not in self._new:
                self._begin(label)
            column = self.columns[label]
            assert isinstance(column, np.ndarray)
            column[rows] = values
            self._new[label][rows] = True

    def table(self, *, only_updated: bool = False) -> ParticleTable:
        """Return the table with what was updated, every other text as it was read; or its updated rows alone.

        InvalidStarError where the star had no angles and only some of these rows have got some: 0 would be a pose; and
        where predictions stand beside an id that is in several rows.
        """
        if self._new and not only_updated:
            self._refuse_repeated([self.ids[rows[0]] for rows in self._repeated_ids.values()])
        kept = np.flatnonzero(self.updated) if only_updated else np.arange(len(self))
        made = any(label in self._new and label not in self._table for label in ANGLE_LABELS)
        unposed = int((~self.has_poses(kept)).sum()) if made else 0
        if unposed:
            raise InvalidStarError(
                f"{self._table.source or 'star'}: {unposed} of {len(kept)} rows have no pose, given or "
                "predicted; predict them too, or save the updated rows only"
            )
        return self._with_updates().select(kept)

    def _with_updates(self) -> ParticleTable:
        changed: dict[str, Sequence[str]] = {label: self._texts(label) for label in self._new}
        if PREDICTED_CONFIDENCE_LABEL in changed and PREDICTED_CONFIDENCE_LABEL in self._table:
            changed[GIVEN_FIGURE_LABEL] = self._table.column(PREDICTED_CONFIDENCE_LABEL)
        return self._table.without([STACK_LABEL]).with_columns(changed)

    def _begin(self, label: str) -> None:
        """Make the column a writable float64 one."""
        neutral = np.nan if label in ANGLE_LABELS else float(NEUTRAL_VALUES.get(label, "0"))
        if label == PREDICTED_CONFIDENCE_LABEL or label not in self.columns:
            self.columns[label] = np.full(len(self), neutral)
        else:
            self.columns[label] = np.array(self._number(label, np.arange(len(self))))
        self._new[label] = np.zeros(len(self), np.bool_)

    def _texts(self, label: str) -> list[str]:
        column, new = self.columns[label], self._new[label]
        given = label in self._table and label != PREDICTED_CONFIDENCE_LABEL
        texts = self._table.column(label) if given else [NEUTRAL_VALUES.get(label, "0.000000")] * len(self)
        for row in np.flatnonzero(new):
            texts[row] = f"{column[row]:.6f}"
        return texts

    def _number(self, label: str, rows: Int64, default: float | None = None) -> Float64:
        if label not in self.columns and default is not None:
            return np.full(len(rows), default)
        column = self.columns.get(label)
        if not isinstance(column, np.ndarray):
            self._table.numbers(label)  # says what is wrong, and in which file
            raise InvalidStarError(f"{self._table.source or 'star'}: column {label} is no number in every row")
        return np.asarray(column[rows], np.float64)


def _typed(texts: list[str]) -> Column:
    for kind in (np.int64, np.float64):
        try:
            return np.array(texts, dtype=kind)
        except (ValueError, OverflowError):
            continue
    return texts


def _identity(text: str) -> str:
    """Return an id without the zeros before its index: 1@a.mrcs is 000001@a.mrcs."""
    index, at, name = text.partition("@")
    return f"{index.lstrip('0')}@{name}" if at else text
