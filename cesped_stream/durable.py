"""Files that appear whole or not at all, and are on disk when the call returns."""

import os
from collections.abc import Callable
from pathlib import Path

Step = Callable[[str], None]
"""Called with the name of each step just taken; tests raise or kill there."""


def _no_step(name: str) -> None:
    del name


def fsync_folder(folder: Path) -> None:
    """Make the folder's own entries durable (a rename is durable only after this)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, data: bytes, *, step: Step = _no_step) -> None:
    """Write `data` to a temporary name beside `path`, fsync, rename over `path`, fsync the folder.

    A reader sees the old file or the new one. A temporary left by a crash is named `.<name>.tmp` and is overwritten
    by the next write of the same path. Raises OSError, with the old file untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as stream:
        stream.write(data)
        step("written")
        stream.flush()
        os.fsync(stream.fileno())
    step("synced")
    os.replace(temporary, path)
    step("renamed")
    fsync_folder(path.parent)
    step("folder synced")


def rename_durably(source: Path, target: Path, *, step: Step = _no_step) -> None:
    """Rename within one folder or between two on the same file system, and make it durable in both."""
    os.replace(source, target)
    step("renamed")
    fsync_folder(target.parent)
    if source.parent != target.parent:
        fsync_folder(source.parent)
    step("folder synced")
