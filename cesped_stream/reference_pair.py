"""Both half-sets' references as one published checkpoint. No pickle anywhere.

The folder is named by its content, as a checkpoint of networks is: `reference_0.json`, `.mrc` and `.members`, the same
of half-set 1, and `manifest.json`, whose `kind` says what it holds.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Final, Literal, TypeVar

import numpy as np
import torch
from pydantic import Field

from cesped_stream.calibration.calibrator import Calibrator
from cesped_stream.calibration.store import Calibration, HalfCalibration
from cesped_stream.conventions import HALVES
from cesped_stream.errors import InvalidCheckpointError, PermanentError
from cesped_stream.held_out import TooFew, features_of, fit_confidence, held_out_rows, too_few
from cesped_stream.imaging.reference import Float32, Reference, reference_id, save_reference
from cesped_stream.matching import ReferenceMatcher
from cesped_stream.model.device import cpu_threads, intra_op_threads, pick_device
from cesped_stream.particles.aligned_rows import Alignment, least_independent
from cesped_stream.particles.flags import ImageFlag
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.table import ParticleTable, thinned
from cesped_stream.published import (
    MANIFEST_NAME,
    REFERENCE_KIND,
    FileRecord,
    PublishedManifest,
    package_version,
    publish_files,
    read_listing,
    read_published,
)
from cesped_stream.reconstruction.reference import reference_from_map, reference_from_rows
from cesped_stream.reference_doubts import map_doubts, rows_doubts
from cesped_stream.settings import (
    CalibrationSettings,
    Device,
    FusionSettings,
    GallerySettings,
    ReferenceSettings,
    RefinementSettings,
    TrainingSettings,
)
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations
from cesped_stream.training.rows import rows_of_half, split_by_micrograph

MAX_VALIDATION_ROWS: Final = 200
MOST_TIMES_LARGER: Final = 2.5
"""A map beside the images that it is compared with, or they beside it."""
_SCRATCH: Final = "references."
"""What folders of files that are not published yet begin with."""
_COSTS_ONLY: Final = {"batch_size", "memory_mib"}
_SUFFIXES: Final = (".json", ".mrc", ".members")

CheckpointKind = Literal["network", "reference", "fused"]
KINDS: Final[tuple[CheckpointKind, ...]] = ("network", "reference", "fused")

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MatchingSettings:
    """All that poses by a reference depend on but the reference."""

    referencing: ReferenceSettings
    gallery: GallerySettings
    refinement: RefinementSettings
    device: Device = "cpu"
    fusion: FusionSettings = field(default_factory=FusionSettings)
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)

    def answers_sha256(self, *, fused: bool = False) -> str:
        """Return the hash of the settings that references' answers, or `fused` ones, depend on.

        What only costs time or memory is no part of it, nor what only a fit depends on.
        """
        said = {
            "background_radius_angstrom": self.referencing.background_radius_angstrom,
            "gallery": self.gallery.model_dump(mode="json", exclude=_COSTS_ONLY),
            "refinement": self.refinement.model_dump(mode="json", exclude=_COSTS_ONLY),
        }
        if fused:
            said["fusion"] = self.fusion.model_dump(mode="json", include={"keep", "network_keep"})
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


class ReferenceRecord(FileRecord):
    """One half-set's reference: its description's file, what it was made of and how good poses by it are."""

    reference_id: str = ""
    num_training: int = Field(ge=0)
    """Particles in it."""
    num_left_out: int = Field(0, ge=0)
    """Aligned particles that are not in it since they agree with it no better than noise."""
    num_validation: int = Field(ge=0)
    """Aligned particles of other micrographs, which the errors are measured on."""
    resolution_angstrom: float = Field(gt=0)
    mean_error_deg: float | None = None
    median_error_deg: float | None = None


class ReferenceManifest(PublishedManifest):
    """What a checkpoint of references is: equal rows give equal bytes and an equal id."""

    manifest_kind: ClassVar[str] = REFERENCE_KIND
    id_prefix: ClassVar[str] = "ref"
    unsaid_if_empty: ClassVar[frozenset[str]] = frozenset(
        {"answers_sha256", "doubts", "initialised_from_own_predictions"}
    )

    format: Literal[1] = 1
    kind: Literal["reference"] = "reference"
    symmetry: str
    halves: dict[int, ReferenceRecord]
    files: dict[str, str] = Field(default_factory=dict)
    """sha256 of every file beside the manifest."""
    origin: str
    independence: Literal["independent", "shared_reference", "unknown"]
    trained_on: str = ""
    calibration: str = ""
    """File of what turns its answers into a confidence; empty where there is none."""
    uncalibrated: str = ""
    """Why there is none."""
    answers_sha256: str = ""
    """`MatchingSettings.answers_sha256` that confidence was fitted, and noise measured, with."""
    doubts: tuple[str, ...] = ()
    """What speaks against these references (`reference_doubts`), a sentence each; empty where nothing is known to."""
    initialised_from_own_predictions: int = Field(0, ge=0)
    """Aligned rows whose pose is a prediction of this program, or was refined from one."""
    package_version: str = Field(default_factory=package_version)


def publish_references(
    table: ParticleTable,
    reader: StackReader,
    training: TrainingSettings,
    matching: MatchingSettings,
    *,
    work_folder: Path,
    checkpoints_folder: Path,
    trained_on: str = "",
    origin: str = "aligned rows",
    labelled: ParticleTable | None = None,
    calibrate: bool = True,
    alignment: Alignment | None = None,
    on_stage: Callable[[int, str], None] = lambda half, stage: None,
) -> tuple[Path, ReferenceManifest]:
    """Make each half-set's reference of its own aligned rows and publish both as one checkpoint.

    `training` says the symmetry, the independence of the halves and which micrographs are held out: those are in no
    reference, and poses are measured on at most `MAX_VALIDATION_ROWS` of them. Confidence is fitted for each half-set's
    reference on the other one's rows (`held_out`), where they are enough; the manifest says why where they are not, or
    where these are the ones to be scored (not `calibrate`).
    `alignment` is what the rows make of the stated independence (`alignment_of_rows`); none: what `training` states.
    `labelled` are the rows whose poses may tell confidence, by default all.
    Halves are made side by side where there are threads for it, each with one intra-op thread. Started again with the
    same arguments it gives the same bytes. `on_stage` is called as a half-set's next stage begins, from either thread.
    Raises what `reference_from_rows` and reading raise.
    """
    alignment = alignment or Alignment(training.alignment)
    device, labelled = pick_device(matching.device), table if labelled is None else labelled
    made = of_both_halves(
        lambda half: _half(table, labelled, half, reader, training, matching, on_stage, calibrate=calibrate), device
    )
    references = {half: part.reference for half, part in made.items()}
    calibration, why = _calibration(made, training.symmetry)
    manifest = ReferenceManifest(
        symmetry=training.symmetry,
        halves={half: part.record for half, part in made.items()},
        origin=origin,
        independence=least_independent(training.alignment, alignment.independence),
        trained_on=trained_on,
        uncalibrated=why,
        answers_sha256=matching.answers_sha256(),
        doubts=sum((rows_doubts(references[half]) for half in HALVES), alignment.doubts),
        initialised_from_own_predictions=alignment.initialised_from_own_predictions,
    )
    return _publish(references, manifest, work_folder, checkpoints_folder, calibration)


def of_both_halves(make: Callable[[int], T], device: torch.device) -> dict[int, T]:
    """Return what `make` makes of each half-set, in two threads where the caller has them, one intra-op thread each."""

    def made(half: int) -> T:
        with intra_op_threads(1):
            return make(half)

    with ThreadPoolExecutor(min(cpu_threads(device), len(HALVES))) as pool:
        return dict(zip(HALVES, pool.map(made, HALVES), strict=True))


def publish_map(
    volume: Float32,
    pixel_size_angstrom: float,
    table: ParticleTable,
    reader: StackReader,
    training: TrainingSettings,
    matching: MatchingSettings,
    *,
    work_folder: Path,
    checkpoints_folder: Path,
    trained_on: str = "",
    on_stage: Callable[[int, str], None] = lambda half, stage: None,
) -> tuple[Path, ReferenceManifest]:
    """Publish a given map, low-passed, as both half-sets' reference: `shared_reference`, so half maps are not
    independent.

    The noise is learned for each half-set from its own rows of `table`, which need no poses and are not in the
    reference. `on_stage` is called as each begins. PermanentError where a half-set has too few usable rows, or where
    the map and the images differ so much in size that one of their pixel sizes is wrong; else what reading raises.
    """
    _check_extents(volume.shape[0] * pixel_size_angstrom, table)
    references, records = {}, {}
    doubts: tuple[str, ...] = ()
    for half in HALVES:
        given = reference_from_map(volume, pixel_size_angstrom, training.symmetry, half, matching.referencing)
        on_stage(half, "noise")
        matcher, rows = half_matcher(given, matching, half), rows_of_half(table, half)
        noise = matcher.learn_noise(rows, reader)
        references[half] = replace(given, noise=noise, of_noise=matcher.measure_noise(rows, reader))
        doubts += map_doubts(matcher, rows, reader, half)
        records[half] = ReferenceRecord(num_training=0, num_validation=0, resolution_angstrom=given.resolution_angstrom)
    manifest = ReferenceManifest(
        symmetry=training.symmetry,
        halves=records,
        uncalibrated="a given map: no aligned rows to fit confidence on",
        origin="a given map",
        independence="shared_reference",
        trained_on=trained_on,
        answers_sha256=matching.answers_sha256(),
        doubts=doubts,
    )
    return _publish(references, manifest, work_folder, checkpoints_folder)


def _check_extents(map_angstrom: float, table: ParticleTable) -> None:
    """Raise PermanentError where a map is many times as large as the images, or they as it."""
    for group in {table.optics[k] for k in table.optics_index.tolist()}:
        images = group.number("rlnImageSize", 0.0) * group.number("rlnImagePixelSize", 0.0)
        if images and not 1 / MOST_TIMES_LARGER <= map_angstrom / images <= MOST_TIMES_LARGER:
            raise PermanentError(
                f"the given map is {map_angstrom:.0f} A wide, the images of {table.source or 'the particles'} are "
                f"{images:.0f} A: is the pixel size right in the map's header and in the star? Else crop or pad the map"
            )


@dataclass(frozen=True, eq=False)
class _Half:
    reference: Reference
    record: ReferenceRecord
    calibrator: Calibrator | TooFew


def _half(
    table: ParticleTable,
    labelled: ParticleTable,
    half: int,
    reader: StackReader,
    training: TrainingSettings,
    matching: MatchingSettings,
    on_stage: Callable[[int, str], None],
    *,
    calibrate: bool,
) -> _Half:
    on_stage(half, "reference")
    rows = rows_of_half(table.select(np.flatnonzero(table.has_poses())), half)
    split = split_by_micrograph(rows.micrographs(), training.validation_fraction, training.seed)
    device = str(pick_device(matching.device))
    reference = reference_from_rows(
        rows.select(split.training), training.symmetry, matching.referencing, reader, device=device
    )
    held_out = rows.select(split.validation[thinned(len(split.validation), MAX_VALIDATION_ROWS)])
    matcher = half_matcher(reference, matching, half)
    on_stage(half, "confidence")
    reference = replace(reference, of_noise=matcher.measure_noise(rows, reader))
    errors = _errors_deg(matcher, held_out, reader, training.symmetry)
    record = ReferenceRecord(
        num_training=len(reference.members) - reference.num_left_out,
        num_left_out=reference.num_left_out,
        num_validation=len(errors),
        resolution_angstrom=reference.resolution_angstrom,
        mean_error_deg=float(errors.mean()) if len(errors) else None,
        median_error_deg=float(np.median(errors)) if len(errors) else None,
    )
    if not calibrate:
        return _Half(reference, record, TooFew("no row is held out: each half-set is scored by the other's reference"))
    others = held_out_rows(labelled, half, matching.calibration.max_particles)
    of_others = matcher.scoring(1 - half)
    calibrator = _calibrator(of_others, others, half, reader, matching.calibration)
    return _Half(reference, record, calibrator)


def _calibrator(
    matcher: ReferenceMatcher,
    others: ParticleTable,
    half: int,
    reader: StackReader,
    settings: CalibrationSettings,
) -> Calibrator | TooFew:
    few = too_few(others, half, settings)
    if few is not None:
        return few
    found = matcher.match(others, reader)
    seen = matcher.reference.members
    return fit_confidence(others, found, features_of(found), matcher, reader, seen, settings)


def _calibration(made: Mapping[int, _Half], symmetry: str) -> tuple[Calibration | None, str]:
    """Return both halves' calibration, or why there is none: a session's confidence is of one kind."""
    calibrators = {half: part.calibrator for half, part in made.items()}
    few = next((found for found in calibrators.values() if isinstance(found, TooFew)), None)
    if few is not None:
        return None, few.why
    return Calibration(
        checkpoint_id="",
        reference_ids={half: reference_id(part.reference) for half, part in made.items()},
        symmetry=symmetry,
        halves={half: HalfCalibration(calibrator=found) for half, found in calibrators.items()},
    ), ""


def _errors_deg(
    matcher: ReferenceMatcher, table: ParticleTable, reader: StackReader, symmetry: str
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    if len(table) == 0:
        return np.zeros(0)
    poses = matcher.match(table, reader)
    posed = poses.flag == ImageFlag.OK
    return angular_error_deg(table.rotations()[posed], poses.rotation[posed], group_rotations(symmetry))


def half_matcher(reference: Reference, matching: MatchingSettings, half: int) -> ReferenceMatcher:
    """Return what gives particles of half-set `half` poses by a reference."""
    return ReferenceMatcher(
        reference,
        matching.gallery,
        matching.refinement,
        scored_half=half,
        background_radius_angstrom=matching.referencing.background_radius_angstrom,
        device=pick_device(matching.device),
    )


def _publish(
    references: dict[int, Reference],
    manifest: ReferenceManifest,
    work_folder: Path,
    checkpoints_folder: Path,
    calibration: Calibration | None = None,
) -> tuple[Path, ReferenceManifest]:
    for doubt in manifest.doubts:
        logger.warning("reference in doubt: %s", doubt)
    work_folder.mkdir(parents=True, exist_ok=True)
    for left in work_folder.glob(f"{_SCRATCH}*"):  # by a publication that was killed: who holds the folder is alone
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=work_folder, prefix=_SCRATCH) as scratch:
        ids = {half: save_reference(Path(scratch), reference) for half, reference in references.items()}
        names = [f"reference_{half}{suffix}" for half in HALVES for suffix in _SUFFIXES]
        contents = {name: (Path(scratch) / name).read_bytes() for name in names}
    calibration_file = ""
    if calibration is not None:
        named = calibration.with_id()
        calibration_file, contents[named.file_name] = named.file_name, named.file_bytes()
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    halves = {
        half: record.model_copy(
            update={
                "file": f"reference_{half}.json",
                "sha256": hashes[f"reference_{half}.json"],
                "reference_id": ids[half],
            }
        )
        for half, record in manifest.halves.items()
    }
    manifest = manifest.model_copy(
        update={"halves": halves, "files": hashes, "calibration": calibration_file}
    ).with_id()
    contents[MANIFEST_NAME] = manifest.file_bytes()
    return publish_files(checkpoints_folder, manifest.checkpoint_id, contents), manifest


def checkpoint_kind(folder: Path) -> CheckpointKind:
    """Return what a checkpoint folder holds. UnreachableFileError, InvalidCheckpointError."""
    found = read_listing(folder).kind
    for kind in KINDS:
        if found == kind:
            return kind
    raise InvalidCheckpointError(f"{folder / MANIFEST_NAME}: kind {found!r}; it takes {', '.join(KINDS)}")


def read_reference_manifest(folder: Path) -> ReferenceManifest:
    """Return the manifest of a checkpoint of references; raises as `read_published` does."""
    return read_published(folder, ReferenceManifest)
