"""Writing a particle stack chunk by chunk, in bounded memory."""

import os
import struct
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from cesped_stream.durable import fsync_folder
from cesped_stream.particles.stacks import HEADER_BYTES


class StackWriter:
    """Context manager that appends float32 images to an MRC2014 stack of mode 2, which appears whole at the end.

    Until then, and after an exception, nothing stands under `path`.
    """

    def __init__(self, path: Path, box_size: int, pixel_size_angstrom: float) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._box_size = box_size
        self._pixel_size_angstrom = pixel_size_angstrom
        self._stream = open(self._temporary, "wb")  # noqa: SIM115
        self._stream.write(bytes(HEADER_BYTES))
        self._low, self._high = np.inf, -np.inf
        self._sum = self._sum_of_squares = 0.0
        self.num_images = 0

    def append(self, images: NDArray[np.float32]) -> None:
        """Append images `(n, box, box)`. ValueError for another box size."""
        if images.shape[1:] != (self._box_size, self._box_size):
            raise ValueError(f"{self._path}: images of {images.shape[1:]} in a stack of box size {self._box_size}")
        if len(images) == 0:
            return
        self._stream.write(np.ascontiguousarray(images, "<f4").data)
        self._low = min(self._low, float(images.min()))
        self._high = max(self._high, float(images.max()))
        self._sum += float(images.sum(dtype=np.float64))
        self._sum_of_squares += float(np.square(images, dtype=np.float64).sum())
        self.num_images += len(images)

    def __enter__(self) -> "StackWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stream as stream:
            if kind is None and self.num_images:
                stream.seek(0)
                stream.write(self._header())
                stream.flush()
                os.fsync(stream.fileno())
        if kind is not None or not self.num_images:
            self._temporary.unlink()
            return
        os.replace(self._temporary, self._path)
        fsync_folder(self._path.parent)

    def _header(self) -> bytes:
        header = bytearray(HEADER_BYTES)
        box, count = self._box_size, self.num_images
        mean = self._sum / (count * box * box)
        spread = max(0.0, self._sum_of_squares / (count * box * box) - mean**2) ** 0.5
        cell = box * self._pixel_size_angstrom
        struct.pack_into("<10i", header, 0, box, box, count, 2, 0, 0, 0, box, box, count)
        struct.pack_into("<6f", header, 40, cell, cell, count * self._pixel_size_angstrom, 90.0, 90.0, 90.0)
        struct.pack_into("<3i3f", header, 64, 1, 2, 3, self._low, self._high, mean)
        struct.pack_into("<i", header, 108, 20141)
        header[208:216] = b"MAP \x44\x44\x00\x00"
        struct.pack_into("<f", header, 216, spread)
        return bytes(header)
