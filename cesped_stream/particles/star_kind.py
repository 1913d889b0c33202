"""What a star is about, by its blocks and columns: particles, or what else a RELION project keeps in stars."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from cesped_stream.errors import UnreachableFileError
from cesped_stream.particles.star_header import IMAGE_LABEL
from cesped_stream.particles.table import OPTICS_GROUP_LABEL

_FIRST_BYTES: Final = 1 << 16
_CHUNK_BYTES: Final = 1 << 20
_HEAD_BYTES: Final = 1 << 14
"""Read behind rlnImageName, so that all labels of its block are seen."""
_LINES: Final = re.compile(rb"^[ \t]*(?:data_(\S*)|_(\w+)\b.*)[ \t\r]*$", re.MULTILINE)
EXTRACT_STAR: Final = "_extract.star"
"""How the names of Extract's stars of one micrograph end."""
COORDINATES_SUFFIX_STAR: Final = re.compile(r"coords_suffix_\w*\.star$")
"""RELION 3: holds the name of a star and is none itself."""


class StarKind(StrEnum):
    """What a star holds; the value names it in a sentence."""

    PARTICLES = "particles"
    """Rows with images, or what may still get some: read it."""
    ONE_MICROGRAPH = "Extract's stars of one micrograph"
    """Without data_optics: the job's particles.star has the same rows, with their optics."""
    EMPTY = "empty"
    COORDINATES = "coordinates"
    MICROGRAPHS = "micrographs"
    MODEL = "model"
    OPTIMISER = "optimiser"
    SAMPLING = "sampling"
    JOB = "job"
    PIPELINE = "pipeline"
    AVERAGES = "class averages"
    RESOLUTION = "resolution"
    OTHER = "other"


_BY_BLOCK: Final = (
    ("pipeline_", StarKind.PIPELINE),
    ("job", StarKind.JOB),
    ("model_", StarKind.MODEL),
    ("optimiser", StarKind.OPTIMISER),
    ("sampling", StarKind.SAMPLING),
    ("micrographs", StarKind.MICROGRAPHS),
    ("movies", StarKind.MICROGRAPHS),
    ("coordinate_files", StarKind.COORDINATES),
    ("fsc", StarKind.RESOLUTION),
    ("guinier", StarKind.RESOLUTION),
)
"""The first that a block's name starts with."""
_BY_COLUMN: Final = (
    ("rlnReferenceImage", StarKind.AVERAGES),
    ("rlnCoordinateX", StarKind.COORDINATES),
    ("rlnMicrographName", StarKind.MICROGRAPHS),
    ("rlnMicrographMovieName", StarKind.MICROGRAPHS),
    ("rlnFourierShellCorrelation", StarKind.RESOLUTION),
)


@dataclass
class _Block:
    name: str
    labels: list[str] = field(default_factory=list)


def star_kind(path: Path) -> StarKind:
    """Return what a star is about; the whole file is looked at where it names no image. Raises UnreachableFileError.

    What can be no star at all is PARTICLES too: reading it says what is wrong.
    """
    blocks, is_blank = _blocks(path)
    images = next((block for block in blocks if IMAGE_LABEL in block.labels), None)
    if images is not None:
        optics_missing = OPTICS_GROUP_LABEL in images.labels and not any(block.name == "optics" for block in blocks)
        of_one = images.name == "images" and path.name.endswith(EXTRACT_STAR)
        return StarKind.ONE_MICROGRAPH if of_one and optics_missing else StarKind.PARTICLES
    if not blocks:
        if COORDINATES_SUFFIX_STAR.search(path.name):
            return StarKind.COORDINATES
        return StarKind.EMPTY if is_blank else StarKind.PARTICLES
    others = [block for block in blocks if block.name != "optics"]
    if not others or any(block.name == "particles" for block in others):
        return StarKind.PARTICLES
    if not any(block.labels for block in others):
        return StarKind.PARTICLES if others[-1].name in ("", "images") else _by_name(others)
    return _by_column(others) or _by_name(others)


def _by_name(blocks: list[_Block]) -> StarKind:
    kinds = (kind for block in blocks for start, kind in _BY_BLOCK if block.name.startswith(start))
    return next(kinds, StarKind.OTHER)


def _by_column(blocks: list[_Block]) -> StarKind | None:
    """Return the kind that a star's columns tell where its blocks have no names of their own (RELION 3.0's `data_`)."""
    if _by_name(blocks) is not StarKind.OTHER:
        return None
    labels = {label for block in blocks for label in block.labels}
    return next((kind for label, kind in _BY_COLUMN if label in labels), None)


def _blocks(path: Path) -> tuple[list[_Block], bool]:
    """Return the blocks with their labels, up to the block of images, and whether the file holds only blanks."""
    blocks: list[_Block] = []
    is_blank = True
    for text in _texts(path):
        is_blank = is_blank and not text.strip()
        for found in _LINES.finditer(text):
            if found[1] is not None:
                blocks.append(_Block(found[1].decode("utf-8", "replace")))
            elif blocks:
                blocks[-1].labels.append(found[2].decode("utf-8", "replace"))
        place = text.find(b"_" + IMAGE_LABEL.encode())
        if place >= 0 and len(text) - place >= _HEAD_BYTES and any(IMAGE_LABEL in block.labels for block in blocks):
            break
    return blocks, is_blank


def _texts(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes in parts that end with a line; the last may be cut."""
    carry = b""
    try:
        with open(path, "rb") as stream:
            size = _FIRST_BYTES
            while chunk := stream.read(size):
                text, newline, carry = (carry + chunk).rpartition(b"\n")
                if len(carry) > _CHUNK_BYTES:
                    text, carry = carry, b""
                yield text + newline
                size = _CHUNK_BYTES
        yield carry
    except OSError as error:
        raise UnreachableFileError(f"{path}: {error.strerror}; may this user read it, is its mount there?") from None
