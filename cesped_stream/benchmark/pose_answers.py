"""Checkpoints of every kind made of the same aligned rows, once, and their poses of the same streamed rows."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from cesped_stream.benchmark.ways_stream import LandedRows, with_poses
from cesped_stream.conventions import HALVES
from cesped_stream.durable import write_whole
from cesped_stream.fused_pair import FusedParts, publish_fused
from cesped_stream.imaging.reference import load_reference
from cesped_stream.inference import PoseBatch
from cesped_stream.matching import MatchedPoses, ReferenceMatcher
from cesped_stream.model.device import pick_device
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.table import ParticleTable, thinned
from cesped_stream.pipeline import open_proposer
from cesped_stream.reference_pair import MatchingSettings, publish_references
from cesped_stream.refinement.matching import Refiner
from cesped_stream.settings import InferenceSettings, TrainingSettings
from cesped_stream.so3.grids import grid_step_deg
from cesped_stream.training import fit
from cesped_stream.training.half import trained_seconds

CHECKPOINTS, WORK_FOLDER = "checkpoints", "training.work"
FIRST_ROWS_PER_HALF: Final = 16
LIMIT_ROWS: Final = 1000

Float64 = NDArray[np.float64]
OnProgress = Callable[[fit.Progress], None]


class Made(BaseModel):
    """A checkpoint and what it took; kept beside it, so that it is made once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint_id: str
    seconds: float
    """Of a network: its epochs alone."""
    steps: tuple[int, int] = (0, 0)
    stopped_by: str = ""


@dataclass(frozen=True, eq=False)
class Answers:
    """Poses of the n streamed rows by one way; NaN where it gives none."""

    way: str
    rotation: Float64
    """`(n, 3, 3)`, image xyz to map xyz."""
    shift_angstrom: Float64
    """`(n, 2)` (x, y) that centre the images."""
    confidence: Float64
    """`(n,)`."""
    particles_per_second: float | None = None
    """Star rows to poses, reading included, after a first batch."""
    cpu_ms_per_particle: float | None = None
    """CPU time of all threads over the same rows. On a busy machine OpenMP's waiting threads spin and count, unless
    OMP_WAIT_POLICY is PASSIVE."""
    first_pose_seconds: float | None = None
    """From aligned rows on disk to the first poses: making the checkpoint, opening it, answering a first batch."""


@dataclass(frozen=True)
class Spent:
    """Seconds by the clock, and CPU seconds of all this process's threads."""

    wall: float
    cpu: float

    @classmethod
    def so_far(cls) -> "Spent":
        """Return what was spent up to now, from a moment in the past that stays the same."""
        return cls(time.perf_counter(), time.process_time())

    @classmethod
    def since(cls, before: "Spent") -> "Spent":
        """Return what was spent since `before`."""
        now = cls.so_far()
        return cls(now.wall - before.wall, now.cpu - before.cpu)

    def plus(self, other: "Spent") -> "Spent":
        """Return the sum."""
        return Spent(self.wall + other.wall, self.cpu + other.cpu)

    def a_particle(self, count: int) -> tuple[float, float]:
        """Return particles a second and CPU milliseconds a particle, where `count` were answered."""
        return count / self.wall, 1e3 * self.cpu / count


@dataclass(frozen=True)
class AnsweringWays:
    """Every way of making poses on one stream. Checkpoints stay in `folder`: begun again there, none is made twice."""

    rows: LandedRows
    folder: Path
    training: TrainingSettings
    inference: InferenceSettings
    matching: MatchingSettings
    network_radius_deg: float
    """Angle searched around the network's own poses, which are further off than the gallery's."""

    def make_references(self) -> Made:
        """Return the references of the aligned rows, as a session's trainer publishes them."""
        return self._made("references", self._publish_references)

    def make_fused(self, networks: Made, references: Made) -> Made:
        """Return both as one checkpoint, weights and confidence fitted on what each half's models have not seen."""
        made = self._made("fused", lambda: self._publish_fused(networks, references))
        return made.model_copy(update={"seconds": made.seconds + networks.seconds + references.seconds})

    def make_networks(self, on_progress: OnProgress, should_stop: Callable[[], bool]) -> Made:
        """Return the networks trained on the aligned rows; a training that was cut goes on. Raises TrainingStopped."""
        return self._made("networks", lambda: self._train(on_progress, should_stop))

    def of_network(self, networks: Made, references: Made) -> tuple[Answers, Answers]:
        """Return the network's answers, and its candidates refined against the references."""
        poses, first, spent = self._answered(networks)
        n = len(poses.confidence)
        alone = Answers("network", poses.rotation, poses.shift_angstrom, poses.confidence, *spent.a_particle(n), first)
        matchers, start = self._matchers(references), Spent.so_far()
        found = self._refined_candidates(poses.top_rotation, matchers)
        both = spent.plus(Spent.since(start)).a_particle(n)
        return alone, Answers("network+refinement", *found, poses.confidence, *both, first + references.seconds)

    def of_gallery(self, references: Made) -> tuple[Answers, Answers]:
        """Return the gallery's best grid poses, and the answers of gallery and refinement together."""
        poses, first, spent = self._answered(references)
        no_shift = np.full_like(poses.shift_angstrom, np.nan)
        gallery = Answers("gallery", poses.gallery_rotation, no_shift, poses.confidence)
        found = (poses.rotation, poses.shift_angstrom, poses.confidence)
        return gallery, Answers("gallery+refinement", *found, *spent.a_particle(len(poses.confidence)), first)

    def of_both(self, fused: Made) -> Answers:
        """Return the answers of network and gallery fused, then refined."""
        poses, first, spent = self._answered(fused)
        found = (poses.rotation, poses.shift_angstrom, poses.confidence)
        return Answers("network+gallery+refinement", *found, *spent.a_particle(len(poses.confidence)), first)

    def of_truth(self, references: Made) -> Answers:
        """Return what refinement makes of the true poses of at most about `LIMIT_ROWS` rows: what noise allows."""
        truth = self.rows.truth
        chosen = np.flatnonzero(self.rows.are_particles())
        chosen = chosen[thinned(len(chosen), LIMIT_ROWS)]
        rotation, shift = np.full((len(truth), 3, 3), np.nan), np.full((len(truth), 2), np.nan)
        found = _refined(truth.select(chosen), self._matchers(references))
        rotation[chosen], shift[chosen] = found.rotation, found.shift_angstrom
        return Answers("true poses+refinement", rotation, shift, np.ones(len(truth)))

    @property
    def checkpoints(self) -> Path:
        """Folder of the published checkpoints."""
        return self.folder / CHECKPOINTS

    def _made(self, what: str, make: Callable[[], Made]) -> Made:
        path = self.folder / f"{what}.json"
        if path.is_file():
            return Made.model_validate_json(path.read_bytes())
        made = make()
        write_whole(path, made.model_dump_json(indent=1).encode() + b"\n")
        return made

    def _publish_references(self) -> Made:
        start, work = time.perf_counter(), self.checkpoints / WORK_FOLDER
        with fit.sole_trainer(work):
            _, manifest = publish_references(
                self.rows.aligned,
                StackReader(),
                self.training,
                self.matching,
                work_folder=work,
                checkpoints_folder=self.checkpoints,
            )
        return Made(checkpoint_id=manifest.checkpoint_id, seconds=time.perf_counter() - start)

    def _publish_fused(self, networks: Made, references: Made) -> Made:
        start = time.perf_counter()
        parts = FusedParts(
            self.checkpoints / networks.checkpoint_id,
            self.checkpoints / references.checkpoint_id,
            self.inference,
            self.matching,
        )
        with fit.sole_trainer(self.checkpoints / WORK_FOLDER):
            _, manifest = publish_fused(self.rows.aligned, StackReader(), parts, checkpoints_folder=self.checkpoints)
        return Made(checkpoint_id=manifest.checkpoint_id, seconds=time.perf_counter() - start)

    def _train(self, on_progress: OnProgress, should_stop: Callable[[], bool]) -> Made:
        work = self.checkpoints / WORK_FOLDER
        _, manifest = fit.fit_pair(
            self.rows.aligned,
            StackReader(),
            self.training,
            self.inference,
            work_folder=work,
            checkpoints_folder=self.checkpoints,
            on_progress=on_progress,
            should_stop=should_stop,
        )
        seconds = [trained_seconds(fit.resume_file(work, half)) for half in HALVES]
        return Made(
            checkpoint_id=manifest.checkpoint_id,
            seconds=max(seconds) if fit.halves_side_by_side(self.inference) else sum(seconds),
            steps=(manifest.halves[0].steps, manifest.halves[1].steps),
            stopped_by=manifest.stopped_by,
        )

    def _answered(self, made: Made) -> tuple[PoseBatch, float, Spent]:
        """Return a checkpoint's poses of the streamed rows, seconds to the first of them, and what all took."""
        reader, rows, start = StackReader(), self.rows.streamed, time.perf_counter()
        proposer = open_proposer(self.checkpoints / made.checkpoint_id, self.inference, self.matching, "gold_standard")
        halves = rows.half_sets()
        first = np.concatenate([np.flatnonzero(halves == half)[:FIRST_ROWS_PER_HALF] for half in HALVES])
        proposer.poses(rows.select(first), reader)
        first_seconds, before = made.seconds + time.perf_counter() - start, Spent.so_far()
        return proposer.poses(rows, reader), first_seconds, Spent.since(before)

    def _refined_candidates(
        self, candidates: Float64, matchers: Mapping[int, ReferenceMatcher]
    ) -> tuple[Float64, Float64]:
        """Return rotation and shift of the likeliest of each row's candidates `(n, k, 3, 3)`, refined.

        From the image's own centre, within `network_radius_deg` first, then from there as the gallery's are.
        """
        n, streamed = len(candidates), self.rows.streamed
        rotation, shift, best = np.full((n, 3, 3), np.nan), np.full((n, 2), np.nan), np.full(n, -np.inf)
        wide = {half: self._wide_refiner(matcher) for half, matcher in matchers.items()}
        for candidate in np.moveaxis(candidates, 1, 0):
            rows = np.flatnonzero(np.isfinite(candidate).all((1, 2)))
            found = _refined(with_poses(streamed.select(rows), candidate[rows]), matchers, wide)
            better = found.log_likelihood > best[rows]
            ahead = rows[better]
            best[ahead] = found.log_likelihood[better]
            rotation[ahead], shift[ahead] = found.rotation[better], found.shift_angstrom[better]
        rows = np.flatnonzero(np.isfinite(best))
        found = _refined(with_poses(streamed.select(rows), rotation[rows], shift[rows]), matchers)
        rotation[rows], shift[rows] = found.rotation, found.shift_angstrom
        return rotation, shift

    def _wide_refiner(self, matcher: ReferenceMatcher) -> Refiner:
        searched = {"radius_deg": self.network_radius_deg, "shift_range_angstrom": matcher.gallery.shift_range_angstrom}
        return Refiner(
            matcher.reference,
            self.matching.refinement.model_copy(update=searched),
            proposal_step_deg=grid_step_deg(self.matching.gallery.grid_order),
            proposal_shift_step_angstrom=matcher.gallery.shift_step_angstrom,
            device=pick_device(self.matching.device),
        )

    def _matchers(self, references: Made) -> dict[int, ReferenceMatcher]:
        folder, matching = self.checkpoints / references.checkpoint_id, self.matching
        return {
            half: ReferenceMatcher(
                load_reference(folder, half),
                matching.gallery,
                matching.refinement,
                scored_half=half,
                background_radius_angstrom=matching.referencing.background_radius_angstrom,
                device=pick_device(matching.device),
            )
            for half in HALVES
        }


def _refined(
    rows: ParticleTable, matchers: Mapping[int, ReferenceMatcher], refiners: Mapping[int, Refiner] | None = None
) -> MatchedPoses:
    """Return the rows' own poses refined, each half-set's against its own reference; by other `refiners` if given."""
    poses, half_sets, reader = MatchedPoses.empty(len(rows), 1), rows.half_sets(), StackReader()
    for half, matcher in matchers.items():
        index = np.flatnonzero(half_sets == half)
        if len(index):
            usual = matcher.refiner
            matcher.refiner = refiners[half] if refiners else usual
            found = matcher.refine(rows.select(index), reader)
            matcher.refiner = usual
            poses.rotation[index], poses.shift_angstrom[index] = found.rotation, found.shift_angstrom
            poses.log_likelihood[index] = found.log_likelihood
    return poses
