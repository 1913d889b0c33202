"""Names of images in stars: "000001@stack.mrcs", as RELION writes and reads them."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cesped_stream.errors import InvalidStarError

MAX_INDEX: Final = 2**31 - 1
_IMAGE_NAME = re.compile(r"(?:([0-9]{1,20})@)?([^\x00-\x1f\x7f]+)")
_AS_STACK: Final = ":mrcs"


def parse_image_name(text: str) -> tuple[int, str]:
    """Return (index from 0, stack name) of "000001@stack.mrcs"; a name without @ is the one image of its file.

    "000001@stack.mrc:mrcs" is an image of stack.mrc: RELION names the format after a colon. Raises InvalidStarError
    for another format, an index below 1 or beyond what a stack can hold, and for an empty or unprintable name.
    """
    match = _IMAGE_NAME.fullmatch(text)
    if match is None or (match[1] is None and "@" in text):
        raise InvalidStarError(f"{text[:200]!r} is no image name; RELION writes 000001@stack.mrcs")
    name = match[2]
    if ":" in name:
        name = _without_format(text, name)
    if match[1] is None:
        return 0, name
    index = int(match[1])
    if not 1 <= index <= MAX_INDEX:
        raise InvalidStarError(f"{text[:200]!r}: image {index} cannot be; images of a stack count from 1")
    return index - 1, name


def names_no_image(text: str) -> bool:
    """Return whether a name that can be parsed has no index: it stands for the one image of its file."""
    return "@" not in text


def check_names_of_one_stack(path: Path, num_images: int, texts: Iterable[str]) -> None:
    """Raise InvalidStarError where an image name without an index stands for a file of several images.

    RELION and other programs write such names for files of one image, and of volumes, which are no images.
    """
    if num_images == 1:
        return
    for text in texts:
        if names_no_image(text):
            raise InvalidStarError(
                f"{path}: holds {num_images} images, and {text[:200]!r} names none of them; write "
                f"000001@{text[:200]} and so on (a volume is no particle image)"
            )


def _without_format(text: str, name: str) -> str:
    if name.endswith(_AS_STACK) and len(name) > len(_AS_STACK):
        return name[: -len(_AS_STACK)]
    suffix = name[name.rindex(":") :]
    if "/" in suffix:
        return name
    raise InvalidStarError(
        f"{text[:200]!r}: RELION takes {suffix[:20]!r} for a format, and only ':mrcs' is read; convert the stack to "
        ".mrcs with relion_stack_create, or rename the file"
    )
