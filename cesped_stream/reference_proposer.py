"""Poses by both references of a published checkpoint: gallery, then refinement of its modes, then confidence."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from cesped_stream.calibration.calibrator import Calibrator
from cesped_stream.calibration.store import Calibration, load_calibration
from cesped_stream.conventions import HALVES
from cesped_stream.held_out import features_of, optics_names
from cesped_stream.imaging.reference import load_reference
from cesped_stream.inference import PoseBatch
from cesped_stream.matching import Float64, MatchedPoses, ReferenceMatcher
from cesped_stream.model.checkpoint import HalfMode
from cesped_stream.model.device import cpu_threads, intra_op_threads, pick_device
from cesped_stream.particles.flags import Clipped, ImageFlag
from cesped_stream.particles.reference_members import ReferenceMembers
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.table import Int64, ParticleTable
from cesped_stream.published import check_files
from cesped_stream.reference_pair import MatchingSettings, half_matcher, read_reference_manifest

logger = logging.getLogger(__name__)

FindPoses = Callable[[ParticleTable], PoseBatch]

PROPOSER: Final = "gallery+refinement"
ROWS_AT_ONCE: Final = 512
PARTS_EACH: Final = 2
"""Parts of the rows for each thread, so that none waits long for the last."""
MOST_THREADS: Final = 16
"""Each holds `gallery.memory_mib` and `refinement.memory_mib` of its own."""


class ReferenceProposer:
    """Both references of a checkpoint, ready to give poses with shifts: gallery, then refinement of its modes.

    A particle's bits depend on no other particle; they do depend on the device and the version of torch.
    """

    proposer: Final = PROPOSER
    rows_at_once: Final = ROWS_AT_ONCE

    def __init__(self, folder: Path, matching: MatchingSettings, half_mode: HalfMode = "gold_standard") -> None:
        self.manifest = read_reference_manifest(folder)
        self.checkpoint_id = self.manifest.checkpoint_id
        check_files(folder, self.manifest.files.items())
        self._references = {half: load_reference(folder, half) for half in HALVES}
        other = self._published_otherwise(matching)
        self.measured_so = not other
        """Whether noise was measured, and confidence fitted, as it is done now; else neither is told."""
        if other:
            logger.warning(
                "references were published %s: confidence is a mass and the fit above noise unknown",
                other,
                extra={"checkpoint": self.checkpoint_id},
            )
            self._references = {half: replace(found, of_noise=None) for half, found in self._references.items()}
        self._matching = matching
        self._half_mode = half_mode
        self._matchers: dict[int, ReferenceMatcher] = {}
        self._calibration: Calibration | None = None
        if self.manifest.calibration and self.measured_so:
            file, symmetry = folder / self.manifest.calibration, self.manifest.symmetry
            self._calibration = load_calibration(file, checkpoint_id="", symmetry=symmetry)

    def _published_otherwise(self, matching: MatchingSettings) -> str:
        """What was other than now when noise was measured; empty where nothing was."""
        if self.manifest.answers_sha256 != matching.answers_sha256():
            return "with other settings of gallery or refinement"
        if any(found.of_noise and not found.of_noise.hardest for found in self._references.values()):
            return "by a version that measured noise for the aligned rows' CTFs alone (make them anew to have both)"
        return ""

    def poses(self, table: ParticleTable, reader: StackReader) -> PoseBatch:
        """Return the poses of a table's rows, in their order, each by the reference that its half-set may see.

        Rows whose image is unusable (`ImageFlag`) get that flag, their digest and no pose. PermanentError where a row
        is in the reference that would score it; else what reading raises.
        """

        def of_half(half: int) -> FindPoses:
            matcher, calibrator = self.matcher(half), None
            if self._calibration is not None:
                calibrator = self._calibration.for_half(half, self._half_mode).calibrator

            def find(rows: ParticleTable) -> PoseBatch:
                found = matcher.match(rows, reader)
                return with_confidence(pose_batch(found), features_of(found), optics_names(rows), calibrator)

            return find

        return by_halves(table, of_half, self._matching, rows_each=self._matching.gallery.batch_size)

    def refined(self, table: ParticleTable, reader: StackReader) -> PoseBatch:
        """Return the poses that refinement alone makes of the rows' own poses: of true ones, the limit of the noise.

        Rows that are in the reference are left out: `ImageFlag.IN_REFERENCE`.
        """
        members = ReferenceMembers(tuple(self._references[half].members for half in HALVES))
        outside = np.flatnonzero(~members.among(table, self._half_mode))
        poses = PoseBatch.empty(len(table), 1)
        poses.flag[:] = ImageFlag.IN_REFERENCE

        def of_half(half: int) -> FindPoses:
            matcher = self.matcher(half)
            return lambda rows: pose_batch(matcher.refine(rows, reader))

        rows_each = self._matching.refinement.batch_size
        poses.put(outside, by_halves(table.select(outside), of_half, self._matching, candidates=1, rows_each=rows_each))
        return poses

    def matcher(self, half: int) -> ReferenceMatcher:
        """Return what gives the particles of a half-set their poses."""
        if half not in self._matchers:
            source = half if self._half_mode == "gold_standard" else 1 - half
            matcher = half_matcher(self._references[source], self._matching, half)
            self._matchers[half] = matcher
        return self._matchers[half]


def by_halves(
    table: ParticleTable,
    of_half: Callable[[int], FindPoses],
    matching: MatchingSettings,
    *,
    rows_each: int,
    candidates: int | None = None,
) -> PoseBatch:
    """Return the poses of a table's rows, in their order, from what `of_half` returns to find a half-set's with.

    With several threads each takes rows of its own, on one core: a batch is too small to be shared among cores. What
    they take are multiples of `rows_each`, to which is padded, but for a half-set's last ones. `of_half` is called
    before they start. `candidates` is by default `gallery.num_modes`.
    """
    poses = PoseBatch.empty(len(table), candidates or matching.gallery.num_modes)
    threads = min(cpu_threads(pick_device(matching.device)), MOST_THREADS)
    size = len(table) if threads == 1 else rows_each * -(-len(table) // (PARTS_EACH * threads * rows_each))
    half_sets = table.half_sets()
    parts: list[tuple[FindPoses, Int64]] = []
    for half in np.unique(half_sets).tolist():
        find, index = of_half(half), np.flatnonzero(half_sets == half)
        parts += [(find, index[start : start + size]) for start in range(0, len(index), size)]

    def put(part: tuple[FindPoses, Int64]) -> None:
        find, rows = part
        poses.put(rows, find(table.select(rows)))

    if threads == 1:
        for part in parts:
            put(part)
        return poses
    with intra_op_threads(1), ThreadPoolExecutor(threads) as pool:
        list(pool.map(put, parts))  # the list raises what a thread raised
    return poses


def with_confidence(
    poses: PoseBatch, features: Mapping[str, Float64], optics: Sequence[str], calibrator: Calibrator | None
) -> PoseBatch:
    """Return the poses with a calibrated confidence, where there is a calibrator and all that it needs is known."""
    if calibrator is None:
        return poses
    confidence = calibrator.confidence(features, optics, half_set=calibrator.half_set)
    known = np.isfinite(confidence)
    return replace(poses, confidence=np.where(known, confidence, poses.confidence), calibrated=known)


def pose_batch(found: MatchedPoses) -> PoseBatch:
    """Return poses by a reference as the batch that proposers give; confidence is the mass of the proposal refined."""
    chosen: Int64 = found.proposal.clip(0)
    weight = found.gallery_weight.clip(0, 1)  # a float32 sum may be a few 1e-6 above 1
    poses = replace(
        PoseBatch.empty(len(found), weight.shape[1]),
        rotation=found.rotation,
        confidence=weight[np.arange(len(found)), chosen],
        top_rotation=found.gallery_rotation,
        top_probability=weight,
        flag=found.flag,
        digest=found.digest,
        shift_angstrom=found.shift_angstrom,
        above_noise=found.above_noise,
        gallery_rotation=found.gallery_rotation[:, 0],
        clipped=found.angle_clipped * np.uint8(Clipped.ANGLE) | found.shift_clipped * np.uint8(Clipped.SHIFT),
    )
    return poses.without_failed()
