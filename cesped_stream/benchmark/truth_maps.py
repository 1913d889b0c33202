"""The truth's half maps, reconstructed from its own poses and cached by the content that they are made of."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from cesped_stream.benchmark.map_metrics import MapAgreement, compare_maps
from cesped_stream.durable import write_whole
from cesped_stream.errors import CespedStreamError, InvalidStarError, UnreachableFileError
from cesped_stream.imaging.junk import is_particle
from cesped_stream.imaging.maps import read_map, write_map
from cesped_stream.particles.stacks import STACK_LABEL, parse_image_name
from cesped_stream.particles.table import ParticleTable
from cesped_stream.reconstruction.engine import Engine

Float32 = NDArray[np.float32]

OnProgress = Callable[[str, int, int], None]
"""Called with what is being made, particles done and particles in all."""

CACHE_VERSION: Final = 1
MAP_LABELS: Final = (
    *("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"),
    *("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift", "rlnCtfBfactor", "rlnCtfScalefactor"),
)
"""Columns of a row that its contribution to a map follows from, beside its image and its optics group."""

_READ_BYTES: Final = 1 << 24
_TICK_SECONDS: Final = 2.0
_RECORD: Final = "maps.json"
_WHAT: Final = "maps of the truth"


@dataclass(frozen=True, eq=False)
class TruthMaps:
    """GT_0 and GT_1, of all particles of each half-set (junk left out) with equal weights."""

    halves: tuple[Float32, Float32] = field(repr=False)
    """Each `(box, box, box)` (z, y, x)."""
    pixel_size_angstrom: float
    num_particles: tuple[int, int]
    engine: str
    symmetry: str

    @property
    def combined(self) -> Float32:
        """GT: the mean of the halves."""
        return np.asarray((self.halves[0] + self.halves[1]) / 2, np.float32)

    def half_to_half(self, mask: Float32 | None = None) -> MapAgreement:
        """Return GT_0 against GT_1."""
        return compare_maps(*self.halves, self.pixel_size_angstrom, mask, halves=True)


def truth_maps(
    truth: ParticleTable,
    symmetry: str,
    engine: Engine,
    *,
    cache: Path | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> TruthMaps:
    """Return the half maps of the truth's poses, from the folder `cache` where the same have been made before.

    What they are made of is compared, not what it is called: the map's columns of every row, the optics, the bytes of
    every stack, symmetry and engine. A cached map that is damaged, or whose record is, is made again. A cache that
    cannot be written is not used. Raises as the engine does, and InvalidStarError where a half-set has no particles.
    """
    particles = truth.select(np.flatnonzero(is_particle(truth))).without(["rlnParticleFigureOfMerit"])
    half_sets = particles.half_sets()
    tables = [particles.select(np.flatnonzero(half_sets == half)) for half in (0, 1)]
    for half, table in enumerate(tables):
        if not len(table):
            raise InvalidStarError(
                f"{truth.source or 'truth'}: no particles of half-set {half}; a truth has both (rlnRandomSubset)"
            )
    if cache is None:
        return _made(tables, symmetry, engine, on_progress)
    folder = cache / content_key(tables, symmetry, engine.identity, StackDigests(cache / "stacks.json"))
    if (cached := _cached(folder)) is not None:
        return cached
    made = _made(tables, symmetry, engine, on_progress)
    _keep(made, folder)
    return made


def content_key(tables: Sequence[ParticleTable], symmetry: str, engine: str, digests: "StackDigests") -> str:
    """Return a name, in hexadecimal, of all that the maps of `tables` follow from; `cestreamStack` names stacks."""
    made_of = {
        "version": CACHE_VERSION,
        "engine": engine,
        "symmetry": symmetry.upper(),
        "halves": [_content(table, digests) for table in tables],
    }
    digests.save()
    return blake2b(json.dumps(made_of, sort_keys=True).encode(), digest_size=20).hexdigest()


class StackDigests:
    """The blake2b of whole stacks, kept in `file` beside device, inode, size, mtime and ctime.

    A stack is read again when any of these changed. A change sets ctime, which no program can set back; a stack that
    changed within two seconds before it was read is not kept, since a clock's tick may hide the next change.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known = {key: str(value) for key, value in _read_json(file).items()}
        self._changed = False

    def of(self, stack: Path) -> str:
        """Return the digest as hexadecimal. Raises UnreachableFileError."""
        try:
            with open(stack, "rb", buffering=0) as stream:
                before = os.fstat(stream.fileno())
                if (found := self._known.get(_identity(before))) is not None:
                    return found
                digest = blake2b(digest_size=16)
                while block := stream.read(_READ_BYTES):
                    digest.update(block)
                after = os.fstat(stream.fileno())
        except OSError as error:
            raise UnreachableFileError(f"{stack}: {error.strerror}; is its mount there?") from None
        if _identity(before) == _identity(after) and time.time() - after.st_ctime > _TICK_SECONDS:
            self._known[_identity(before)] = digest.hexdigest()
            self._changed = True
        return digest.hexdigest()

    def save(self) -> None:
        """Write what is new; a folder that cannot be written costs the next caller time, no more."""
        if self._changed:
            with contextlib.suppress(OSError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(self._file, json.dumps(self._known).encode() + b"\n")


def _content(table: ParticleTable, digests: StackDigests) -> dict[str, object]:
    stacks = list(dict.fromkeys(table.column(STACK_LABEL)))
    place = {stack: number for number, stack in enumerate(stacks)}
    columns = [table.column(label) for label in MAP_LABELS if label in table]
    rows = blake2b(digest_size=20)
    images = map(parse_image_name, table.column("rlnImageName"))
    optics = table.optics_index.tolist()
    for (index, _), stack, group, *cells in zip(images, table.column(STACK_LABEL), optics, *columns, strict=True):
        rows.update(f"{place[stack]} {index} {group} {' '.join(cells)}\n".encode())
    return {
        "stacks": [digests.of(Path(unquote(stack))) for stack in stacks],
        "labels": [label for label in MAP_LABELS if label in table],
        "optics": [[list(pair) for pair in group.values] for group in table.optics],
        "rows": rows.hexdigest(),
    }


def _made(tables: Sequence[ParticleTable], symmetry: str, engine: Engine, on_progress: OnProgress) -> TruthMaps:
    total = sum(map(len, tables))
    first = engine.reconstruct(tables[0], symmetry, on_progress=lambda done: on_progress(_WHAT, done, total))
    second = engine.reconstruct(
        tables[1], symmetry, on_progress=lambda done: on_progress(_WHAT, len(tables[0]) + done, total)
    )
    if first.volume.shape != second.volume.shape or first.pixel_size_angstrom != second.pixel_size_angstrom:
        raise InvalidStarError(
            f"{tables[0].source or 'truth'}: the half maps have boxes of {first.volume.shape[0]} and "
            f"{second.volume.shape[0]} pixels of {first.pixel_size_angstrom:g} and {second.pixel_size_angstrom:g} A; "
            "both halves of a truth have one box and pixel size"
        )
    counts = (len(tables[0]), len(tables[1]))
    return TruthMaps((first.volume, second.volume), first.pixel_size_angstrom, counts, engine.name, symmetry.upper())


def _keep(made: TruthMaps, folder: Path) -> None:
    """Write the maps, then the record that makes them count; a full or read-only disk keeps nothing."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        for half, volume in enumerate(made.halves):
            write_map(folder / f"half_{half}.mrc", volume, made.pixel_size_angstrom)
        record = {
            "engine": made.engine,
            "symmetry": made.symmetry,
            "num_particles": list(made.num_particles),
            "pixel_size_angstrom": made.pixel_size_angstrom,
            "blake2b": [_file_digest(folder / f"half_{half}.mrc") for half in (0, 1)],
        }
        write_whole(folder / _RECORD, json.dumps(record, indent=1).encode() + b"\n")


def _cached(folder: Path) -> TruthMaps | None:
    """Return the maps of a cache entry; None where there is none or anything in it is not what its record says."""
    record = _read_json(folder / _RECORD)
    try:
        files = [folder / f"half_{half}.mrc" for half in (0, 1)]
        if [_file_digest(file) for file in files] != record["blake2b"]:
            return None
        volumes = [read_map(file)[0] for file in files]
        zero, one = record["num_particles"]
        return TruthMaps(
            (volumes[0], volumes[1]),
            float(record["pixel_size_angstrom"]),
            (int(zero), int(one)),
            str(record["engine"]),
            str(record["symmetry"]),
        )
    except (OSError, KeyError, TypeError, ValueError, CespedStreamError):
        return None


def _file_digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, lambda: blake2b(digest_size=16)).hexdigest()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _identity(status: os.stat_result) -> str:
    return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
