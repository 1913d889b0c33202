"""Folders for results, made and tried before the work whose results they get."""

import os
from pathlib import Path

from cesped_stream.benchmark.entry_folder import disk_errors
from cesped_stream.errors import InvalidSettingsError


def output_folder(folder: Path) -> Path:
    """Make a folder where it is not there, try to write a file in it, and return it.

    Raises InvalidSettingsError where a file stands in the way, UnreachableFileError where this user cannot write there,
    FullDiskError where there is no space.
    """
    in_the_way = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)
    if in_the_way is not None:
        raise InvalidSettingsError(f"output {folder}: {in_the_way} is a file; give another folder")
    probe = folder / f".try-to-write.{os.getpid()}"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"tried")
        finally:
            probe.unlink(missing_ok=True)
    return folder
