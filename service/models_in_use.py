"""What made a stream's poses, read from the checkpoint in use: its manifest, its network, what confidence means."""

from dataclasses import dataclass
from pathlib import Path

from cesped_stream.calibration.drift import read_fitted_confidences
from cesped_stream.fused_pair import NETWORK_FOLDER, FusedManifest, read_fused_manifest
from cesped_stream.imaging.preprocess import Preprocessor
from cesped_stream.model.checkpoint import CheckpointManifest, read_manifest
from cesped_stream.reference_pair import ReferenceManifest, checkpoint_kind, read_reference_manifest

from .settings import SessionSettings
from .status import CheckpointStatus

Manifest = CheckpointManifest | ReferenceManifest | FusedManifest


@dataclass(frozen=True)
class ModelsInUse:
    """What a stream's report needs of the checkpoint in use; a session without one has none of it."""

    manifest: Manifest | None
    network: CheckpointManifest | None
    """Of the network that the checkpoint is or holds."""
    within_deg: float
    """What a calibrated confidence is the probability of: as fitted, else as the session's settings say."""

    @property
    def preprocessor(self) -> Preprocessor | None:
        """What the network sees of an image; None without a network."""
        if self.network is None:
            return None
        return Preprocessor(self.network.preprocess, self.network.network_pixel_size_angstrom)

    @property
    def finest_angstrom(self) -> float | None:
        """The finest resolution that the poses were made from."""
        if isinstance(self.manifest, CheckpointManifest):
            return 2 * self.manifest.network_pixel_size_angstrom
        if self.manifest is None:
            return None
        return min(record.resolution_angstrom for record in self.manifest.halves.values())


def models_in_use(in_use: CheckpointStatus | None, session: SessionSettings) -> ModelsInUse:
    """Return those of the checkpoint in use, else of the one that the settings name.

    UnreachableFileError, InvalidCheckpointError where it cannot be read.
    """
    named = in_use.folder if in_use else session.checkpoint
    if not named:
        return ModelsInUse(None, None, session.calibration.within_deg)
    folder = Path(named)
    fitted = read_fitted_confidences(folder)
    within_deg = session.calibration.within_deg if fitted is None else fitted.within_deg
    kind = checkpoint_kind(folder)
    if kind == "reference":
        return ModelsInUse(read_reference_manifest(folder), None, within_deg)
    network = read_manifest(folder / NETWORK_FOLDER if kind == "fused" else folder)
    return ModelsInUse(read_fused_manifest(folder) if kind == "fused" else network, network, within_deg)
