"""From rows as they stand in a star of RELION 3.0, 3.1 or 5 to a checked `ParticleTable` in 3.1 layout."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cesped_stream.errors import InvalidStarError
from cesped_stream.particles.stacks import parse_image_name
from cesped_stream.particles.star_header import IMAGE_LABEL, StarHeader
from cesped_stream.particles.table import OPTICS_GROUP_LABEL, OpticsGroup, ParticleTable

NUMERIC_LABELS = frozenset(
    {
        *("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"),
        *("rlnOriginX", "rlnOriginY", "rlnOriginXAngst", "rlnOriginYAngst"),
        *("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift", "rlnCtfBfactor", "rlnCtfScalefactor"),
        *("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnMagnification"),
        *("rlnDetectorPixelSize", "rlnImagePixelSize", "rlnPixelSize", "rlnMaxValueProbDistribution"),
        *("rlnCtfDataAreCtfPremultiplied", "rlnCtfDataArePhaseFlipped", "rlnRandomSubset"),
    }
)
"""Columns that we read as numbers, of particles or optics: each value must be finite."""

_RELION30_OPTICS = (
    *("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnMagnification", "rlnDetectorPixelSize"),
    *("rlnImagePixelSize", "rlnPixelSize", "rlnBeamTiltX", "rlnBeamTiltY", "rlnMtfFileName", "rlnImageSize"),
    *("rlnCtfDataAreCtfPremultiplied", "rlnCtfDataArePhaseFlipped", "rlnImageDimensionality"),
)
_PIXEL_LABELS = ("rlnImagePixelSize", "rlnPixelSize", "rlnMagnification", "rlnDetectorPixelSize")
_PIXELS_TO_ANGSTROM = {
    f"rlnOrigin{axis}{prior}": f"rlnOrigin{axis}{prior}Angst" for axis in "XYZ" for prior in ("", "Prior")
}


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


def normalised(rows: Rows) -> ParticleTable:
    """Return the rows as a table in RELION 3.1 layout. Raises InvalidStarError, naming row and column."""
    labels = rows.header.labels
    columns: dict[str, Sequence[str]] = dict(
        zip(labels, zip(*rows.cells, strict=True) if rows.cells else [()] * len(labels), strict=True)
    )
    numbers = {label: _finite(rows, label, columns[label]) for label in labels if label in NUMERIC_LABELS}
    _check_images(rows, columns)
    _check_subset(rows, numbers.get("rlnRandomSubset"))
    if rows.header.optics is None:
        optics, index = _optics_of_relion30(rows, columns)
    else:
        optics, index = _optics_of_rows(rows, columns)
    pixel_sizes = [_checked_pixel_size(rows.where, group) for group in optics]
    columns = _origins_in_angstrom(columns, numbers, [pixel_sizes[k] for k in index])
    columns.pop(OPTICS_GROUP_LABEL, None)
    cells = list(rows.cells) if tuple(columns) == labels else list(zip(*columns.values(), strict=True))
    return ParticleTable(tuple(columns), cells, optics, np.asarray(index, np.int64), rows.where, rows.first_row)


def _finite(rows: Rows, label: str, column: Sequence[str]) -> list[float]:
    try:
        values = list(map(float, column))
    except ValueError:
        values = [math.nan]
    # float() takes "1_0" and digits of other scripts, which RELION reads as something else.
    text = "".join(column)
    if not math.isfinite(sum(values)) or "_" in text or not text.isascii():
        for row, cell in enumerate(column):
            if not _is_finite(cell):
                raise InvalidStarError(f"{rows.name(row)}, {label}: {cell!r} is no finite number; correct or remove it")
    return values


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and "_" not in text and text.isascii()
    except ValueError:
        return False


def _check_images(rows: Rows, columns: dict[str, Sequence[str]]) -> None:
    for row, text in enumerate(columns[IMAGE_LABEL]):
        try:
            parse_image_name(text)
        except InvalidStarError as error:
            raise InvalidStarError(f"{rows.name(row)}, {IMAGE_LABEL}: {error}") from None
    if "rlnTomoVisibleFrames" in columns:
        raise InvalidStarError(
            f"{rows.where}: particles are 2D stacks of a tomogram (rlnTomoVisibleFrames), several images a row; only "
            "one image a row is understood"
        )


def _check_subset(rows: Rows, subsets: list[float] | None) -> None:
    for row, value in enumerate(subsets or ()):
        if value not in (1.0, 2.0):
            raise InvalidStarError(
                f"{rows.name(row)}, rlnRandomSubset: {value:g}; RELION knows 1 and 2: correct or remove the column"
            )


def _optics_of_rows(rows: Rows, columns: dict[str, Sequence[str]]) -> tuple[tuple[OpticsGroup, ...], list[int]]:
    groups = rows.header.optics
    assert groups is not None
    place: dict[OpticsGroup, int] = {}
    for group in groups.values():
        place.setdefault(group, len(place))
    if OPTICS_GROUP_LABEL not in columns:
        if len(groups) != 1:
            raise InvalidStarError(
                f"{rows.where}: {len(groups)} optics groups, but the particles have no {OPTICS_GROUP_LABEL}; add it"
            )
        return tuple(place), [0] * len(rows.cells)
    index_of = {str(number): place[group] for number, group in groups.items()}
    index = []
    for row, text in enumerate(columns[OPTICS_GROUP_LABEL]):
        known = index_of.get(text)
        if known is None:
            raise InvalidStarError(
                f"{rows.name(row)}, {OPTICS_GROUP_LABEL}: {text!r} is not in data_optics, which has "
                f"{', '.join(index_of) or 'no group'}"
            )
        index.append(known)
    return tuple(place), index


def _optics_of_relion30(rows: Rows, columns: dict[str, Sequence[str]]) -> tuple[tuple[OpticsGroup, ...], list[int]]:
    """Move the optics columns out of `columns` into groups. A group's name follows from its values alone, so that
    the same optics in another star, or later in this one, are the same group."""
    labels = [label for label in _RELION30_OPTICS if label in columns]
    taken = [columns.pop(label) for label in labels]
    place: dict[tuple[str, ...], int] = {}
    index = [place.setdefault(values, len(place)) for values in zip(*taken, strict=True)]
    if not labels:
        raise InvalidStarError(
            f"{rows.where}: neither data_optics nor voltage and pixel size columns; is data_optics missing?"
        )
    return tuple(_group_of_relion30(rows.where, dict(zip(labels, values, strict=True))) for values in place), index


def _group_of_relion30(where: str, texts: dict[str, str]) -> OpticsGroup:
    name = f"relion30_{hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:8]}"
    pixel_size = next((texts[label] for label in _PIXEL_LABELS[:2] if label in texts), None)
    if pixel_size is None:
        if not {"rlnMagnification", "rlnDetectorPixelSize"} <= texts.keys():
            raise InvalidStarError(
                f"{where}: no pixel size: neither rlnImagePixelSize nor rlnMagnification with rlnDetectorPixelSize; "
                "add one of them"
            )
        magnification = float(texts["rlnMagnification"])
        if magnification <= 0:
            raise InvalidStarError(f"{where}: rlnMagnification is {texts['rlnMagnification']}; it must be positive")
        pixel_size = f"{1e4 * float(texts['rlnDetectorPixelSize']) / magnification:.6f}"
    kept = [(label, text) for label, text in texts.items() if label not in _PIXEL_LABELS]
    return OpticsGroup((("rlnOpticsGroupName", name), ("rlnImagePixelSize", pixel_size), *kept))


def _checked_pixel_size(where: str, group: OpticsGroup) -> float:
    for label, text in group.values:
        if label in NUMERIC_LABELS and not _is_finite(text):
            raise InvalidStarError(f"{where}: data_optics, group {group.name!r}, {label}: {text!r} is no finite number")
    if group.text("rlnImageDimensionality") not in (None, "2"):
        raise InvalidStarError(
            f"{where}: optics group {group.name!r} has images of dimension {group.text('rlnImageDimensionality')}; "
            "only 2D particles are understood"
        )
    try:
        pixel_size = group.pixel_size_angstrom
    except InvalidStarError as error:
        raise InvalidStarError(f"{where}: {error}") from None
    if pixel_size <= 0:
        raise InvalidStarError(f"{where}: optics group {group.name!r}: rlnImagePixelSize is {pixel_size:g}")
    return pixel_size


def _origins_in_angstrom(
    columns: dict[str, Sequence[str]], numbers: dict[str, list[float]], pixel_sizes: Iterable[float]
) -> dict[str, Sequence[str]]:
    pixels = [label for label in columns if label in _PIXELS_TO_ANGSTROM]
    if not pixels:
        return columns
    sizes = list(pixel_sizes)
    converted: dict[str, Sequence[str]] = {}
    for label, column in columns.items():
        if label not in pixels:
            converted[label] = column
        elif _PIXELS_TO_ANGSTROM[label] not in columns:
            values = numbers[label] if label in numbers else map(float, column)
            converted[_PIXELS_TO_ANGSTROM[label]] = [f"{v * s:.6f}" for v, s in zip(values, sizes, strict=True)]
    return converted
