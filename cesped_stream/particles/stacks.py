"""Particle stacks (.mrcs, .mrc): headers, images as float32, and where a star's image names point.

Images are read with pread, not through a memory map: a stack that is truncated while it is read then gives an error
instead of SIGBUS.
"""

import os
import stat
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from cesped_stream.durable import fsync_folder
from cesped_stream.errors import (
    ForbiddenPathError,
    InvalidStackError,
    NotSettledError,
    UnreachableFileError,
)
from cesped_stream.particles.image_names import check_names_of_one_stack, parse_image_name
from cesped_stream.particles.stack_paths import resolve_stack
from cesped_stream.particles.table import ParticleTable

__all__ = [
    "STACK_LABEL",
    "ImageGroup",
    "StackHeader",
    "StackReader",
    "check_names_of_one_stack",
    "parse_image_name",
    "read_header",
    "read_images",
    "resolve_stack",
    "write_stack",
]

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

STACK_LABEL: Final = "cestreamStack"
HEADER_BYTES: Final = 1024
DIGEST_BYTES: Final = 16
MODE_DTYPES: Final = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
MAX_BOX: Final = 8192

_READ_BYTES: Final = 1 << 24
_PACKED: Final = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
"""What a compressed file begins with."""


@dataclass(frozen=True)
class StackHeader:
    """What an MRC header says of a stack of square images, and the size of its file."""

    num_images: int
    box_size: int
    mode: int
    pixel_size_angstrom: float
    """0 where the header has none."""
    file_size: int
    data_offset: int = HEADER_BYTES
    byte_order: str = "<"

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of one pixel as it stands in the file, byte order included."""
        return np.dtype(self.byte_order + MODE_DTYPES[self.mode])

    @property
    def image_bytes(self) -> int:
        """Bytes of one image in the file."""
        return self.box_size * self.box_size * self.dtype.itemsize

    @property
    def expected_size(self) -> int:
        """Size of the file when all `num_images` are there."""
        return self.data_offset + self.num_images * self.image_bytes

    @property
    def num_whole_images(self) -> int:
        """Images that lie in the file and are counted in its header."""
        return max(0, min(self.num_images, (self.file_size - self.data_offset) // self.image_bytes))


@dataclass(frozen=True, eq=False)
class ImageGroup:
    """Images `(n, box, box)` float32 of one box size, of the table's rows `index` `(n,)`, with digests `(n, 16)`."""

    index: Int64
    images: Float32
    digests: NDArray[np.uint8]


def read_header(path: Path) -> StackHeader:
    """Return the stack's header. Raises InvalidStackError, NotSettledError (shorter than a header),
    UnreachableFileError, ForbiddenPathError (no regular file)."""
    descriptor = _open_regular(path)
    try:
        return _header_of(descriptor, path)
    finally:
        os.close(descriptor)


def _open_regular(path: Path) -> int:
    """Open for reading; a FIFO or device is refused and not opened."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ForbiddenPathError(f"{path}: no regular file; give the stack itself")
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UnreachableFileError(f"{path}: {error.strerror}; is the copy finished, is its mount there?") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ForbiddenPathError(f"{path}: no regular file; give the stack itself")
    return descriptor


def _header_of(descriptor: int, path: Path) -> StackHeader:
    try:
        size = os.fstat(descriptor).st_size
        data = os.pread(descriptor, HEADER_BYTES, 0)
    except OSError as error:
        raise UnreachableFileError(f"{path}: {error.strerror} while reading; is its mount there?") from None
    if (packed := next((name for magic, name in _PACKED.items() if data.startswith(magic)), None)) is not None:
        raise InvalidStackError(f"{path}: is compressed ({packed}), no plain MRC stack; unpack it and name that file")
    if len(data) < HEADER_BYTES:
        raise NotSettledError(f"{path}: {len(data)} bytes, an MRC header has {HEADER_BYTES}; is it being written?")
    if not any(data):
        raise NotSettledError(f"{path}: its header is all zeros; is it being written?")
    if data.startswith(b"\x93NUMPY"):
        raise InvalidStackError(f"{path}: a NumPy or cryoSPARC .cs file, not an MRC stack")
    order = _byte_order(data)
    if order is None:
        nx, ny, nz, mode = struct.unpack("<4i", data[:16])
        raise InvalidStackError(
            f"{path}: size {nx} x {ny} x {nz}, mode {mode}; expected square images of mode "
            f"{', '.join(map(str, MODE_DTYPES))}. Is this a particle stack?"
        )
    nx, ny, nz, mode = struct.unpack(order + "4i", data[:16])
    (extended,) = struct.unpack(order + "i", data[92:96])
    if not 0 <= extended <= 1 << 30:
        raise InvalidStackError(f"{path}: its extended header has {extended} bytes; the header is damaged")
    axes = struct.unpack(order + "3i", data[64:76])
    if axes not in ((1, 2, 3), (0, 0, 0)):
        raise InvalidStackError(
            f"{path}: its axes (MAPC, MAPR, MAPS) are {axes[0]}, {axes[1]}, {axes[2]}, so its images may lie turned; "
            "only 1, 2, 3 (or 0, 0, 0: not stated) is read. Write it again with x, y and image as its axes"
        )
    (cell,) = struct.unpack(order + "f", data[40:44])
    (samples,) = struct.unpack(order + "i", data[28:32])
    pixel_size = cell / samples if samples > 0 and np.isfinite(cell) and cell > 0 else 0.0
    return StackHeader(nz, nx, mode, pixel_size, size, HEADER_BYTES + extended, order)


def _byte_order(data: bytes) -> str | None:
    """Return the order under which size and mode make sense: old files have no machine stamp, or a wrong one."""
    stamped = {b"\x44": "<", b"\x11": ">"}.get(data[212:213], "<")
    for order in (stamped, "<", ">"):
        nx, ny, nz, mode = struct.unpack(order + "4i", data[:16])
        if mode in MODE_DTYPES and nx == ny and 1 <= nx <= MAX_BOX and nz >= 1:
            return order
    return None


@dataclass
class _OpenStack:
    descriptor: int
    signature: tuple[int, int, int, int]
    header: StackHeader


class StackReader:
    """Reads images from any number of stacks with at most `max_open_files` open at a time.

    A stack that changed since it was opened is opened again. Safe to share between threads (one reads at a time).
    """

    def __init__(self, max_open_files: int = 32) -> None:
        if max_open_files < 1:
            raise ValueError(f"max_open_files is {max_open_files}; at least 1 is needed")
        self._max_open_files = max_open_files
        self._open: OrderedDict[Path, _OpenStack] = OrderedDict()
        self._lock = threading.Lock()

    def header(self, path: Path) -> StackHeader:
        """Return the stack's header; errors as `read_header`."""
        with self._lock:
            return self._opened(path).header

    def read(self, path: Path, indices0: Sequence[int] | Int64) -> tuple[Float32, NDArray[np.uint8]]:
        """Return images `(n, box, box)` float32 and digests `(n, 16)` uint8 (blake2b of each image's file bytes).

        Raises NotSettledError where the file does not hold an image yet; else as `read_header`.
        """
        wanted = np.asarray(indices0, np.int64)
        with self._lock:
            found = self._opened(path)
            header = found.header
            _check_indices(path, header, wanted)
            images = np.empty((len(wanted), header.box_size, header.box_size), np.float32)
            digests = np.empty((len(wanted), DIGEST_BYTES), np.uint8)
            for first, last in _runs(wanted, max(1, _READ_BYTES // header.image_bytes)):
                data = _read_run(found.descriptor, path, header, int(wanted[first]), last - first)
                raw = np.frombuffer(data, header.dtype).reshape(-1, header.box_size, header.box_size)
                images[first:last] = raw
                for k, image in enumerate(memoryview(data)[i : i + header.image_bytes] for i in _starts(data, header)):
                    digests[first + k] = np.frombuffer(blake2b(image, digest_size=DIGEST_BYTES).digest(), np.uint8)
        return images, digests

    def close(self) -> None:
        """Close all files; the reader can be used again."""
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1].descriptor)

    def __enter__(self) -> "StackReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_lock"):
            self.close()

    def _opened(self, path: Path) -> _OpenStack:
        signature = _signature(path)
        found = self._open.pop(path, None)
        if found is not None and found.signature != signature:
            os.close(found.descriptor)
            found = None
        if found is None:
            while len(self._open) >= self._max_open_files:
                os.close(self._open.popitem(last=False)[1].descriptor)
            descriptor = _open_regular(path)
            try:
                found = _OpenStack(descriptor, signature, _header_of(descriptor, path))
            except BaseException:
                os.close(descriptor)
                raise
        self._open[path] = found
        return found


def _signature(path: Path) -> tuple[int, int, int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise UnreachableFileError(f"{path}: {error.strerror}; is the copy finished, is its mount there?") from None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _check_indices(path: Path, header: StackHeader, indices: Int64) -> None:
    if len(indices) == 0:
        return
    if indices.min() < 0:
        raise ValueError(f"{path}: image index {indices.min()}; indices count from 0")
    largest = int(indices.max()) + 1
    if largest > header.num_images:
        raise NotSettledError(f"{path}: {header.num_images} images, a row asks for {largest}; is the copy finished?")
    if largest > header.num_whole_images:
        raise NotSettledError(
            f"{path}: {header.file_size} of {header.expected_size} bytes, image {largest} is not there yet; is the "
            "copy finished?"
        )


def _runs(indices: Int64, longest: int) -> Iterator[tuple[int, int]]:
    """Yield [first, last) of consecutive ascending indices, at most `longest` long."""
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    for first, last in zip([0, *breaks], [*breaks, len(indices)], strict=True):
        for start in range(int(first), int(last), longest):
            yield start, min(start + longest, int(last))


def _starts(data: bytes, header: StackHeader) -> range:
    return range(0, len(data), header.image_bytes)


def _read_run(descriptor: int, path: Path, header: StackHeader, first: int, count: int) -> bytes:
    wanted = count * header.image_bytes
    offset = header.data_offset + first * header.image_bytes
    parts: list[bytes] = []
    while wanted:
        try:
            part = os.pread(descriptor, wanted, offset)
        except OSError as error:
            raise UnreachableFileError(f"{path}: {error.strerror} while reading; is its mount there?") from None
        if not part:
            raise NotSettledError(f"{path}: became shorter while it was read; is it being written again?")
        parts.append(part)
        wanted -= len(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def write_stack(path: Path, images: Float32, pixel_size_angstrom: float, *, mode: int = 2) -> None:
    """Write images `(n, box, box)` as an MRC2014 stack that appears whole. Integer modes round.

    Raises ValueError for a shape or mode that is none, or a value that the mode cannot hold.
    """
    if images.ndim != 3 or images.shape[1] != images.shape[2] or len(images) == 0:
        raise ValueError(f"images are {images.shape}; a stack is (n, box, box)")
    if mode not in MODE_DTYPES:
        raise ValueError(f"mode {mode}; known are {', '.join(map(str, MODE_DTYPES))}")
    dtype = np.dtype("<" + MODE_DTYPES[mode])
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        data = np.rint(images)
        if not (data.min() >= limits.min and data.max() <= limits.max):
            raise ValueError(f"{path}: values {data.min():g} to {data.max():g} do not fit mode {mode}")
        data = data.astype(dtype)
    else:
        with np.errstate(over="ignore"):
            data = images.astype(dtype)
        if (np.isfinite(images) & ~np.isfinite(data)).any():
            raise ValueError(f"{path}: values beyond {np.finfo(dtype).max:g} do not fit mode {mode}")
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as stream:
        stream.write(_mrc_header(data, pixel_size_angstrom, mode))
        stream.write(np.ascontiguousarray(data).data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    fsync_folder(path.parent)


def _mrc_header(data: NDArray[np.generic], pixel_size_angstrom: float, mode: int) -> bytes:
    num, box, _ = data.shape
    with np.errstate(all="ignore"):
        values = data.astype(np.float32, copy=False)
        low, high, mean, spread = (float(f(values)) for f in (np.min, np.max, np.mean, np.std))
    header = bytearray(HEADER_BYTES)
    struct.pack_into("<10i", header, 0, box, box, num, mode, 0, 0, 0, box, box, num)
    cell = box * pixel_size_angstrom
    struct.pack_into("<6f", header, 40, cell, cell, num * pixel_size_angstrom, 90.0, 90.0, 90.0)
    struct.pack_into("<3i3f", header, 64, 1, 2, 3, low, high, mean)
    # Version 2014 revision 1, which names mode 12; space group 0: a stack of images.
    struct.pack_into("<i", header, 108, 20141)
    header[208:216] = b"MAP \x44\x44\x00\x00"
    struct.pack_into("<f", header, 216, spread)
    return bytes(header)


def read_images(table: ParticleTable, reader: StackReader, *, root: Path | None = None) -> list[ImageGroup]:
    """Return the images of all rows, grouped by box size, each group in the order of the rows.

    The stack is `cestreamStack` (a real path) where the table has it, else rlnImageName under `root` (none: the
    star's folder). Errors as `StackReader.read`.
    """
    rows_of: dict[Path, list[int]] = {}
    names = [parse_image_name(text) for text in table.column("rlnImageName")]
    if STACK_LABEL in table:
        paths = [Path(unquote(text)) for text in table.column(STACK_LABEL)]
        for path in set(paths):
            _check_still_real(path)
    else:
        base = root if root is not None else Path(table.source).parent
        paths = [base / name for _, name in names]
    for row, path in enumerate(paths):
        rows_of.setdefault(path, []).append(row)
    by_box: dict[int, list[Path]] = {}
    texts = table.column("rlnImageName")
    for path, rows in rows_of.items():
        check_names_of_one_stack(path, reader.header(path).num_images, (texts[row] for row in rows))
        by_box.setdefault(reader.header(path).box_size, []).append(path)
    return [_group(box, {path: rows_of[path] for path in stacks}, names, reader) for box, stacks in by_box.items()]


def _check_still_real(path: Path) -> None:
    """Refuse a path that was resolved when its row was accepted and has become, or lies behind, a link since."""
    real = os.path.realpath(path)
    if real != str(path):
        raise ForbiddenPathError(f"{path}: is now a link to {real}; when its rows were accepted it was none")


def _group(box: int, rows_of: dict[Path, list[int]], names: list[tuple[int, str]], reader: StackReader) -> ImageGroup:
    index = np.sort(np.array([row for rows in rows_of.values() for row in rows], np.int64))
    images = np.empty((len(index), box, box), np.float32)
    digests = np.empty((len(index), DIGEST_BYTES), np.uint8)
    for path, rows in rows_of.items():
        place = np.searchsorted(index, rows)
        images[place], digests[place] = reader.read(path, [names[row][0] for row in rows])
    return ImageGroup(index, images, digests)
