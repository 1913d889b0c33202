"""Rows as they stand in a star, and which of them cannot be used, with the reason by file, row, column and value."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from cesped_stream.errors import InvalidStarError
from cesped_stream.particles.image_names import parse_image_name
from cesped_stream.particles.star_header import IMAGE_LABEL, StarHeader
from cesped_stream.particles.table import CTF_OF_OPTICS, CTF_OF_PARTICLES, OPTICS_GROUP_LABEL

_PIXEL_SIZES = ("rlnMagnification", "rlnDetectorPixelSize", "rlnImagePixelSize", "rlnPixelSize")
NUMERIC_LABELS = frozenset(
    {
        *("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"),
        *("rlnOriginX", "rlnOriginY", "rlnOriginXAngst", "rlnOriginYAngst"),
        *("rlnOriginXPrior", "rlnOriginYPrior", "rlnMaxValueProbDistribution"),
        *("rlnCtfDataAreCtfPremultiplied", "rlnCtfDataArePhaseFlipped", "rlnRandomSubset"),
        *CTF_OF_PARTICLES,
        *CTF_OF_OPTICS,
        *_PIXEL_SIZES,
    }
)
"""Columns that we read as numbers, of particles or optics: each value must be finite."""

_ABOVE_ZERO: Final = frozenset({"rlnVoltage", *_PIXEL_SIZES})
_CONTRAST: Final = "rlnAmplitudeContrast"
_SUBSET: Final = "rlnRandomSubset"
_WITH_A_RANGE: Final = (*sorted(_ABOVE_ZERO), _CONTRAST, _SUBSET)


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of one star as columns of text; `first_row` counts from 0."""

    where: str
    header: StarHeader
    cells: Sequence[tuple[str, ...]]
    first_row: int

    def name(self, row: int) -> str:
        """Return file and row, counted from 1, for messages."""
        return f"{self.where}: row {self.first_row + row + 1}"

    @cached_property
    def columns(self) -> Mapping[str, Sequence[str]]:
        """Return the cells of each label; ValueError where a row has another number of them."""
        labels = self.header.labels
        return dict(zip(labels, zip(*self.cells, strict=True) if self.cells else [()] * len(labels), strict=True))


def refused_rows(rows: Rows) -> dict[int, str]:
    """Return the rows (from 0 among these) that cannot be used, each with the first reason found."""
    count = len(rows.header.labels)
    refused: dict[int, str] = {}
    whole: Sequence[int] = range(len(rows.cells))
    checked = rows
    if set(map(len, rows.cells)) - {count}:
        refused = {
            row: f"{rows.name(row)} has {len(cells)} values for {count} labels; is one empty, or has a name a blank?"
            for row, cells in enumerate(rows.cells)
            if len(cells) != count
        }
        whole = [row for row in whole if row not in refused]
        checked = replace(rows, cells=[rows.cells[row] for row in whole])
    for label, column in checked.columns.items():
        for place, why in _wrong_cells(rows, label, column):
            row = whole[place]
            refused.setdefault(row, f"{rows.name(row)}, {label}: {why}")
    return refused


def why_impossible(label: str, text: str) -> str:
    """Return why a text cannot be this number ("": any number), and what to do: "" where it can."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # float() takes "1_0" and digits of other scripts, which RELION reads as something else.
    if not math.isfinite(value) or "_" in text or not text.isascii():
        return "is no finite number; correct or remove it"
    if label in _ABOVE_ZERO and value <= 0:
        return "must be above 0; correct it"
    if label == _CONTRAST and not 0 <= value <= 1:
        return "is no amplitude contrast, which lies between 0 and 1 (0.1 is ten per cent); correct it"
    if label == _SUBSET and value not in (1.0, 2.0):
        return "is no half-set: RELION knows 1 and 2; correct or remove the column"
    return ""


def _wrong_cells(rows: Rows, label: str, column: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield the places of the cells that cannot be, with the reason."""
    if label == IMAGE_LABEL:
        for place, text in enumerate(column):
            try:
                parse_image_name(text)
            except InvalidStarError as error:
                yield place, str(error)
    elif label == OPTICS_GROUP_LABEL and rows.header.optics is not None:
        known = {str(number) for number in rows.header.optics}
        if not known.issuperset(column):
            named = ", ".join(known) or "no group"
            for place, text in enumerate(column):
                if text not in known:
                    yield place, f"{text!r} is not in data_optics, which has {named}; correct one of them"
    elif label in NUMERIC_LABELS:
        # Beside data_optics nobody takes a pixel size from the rows.
        unused = label in _PIXEL_SIZES and rows.header.optics is not None
        kind = "" if unused else label
        if not _all_possible(kind, column):
            for place, text in enumerate(column):
                if why := why_impossible(kind, text):
                    yield place, f"{text!r} {why}"


def _all_possible(label: str, column: Sequence[str]) -> bool:
    """Whether no cell needs a look of its own: thousands of cells at once."""
    try:
        total = sum(map(float, column))
    except ValueError:
        return False
    text = "".join(column)
    if not math.isfinite(total) or "_" in text or not text.isascii():
        return False
    return label not in _WITH_A_RANGE or not any(why_impossible(label, cell) for cell in set(column))
