"""Checkpoints: both half-models of one training and a manifest that says what they are. No pickle anywhere.

A checkpoint folder is named by its content and never changes: `half_0.safetensors`, `half_1.safetensors`,
`manifest.json`. It appears by one rename, so whoever sees it sees all of it.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cesped_stream.durable import fsync_folder, rename_durably, write_whole
from cesped_stream.errors import InvalidCheckpointError, UnreachableFileError
from cesped_stream.model.image2sphere import Image2Sphere
from cesped_stream.settings import ModelSettings, PreprocessSettings, TrainingSettings

HalfMode = Literal["gold_standard", "cross_half"]

HALVES: Final = (0, 1)
MANIFEST_NAME: Final = "manifest.json"


def package_version() -> str:
    """Return this package's version, as manifests state it."""
    try:
        return version("cesped-stream")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"


class HalfRecord(BaseModel):
    """One half-set's model: where it is, and what its training saw and reached."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str = ""
    sha256: str = ""
    num_training: int = Field(ge=0)
    num_validation: int = Field(ge=0)
    steps: int = Field(ge=0)
    validation_loss: float | None = None
    mean_error_deg: float | None = None
    median_error_deg: float | None = None


class CheckpointManifest(BaseModel):
    """What a checkpoint is. It holds no clock time: equal trainings give equal bytes and an equal id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    checkpoint_id: str = ""
    """Set by `publish_checkpoint`: "i2s-" and 12 hexadecimal digits of the hash of everything else here."""
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
    package_version: str = Field(default_factory=package_version)

    def content_id(self) -> str:
        """Return the id that this manifest's contents have."""
        # Left out where empty: checkpoints that do not know of it keep their id.
        unsaid = set() if self.trained_on else {"trained_on"}
        content = self.model_dump(mode="json", exclude={"checkpoint_id"} | unsaid)
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        return f"i2s-{hashlib.sha256(canonical).hexdigest()[:12]}"


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
    manifest = manifest.model_copy(update={"halves": halves})
    manifest = manifest.model_copy(update={"checkpoint_id": manifest.content_id()})
    files = {halves[half].file: contents[half] for half in HALVES}
    files[MANIFEST_NAME] = manifest.model_dump_json(indent=1).encode() + b"\n"
    return publish_files(checkpoints_folder, manifest.checkpoint_id, files), manifest


def publish_files(checkpoints_folder: Path, checkpoint_id: str, files: dict[str, bytes]) -> Path:
    """Write a checkpoint's files (name: content), in their order, into a folder that appears whole; return it.

    Durable when it returns. The id stands for the content: a folder that is there already is left as it is.
    """
    folder = checkpoints_folder / checkpoint_id
    checkpoints_folder.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        return folder
    temporary = checkpoints_folder / f".{checkpoint_id}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # of a publication that was killed
    temporary.mkdir()
    for name, content in files.items():
        write_whole(temporary / name, content)
    fsync_folder(temporary)
    rename_durably(temporary, folder)
    return folder


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
    """Return a checkpoint folder's manifest. InvalidCheckpointError where it is not what it says it is."""
    path = folder / MANIFEST_NAME
    try:
        manifest = CheckpointManifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UnreachableFileError(f"{path}: cannot be read ({error.strerror}); is it a checkpoint?") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidCheckpointError(f"{path}: {where}: {first['msg']}; publish the checkpoint again") from error
    if set(manifest.halves) != set(HALVES):
        raise InvalidCheckpointError(f"{path}: holds half-sets {sorted(manifest.halves)}, not 0 and 1")
    if manifest.checkpoint_id != manifest.content_id():
        raise InvalidCheckpointError(
            f"{path}: names itself {manifest.checkpoint_id}, its contents are {manifest.content_id()}; it was edited"
        )
    return manifest


def load_checkpoint(folder: Path, *, device: torch.device) -> LoadedCheckpoint:
    """Return both half-models of a folder, each file's hash checked before it is read.

    Raises UnreachableFileError where a file is missing, InvalidCheckpointError where one is not what the manifest says.
    """
    manifest = read_manifest(folder)
    models = {half: _load_half(folder, manifest, half).to(device).eval() for half in HALVES}
    return LoadedCheckpoint(manifest, models)


def _load_half(folder: Path, manifest: CheckpointManifest, half: int) -> Image2Sphere:
    record = manifest.halves[half]
    path = folder / record.file
    if os.path.basename(record.file) != record.file or not record.file:
        raise InvalidCheckpointError(f"{folder}: half {half} names {record.file!r}, not a file inside the folder")
    try:
        with open(path, "rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        if sha256 != record.sha256:
            raise InvalidCheckpointError(
                f"{path}: its sha256 is {sha256}, the manifest says {record.sha256}; copy the checkpoint again"
            )
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
