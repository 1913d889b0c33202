"""Replay: an entry's particles land as star/mrcs batches at a given rate, as if from a microscope.

Files only; no role is started here. The first batch is aligned (keeps its poses), the later ones are not.
What the stream does not tell stands in a folder outside the landing folder: `truth.star`, keyed by landed image, and
`realism.json`, what was added to the entry, where something was.
"""

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from urllib.parse import unquote

import numpy as np

from cesped_stream.benchmark.plan import BatchRole, PlannedBatch, PlannedStack, ReplayPlan, tells_pose
from cesped_stream.benchmark.replay_settings import ReplaySettings
from cesped_stream.durable import write_whole
from cesped_stream.errors import InvalidSettingsError, InvalidStarError
from cesped_stream.imaging.junk import REALISM_NAME
from cesped_stream.particles.stacks import (
    STACK_LABEL,
    StackReader,
    parse_image_name,
    read_header,
    read_images,
    write_stack,
)
from cesped_stream.particles.star import star_bytes, write_star
from cesped_stream.particles.table import ParticleTable

TRUTH_NAME = "truth.star"
LOG_NAME = "replay.jsonl"
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Landed:
    """Progress: one batch is complete on disk."""

    batch: str
    role: BatchRole
    num_rows: int
    seconds: float
    """Since the replay began."""


def replay(
    plan: ReplayPlan,
    landing: Path,
    truth: Path,
    settings: ReplaySettings,
    *,
    on_landed: Callable[[Landed], None] = lambda landed: None,
    stop: Event | None = None,
    now: Callable[[], float] = time.monotonic,
    wait: Callable[[float], object] | None = None,
) -> None:
    """Write the plan's files into `landing` under their final names and growing, as acquisition software does.

    The aligned batch lands at once; a streamed batch's stack grows over the time that `rate` gives it, and its
    star follows (or leads: `star_first`). `truth` gets truth.star first and a line of replay.jsonl after each
    batch's last byte. Returns early, between two pieces, once `stop` is set. Raises InvalidSettingsError where
    `truth` lies inside `landing` or a file that would land exists.
    """
    stop = stop or Event()
    _check_folders(plan, landing, truth)
    write_star(truth / TRUTH_NAME, plan.truth())
    if plan.realism is not None:
        write_whole(truth / REALISM_NAME, json.dumps(plan.realism, indent=1).encode() + b"\n")
    writer = _Writer(plan, landing, truth, settings, now, wait or stop.wait, stop)
    with (truth / LOG_NAME).open("w") as log:
        for batch in plan.batches:
            writer.land(batch)
            if stop.is_set():
                return
            landed = Landed(batch.name, batch.role, batch.num_rows, writer.seconds())
            log.write(json.dumps(_log_line(landed, now())) + "\n")
            log.flush()
            on_landed(landed)


def restore_truth(exported: ParticleTable, truth: ParticleTable) -> ParticleTable:
    """Return the exported rows with every pose column of `truth` put back, matched by image name.

    Pose columns that only the export has are dropped. Raises InvalidStarError for a row that never landed.
    """
    place = {parse_image_name(name): k for k, name in enumerate(truth.column("rlnImageName"))}
    index = []
    for name in exported.column("rlnImageName"):
        key = parse_image_name(name)
        if key not in place:
            raise InvalidStarError(f"{exported.source or 'export'}: {name} is not in the truth; did it land here?")
        index.append(place[key])
    known = truth.select(index)
    labels = [label for label in truth.labels if tells_pose(label)]
    stale = [label for label in exported.labels if tells_pose(label) and label not in labels]
    return exported.without(stale).with_columns({label: known.column(label) for label in labels})


def _check_folders(plan: ReplayPlan, landing: Path, truth: Path) -> None:
    if truth.resolve().is_relative_to(landing.resolve()):
        raise InvalidSettingsError(f"truth folder {truth} lies in the landing folder {landing}; put it outside")
    landing.mkdir(parents=True, exist_ok=True)
    truth.mkdir(parents=True, exist_ok=True)
    names = [name for batch in plan.batches for name in (batch.star_name, *(s.name for s in batch.stacks))]
    for name in names:
        if (landing / name).exists():
            raise InvalidSettingsError(f"{landing / name} exists; replay into an empty landing folder")


def _log_line(landed: Landed, monotonic_seconds: float) -> dict[str, object]:
    return {
        "batch": landed.batch,
        "role": str(landed.role),
        "rows": landed.num_rows,
        "seconds": landed.seconds,
        "monotonic_seconds": monotonic_seconds,
        "unix_seconds": time.time(),
    }


def _mode_of_edited(mode: int) -> int:
    """Edited images do not fit whole numbers."""
    return mode if mode in (2, 12) else 2


@dataclass
class _Writer:
    """Writes on a schedule: each streamed batch has rows/rate seconds, from the end of the one before."""

    plan: ReplayPlan
    landing: Path
    truth: Path
    settings: ReplaySettings
    now: Callable[[], float]
    wait: Callable[[float], object]
    stop: Event

    def __post_init__(self) -> None:
        self._start = self.now()
        self._due = 0.0
        self._reader = StackReader()

    def seconds(self) -> float:
        return self.now() - self._start

    def land(self, batch: PlannedBatch) -> None:
        star = star_bytes(self.plan.landed_rows(batch))
        if self.settings.star_first:
            (self.landing / batch.star_name).write_bytes(star)
        if batch.role is BatchRole.ALIGNED:
            self._due = self.seconds()
        for stack in batch.stacks:
            self._grow(stack, paced=batch.role is BatchRole.STREAMED and self.settings.rate > 0)
        if self.stop.is_set():
            return
        if not self.settings.star_first:
            (self.landing / batch.star_name).write_bytes(star)
        if batch.role is BatchRole.ALIGNED:
            self._due = self.seconds()
            if self.settings.done_markers:
                (self.landing / f"{batch.star_name}.done").touch()

    def _grow(self, stack: PlannedStack, *, paced: bool) -> None:
        """Write a stack's bytes in order, spread over its share of the schedule."""
        duration = len(stack.rows) / self.settings.rate if paced else 0.0
        begin, self._due = self._due, self._due + duration
        with (self.landing / stack.name).open("wb") as stream:
            for piece, share in self._pieces(stack):
                if self.stop.is_set():
                    return
                stream.write(piece)
                stream.flush()
                if (ahead := begin + share * duration - self.seconds()) > 0:
                    self.wait(ahead)

    def _pieces(self, stack: PlannedStack) -> Iterator[tuple[bytes, float]]:
        """Yield the stack file's bytes in pieces, each with the share of the file that is written with it."""
        table = self.plan.source.select(stack.rows)
        staging = self.truth / f".{stack.name}"
        mode = read_header(Path(unquote(table.column(STACK_LABEL)[0]))).mode
        (images,) = read_images(table, self._reader)
        pixels = images.images
        if self.plan.images is not None:
            pixels, mode = self.plan.images(stack.rows, pixels), _mode_of_edited(mode)
        write_stack(staging, pixels, float(table.pixel_sizes_angstrom()[0]), mode=mode)
        data = staging.read_bytes()
        staging.unlink()
        num_pieces = min(len(stack.rows), math.ceil(len(data) / _PIECE_BYTES))
        cuts = np.linspace(0, len(data), num_pieces + 1).astype(int)
        for first, last in itertools.pairwise(cuts):
            yield data[first:last], last / len(data)
