"""Checkpoints: both half-models of one training and a manifest that says what they are. No pickle anywhere.

A checkpoint folder is named by its content and never changes: `half_0.safetensors`, `half_1.safetensors`,
`manifest.json`. It appears by one rename, so whoever sees it sees all of it.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cesped_stream.conventions import HALVES
from cesped_stream.errors import InvalidCheckpointError, UnreachableFileError
from cesped_stream.model.image2sphere import Image2Sphere
from cesped_stream.published import (
    MANIFEST_NAME,
    NETWORK_KIND,
    FileRecord,
    PublishedManifest,
    check_files,
    package_version,
    path_inside,
    publish_files,
    read_published,
)
from cesped_stream.settings import ModelSettings, PreprocessSettings, TrainingSettings

HalfMode = Literal["gold_standard", "cross_half"]


class HalfRecord(FileRecord):
    """One half-set's model: where it is, and what its training saw and reached."""

    num_training: int = Field(ge=0)
    num_validation: int = Field(ge=0)
    steps: int = Field(ge=0)
    validation_loss: float | None = None
    mean_error_deg: float | None = None
    median_error_deg: float | None = None


class CheckpointManifest(PublishedManifest):
    """What a checkpoint of networks is: equal trainings give equal bytes and an equal id."""

    manifest_kind: ClassVar[str] = NETWORK_KIND
    id_prefix: ClassVar[str] = "i2s"
    unsaid_if_empty: ClassVar[frozenset[str]] = frozenset({"trained_on", "doubts", "initialised_from_own_predictions"})

    format: Literal[1] = 1
    preset: str
    model: ModelSettings
    preprocess: PreprocessSettings
    network_pixel_size_angstrom: float = Field(gt=0)
    symmetry: str
    halves: dict[int, HalfRecord]
    origin: str
    """ "random", "imagenet" or "checkpoint <id>": where the weights started from."""
    independence: Literal["independent", "shared_reference", "unknown"]
    """Whether the two halves have anything but the ImageNet weights in common."""
    stopped_by: Literal["steps", "plateau", "epochs", "minutes"]
    training: TrainingSettings
    trained_on: str = ""
    """The entry or star that both halves were trained on; empty in a session, and in checkpoints older than this."""
    doubts: tuple[str, ...] = ()
    """What speaks against the rows that both were trained on, a sentence each."""
    initialised_from_own_predictions: int = Field(0, ge=0)
    """Aligned rows whose pose is a prediction of this program, or was refined from one."""
    package_version: str = Field(default_factory=package_version)


def publish_checkpoint(
    checkpoints_folder: Path, manifest: CheckpointManifest, states: dict[int, dict[str, Tensor]]
) -> tuple[Path, CheckpointManifest]:
    """Write both half-models and the manifest under their id; return the folder and the manifest as written.

    Durable when it returns. Killed at any moment, it leaves the whole folder or none; publishing the same again gives
    the same folder. Raises ValueError unless there is a state for each half-set.
    """
    if set(states) != set(HALVES) or set(manifest.halves) != set(HALVES):
        raise ValueError(f"a checkpoint holds half-sets 0 and 1, got {sorted(states)}; train both")
    contents = {half: save({k: v.detach().cpu().contiguous() for k, v in states[half].items()}) for half in HALVES}
    halves = {
        half: manifest.halves[half].model_copy(
            update={"file": f"half_{half}.safetensors", "sha256": hashlib.sha256(contents[half]).hexdigest()}
        )
        for half in HALVES
    }
    manifest = manifest.model_copy(update={"halves": halves}).with_id()
    files = {halves[half].file: contents[half] for half in HALVES}
    files[MANIFEST_NAME] = manifest.file_bytes()
    return publish_files(checkpoints_folder, manifest.checkpoint_id, files), manifest


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A verified checkpoint, its models in eval mode on their device."""

    manifest: CheckpointManifest
    models: dict[int, Image2Sphere]

    def model_for(self, half_set: int, half_mode: HalfMode) -> Image2Sphere:
        """Return the model that may see particles of `half_set`.

        `gold_standard`: the one trained on the same half, so that half maps stay independent. `cross_half`: the other
        one, which has seen none of them (the paper's protocol, section 2.5).
        """
        if half_set not in HALVES:
            raise ValueError(f"half_set is {half_set}; there are 0 and 1")
        return self.models[half_set if half_mode == "gold_standard" else 1 - half_set]


def read_manifest(folder: Path) -> CheckpointManifest:
    """Return the manifest of a checkpoint of networks; raises as `read_published` does."""
    return read_published(folder, CheckpointManifest)


def load_checkpoint(folder: Path, *, device: torch.device) -> LoadedCheckpoint:
    """Return both half-models of a folder, each file's hash checked before it is read.

    Raises UnreachableFileError where a file is missing, InvalidCheckpointError where one is not what the manifest says.
    """
    manifest = read_manifest(folder)
    models = {half: _load_half(folder, manifest, half).to(device).eval() for half in HALVES}
    return LoadedCheckpoint(manifest, models)


def _load_half(folder: Path, manifest: CheckpointManifest, half: int) -> Image2Sphere:
    record = manifest.halves[half]
    path = path_inside(folder, record.file)
    check_files(folder, [(record.file, record.sha256)])
    try:
        state = load_file(path)
    except OSError as error:
        raise UnreachableFileError(f"{path}: cannot be read ({error.strerror}); copy it again") from error
    except SafetensorError as error:
        raise InvalidCheckpointError(f"{path}: {error}; publish the checkpoint again") from error
    model = Image2Sphere(manifest.model)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InvalidCheckpointError(f"{path}: {str(error).splitlines()[1].strip()}; other model settings") from error
    return model
