"""Maps as MRC files. No torch here: the coordinator looks at a given map before anything runs."""

import os
import warnings
from pathlib import Path

import mrcfile
import numpy as np
from numpy.typing import NDArray

from cesped_stream.durable import fsync_folder
from cesped_stream.errors import InvalidStackError, UnreachableFileError

Float32 = NDArray[np.float32]


def read_map(path: Path) -> tuple[Float32, float]:
    """Return a cubic map `(box, box, box)` (z, y, x) and its pixel size in angstrom.

    Raises UnreachableFileError where the file cannot be opened, InvalidStackError where it is no cubic map or its
    header has no pixel size.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with mrcfile.open(path, permissive=False) as mrc:
                volume = np.array(mrc.data)
                pixel_size = float(mrc.voxel_size.x)
    except OSError as error:
        raise UnreachableFileError(f"{path}: {error.strerror or error}; is the path right?") from None
    except ValueError as error:
        raise InvalidStackError(f"{path}: {error}; give a map in MRC format") from None
    if volume.ndim != 3 or len(set(volume.shape)) != 1:
        raise InvalidStackError(f"{path}: shape {volume.shape}; a map here is cubic, pad it")
    if not (np.isfinite(pixel_size) and pixel_size > 0):
        raise InvalidStackError(f"{path}: pixel size {pixel_size} A in its header; set it")
    volume = volume.astype(np.float32)
    if not np.isfinite(volume).all():
        raise InvalidStackError(f"{path}: has NaN or infinite voxels; mask them with 0")
    return volume, pixel_size


def write_map(path: Path, volume: Float32, pixel_size_angstrom: float) -> None:
    """Write a map `(box, box, box)` as MRC mode 2 that appears whole; the same map gives the same bytes."""
    temporary = path.with_name(f".{path.name}.tmp")
    with mrcfile.new(temporary, data=np.ascontiguousarray(volume, np.float32), overwrite=True) as mrc:
        mrc.voxel_size = pixel_size_angstrom
        # mrcfile's own label holds the time.
        mrc.header.nlabl = 0
        mrc.header.label = b""
    with open(temporary, "rb") as stream:
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    fsync_folder(path.parent)
