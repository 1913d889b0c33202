"""Settings of a session: command line > environment > TOML > default. An unknown key is an error."""

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from cesped_stream.benchmark.catalogue import DEFAULT_ROOT
from cesped_stream.settings import (
    CalibrationSettings,
    FusionSettings,
    GallerySettings,
    InferenceSettings,
    ReferenceSettings,
    RefinementSettings,
    Settings,
    TrainingSettings,
)

ProposerName = Literal["network", "gallery", "both"]
PROPOSER_TEXT = (
    "What the aligned rows become. network: fine-tuned Image2Sphere, rotations. gallery: each half-set's reference, in "
    "seconds, whose projections are compared with each particle and refined, rotations and shifts. both: references "
    "first, a network too; once it is trained, what the two say of a particle is pooled, then refined."
)
REFERENCE_TEXT = (
    "Map (.mrc) of an earlier session: with proposer gallery or both it is both half-sets' reference, low-passed, and "
    "gives poses before any aligned row has landed. Half maps are then not independent (shared_reference), until "
    "aligned rows are complete and their references take its place."
)
NOISE_ROWS_TEXT = "Particles per half-set, the first ones to land, that the noise beside a given map is learned from."


class LandingSettings(Settings):
    """What lands and where."""

    folder: Path = Field(description="Landing folder: star files in it (at any depth) are ingested as they settle.")
    image_root: Path | None = Field(
        None,
        description="Folder that rlnImageName is relative to; default: the star's folder, else the parent of it "
        "that makes the stack exist (ambiguous: refused).",
    )
    allowed_roots: tuple[Path, ...] = Field(
        (),
        description="Folders that stacks may lie under after symlinks are followed; default: landing folder and "
        "image root.",
    )
    aligned: str = Field(
        "",
        description="Path or glob, relative to the landing folder, of the aligned stars; default: rows whose angles "
        "are present and whose tilt is not constant. Stars of RELION's iterations (*_it000_data.star, halves too) "
        "are read only where this names them.",
    )
    consensus: Literal["newest", "first"] = Field(
        "newest",
        description="Which consensus pose counts where a particle comes back in several aligned stars (job020 after "
        "job010). newest: the one that landed last replaces the former; first: the first one with half-sets "
        "(rlnRandomSubset) stays.",
    )
    refined_ctf: Literal["with_consensus", "keep"] = Field(
        "with_consensus",
        description="What becomes of the CTF of an aligned row that a CTF refinement moved. with_consensus: it "
        "replaces the particle's, as the pose does; keep: the CTF with which the particle landed stays.",
    )
    inputs: str = Field(
        "",
        description="Path or glob, relative to the landing folder, of the stars whose particles are taken, such as "
        "'Extract/job012/*'; those that `aligned` names are taken too. Default: every star of particles but RELION's "
        "iterations and Trash; `cesped-stream doctor LANDING` lists them.",
    )
    scan_seconds: float = Field(2.0, gt=0, le=600, description="Time between scans of the landing folder.")
    settle_seconds: float = Field(
        4.0,
        ge=0,
        le=3600,
        description="A file is settled when two scans at least this far apart see "
        "no change. A `<star>.done` file beside a star settles it at once.",
    )
    stack_timeout_seconds: float = Field(
        3600.0,
        gt=0,
        description="Rows whose stack is still incomplete after this are quarantined with a reason; the rest go on.",
    )


class ServiceSettings(Settings):
    """How the roles are run and linked."""

    endpoint: str = Field(
        "",
        description="ZeroMQ endpoint of the coordinator; default: ipc in a 0700 runtime folder. "
        "tcp needs CURVE keys and an allow-list.",
    )
    curve_folder: Path | None = Field(
        None,
        description="CURVE keys of a tcp endpoint, made with `cesped-stream keys`. On the coordinator's machine: "
        "coordinator.key_secret and the allow-list allowed/*.key; on a worker's: client.key_secret, coordinator.key.",
    )
    workers: int = Field(1, ge=0, le=64, description="Workers that `cesped-stream run` starts on this machine.")
    trainers: int = Field(
        1, ge=0, le=1, description="Trainers that `cesped-stream run` starts; 0 where one runs elsewhere."
    )
    lease_seconds: float = Field(
        10.0, gt=0, le=600, description="Work per lease, in seconds at the worker's measured rate."
    )
    lease_expiry_seconds: float = Field(
        120.0, gt=0, le=86400, description="A lease not answered by then goes to another worker."
    )
    heartbeat_seconds: float = Field(
        1.0, gt=0, le=60, description="Time between heartbeats; a role silent for 6 of them is dead."
    )
    max_attempts: int = Field(3, ge=1, le=100, description="Tries of a batch's rows before they are quarantined.")
    shard_rows: int = Field(50_000, ge=1, description="Rows at which the open poses.star is sealed as a shard.")
    shard_seconds: float = Field(3600.0, gt=0, description="Age at which it is sealed.")
    commit_seconds: float = Field(0.5, ge=0, le=60, description="Results are committed together at most this often.")
    batch_rows: int = Field(2000, ge=1, description="Rows of one internal batch at most: a large star is split.")
    free_disk_megabytes: int = Field(
        500, ge=0, description="Below this much free disk the coordinator pauses until there is more."
    )


class PosingSettings(BaseSettings):
    """How poses are made, and how sure they are: what all commands that make any have in common."""

    model_config = SettingsConfigDict(
        env_prefix="CESPED_STREAM_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    inference: InferenceSettings = Field(default_factory=InferenceSettings)
    referencing: ReferenceSettings = Field(default_factory=ReferenceSettings)
    gallery: GallerySettings = Field(default_factory=GallerySettings)
    refinement: RefinementSettings = Field(default_factory=RefinementSettings)
    fusion: FusionSettings = Field(default_factory=FusionSettings)
    calibration: CalibrationSettings = Field(default_factory=CalibrationSettings)


class SessionSettings(PosingSettings):
    """Everything a session needs; saved as `<session>/session.toml` at its first start."""

    session: Path = Field(description="Session folder: all that the daemon writes.")
    ledger_folder: Path | None = Field(
        None, description="Folder of ledger.sqlite, on a local disk; default: <session>/state."
    )
    proposer: ProposerName = Field("gallery", description=PROPOSER_TEXT)
    half_mode: Literal["gold_standard", "cross_half"] = Field(
        "gold_standard",
        description="gold_standard: a particle's pose comes only from its own half's model. cross_half: from the "
        "other half's (the paper's benchmark protocol).",
    )
    min_aligned_per_half: int = Field(
        1000, ge=1, description="Aligned rows per half-set that references or a training need."
    )
    aligned_quiet_seconds: float = Field(
        30.0,
        ge=0,
        description="No new aligned row for this long before training starts; "
        "a `.done` marker beside the aligned star ends the wait.",
    )
    checkpoint: str = Field(
        "",
        description="Published checkpoint folder to infer with from the start; no training then unless asked for.",
    )
    reference: Path | None = Field(None, description=REFERENCE_TEXT)
    noise_rows_per_half: int = Field(200, ge=20, le=1000, description=NOISE_ROWS_TEXT)
    landing: LandingSettings
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    service: ServiceSettings = Field(default_factory=ServiceSettings)


NOT_OF_POSES = {"rebuild_rows", "rebuild_least_confidence", "rebuild_max_rows"}
"""Settings of references that the coordinator alone acts on."""


def inference_sha256(settings: SessionSettings) -> str:
    """Return a hash of what the poses depend on: the settings of `PosingSettings`, but where inference runs and on how
    many threads."""
    parts = [settings.inference.model_dump_json(exclude={"device", "threads"})]
    groups = (settings.referencing, settings.gallery, settings.refinement, settings.fusion, settings.calibration)
    parts += [part.model_dump_json(exclude=NOT_OF_POSES) for part in groups]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class TrainCommand(PosingSettings):
    """`cesped-stream train`: without a session."""

    star: Path = Field(description="Star file of aligned particles (with poses).")
    proposer: ProposerName = Field("network", description=PROPOSER_TEXT)
    reference: Path | None = Field(
        None,
        description="Map (.mrc) of an earlier session: with proposer gallery it is both half-sets' reference, low-"
        "passed, and the star's particles, which need no poses then, only tell the noise. Half maps are then not "
        "independent.",
    )
    output: Path = Field(description="Folder that the checkpoint is published in, under its id; resume points too.")
    allow_own_predictions: bool = Field(
        False,
        description="Take rows whose pose this program predicted for aligned ones; the manifest then says so. What is "
        "made of them confirms itself.",
    )
    image_root: Path | None = Field(
        None, description="Folder that rlnImageName is relative to; default: the star's folder."
    )
    training: TrainingSettings = Field(default_factory=TrainingSettings)


class InferCommand(PosingSettings):
    """`cesped-stream infer`: without a session."""

    checkpoint: Path = Field(description="Published checkpoint folder.")
    star: Path = Field(description="Star file of particles.")
    output: Path = Field(
        description="Star file to write: all input columns and the pose. Rows whose image is unusable go to "
        "<output>_unposed.star."
    )
    image_root: Path | None = Field(
        None, description="Folder that rlnImageName is relative to; default: the star's folder."
    )
    half_mode: Literal["gold_standard", "cross_half"] = Field(
        "gold_standard", description="Whose half's model poses a particle: its own or (cross_half) the other."
    )


class BenchmarkSettings(BaseSettings):
    """What the commands on benchmark entries have in common."""

    model_config = SettingsConfigDict(
        env_prefix="CESPED_STREAM_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    root: Path = Field(DEFAULT_ROOT, description="Folder that holds entries, one folder each; ~ is expanded.")
