"""Both half-sets' references as one published checkpoint, and poses by them. No pickle anywhere.

The folder is named by its content, as a checkpoint of networks is: `reference_0.json`, `.mrc` and `.members`, the same
of half-set 1, and `manifest.json`, whose `kind` says what it holds.
"""

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final, Literal

import numpy as np
from pydantic import Field

from cesped_stream.conventions import HALVES
from cesped_stream.errors import InvalidCheckpointError
from cesped_stream.imaging.reference import Float32, Reference, load_reference, save_reference
from cesped_stream.inference import PoseBatch
from cesped_stream.matching import MatchedPoses, ReferenceMatcher
from cesped_stream.model.checkpoint import HalfMode
from cesped_stream.model.device import pick_device
from cesped_stream.particles.flags import Clipped, ImageFlag
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.table import Int64, ParticleTable
from cesped_stream.published import (
    MANIFEST_NAME,
    FileRecord,
    PublishedManifest,
    check_files,
    package_version,
    publish_files,
    read_listing,
    read_published,
)
from cesped_stream.reconstruction.reference import reference_from_map, reference_from_rows
from cesped_stream.settings import Device, GallerySettings, ReferenceSettings, RefinementSettings, TrainingSettings
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations
from cesped_stream.training.rows import rows_of_half, split_by_micrograph

PROPOSER: Final = "gallery+refinement"
ROWS_AT_ONCE: Final = 512
MAX_VALIDATION_ROWS: Final = 200
_SUFFIXES: Final = (".json", ".mrc", ".members")

CheckpointKind = Literal["network", "reference"]


@dataclass(frozen=True)
class MatchingSettings:
    """All that poses by a reference depend on but the reference."""

    referencing: ReferenceSettings
    gallery: GallerySettings
    refinement: RefinementSettings
    device: Device = "cpu"


class ReferenceRecord(FileRecord):
    """One half-set's reference: its description's file, what it was made of and how good poses by it are."""

    reference_id: str = ""
    num_training: int = Field(ge=0)
    """Particles in it."""
    num_validation: int = Field(ge=0)
    """Aligned particles of other micrographs, which the errors are measured on."""
    resolution_angstrom: float = Field(gt=0)
    mean_error_deg: float | None = None
    median_error_deg: float | None = None


class ReferenceManifest(PublishedManifest):
    """What a checkpoint of references is: equal rows give equal bytes and an equal id."""

    manifest_kind: ClassVar[str] = "reference"
    id_prefix: ClassVar[str] = "ref"

    format: Literal[1] = 1
    kind: Literal["reference"] = "reference"
    symmetry: str
    halves: dict[int, ReferenceRecord]
    files: dict[str, str] = Field(default_factory=dict)
    """sha256 of every file beside the manifest."""
    origin: str
    independence: Literal["independent", "shared_reference", "unknown"]
    trained_on: str = ""
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
    on_half: Callable[[int], None] = lambda half: None,
) -> tuple[Path, ReferenceManifest]:
    """Make each half-set's reference of its own aligned rows and publish both as one checkpoint.

    `training` says the symmetry, the independence of the halves and which micrographs are held out: those are in no
    reference, and poses are measured on at most `MAX_VALIDATION_ROWS` of them. Started again with the same arguments it
    gives the same bytes. `on_half` is called after each. Raises what `reference_from_rows` and reading raise.
    """
    references, records = {}, {}
    for half in HALVES:
        references[half], records[half] = _half(table, half, reader, training, matching)
        on_half(half)
    manifest = ReferenceManifest(
        symmetry=training.symmetry,
        halves=records,
        origin="aligned rows",
        independence=training.alignment,
        trained_on=trained_on,
    )
    return _publish(references, manifest, work_folder, checkpoints_folder)


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
) -> tuple[Path, ReferenceManifest]:
    """Publish a given map, low-passed, as both half-sets' reference: `shared_reference`, so half maps are not
    independent.

    The noise is learned for each half-set from its own rows of `table`, which need no poses and are not in the
    reference. PermanentError where a half-set has too few usable rows; else what reading raises.
    """
    references, records = {}, {}
    for half in HALVES:
        given = reference_from_map(volume, pixel_size_angstrom, training.symmetry, half, matching.referencing)
        noise = _matcher(given, matching, half).learn_noise(rows_of_half(table, half), reader)
        references[half] = replace(given, noise=noise)
        records[half] = ReferenceRecord(num_training=0, num_validation=0, resolution_angstrom=given.resolution_angstrom)
    manifest = ReferenceManifest(
        symmetry=training.symmetry,
        halves=records,
        origin="a given map",
        independence="shared_reference",
        trained_on=trained_on,
    )
    return _publish(references, manifest, work_folder, checkpoints_folder)


def _half(
    table: ParticleTable, half: int, reader: StackReader, training: TrainingSettings, matching: MatchingSettings
) -> tuple[Reference, ReferenceRecord]:
    rows = rows_of_half(table.select(np.flatnonzero(table.has_poses())), half)
    split = split_by_micrograph(rows.micrographs(), training.validation_fraction, training.seed)
    device = str(pick_device(matching.device))
    reference = reference_from_rows(
        rows.select(split.training), training.symmetry, matching.referencing, reader, device=device
    )
    held_out = rows.select(split.validation[:: -(-len(split.validation) // MAX_VALIDATION_ROWS) or 1])
    errors = _errors_deg(_matcher(reference, matching, half), held_out, reader, training.symmetry)
    record = ReferenceRecord(
        num_training=len(reference.members),
        num_validation=len(errors),
        resolution_angstrom=reference.resolution_angstrom,
        mean_error_deg=float(errors.mean()) if len(errors) else None,
        median_error_deg=float(np.median(errors)) if len(errors) else None,
    )
    return reference, record


def _errors_deg(
    matcher: ReferenceMatcher, table: ParticleTable, reader: StackReader, symmetry: str
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    if len(table) == 0:
        return np.zeros(0)
    poses = matcher.match(table, reader)
    posed = poses.flag == ImageFlag.OK
    return angular_error_deg(table.rotations()[posed], poses.rotation[posed], group_rotations(symmetry))


def _matcher(reference: Reference, matching: MatchingSettings, half: int) -> ReferenceMatcher:
    return ReferenceMatcher(
        reference,
        matching.gallery,
        matching.refinement,
        scored_half=half,
        background_radius_angstrom=matching.referencing.background_radius_angstrom,
        device=pick_device(matching.device),
    )


def _publish(
    references: dict[int, Reference], manifest: ReferenceManifest, work_folder: Path, checkpoints_folder: Path
) -> tuple[Path, ReferenceManifest]:
    work_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work_folder, prefix="references.") as scratch:
        ids = {half: save_reference(Path(scratch), reference) for half, reference in references.items()}
        names = [f"reference_{half}{suffix}" for half in HALVES for suffix in _SUFFIXES]
        contents = {name: (Path(scratch) / name).read_bytes() for name in names}
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
    manifest = manifest.model_copy(update={"halves": halves, "files": hashes}).with_id()
    contents[MANIFEST_NAME] = manifest.file_bytes()
    return publish_files(checkpoints_folder, manifest.checkpoint_id, contents), manifest


def checkpoint_kind(folder: Path) -> CheckpointKind:
    """Return what a checkpoint folder holds: networks or references. UnreachableFileError, InvalidCheckpointError."""
    kind = read_listing(folder).kind
    if kind not in ("network", "reference"):
        raise InvalidCheckpointError(f"{folder / MANIFEST_NAME}: kind {kind!r}; it takes network and reference")
    return "reference" if kind == "reference" else "network"


def read_reference_manifest(folder: Path) -> ReferenceManifest:
    """Return the manifest of a checkpoint of references; raises as `read_published` does."""
    return read_published(folder, ReferenceManifest)


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
        self._matching = matching
        self._half_mode = half_mode
        self._matchers: dict[int, ReferenceMatcher] = {}

    def poses(self, table: ParticleTable, reader: StackReader) -> PoseBatch:
        """Return the poses of a table's rows, in their order, each by the reference that its half-set may see.

        Rows whose image is unusable (`ImageFlag`) get that flag, their digest and no pose. PermanentError where a row
        is in the reference that would score it; else what reading raises.
        """
        return self._by_halves(table, self._matching.gallery.num_modes, lambda own, rows: own.match(rows, reader))

    def refined(self, table: ParticleTable, reader: StackReader) -> PoseBatch:
        """Return the poses that refinement alone makes of the rows' own poses: of true ones, the limit of the noise."""
        return self._by_halves(table, 1, lambda own, rows: own.refine(rows, reader))

    def _by_halves(
        self, table: ParticleTable, candidates: int, find: Callable[[ReferenceMatcher, ParticleTable], MatchedPoses]
    ) -> PoseBatch:
        poses = PoseBatch.empty(len(table), candidates)
        half_sets = table.half_sets()
        for half in HALVES:
            index = np.flatnonzero(half_sets == half)
            if len(index):
                poses.put(index, _pose_batch(find(self._of_half(half), table.select(index))))
        return poses

    def _of_half(self, half: int) -> ReferenceMatcher:
        if half not in self._matchers:
            source = half if self._half_mode == "gold_standard" else 1 - half
            self._matchers[half] = _matcher(self._references[source], self._matching, half)
        return self._matchers[half]


def _pose_batch(found: MatchedPoses) -> PoseBatch:
    chosen: Int64 = found.proposal.clip(0)
    weight = found.gallery_weight.clip(0, 1)  # a float32 sum may be a few 1e-6 above 1
    return replace(
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
