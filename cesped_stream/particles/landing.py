"""Whether what landed is all there: unchanged for long enough, and as many images as its star asks for.

File times are compared with each other, never with a clock; the clock is the caller's and monotonic.
"""

import os
import stat
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from cesped_stream.errors import ForbiddenPathError, InvalidStackError, NotSettledError, UnreachableFileError
from cesped_stream.particles.stacks import read_header

DONE_SUFFIX: Final = ".done"


@dataclass(frozen=True)
class FileSignature:
    """Equal twice means that nobody wrote or replaced the file between."""

    inode: int
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Settled:
    """The file can be read: it looked the same twice, `settle_seconds` apart, or its `.done` marker is there."""

    signature: FileSignature


@dataclass(frozen=True)
class Waiting:
    """The file cannot be read yet; `reason` says why."""

    reason: str


class SettleTracker:
    """Knows since when each file has looked as it does now."""

    def __init__(self, settle_seconds: float) -> None:
        if settle_seconds < 0:
            raise ValueError(f"settle_seconds is {settle_seconds}; it cannot be negative")
        self._settle_seconds = settle_seconds
        self._since: dict[Path | str, tuple[FileSignature, float]] = {}

    def observe(self, path: Path, now_monotonic: float) -> Settled | Waiting:
        """Look at the file once. A file that is gone, or no regular file, is forgotten and waits."""
        try:
            status = os.stat(path)
        except OSError as error:
            self.forget(path)
            return Waiting(f"{error.strerror}")
        if not stat.S_ISREG(status.st_mode):
            self.forget(path)
            return Waiting("no regular file")
        signature = FileSignature(status.st_ino, status.st_size, status.st_mtime_ns)
        done = path.with_name(path.name + DONE_SUFFIX).exists()
        return self.observe_as(path, signature, now_monotonic, done=done)

    def observe_as(
        self, path: Path | str, signature: FileSignature, now_monotonic: float, *, done: bool
    ) -> Settled | Waiting:
        """Note how a file looks now, for who has looked at it and for its `.done` marker already."""
        before = self._since.get(path)
        if before is None or before[0] != signature:
            self._since[path] = (signature, now_monotonic)
        if done:
            return Settled(signature)
        if before is None or before[0] != signature:
            return Waiting("seen for the first time" if before is None else "changed since it was last seen")
        unchanged = now_monotonic - before[1]
        if unchanged < self._settle_seconds:
            return Waiting(f"unchanged for {unchanged:.1f} of {self._settle_seconds:.1f} s")
        return Settled(signature)

    def forget(self, path: Path | str) -> None:
        """Drop what is known of a file."""
        self._since.pop(path, None)


class StackState(Enum):
    """`COMPLETE` can be read, `GROWING` and `MISSING` may be later, `INVALID` needs someone to act."""

    COMPLETE = "complete"
    GROWING = "growing"
    MISSING = "missing"
    INVALID = "invalid"


@dataclass(frozen=True)
class Completeness:
    """State of a stack, and the reason for anything but `COMPLETE`."""

    state: StackState
    reason: str = ""


def stack_is_complete(path: Path, largest_index1: int) -> Completeness:
    """Return whether the stack holds image `largest_index1` (from 1) and its file ends with its last image.

    RELION Extract appends images one by one, so this proves something only of a settled file.
    """
    try:
        header = read_header(path)
    except NotSettledError as error:
        return Completeness(StackState.GROWING, str(error))
    except UnreachableFileError as error:
        return Completeness(StackState.MISSING, str(error))
    except (InvalidStackError, ForbiddenPathError) as error:
        return Completeness(StackState.INVALID, str(error))
    if largest_index1 > header.num_images:
        return Completeness(
            StackState.GROWING,
            f"{path}: {header.num_images} images, a row asks for {largest_index1}; is the copy finished?",
        )
    if header.file_size != header.expected_size:
        return Completeness(
            StackState.GROWING,
            f"{path}: {header.file_size} bytes, its header of {header.num_images} images wants "
            f"{header.expected_size}; is it being written?",
        )
    return Completeness(StackState.COMPLETE)
