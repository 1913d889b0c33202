"""How errors and maps of a stream grow better with particles: the same figures at several moments of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cesped_stream.benchmark.map_metrics import compare_maps
from cesped_stream.benchmark.truth_maps import TruthMaps
from cesped_stream.particles.stacks import StackReader, read_images
from cesped_stream.particles.table import ParticleTable
from cesped_stream.reconstruction.backproject import Backprojector
from cesped_stream.reconstruction.memory import warn_of_memory
from cesped_stream.so3.symmetry import group_rotations

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Halves = tuple[Float32 | None, Float32 | None]

ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class ErrorPoint:
    """Angular errors when so many poses were on disk."""

    seen: int
    seconds: float | None
    """Since the replay began, None where it is not known."""
    mean_deg: float
    """Of all so far."""
    median_deg: float
    recent_median_deg: float
    """Of those since the point before."""


@dataclass(frozen=True)
class MapPoint:
    """Maps of the poses that were on disk so far: resolutions in angstrom, unmasked; None where there is no figure.

    A resolution that does not exist (the first shell already differs) is None too.
    """

    seen: int
    seconds: float | None
    to_truth_05_angstrom: float | None
    """The mean of both half maps against the truth's map, FSC 0.5: the paper's FSCR. They share images, so noise."""
    to_truth_0143_angstrom: float | None
    to_other_half_05_angstrom: float | None
    """Half maps against the truth's map of the other half, the worse of both: no image is in both."""
    half_to_half_0143_angstrom: float | None
    """The half maps against one another, at the shifts of the tool's star: what a session without a truth would see."""
    to_truth_05_at_nyquist: bool = False
    """Whether the curve never falls below the threshold: the pixel size limits the resolution, not the map."""
    to_truth_0143_at_nyquist: bool = False
    to_other_half_05_at_nyquist: bool = False
    half_to_half_0143_at_nyquist: bool = False


def moments(total: int, points: int) -> Int64:
    """Return at most `points` counts of particles, evenly spread, the last of them `total`; none where it is 0."""
    return np.unique(np.ceil(np.arange(1, points + 1) * total / points).astype(np.int64)) if total else np.zeros(0, int)


def error_points(errors_deg: Float64, seconds: Float64, counts: Int64) -> list[ErrorPoint]:
    """Return errors `(n,)`, in the order in which the poses were made, at the moments `counts`.

    `seconds` `(n,)`: when each pose was on disk.
    """
    found, before = [], 0
    for count in counts.tolist():
        so_far, recent = errors_deg[:count], errors_deg[before:count]
        median, newest = float(np.median(so_far)), float(np.median(recent))
        found.append(ErrorPoint(count, _known(seconds[count - 1]), float(np.mean(so_far)), median, newest))
        before = count
    return found


def map_points(
    table: ParticleTable,
    seconds: Float64,
    counts: Int64,
    truth: TruthMaps,
    *,
    in_session: ParticleTable | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[MapPoint]:
    """Return how the maps of the first `counts` rows of `table` compare with the truth's.

    `table`: rows in the order in which their poses were made, with the predicted angles, the shifts to be used, CTF,
    half-sets and `cestreamStack`. `in_session`: the same rows at the shifts that a session has, for the half maps held
    against one another; None: those of `table`. Each image is laid down once a table, so that
    all moments cost little more than the last.
    Raises InvalidStarError as a reconstruction does.
    """
    found = []
    along = cumulative_maps(table, counts, truth, on_progress)
    if in_session is None or np.array_equal(in_session.shifts_angstrom(), table.shifts_angstrom()):
        pairs = ((count, halves, halves) for count, halves in along)
    else:
        seen = cumulative_maps(in_session, counts, truth, lambda done: None)
        pairs = ((count, halves, own) for (count, halves), (_, own) in zip(along, seen, strict=True))
    for count, halves, own in pairs:
        found.append(_map_point(count, _known(seconds[count - 1]), halves, own, truth))
    return found


def cumulative_maps(
    table: ParticleTable, counts: Int64, truth: TruthMaps, on_progress: Callable[[int], None]
) -> Iterator[tuple[int, tuple[Float32 | None, Float32 | None]]]:
    """Yield each count and the half maps of the rows before it; None for a half without any."""
    box = truth.halves[0].shape[0]
    group, half_sets, reader = group_rotations(truth.symmetry), table.half_sets(), StackReader()
    rotations, shifts, ctf = table.rotations(), table.shifts_angstrom(), table.ctf_parameters()
    warn_of_memory(box, symmetric=len(group) > 1, num_maps=2)
    sums = [Backprojector(box, truth.pixel_size_angstrom) for _ in (0, 1)]
    filled = [False, False]
    done = 0
    for count in counts.tolist():
        for start in range(done, count, ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, count))
            for images in read_images(table.select(rows), reader):
                for half in (0, 1):
                    own = half_sets[rows[images.index]] == half
                    index = rows[images.index][own]
                    if len(index):
                        pixels = images.images[own]
                        sums[half].add(pixels, ctf.select(index), rotations[index], shifts[index])
                        filled[half] = True
            on_progress(int(rows[-1]) + 1)
        done = count
        zero, one = (total.map(group=group) if any_row else None for total, any_row in zip(sums, filled, strict=True))
        yield count, (zero, one)


def _map_point(count: int, seconds: float | None, halves: Halves, in_session: Halves, truth: TruthMaps) -> MapPoint:
    pixel_size = truth.pixel_size_angstrom
    present = [volume for volume in halves if volume is not None]
    combined = np.asarray(sum(present) / np.float32(len(present)), np.float32)
    to_truth = compare_maps(combined, truth.combined, pixel_size).unmasked
    to_other = [
        compare_maps(volume, truth.halves[1 - half], pixel_size).unmasked
        for half, volume in enumerate(halves)
        if volume is not None
    ]
    worst = max(to_other, key=lambda one: one.resolution_05_angstrom)
    zero, one = in_session
    between = None if zero is None or one is None else compare_maps(zero, one, pixel_size).unmasked
    return MapPoint(
        seen=count,
        seconds=seconds,
        to_truth_05_angstrom=_known(to_truth.resolution_05_angstrom),
        to_truth_0143_angstrom=_known(to_truth.resolution_0143_angstrom),
        to_other_half_05_angstrom=_known(worst.resolution_05_angstrom),
        half_to_half_0143_angstrom=None if between is None else _known(between.resolution_0143_angstrom),
        to_truth_05_at_nyquist=to_truth.resolution_05_at_nyquist,
        to_truth_0143_at_nyquist=to_truth.resolution_0143_at_nyquist,
        to_other_half_05_at_nyquist=worst.resolution_05_at_nyquist,
        half_to_half_0143_at_nyquist=between is not None and between.resolution_0143_at_nyquist,
    )


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
