"""Lines of a star file that may still be growing: only complete ones, in bounded memory, each split into cells."""

from collections.abc import Iterator
from typing import BinaryIO

from cesped_stream.errors import InvalidStarError

_BLOCK_BYTES = 1 << 18
_MAX_LINE_BYTES = 1 << 20


class CompleteLines:
    """Iterates over the newline-terminated lines of `stream`, without the newline, up to `limit` bytes.

    Stops before a line that holds a zero byte: a hole that a remote writer has not filled yet. After the last line
    `rest` is what follows it.
    """

    def __init__(self, stream: BinaryIO, limit: int, where: str) -> None:
        self._stream = stream
        self._left = limit
        self._where = where
        self.rest = b""

    def __iter__(self) -> Iterator[bytes]:
        carry = b""
        while block := self._stream.read(min(self._left, _BLOCK_BYTES)):
            self._left -= len(block)
            *lines, carry = (carry + block).split(b"\n")
            if b"\0" in block:
                whole = next((k for k, line in enumerate(lines) if b"\0" in line), len(lines))
                yield from lines[:whole]
                self.rest = b"\n".join([*lines[whole:], carry])
                return
            yield from lines
            if len(carry) > _MAX_LINE_BYTES:
                raise InvalidStarError(f"{self._where}: a line of more than 1 MiB; is this a star file?")
        self.rest = carry


def split_cells(line: bytes, where: str) -> tuple[str, ...]:
    """Return a row's cells: separated by blanks, or in quotes as RELION 4 and starfile write texts with blanks."""
    if b'"' in line or b"'" in line:
        return tuple(_quoted_cells(_decoded(line, where), where))
    if line.isascii():
        return tuple(line.decode("ascii").split())
    return tuple(_decoded(cell, where) for cell in line.split())


def _decoded(text: bytes, where: str) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidStarError(f"{where}: {text[:80]!r} is not UTF-8; rename the file it names") from None


def _quoted_cells(line: str, where: str) -> Iterator[str]:
    blanks = " \t\r\f\v"
    place = 0
    while place < len(line):
        if line[place] in blanks:
            place += 1
            continue
        quote = line[place] if line[place] in "\"'" else ""
        end = place + 1
        while end < len(line) and not (
            line[end] in blanks and (not quote or (line[end - 1] == quote and end > place + 1))
        ):
            end += 1
        if quote and (end < place + 2 or line[end - 1] != quote):
            raise InvalidStarError(f"{where}: a quote is not closed in {line[place : place + 60]!r}")
        yield line[place + 1 : end - 1] if quote else line[place:end]
        place = end


def quoted(cell: str) -> str:
    """Return the cell as it must stand in a row; ValueError where no quoting can hold it."""
    if cell and not cell.startswith(('"', "'", "#")) and len(cell.split()) == 1 and cell == cell.strip():
        return cell
    for quote in "\"'":
        if quote not in cell and "\n" not in cell and "\r" not in cell and "\0" not in cell:
            return f"{quote}{cell}{quote}"
    raise ValueError(f"no star file can hold the text {cell!r}")
