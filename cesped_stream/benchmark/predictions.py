"""Predicted poses of any tool, matched to the particles of a truth by the identity of their images."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from pathlib import Path
from posixpath import basename, normpath
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cesped_stream.benchmark.foreign_predictions import IDENTITY_LABELS, check_same_particles
from cesped_stream.conventions import (
    ANGLE_LABELS,
    SHIFT_LABELS,
    UNSET_ANGLES_DEG,
    euler_deg_to_rotation,
    rotation_to_euler_deg,
)
from cesped_stream.errors import InvalidSettingsError, InvalidStarError
from cesped_stream.imaging.junk import is_particle
from cesped_stream.particles.own_columns import (
    ABOVE_NOISE,
    CLIPPED,
    CONFIDENCE,
    CONFIDENCE_KIND,
    GIVEN,
    PREDICTED,
    PROPOSER,
    STATUS,
)
from cesped_stream.particles.stacks import parse_image_name
from cesped_stream.particles.star import concatenated, read_star
from cesped_stream.particles.table import ParticleTable

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

CONFIDENCE_LABELS: Final = (CONFIDENCE, "rlnParticleFigureOfMerit")
"""Where a prediction's confidence may stand. Ours before CESPED's: a star of ours may keep a picker's score there."""
SURENESS_LABELS: Final = (PROPOSER, CONFIDENCE_KIND, ABOVE_NOISE, CLIPPED)
"""What rows of a session say of their confidence, and of their image and search."""

_UNSET_TEXT: Final = "-999.000000"
_EXAMPLES: Final = 3


class PredictionType(StrEnum):
    """What a tool predicts of a pose; the rest is taken from the truth (CESPED's words)."""

    S2 = "S2"
    """rot and tilt: the view."""
    SO3 = "SO3"
    """The rotation."""
    SO3xR2 = "SO3xR2"
    """The rotation and the shift."""

    @property
    def angle_labels(self) -> tuple[str, ...]:
        """The angles that a prediction must have to count."""
        return ANGLE_LABELS[:2] if self is PredictionType.S2 else ANGLE_LABELS


@dataclass(frozen=True)
class Coverage:
    """How many particles of the truth have a predicted pose."""

    half_set: int | None
    """0 or 1, None for both together."""
    num_particles: int
    """In the truth, junk and particles whose pose was given left out."""
    num_predicted: int
    num_given: int
    """Particles whose pose the prediction says was given to it (`cestreamStatus`): no predictions."""
    num_junk: int
    """Rows of the truth that are no particles (`cestreamKind`)."""
    num_junk_predicted: int

    @property
    def share(self) -> float:
        """Predicted particles over particles; 0 where there are none."""
        return self.num_predicted / self.num_particles if self.num_particles else 0.0


@dataclass(frozen=True, eq=False)
class MatchedPredictions:
    """Rows of the truth with a predicted pose, in the truth's order, each beside its prediction."""

    truth: ParticleTable
    predicted: ParticleTable
    """Row k is the prediction of row k of `truth`."""
    rows: Int64
    """`(n,)`: where each stands in the whole truth."""
    is_particle: NDArray[np.bool_]
    """`(n,)`: false for junk."""
    coverage: tuple[Coverage, Coverage, Coverage]
    """Of half-set 0, of half-set 1, of both together."""


def read_predictions(stars: Sequence[Path]) -> ParticleTable:
    """Return name, angles, shifts and confidence of predictions in one star (both halves) or several (one each), and
    micrograph, defocus and what `SURENESS_LABELS` tell where all of them have these.

    RELION 3.0 and 3.1. An angle column that one of several stars lacks counts as unset in it; a shift or confidence
    column has to be in all of them or in none. Raises InvalidSettingsError for one star given twice, InvalidStarError,
    NotSettledError, UnreachableFileError.
    """
    if not stars:
        raise ValueError("no prediction stars; one or two are needed")
    _check_distinct(stars)
    tables = [read_star(star) for star in stars]
    wanted = [label for label in (*ANGLE_LABELS, *SHIFT_LABELS, *CONFIDENCE_LABELS, STATUS) if _has(label, tables)]
    wanted += [label for label in (*IDENTITY_LABELS, *SURENESS_LABELS) if all(label in table for table in tables)]
    return concatenated(
        [_only(table, ("rlnImageName", *wanted), star) for table, star in zip(tables, stars, strict=True)]
    )


def match_predictions(
    truth: ParticleTable, predicted: ParticleTable, prediction_type: PredictionType
) -> MatchedPredictions:
    """Match predictions to the truth's rows by image (stack name and index).

    A stack may stand in another folder in the predictions than in the truth where its file name is one stack's only,
    on both sides. A prediction whose angles are unset, or whose pose was given to it, counts as none. Raises
    InvalidStarError, with examples, for predictions of particles that are not in the truth and for doubled ones, for
    those of another entry (`check_same_particles`), and where
    the truth has a row without a pose or the prediction none of the columns that its type says.
    """
    _check_truth(truth)
    _check_columns(predicted, prediction_type)
    of_truth = _predicted_row_of_each(truth, predicted)
    # One more, false, for -1 to find: the particles that have no prediction.
    posed = np.append(has_angles(predicted, prediction_type.angle_labels), False)
    is_given = np.append(_is(predicted, STATUS, GIVEN), False)[of_truth]
    rows = np.flatnonzero(posed[of_truth] & ~is_given)
    particle = is_particle(truth)
    matched_truth, matched = truth.select(rows), predicted.select(of_truth[rows])
    check_same_particles(matched_truth, matched)
    return MatchedPredictions(
        truth=matched_truth,
        predicted=matched,
        rows=rows,
        is_particle=particle[rows],
        coverage=_coverage(truth.half_sets(), particle, is_given, rows),
    )


def predicted_rotations(matched: MatchedPredictions, prediction_type: PredictionType, group: Float64) -> Float64:
    """Return the rotations `(n, 3, 3)` to be scored; those of S2 are completed from the truth (`complete_views`)."""
    if prediction_type is not PredictionType.S2:
        return matched.predicted.rotations()
    rot, tilt = (matched.predicted.numbers(label) for label in ANGLE_LABELS[:2])
    return complete_views(matched.truth.rotations(), euler_deg_to_rotation(rot, tilt, 0)[:, :, 2], group)


def completed_table(matched: MatchedPredictions, rotations: Float64, prediction_type: PredictionType) -> ParticleTable:
    """Return the truth's rows with the predicted poses in them: what a map is reconstructed from.

    CTF, stacks and half-sets are the truth's; so is the shift, unless the type is SO3xR2. A figure of merit of the
    truth (often a picker's) is left out: weights are given apart.
    """
    if prediction_type is PredictionType.S2:
        angles = rotation_to_euler_deg(rotations)
        columns = {label: [f"{angle:.6f}" for angle in angles[:, k]] for k, label in enumerate(ANGLE_LABELS)}
    else:
        columns = {label: matched.predicted.column(label) for label in ANGLE_LABELS}
    if prediction_type is PredictionType.SO3xR2:
        columns |= {label: matched.predicted.column(label) for label in SHIFT_LABELS}
    return matched.truth.without(["rlnParticleFigureOfMerit"]).with_columns(dict(columns))


def complete_views(true: Float64, views: Float64, group: Float64) -> Float64:
    """Return rotations `(n, 3, 3)` with the predicted view axes `(n, 3)` and the truth's in-plane angle.

    The symmetry mate of the truth `(n, 3, 3)` whose view is nearest is turned, by the shortest turn, onto the
    predicted view: the error that is left is that of the view. (Copying psi, as CESPED does, adds an in-plane error
    near the poles and for every mate but one.)
    """
    nearest = np.einsum("gij,nj,ni->ng", group, true[:, :, 2], views).argmax(1)
    mates = group[nearest] @ true
    return np.asarray(_shortest_turns(mates[:, :, 2], views) @ mates, np.float64)


def prediction_confidence(
    predicted: ParticleTable, labels: Sequence[str] = CONFIDENCE_LABELS
) -> tuple[Float64, str] | None:
    """Return the predictions' confidences `(n,)` and the column they stand in; None where there is none.

    `labels`: the columns that may be one, the first that is there counts.

    Raises InvalidStarError where a value is negative or not finite: such a column is no confidence.
    """
    label = next((label for label in labels if label in predicted), None)
    if label is None:
        return None
    confidence = predicted.numbers(label)
    if not (np.isfinite(confidence) & (confidence >= 0)).all():
        raise InvalidStarError(
            f"{predicted.source or 'predictions'}: {label} has values that are negative or not finite, so it is no "
            "confidence; remove the column, or do not use the confidence"
        )
    return confidence, label


def _shortest_turns(start: Float64, end: Float64) -> Float64:
    """Rotations `(n, 3, 3)` that take unit vectors `start` to `end` about the axis at right angles to both."""
    axis, cosine = np.cross(start, end), np.einsum("ni,ni->n", start, end)
    opposite = cosine < -1 + 1e-9
    cross = np.zeros((len(start), 3, 3))
    cross[:, [2, 0, 1], [1, 2, 0]] = axis
    cross -= cross.transpose(0, 2, 1)
    turns = np.eye(3) + cross + cross @ cross / np.where(opposite, 1.0, 1 + cosine)[:, None, None]
    if opposite.any():
        least = np.eye(3)[np.abs(start[opposite]).argmin(1)]
        normal = np.cross(start[opposite], least)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        turns[opposite] = 2 * normal[:, :, None] * normal[:, None] - np.eye(3)
    return np.asarray(turns, np.float64)


def _check_distinct(stars: Sequence[Path]) -> None:
    for first, second in combinations([star for star in stars if star.exists()], 2):
        if first.samefile(second):
            also = "" if first == second else f" ({second})"
            raise InvalidSettingsError(
                f"{first}{also}: the same star is given twice; give each half's own, or a star with both halves once"
            )


def _has(label: str, tables: Sequence[ParticleTable]) -> bool:
    return any(label in table for table in tables)


def _only(table: ParticleTable, labels: tuple[str, ...], star: Path) -> ParticleTable:
    absent = [label for label in labels if label not in table]
    if wrong := [label for label in absent if label not in (*ANGLE_LABELS, STATUS)]:
        raise InvalidStarError(
            f"{star}: no column {', '.join(wrong)}, which the other half's predictions have; add it there or remove it "
            "here"
        )
    whole = table.with_columns(
        {label: [PREDICTED if label == STATUS else _UNSET_TEXT] * len(table) for label in absent}
    )
    rows = list(zip(*map(whole.column, labels), strict=True))
    return ParticleTable(labels, rows, table.optics, table.optics_index, str(star))


def _check_truth(truth: ParticleTable) -> None:
    bad = np.flatnonzero(~truth.has_poses())
    if len(bad):
        names = truth.column("rlnImageName")
        raise InvalidStarError(
            f"{truth.source or 'truth'}: {_examples(names[row] for row in bad)} without a pose, so errors cannot be "
            "measured; give a truth in which every row has one"
        )


def _check_columns(predicted: ParticleTable, prediction_type: PredictionType) -> None:
    wanted = prediction_type.angle_labels
    if prediction_type is PredictionType.SO3xR2:
        wanted += SHIFT_LABELS
    if absent := [label for label in wanted if label not in predicted]:
        raise InvalidStarError(
            f"{predicted.source or 'predictions'}: no column {', '.join(absent)}, which predictions of type "
            f"{prediction_type} have; add it or choose another prediction type"
        )


def has_angles(table: ParticleTable, labels: Sequence[str]) -> NDArray[np.bool_]:
    """Return `(n,)`: whether these angles, columns of `table`, are all finite and none is RELION's "unset"."""
    angles = np.stack([table.numbers(label) for label in labels])
    return np.asarray((np.isfinite(angles) & ~np.isin(angles, UNSET_ANGLES_DEG)).all(0), np.bool_)


def _is(table: ParticleTable, label: str, text: str) -> NDArray[np.bool_]:
    if label not in table:
        return np.zeros(len(table), np.bool_)
    return np.array([cell == text for cell in table.column(label)], np.bool_)


def _predicted_row_of_each(truth: ParticleTable, predicted: ParticleTable) -> Int64:
    """Return `(len(truth),)`: the prediction's row of each particle, -1 where there is none."""
    place = {key: row for row, key in enumerate(_keys(truth))}
    if len(place) < len(truth):
        doubled = [name for (_, name), times in Counter(_keys(truth)).items() if times > 1]
        raise InvalidStarError(
            f"{truth.source or 'truth'}: has images of {_examples(doubled)} twice; remove the copies"
        )
    keys = _keys(predicted)
    names = _truth_names({stack for _, stack in keys}, {stack for _, stack in place})
    found = [place.get((index, names.get(stack, stack)), -1) for index, stack in keys]
    texts = predicted.column("rlnImageName")
    if unknown := [text for text, row in zip(texts, found, strict=True) if row < 0]:
        raise InvalidStarError(
            f"{predicted.source or 'predictions'}: {_examples(unknown)} not in the truth, whose names read "
            f"{truth.column('rlnImageName')[0]!r}; are these predictions of this target?"
        )
    if len(set(found)) < len(found):
        times = Counter(found)
        doubled = [text for text, row in zip(texts, found, strict=True) if times[row] > 1]
        raise InvalidStarError(
            f"{predicted.source or 'predictions'}: {_examples(doubled)} of particles predicted more than once; keep "
            "one row of each"
        )
    result = np.full(len(truth), -1, np.int64)
    result[found] = np.arange(len(found))
    return result


def _keys(table: ParticleTable) -> list[tuple[int, str]]:
    names: dict[str, str] = {}
    keys = []
    for index, stack in map(parse_image_name, table.column("rlnImageName")):
        if stack not in names:
            names[stack] = normpath(stack)
        keys.append((index, names[stack]))
    return keys


def _truth_names(predicted: set[str], truth: set[str]) -> dict[str, str]:
    """Return the truth's name of each predicted stack that has the same file name in another folder only."""
    ours = {name: stacks[0] for name, stacks in _by_file_name(truth).items() if len(stacks) == 1}
    theirs = {name: stacks[0] for name, stacks in _by_file_name(predicted).items() if len(stacks) == 1}
    return {stack: ours[name] for name, stack in theirs.items() if stack not in truth and name in ours}


def _by_file_name(stacks: Iterable[str]) -> dict[str, list[str]]:
    result: dict[str, list[str]] = {}
    for stack in stacks:
        result.setdefault(basename(stack), []).append(stack)
    return result


def _coverage(
    half_sets: NDArray[np.int8], particle: NDArray[np.bool_], given: NDArray[np.bool_], rows: Int64
) -> tuple[Coverage, Coverage, Coverage]:
    predicted = np.zeros(len(half_sets), np.bool_)
    predicted[rows] = True

    def of(chosen: NDArray[np.bool_], half_set: int | None) -> Coverage:
        return Coverage(
            half_set=half_set,
            num_particles=int((chosen & particle & ~given).sum()),
            num_predicted=int((chosen & particle & predicted).sum()),
            num_given=int((chosen & particle & given).sum()),
            num_junk=int((chosen & ~particle & ~given).sum()),
            num_junk_predicted=int((chosen & ~particle & predicted).sum()),
        )

    return (of(half_sets == 0, 0), of(half_sets == 1, 1), of(np.ones(len(half_sets), np.bool_), None))


def _examples(names: Iterable[str]) -> str:
    listed = list(names)
    shown = ", ".join(repr(name) for name in listed[:_EXAMPLES])
    more = f" and {len(listed) - _EXAMPLES:,} more" if len(listed) > _EXAMPLES else ""
    return f"{len(listed):,} row{'' if len(listed) == 1 else 's'} ({shown}{more})"
