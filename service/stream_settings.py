"""Settings of the commands that stream an entry: replay, demo, simulate. No torch."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from cesped_stream.benchmark.catalogue import DEFAULT_ROOT
from cesped_stream.benchmark.replay_settings import ReplaySettings
from cesped_stream.settings import (
    RealismSettings,
    Settings,
    SimulationSettings,
    TrainingSettings,
)

from .settings import NOISE_ROWS_TEXT, PROPOSER_TEXT, REFERENCE_TEXT, PosingSettings, ProposerName, ServiceSettings

_CONFIG = SettingsConfigDict(env_prefix="CESPED_STREAM_", env_nested_delimiter="__", extra="forbid", frozen=True)


class EntrySettings(SimulationSettings):
    """A simulated entry: whose map, how sampled, and everything about its particles."""

    map: Path | None = Field(None, description="Cubic map (.mrc) to project; default: the bundled ribosome, PDB 6ZU5.")
    box_size: int = Field(
        0,
        ge=0,
        le=1024,
        description="Box side in pixels; 0: the map's, 48 for the ribosome. Less than the map's crops "
        "its transform, so that the pixel grows.",
    )
    pixel_size_angstrom: float = Field(8.0, gt=0, description="Pixel size of the ribosome's box; a map has its own.")
    resolution_angstrom: float = Field(
        0.0, ge=0, description="Resolution of the ribosome's map; 0: two pixels (Nyquist)."
    )


class ReportSettings(Settings):
    """The page and metrics.json that tell what came of it."""

    write: bool = Field(True, description="Write the page and metrics.json.")
    file: Path | None = Field(None, description="The page; default: report.html in the output folder.")
    maps: bool = Field(True, description="Reconstruct maps and compare them; without, poses are compared only.")
    points: int = Field(9, ge=1, le=100, description="Moments of the stream at which maps and errors are measured.")
    beside: tuple[Path, ...] = Field(
        (),
        description="Output folders of other replays or scores (with metrics.json) that the page shows beside this "
        "one: the same entry without realism, or another tool.",
    )


class StreamCommand(PosingSettings):
    """What demo and replay have in common."""

    output: Path = Field(
        description="Folder for all that comes of it: landing, truth, session, poses.star, report.html, metrics.json, "
        "summary.json, figure.png."
    )
    replay: ReplaySettings = Field(default_factory=ReplaySettings)
    realism: RealismSettings = Field(default_factory=RealismSettings)
    proposer: ProposerName = Field("gallery", description=PROPOSER_TEXT)
    half_mode: Literal["gold_standard", "cross_half"] = Field(
        "gold_standard", description="Whose half's model poses a particle: its own, or (cross_half) the other's."
    )
    min_aligned_per_half: int = Field(
        100, ge=1, description="Aligned particles per half-set that references or a training need."
    )
    checkpoint: str = Field("", description="Published checkpoint folder to infer with; no training then.")
    reference: Path | None = Field(None, description=REFERENCE_TEXT)
    noise_rows_per_half: int = Field(200, ge=20, le=1000, description=NOISE_ROWS_TEXT)
    scan_seconds: float = Field(1.0, gt=0, le=600, description="Time between scans of the landing folder.")
    settle_seconds: float = Field(2.0, ge=0, le=3600, description="How long a landed file must not change.")
    deadline_minutes: float = Field(120.0, gt=0, description="Give up when it takes longer.")
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    service: ServiceSettings = Field(default_factory=ServiceSettings)
    reporting: ReportSettings = Field(default_factory=ReportSettings)


ENTRY_TEXT = (
    "Entry: a name under the root, a folder (CESPED's layout, or with one star file), or a star file with poses."
)
ROOT_TEXT = "Folder of the benchmark's entries, where a name is looked for."


class ReplayCommand(StreamCommand):
    """`cesped-stream replay`: an entry lands as a stream, and the roles that would run at a microscope answer it."""

    entry: Path = Field(description=ENTRY_TEXT)
    root: Path = Field(DEFAULT_ROOT, description=ROOT_TEXT)
    roles: bool = Field(
        True, description="Run coordinator, trainer and workers on what lands; without, files land and nothing else."
    )


class DemoCommand(StreamCommand):
    """`cesped-stream demo`: simulate an entry, replay it, compare with the truth."""

    output: Path = Field(Path("demo-output"), description=StreamCommand.model_fields["output"].description)
    simulate: EntrySettings = Field(default_factory=EntrySettings)


class RibosomeSettings(EntrySettings):
    """A simulated entry whose defaults are a ribosome's real images at 8 angstrom a pixel."""

    snr: float = Field(0.15, gt=0, description=SimulationSettings.model_fields["snr"].description)
    particle_radius_angstrom: float = Field(
        157.0, ge=0, description=f"{SimulationSettings.model_fields['particle_radius_angstrom'].description} Default: "
        "the ribosome's; give another map's own.",
    )  # fmt: skip


class ProposersCommand(PosingSettings):
    """`cesped-stream bench proposers`: every way of making poses answers the same streamed rows of one entry."""

    output: Path = Field(
        description="Folder of the stream, the checkpoints and figures.json; begun again there with the same settings, "
        "nothing is made twice."
    )
    entry: Path | None = Field(None, description=f"{ENTRY_TEXT} Not given: one is simulated.")
    root: Path = Field(DEFAULT_ROOT, description=ROOT_TEXT)
    aligned: int = Field(2000, ge=2, description="Particles at least that are aligned, in whole micrographs.")
    streamed: int = Field(1000, ge=2, description="About so many more that every way gives poses.")
    seed: int = Field(0, ge=0, description="Of the simulated entry and of the order of micrographs.")
    network_radius_deg: float = Field(
        15.0, gt=0, le=60, description="Angle searched around the network's candidates when they are refined."
    )
    simulate: RibosomeSettings = Field(
        default_factory=RibosomeSettings,
        description="The simulated entry; its num_particles and seed are aligned + streamed and seed above.",
    )
    realism: RealismSettings = Field(default_factory=RealismSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)


class ProtocolCommand(PosingSettings):
    """`cesped-stream protocol`: the paper's 2-fold protocol (section 2.5) on an entry, or a checkpoint of another one
    on it (section 3.3). Started again with the same settings it goes on where it was."""

    entry: Path = Field(description=ENTRY_TEXT)
    root: Path = Field(DEFAULT_ROOT, description=ROOT_TEXT)
    output: Path = Field(
        description="Folder for all that comes of it: checkpoints, predictions_{0,1}.star, metrics.json, report.html."
    )
    proposer: Literal["network", "gallery"] = Field(
        "network",
        description="What each half becomes. network: a trained Image2Sphere, as in the paper. gallery: a reference, "
        "whose projections are compared with the particles and refined: rotations and shifts, no training.",
    )
    half_mode: Literal["gold_standard", "cross_half"] = Field(
        "cross_half",
        description="Whose half's model poses a particle: cross_half, the other's, which has not seen it. "
        "gold_standard, its own, only with a checkpoint that was trained on another entry.",
    )
    checkpoint: str = Field("", description="Checkpoint folder of another entry to infer with; nothing is trained.")
    allow_symmetry: bool = Field(
        False, description="Take a checkpoint that was trained for another point group; errors are under the entry's."
    )
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    reporting: ReportSettings = Field(default_factory=ReportSettings)


class SimulateCommand(BaseSettings):
    """`cesped-stream simulate`: write an entry in CESPED's layout."""

    model_config = _CONFIG

    output: Path = Field(description="Entry's folder: particles_{0,1}.star and .mrcs, info_{0,1}.json, truth_map.mrc.")
    simulate: EntrySettings = Field(default_factory=EntrySettings)
    realism: RealismSettings = Field(default_factory=RealismSettings)
