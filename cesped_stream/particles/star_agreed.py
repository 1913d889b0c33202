"""Rows of a star that never stands still: what two looks at it agree on, line by line from the accepted rows on.

A program that writes the same star again and again, longer each time, leaves its first lines as they were. Those are
complete rows, whoever writes behind them.
"""

from array import array
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Final

from cesped_stream.particles.star import StarPrefix, bytes_behind

MOST_BYTES: Final = 1 << 24
"""Looked at once, behind the accepted rows: what bounds memory, and the time that one look takes."""


@dataclass(frozen=True)
class StarLook:
    """How the complete lines behind the first `starts[0]` bytes of a star looked."""

    starts: "array[int]"
    """Where each line begins, and where the last one ends."""
    lines: "array[int]"
    """One hash a line, of this process only."""


def look_again(
    path: Path, prefix: StarPrefix | None, before: StarLook | None, *, most_bytes: int = MOST_BYTES
) -> tuple[StarLook, bytes]:
    """Look at what follows the accepted rows; return this look and the leading lines that the one before saw too.

    Raises PrefixChanged where the accepted rows are not those of before, InvalidStarError for what can never be a star,
    and UnreachableFileError.
    """
    start = prefix.length if prefix else 0
    data = bytes_behind(path, prefix, most_bytes)
    lines = data.split(b"\n")[:-1]
    whole = next((k for k, line in enumerate(lines) if b"\0" in line), len(lines))
    starts = array("q", accumulate((len(line) + 1 for line in lines[:whole]), initial=start))
    look = StarLook(starts, array("q", map(hash, lines[:whole])))
    if before is None:
        return look, b""
    first = bisect_left(before.starts, start)
    if first == len(before.starts) or before.starts[first] != start:
        return look, b""
    pairs = zip(look.lines, before.lines[first:], strict=False)
    same = next((k for k, (now, then) in enumerate(pairs) if now != then), min(whole, len(before.lines) - first))
    return look, b"".join(line + b"\n" for line in lines[:same])
