"""A star's file: opened for reading, and told from files that can never become a star."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cesped_stream.errors import InvalidStarError, UnreachableFileError


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open for reading; any failure of the file system, also while reading, becomes UnreachableFileError."""
    try:
        if not path.is_file():
            raise UnreachableFileError(f"{path}: no such file, or no regular one; was it moved?")
        with open(path, "rb") as stream:
            yield stream
    except OSError as error:
        raise UnreachableFileError(
            f"{path}: {error.strerror}; is its mount there, and may this user read it?"
        ) from None


def refuse_foreign(stream: BinaryIO, path: Path) -> None:
    """Raise InvalidStarError for a file that can never become a star; leave the stream at its start."""
    stream.seek(0)
    head = stream.read(4096)
    stream.seek(0)
    if head.startswith(b"\x93NUMPY") or head.startswith(b"\x89HDF"):
        raise InvalidStarError(
            f"{path}: a cryoSPARC dataset (.cs), not a star; convert it with csparc2star.py of pyem and give that star"
        )
    if head.startswith(b"\xef\xbb\xbf"):
        raise InvalidStarError(f"{path}: starts with a byte order mark; save it as plain UTF-8")
    text = head.lstrip()
    start = text[:5]
    if text and not text.startswith(b"\0") and not text.startswith(b"#") and not b"data_".startswith(start):
        raise InvalidStarError(f"{path}: starts with {head[:16]!r}, not with a data_ block; is this a star file?")
