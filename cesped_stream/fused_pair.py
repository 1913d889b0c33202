"""Networks and references of both half-sets as one published checkpoint, and poses by both together.

The folder holds `network/` and `references/`, each a published checkpoint as it is, `cal-<hash>.json` with what was
fitted on held-out particles, and `manifest.json`. Files are links to those of the two checkpoints where links can be.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final, Literal

import numpy as np
from pydantic import Field

from cesped_stream.calibration.answers import Proposer
from cesped_stream.calibration.calibrator import Calibrator
from cesped_stream.calibration.fusion_fit import FusionFit, fit_fusion
from cesped_stream.calibration.store import Calibration, HalfCalibration, load_calibration
from cesped_stream.errors import InvalidCheckpointError
from cesped_stream.fused import FusedMatcher, FusedPoses
from cesped_stream.held_out import (
    ONE_FRAME,
    TooFew,
    errors_deg,
    evenly,
    features_of,
    fit_confidence,
    held_out_rows,
    optics_names,
)
from cesped_stream.imaging.reference import UInt64
from cesped_stream.inference import PoseBatch, Predictor
from cesped_stream.matching import Float64
from cesped_stream.model.checkpoint import HalfMode
from cesped_stream.particles.aligned_rows import least_independent
from cesped_stream.particles.identities import particle_digests
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.table import ParticleTable
from cesped_stream.published import (
    MANIFEST_NAME,
    FileRecord,
    PublishedManifest,
    check_files,
    package_version,
    publish_files,
    read_published,
)
from cesped_stream.reference_pair import MatchingSettings, of_both_halves
from cesped_stream.reference_proposer import (
    ROWS_AT_ONCE,
    FindPoses,
    ReferenceProposer,
    by_halves,
    pose_batch,
    with_confidence,
)
from cesped_stream.settings import InferenceSettings

logger = logging.getLogger(__name__)

PROPOSER: Final = "network+gallery+refinement"
NETWORK_FOLDER: Final = "network"
REFERENCES_FOLDER: Final = "references"


class FusedRecord(FileRecord):
    """What one half-set's models reach together on aligned particles that they have not seen."""

    num_training: int = Field(ge=0)
    """Particles in its reference."""
    num_left_out: int = Field(0, ge=0)
    """Aligned particles that are not in it since they agree with it no better than noise."""
    num_validation: int = Field(ge=0)
    """Held-out particles: of the other half-set."""
    resolution_angstrom: float = Field(gt=0)
    """Of its reference."""
    network_weight: float | None = None
    """What its logarithms count; None where no weights were fitted: the gallery's answer stands."""
    gallery_weight: float | None = None
    network_adds: float | None = None
    """By how much the mean natural logarithm of the mass near the true pose grows from the gallery alone to both."""
    network_median_error_deg: float | None = None
    gallery_median_error_deg: float | None = None
    """Of its best grid rotation."""
    mean_error_deg: float | None = None
    median_error_deg: float | None = None
    """Of the refined poses."""


class FusedManifest(PublishedManifest):
    """What a checkpoint of networks and references together is: equal ones of equal rows give equal bytes."""

    manifest_kind: ClassVar[str] = "fused"
    id_prefix: ClassVar[str] = "fus"
    unsaid_if_empty: ClassVar[frozenset[str]] = frozenset(
        {"answers_sha256", "doubts", "initialised_from_own_predictions"}
    )

    format: Literal[1] = 1
    kind: Literal["fused"] = "fused"
    symmetry: str
    halves: dict[int, FusedRecord]
    files: dict[str, str] = Field(default_factory=dict)
    """sha256 of every file beside the manifest."""
    network_id: str
    references_id: str
    origin: str
    """Of the networks' weights."""
    independence: Literal["independent", "shared_reference", "unknown"]
    trained_on: str = ""
    calibration: str
    """File of fusion weights and confidence."""
    uncalibrated: str = ""
    """Why there are no weights, or no confidence."""
    answers_sha256: str = ""
    """`MatchingSettings.answers_sha256`, fused, that confidence was fitted with."""
    doubts: tuple[str, ...] = ()
    """What speaks against the networks or the references, a sentence each."""
    initialised_from_own_predictions: int = Field(0, ge=0)
    """Aligned rows whose pose is a prediction of this program, or was refined from one."""
    package_version: str = Field(default_factory=package_version)


@dataclass(frozen=True)
class FusedParts:
    """Published checkpoints of networks and of references that belong together, with the settings to run them."""

    networks: Path
    references: Path
    inference: InferenceSettings
    matching: MatchingSettings


@dataclass(frozen=True, eq=False)
class _Half:
    record: FusedRecord
    fit: FusionFit | TooFew
    calibrator: Calibrator | TooFew


def publish_fused(
    table: ParticleTable,
    reader: StackReader,
    parts: FusedParts,
    *,
    checkpoints_folder: Path,
    trained_on: str = "",
    on_stage: Callable[[int, str], None] = lambda half, stage: None,
) -> tuple[Path, FusedManifest]:
    """Fit how much each proposer counts and how sure their pose is, and publish both checkpoints with it as one.

    `table` holds the aligned rows that both were made of: of each half-set's models the other half-set's rows are held
    out. Where these are too few, or disagree with the reference, the gallery's answer stands, or confidence ranks
    only, and the manifest says so.
    Halves and `on_stage` as with `publish_references`. Raises InvalidCheckpointError where the two do not go
    together, else what loading, matching and reading raise.
    """
    predictor = Predictor(parts.networks, parts.inference)
    references = ReferenceProposer(parts.references, parts.matching)
    network, reference = predictor.manifest, references.manifest
    if network.symmetry != reference.symmetry:
        raise InvalidCheckpointError(
            f"{parts.networks} is for {network.symmetry}, {parts.references} for {reference.symmetry}; make both of "
            "the same rows"
        )
    made = of_both_halves(
        lambda half: _half(table, half, reader, predictor, references, parts.matching, on_stage), predictor.device
    )
    calibration = Calibration(
        checkpoint_id=network.checkpoint_id,
        reference_ids={half: record.reference_id for half, record in reference.halves.items()},
        symmetry=network.symmetry,
        halves=_calibrations(made),
    ).with_id()
    why = [found.why for part in made.values() for found in (part.fit, part.calibrator) if isinstance(found, TooFew)]
    manifest = FusedManifest(
        symmetry=network.symmetry,
        halves={half: part.record for half, part in made.items()},
        network_id=network.checkpoint_id,
        references_id=reference.checkpoint_id,
        origin=network.origin,
        independence=least_independent(network.independence, reference.independence),
        initialised_from_own_predictions=max(
            network.initialised_from_own_predictions, reference.initialised_from_own_predictions
        ),
        trained_on=trained_on,
        calibration=calibration.file_name,
        uncalibrated="; ".join(why),
        answers_sha256=parts.matching.answers_sha256(fused=True),
        doubts=tuple(dict.fromkeys((*network.doubts, *reference.doubts))),
    )
    return _publish(manifest, parts, calibration, checkpoints_folder)


def _half(
    table: ParticleTable,
    half: int,
    reader: StackReader,
    predictor: Predictor,
    references: ReferenceProposer,
    matching: MatchingSettings,
    on_stage: Callable[[int, str], None],
) -> _Half:
    on_stage(half, "weights")
    rows = held_out_rows(table, half, matching.calibration.max_fused_particles)
    matcher = references.matcher(half).scoring(1 - half)
    both = FusedMatcher(matcher, predictor, half, matching.fusion, None)
    fit = _fit(rows, half, reader, both, matching)
    both.fit = fit if isinstance(fit, FusionFit) else None
    on_stage(half, "confidence")
    found = both.match(rows, reader)
    own = table.select(np.flatnonzero(table.half_sets() == half))
    seen: UInt64 = np.union1d(matcher.reference.members, particle_digests(own))
    features = features_of(found.matched, found.apart_deg)
    calibrator = fit_confidence(rows, found.matched, features, matcher, reader, seen, matching.calibration)
    return _Half(_record(rows, found, both, references.manifest.symmetry), fit, calibrator)


def _fit(
    rows: ParticleTable, half: int, reader: StackReader, both: FusedMatcher, matching: MatchingSettings
) -> FusionFit | TooFew:
    settings = matching.fusion
    few = evenly(rows, settings.max_particles)
    used, proposers = both.distributions(few, reader)
    if len(used) < settings.min_particles:
        return TooFew(
            f"half-set {half}: {len(used)} held-out particles; fusion weights need {settings.min_particles} "
            "(fusion.min_particles), so the gallery's answer stands"
        )
    said = {str(name): distribution for name, distribution in proposers.items()}
    fit = fit_fusion(said, few.rotations()[used], both.matcher.reference.symmetry, settings)
    if fit.disagrees(Proposer.GALLERY):
        return TooFew(
            f"half-set {half}: held-out particles disagree with the reference, so the gallery's answer stands: "
            f"{ONE_FRAME}"
        )
    return fit


def _record(rows: ParticleTable, found: FusedPoses, both: FusedMatcher, symmetry: str) -> FusedRecord:
    reference, fit = both.matcher.reference, both.fit
    refined, network, gallery = (
        errors[np.isfinite(errors)]
        for errors in (
            errors_deg(rows, rotations, symmetry)
            for rotations in (found.matched.rotation, found.network_rotation, found.gallery_rotation)
        )
    )
    return FusedRecord(
        num_training=len(reference.members) - reference.num_left_out,
        num_left_out=reference.num_left_out,
        num_validation=len(refined),
        resolution_angstrom=reference.resolution_angstrom,
        network_weight=fit.weights[Proposer.NETWORK] if fit else None,
        gallery_weight=fit.weights[Proposer.GALLERY] if fit else None,
        network_adds=fit.log_likelihood - fit.single_log_likelihood[Proposer.GALLERY] if fit else None,
        network_median_error_deg=_median(network),
        gallery_median_error_deg=_median(gallery),
        mean_error_deg=float(refined.mean()) if len(refined) else None,
        median_error_deg=_median(refined),
    )


def _median(errors: Float64) -> float | None:
    return float(np.median(errors)) if len(errors) else None


def _calibrations(made: Mapping[int, _Half]) -> dict[int, HalfCalibration]:
    """Return what was fitted; confidence for both halves or for none: a session's is of one kind."""
    fits = {half: part.fit for half, part in made.items() if isinstance(part.fit, FusionFit)}
    calibrators = {half: part.calibrator for half, part in made.items() if isinstance(part.calibrator, Calibrator)}
    complete = len(calibrators) == len(made)
    return {
        half: HalfCalibration(fusion=fits.get(half), calibrator=calibrators[half] if complete else None)
        for half in made
    }


def _publish(
    manifest: FusedManifest, parts: FusedParts, calibration: Calibration, checkpoints_folder: Path
) -> tuple[Path, FusedManifest]:
    contents: dict[str, bytes | Path] = {
        f"{inside}/{path.name}": path
        for inside, folder in ((NETWORK_FOLDER, parts.networks), (REFERENCES_FOLDER, parts.references))
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith(".")
    }
    contents[manifest.calibration] = calibration.file_bytes()
    hashes = {name: _sha256(content) for name, content in contents.items()}
    manifest = manifest.model_copy(update={"files": hashes}).with_id()
    contents[MANIFEST_NAME] = manifest.file_bytes()
    return publish_files(checkpoints_folder, manifest.checkpoint_id, contents), manifest


def _sha256(content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with open(content, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_fused_manifest(folder: Path) -> FusedManifest:
    """Return the manifest of a checkpoint of both; raises as `read_published` does."""
    return read_published(folder, FusedManifest)


class FusedProposer:
    """Both networks and both references of a checkpoint, ready to give poses with shifts and a confidence.

    A particle's bits depend on no other particle; they do depend on the device, the batch size, the number of threads
    and the version of torch, as with networks.
    """

    proposer: Final = PROPOSER
    rows_at_once: Final = ROWS_AT_ONCE

    def __init__(
        self,
        folder: Path,
        inference: InferenceSettings,
        matching: MatchingSettings,
        half_mode: HalfMode = "gold_standard",
    ) -> None:
        self.manifest = read_fused_manifest(folder)
        self.checkpoint_id = self.manifest.checkpoint_id
        check_files(folder, self.manifest.files.items())
        self.references = ReferenceProposer(folder / REFERENCES_FOLDER, matching, half_mode)
        # gold_standard whatever the mode: `_matcher` names the half whose model answers
        self.predictor = Predictor(folder / NETWORK_FOLDER, inference, "gold_standard")
        self._matching = matching
        self._half_mode: HalfMode = half_mode
        self._calibration = load_calibration(
            folder / self.manifest.calibration,
            checkpoint_id=self.manifest.network_id,
            symmetry=self.manifest.symmetry,
        )
        same_settings = self.manifest.answers_sha256 == matching.answers_sha256(fused=True)
        self._fitted_so = same_settings and self.references.measured_so
        if self.references.measured_so and not self._fitted_so:
            logger.warning(
                "confidence was fitted with other settings: it is a mass here",
                extra={"checkpoint": self.checkpoint_id},
            )
        self._matchers: dict[int, FusedMatcher] = {}

    def poses(self, table: ParticleTable, reader: StackReader) -> PoseBatch:
        """Return the poses of a table's rows, in their order, each by the models that its half-set may see.

        Rows whose image is unusable (`ImageFlag`) get that flag, their digest and no pose. PermanentError where a row
        is in the reference that would score it; else what reading raises.
        """

        def of_half(half: int) -> FindPoses:
            matcher = self._matcher(half)
            calibrator = self._calibration.for_half(half, self._half_mode).calibrator if self._fitted_so else None

            def find(rows: ParticleTable) -> PoseBatch:
                found = matcher.match(rows, reader)
                poses = replace(
                    pose_batch(found.matched),
                    network_rotation=found.network_rotation,
                    gallery_rotation=found.gallery_rotation,
                    apart_deg=found.apart_deg,
                )
                features = features_of(found.matched, found.apart_deg)
                return with_confidence(poses, features, optics_names(rows), calibrator)

            return find

        rows_each = max(self._matching.gallery.batch_size, self.predictor.batch_size)
        return by_halves(table, of_half, self._matching, rows_each=rows_each)

    def refined(self, table: ParticleTable, reader: StackReader) -> PoseBatch:
        """Return the poses that refinement alone makes of the rows' own poses: of true ones, the limit of the noise."""
        return self.references.refined(table, reader)

    def _matcher(self, half: int) -> FusedMatcher:
        if half not in self._matchers:
            source = half if self._half_mode == "gold_standard" else 1 - half
            fit = self._calibration.for_half(half, self._half_mode).fusion
            self._matchers[half] = FusedMatcher(
                self.references.matcher(half), self.predictor, source, self._matching.fusion, fit
            )
        return self._matchers[half]
