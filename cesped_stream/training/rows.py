"""The aligned rows of one half-set: which train, which validate, and their images as the network sees them."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cesped_stream.errors import PermanentError
from cesped_stream.imaging.preprocess import Preprocessor, row_flags
from cesped_stream.particles.flags import ImageFlag, flags_in_words
from cesped_stream.particles.half_sets import check_both_halves
from cesped_stream.particles.stacks import StackReader, read_images
from cesped_stream.particles.table import ParticleTable

logger = logging.getLogger(__name__)

CHUNK = 256


@dataclass(frozen=True)
class Split:
    """Row indices of one half-set; no micrograph is in both."""

    training: NDArray[np.int64]
    validation: NDArray[np.int64]


def split_by_micrograph(micrographs: Sequence[str], fraction: float, seed: int) -> Split:
    """Hold out whole micrographs, in seeded order, until `fraction` of the rows is reached.

    Images of one micrograph may share particles, ice and defocus, so a micrograph is never split. With a single
    micrograph, or `fraction` 0, nothing is held out.
    """
    names = sorted(set(micrographs))
    shuffled = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    count = {name: 0 for name in names}
    for name in micrographs:
        count[name] += 1
    held_out: set[str] = set()
    rows = 0
    for name in shuffled[:-1]:
        if rows >= fraction * len(micrographs):
            break
        held_out.add(name)
        rows += count[name]
    is_held_out = np.array([name in held_out for name in micrographs], np.bool_)
    return Split(np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out))


class AlignedImages:
    """Preprocessed images `(n, 1, size, size)` float32 of a table's rows, by row index.

    They are kept in memory when all fit in `cache_bytes`, else read again at each use; both give the same bits.
    """

    def __init__(
        self,
        table: ParticleTable,
        reader: StackReader,
        preprocessor: Preprocessor,
        *,
        root: Path | None = None,
        cache_bytes: int = 1 << 29,
    ) -> None:
        self._table = table
        self._reader = reader
        self._preprocessor = preprocessor
        self._root = root
        self._lock = threading.Lock()
        self._cache: torch.Tensor | None = None
        size = preprocessor.settings.image_size
        if len(table) * size * size * 4 <= cache_bytes:
            self._cache = torch.cat([self._load(np.arange(i, min(i + CHUNK, len(table)))) for i in self._chunks()])

    def _chunks(self) -> range:
        return range(0, len(self._table), CHUNK)

    def take(self, index: NDArray[np.int64]) -> torch.Tensor:
        """Return images `(len(index), 1, size, size)` of these rows, in this order, on the CPU."""
        if self._cache is not None:
            return self._cache[torch.from_numpy(index)]
        with self._lock:
            return self._load(index)

    def _load(self, index: NDArray[np.int64]) -> torch.Tensor:
        rows = self._table.select(index)
        ctf = rows.ctf_parameters()
        size = self._preprocessor.settings.image_size
        images = torch.zeros(len(rows), 1, size, size)
        for group in read_images(rows, self._reader, root=self._root):
            raw = torch.from_numpy(group.images)
            images[torch.from_numpy(group.index)] = self._preprocessor(raw, ctf.select(group.index)).cpu()
        return images


def usable_rows(table: ParticleTable, reader: StackReader, *, root: Path | None = None) -> ParticleTable:
    """Return the rows that have a pose and a usable image (`row_flags`); a warning tells of the others."""
    table = table.select(np.flatnonzero(table.has_poses()))
    ctf = table.ctf_parameters()
    flags = np.zeros(len(table), np.uint8)
    for start in range(0, len(table), CHUNK):
        index = np.arange(start, min(start + CHUNK, len(table)))
        for group in read_images(table.select(index), reader, root=root):
            rows = index[group.index]
            flags[rows] = row_flags(torch.from_numpy(group.images), ctf.select(rows))
    if words := flags_in_words(flags, table.column("rlnImageName")):
        logger.warning("aligned rows of %s: %s", table.source or "an order", words)
    return table.select(np.flatnonzero(flags == ImageFlag.OK))


def rows_of_half(table: ParticleTable, half_set: int) -> ParticleTable:
    """Return the rows of one half-set; PermanentError where there is none."""
    rows = table.select(np.flatnonzero(table.half_sets() == half_set))
    if len(rows) == 0:
        check_both_halves(table)
        raise PermanentError(
            f"{table.source or 'aligned star'}: no usable aligned row in half-set {half_set} of {len(table)} rows; "
            "give more aligned micrographs, or rlnRandomSubset 1 and 2"
        )
    return rows
