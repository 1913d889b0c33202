"""What a row or an optics group gets for a column that only others have, so that RELION reads it as if it had none.

RELION has no empty cell. A column is filled where there is a text that RELION treats as no column (each was tried with
its programs: tests/golden/test_relion_neutral_values.py), or one that follows from the row itself. Any other column is
left out for all, as `relion_star_handler --combine` does.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cesped_stream.conventions import ANGLE_LABELS
from cesped_stream.particles.own_columns import NEUTRAL_CELLS
from cesped_stream.particles.table import OpticsGroup, ParticleTable

IMAGE_LABEL, MICROGRAPH_LABEL, GROUP_LABEL = "rlnImageName", "rlnMicrographName", "rlnGroupName"

NEUTRAL_VALUES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("rlnOriginXAngst", "rlnOriginYAngst", "rlnOriginZAngst"), "0.000000"),
    **dict.fromkeys(("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"), "0.000000"),
    **dict.fromkeys(("rlnPhaseShift", "rlnCtfBfactor", "rlnBeamTiltX", "rlnBeamTiltY"), "0.000000"),
    **dict.fromkeys(("rlnCtfScalefactor", "rlnNormCorrection", "rlnMaxValueProbDistribution"), "1.000000"),
    "rlnLogLikeliContribution": "0.000000",
    **dict.fromkeys(("rlnAnglePsiFlipRatio", "rlnAngleRotFlipRatio"), "0.000000"),
    **dict.fromkeys(("rlnClassNumber", "rlnGroupNumber"), "1"),
    **dict.fromkeys(("rlnNrOfSignificantSamples", "rlnBeamTiltClass", "rlnAnglePsiFlip"), "0"),
    **dict.fromkeys(("rlnAutopickFigureOfMerit",), "-999.000000"),
    **NEUTRAL_CELLS,
}
"""Of particles: the text that does what a row without the column does. rlnRandomSubset has none: it stands on every row
or on none. -999 is what RELION's own picking writes for no figure."""

NEUTRAL_OPTICS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("rlnMagMat00", "rlnMagMat11", "rlnCtfScalefactor"), "1.000000"),
    **dict.fromkeys(("rlnMagMat01", "rlnMagMat10"), "0.000000"),
    **dict.fromkeys(("rlnBeamTiltX", "rlnBeamTiltY", "rlnPhaseShift", "rlnCtfBfactor"), "0.000000"),
    **dict.fromkeys(("rlnOddZernike", "rlnEvenZernike"), "[]"),
    **dict.fromkeys(("rlnCtfDataAreCtfPremultiplied", "rlnCtfDataArePhaseFlipped"), "0"),
    "rlnImageDimensionality": "2",
    "rlnOpticsGroupName": "unnamed",
}
"""The same of optics groups. A file name (rlnMtfFileName) and a pixel size of what the images were made from
(rlnMicrographOriginalPixelSize, ...) have none: RELION opens a file named None, and divides by a size of 0."""

_JOB_FOLDER = re.compile(r"(?:.*/)?[A-Za-z0-9]+/job\d{3,}/")
Row = tuple[str, ...]


@dataclass(frozen=True)
class Columns:
    """The columns that rows of several stars can have together."""

    kept: tuple[str, ...]
    left_out: tuple[str, ...]
    """Stand on some rows only, and nothing that RELION would read as no column can be written in the others."""


def noise_group(name: str) -> str:
    """Return the group that RELION gives a row without rlnGroupName: its micrograph, without the job's folder."""
    job = _JOB_FOLDER.match(name)
    return name[job.end() :] if job else name


def shared_columns(layouts: Iterable[tuple[Sequence[str], Iterable[OpticsGroup]]]) -> Columns:
    """Return the columns of rows that have these labels and are of these optics groups, in the order they come in."""
    stars = [(frozenset(labels), labels, tuple(groups)) for labels, groups in layouts]
    union = tuple(dict.fromkeys(label for _, labels, _ in stars for label in labels))
    left_out = tuple(
        label for label in union if not all(label in own or _fillable(label, own, groups) for own, _, groups in stars)
    )
    return Columns(tuple(label for label in union if label not in left_out), left_out)


def shared_optics(groups: Sequence[OpticsGroup]) -> Columns:
    """Return the columns that `data_optics` of these groups can have."""
    union = tuple(dict.fromkeys(label for group in groups for label, _ in group.values))
    left_out = tuple(
        label for label in union if label not in NEUTRAL_OPTICS and any(group.text(label) is None for group in groups)
    )
    return Columns(tuple(label for label in union if label not in left_out), left_out)


def optics_cells(group: OpticsGroup, labels: Sequence[str]) -> Row:
    """Return a group's texts of `labels`, of which each is its own or in `NEUTRAL_OPTICS`."""
    texts = dict(group.values)
    return tuple(texts[label] if label in texts else NEUTRAL_OPTICS[label] for label in labels)


def filled_rows(labels: Sequence[str], table: ParticleTable) -> list[Row]:
    """Return the table's rows in the order of `labels`, what they lack filled; labels not among these are dropped.

    A prior is the row's own angle or origin: RELION 3.1 and 4.0 centre a local search on it, and 0 would be a wrong
    one. rlnGroupName is RELION's own for rows without it, rlnMicrographName the stack's name: rows without either would
    be one noise group. What the row's optics group has (a phase shift, say) is the group's: RELION prefers the row's.
    Anything else is neutral. ValueError for a label that nothing can fill.
    """
    if tuple(labels) == table.labels:
        return table.rows
    of_group = [_cells_of(labels, table.labels, group) for group in table.optics]
    return [
        tuple(cell(row) for cell in of_group[k]) for row, k in zip(table.rows, table.optics_index.tolist(), strict=True)
    ]


def _cells_of(labels: Sequence[str], own: Sequence[str], group: OpticsGroup) -> list[Callable[[Row], str]]:
    place = {label: k for k, label in enumerate(own)}
    return [_cell(label, place, group) for label in labels]


def _cell(label: str, place: Mapping[str, int], group: OpticsGroup) -> Callable[[Row], str]:
    source = place.get(label, place.get(_pose_of_prior(label), -1))
    if source >= 0:
        return lambda row: row[source]
    text = group.text(label)
    if text is not None:
        return lambda row: text
    name = place.get(MICROGRAPH_LABEL, place.get(IMAGE_LABEL, -1))
    if label in (MICROGRAPH_LABEL, GROUP_LABEL) and name >= 0:
        named = noise_group if label == GROUP_LABEL else str
        return lambda row: named(row[name].rpartition("@")[2])
    if label not in NEUTRAL_VALUES:
        raise ValueError(f"{label}: no value stands for rows without it")
    neutral = NEUTRAL_VALUES[label]
    return lambda row: neutral


def _pose_of_prior(label: str) -> str:
    pose = label.replace("Prior", "")
    return pose if pose != label and (pose in ANGLE_LABELS or pose.startswith("rlnOrigin")) else ""


def _fillable(label: str, own: frozenset[str], groups: Sequence[OpticsGroup]) -> bool:
    if label in NEUTRAL_VALUES or _pose_of_prior(label) in own:
        return True
    if label in (MICROGRAPH_LABEL, GROUP_LABEL):
        return bool({MICROGRAPH_LABEL, IMAGE_LABEL} & own)
    return bool(groups) and all(group.text(label) is not None for group in groups)
