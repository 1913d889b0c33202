"""Maps as MRC files. No torch here: the coordinator looks at a given map before anything runs."""

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
from numpy.typing import NDArray

from cesped_stream.durable import fsync_folder
from cesped_stream.errors import InvalidStackError, UnreachableFileError
from cesped_stream.particles.stacks import HEADER_BYTES, MODE_DTYPES

Float32 = NDArray[np.float32]

MOST_VOXELS_A_SIDE = 1 << 14
AXES_IN_ORDER = ((1, 2, 3), (0, 0, 0))
"""MAPC, MAPR and MAPS of a map whose fastest axis is x; old programs leave them empty."""


@dataclass(frozen=True)
class _MapHeader:
    shape: tuple[int, int, int]
    """(z, y, x)."""
    dtype: np.dtype[np.generic]
    data_offset: int
    pixel_size_angstrom: float


def read_map(path: Path) -> tuple[Float32, float]:
    """Return a cubic map `(box, box, box)` (z, y, x) and its pixel size in angstrom.

    As RELION does, it reads what sizes, mode, cell and the extended header's length say; the MAP word, the machine
    stamp and the labels may be wrong. Raises UnreachableFileError where the file cannot be opened, InvalidStackError
    where it is no cubic map, its axes are not in the order x, y, z, it is cut, or its header has no pixel size.
    """
    try:
        with open(path, "rb") as stream:
            header = _header_of(path, stream.read(HEADER_BYTES))
            stream.seek(header.data_offset)
            data = stream.read(int(np.prod(header.shape)) * header.dtype.itemsize)
    except OSError as error:
        raise UnreachableFileError(f"{path}: {error.strerror or error}; is the path right?") from None
    wanted = int(np.prod(header.shape)) * header.dtype.itemsize
    if len(data) < wanted:
        raise InvalidStackError(f"{path}: {len(data)} of {wanted} bytes of voxels; is the copy finished?")
    volume = np.frombuffer(data, header.dtype).reshape(header.shape).astype(np.float32)
    if not np.isfinite(volume).all():
        raise InvalidStackError(f"{path}: has NaN or infinite voxels; mask them with 0")
    return volume, header.pixel_size_angstrom


def _header_of(path: Path, data: bytes) -> _MapHeader:
    if data.startswith(b"\x1f\x8b"):
        raise InvalidStackError(f"{path}: is compressed by gzip; decompress it (gunzip) and give the .mrc")
    order = _byte_order(data)
    if order is None:
        raise InvalidStackError(
            f"{path}: its header has no size and mode of a map (modes {', '.join(map(str, MODE_DTYPES))}); give a map "
            "in MRC format"
        )
    nx, ny, nz, mode = struct.unpack(order + "4i", data[:16])
    if len({nx, ny, nz}) != 1:
        raise InvalidStackError(f"{path}: shape {(nz, ny, nx)}; a map here is cubic, pad it")
    axes = struct.unpack(order + "3i", data[64:76])
    if axes not in AXES_IN_ORDER:
        raise InvalidStackError(
            f"{path}: its axes are stored as MAPC {axes[0]}, MAPR {axes[1]}, MAPS {axes[2]}, not 1, 2, 3; write it "
            "with x fastest and z slowest"
        )
    (samples,) = struct.unpack(order + "i", data[28:32])
    (cell,) = struct.unpack(order + "f", data[40:44])
    pixel_size = cell / samples if samples > 0 else 0.0
    if not (np.isfinite(pixel_size) and pixel_size > 0):
        raise InvalidStackError(f"{path}: pixel size {pixel_size} A in its header; set it")
    (extended,) = struct.unpack(order + "i", data[92:96])
    if not 0 <= extended <= 1 << 30:
        raise InvalidStackError(f"{path}: its extended header has {extended} bytes; the header is damaged")
    return _MapHeader((nz, ny, nx), np.dtype(order + MODE_DTYPES[mode]), HEADER_BYTES + extended, float(pixel_size))


def _byte_order(data: bytes) -> str | None:
    """Return the order under which sizes and mode make sense, whatever the machine stamp says."""
    if len(data) < HEADER_BYTES:
        return None
    for order in "<>":
        *sizes, mode = struct.unpack(order + "4i", data[:16])
        if mode in MODE_DTYPES and all(1 <= size <= MOST_VOXELS_A_SIDE for size in sizes):
            return order
    return None


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
