"""From rows as they stand in a star of RELION 3.0, 3.1 or 5 to a checked `ParticleTable` in 3.1 layout."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from cesped_stream.errors import InvalidStarError
from cesped_stream.particles.star_ctf import ctf_in_its_place
from cesped_stream.particles.star_rows import NUMERIC_LABELS, Rows, refused_rows, why_impossible
from cesped_stream.particles.table import OPTICS_GROUP_LABEL, OpticsGroup, ParticleTable

_RELION30_OPTICS = (
    *("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnMagnification", "rlnDetectorPixelSize"),
    *("rlnImagePixelSize", "rlnPixelSize", "rlnBeamTiltX", "rlnBeamTiltY", "rlnMtfFileName", "rlnImageSize"),
    *("rlnCtfDataAreCtfPremultiplied", "rlnCtfDataArePhaseFlipped", "rlnImageDimensionality"),
)
_PIXEL_LABELS = ("rlnImagePixelSize", "rlnPixelSize", "rlnMagnification", "rlnDetectorPixelSize")
_NOT_OF_OPTICS = ("rlnPixelSize", "rlnMagnification", "rlnDetectorPixelSize")
"""Pixel sizes that nobody takes from data_optics."""
_PIXELS_TO_ANGSTROM = {
    f"rlnOrigin{axis}{prior}": f"rlnOrigin{axis}{prior}Angst" for axis in "XYZ" for prior in ("", "Prior")
}


def normalised(rows: Rows) -> ParticleTable:
    """Return the rows as a table in RELION 3.1 layout, its CTF where `CTF_OF_PARTICLES` and `CTF_OF_OPTICS` say.

    Rows that cannot be used are left out and told in `refused`, by file, row, column and value. Raises InvalidStarError
    where the labels or the optics are wrong, and so every row.
    """
    refused = refused_rows(rows)
    usable = rows
    if refused:
        usable = replace(rows, cells=[cells for row, cells in enumerate(rows.cells) if row not in refused])
    told = tuple((rows.first_row + row, why) for row, why in sorted(refused.items()))
    return replace(_table(usable), refused=told)


def _table(rows: Rows) -> ParticleTable:
    labels = rows.header.labels
    columns = dict(rows.columns)
    if "rlnTomoVisibleFrames" in columns:
        raise InvalidStarError(
            f"{rows.where}: particles are 2D stacks of a tomogram (rlnTomoVisibleFrames), several images a row; only "
            "one image a row is understood"
        )
    if rows.header.optics is None:
        optics, index = _optics_of_relion30(rows, columns)
    else:
        optics, index = _optics_of_rows(rows, columns)
    pixel_sizes = [_checked_pixel_size(rows.where, group) for group in optics]
    columns = _origins_in_angstrom(columns, [pixel_sizes[k] for k in index])
    columns.pop(OPTICS_GROUP_LABEL, None)
    if rows.header.optics is not None:
        optics, index = ctf_in_its_place(rows.where, columns, optics, index)
    cells = list(rows.cells) if tuple(columns) == labels else list(zip(*columns.values(), strict=True))
    return ParticleTable(tuple(columns), cells, optics, np.asarray(index, np.int64), rows.where, rows.first_row)


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
    return tuple(place), [index_of[text] for text in columns[OPTICS_GROUP_LABEL]]


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
    if {"rlnMagnification", "rlnDetectorPixelSize"} <= texts.keys():
        # Also beside another pixel size, as relion_convert_star reads it.
        pixel_size = f"{1e4 * float(texts['rlnDetectorPixelSize']) / float(texts['rlnMagnification']):.6f}"
    else:
        given = next((texts[label] for label in _PIXEL_LABELS[:2] if label in texts), None)
        if given is None:
            raise InvalidStarError(
                f"{where}: no pixel size: neither rlnImagePixelSize nor rlnMagnification with rlnDetectorPixelSize; "
                "add one of them"
            )
        pixel_size = given
    kept = [(label, text) for label, text in texts.items() if label not in _PIXEL_LABELS]
    return OpticsGroup((("rlnOpticsGroupName", name), ("rlnImagePixelSize", pixel_size), *kept))


def _checked_pixel_size(where: str, group: OpticsGroup) -> float:
    for label, text in group.values:
        if label in NUMERIC_LABELS and (why := why_impossible("" if label in _NOT_OF_OPTICS else label, text)):
            raise InvalidStarError(f"{where}: data_optics, group {group.name!r}, {label}: {text!r} {why}")
    if group.text("rlnImageDimensionality") not in (None, "2"):
        raise InvalidStarError(
            f"{where}: optics group {group.name!r} has images of dimension {group.text('rlnImageDimensionality')}; "
            "only 2D particles are understood"
        )
    try:
        return group.pixel_size_angstrom
    except InvalidStarError as error:
        raise InvalidStarError(f"{where}: {error}") from None


def _origins_in_angstrom(columns: dict[str, Sequence[str]], pixel_sizes: Iterable[float]) -> dict[str, Sequence[str]]:
    pixels = [label for label in columns if label in _PIXELS_TO_ANGSTROM]
    if not pixels:
        return columns
    sizes = list(pixel_sizes)
    converted: dict[str, Sequence[str]] = {}
    for label, column in columns.items():
        if label not in pixels:
            converted[label] = column
        elif _PIXELS_TO_ANGSTROM[label] not in columns:
            converted[_PIXELS_TO_ANGSTROM[label]] = [
                f"{v * s:.6f}" for v, s in zip(map(float, column), sizes, strict=True)
            ]
    return converted
