"""Settings of how particles get poses: by the network, by the gallery, by both, refined, and how sure."""

from typing import Literal, Self

from pydantic import Field, model_validator

from cesped_stream.settings.base import Device, Precision, Settings, ordered


class InferenceSettings(Settings):
    """How a worker predicts."""

    batch_size: int = Field(64, ge=1, description="Images per forward pass; the last batch is padded to it.")
    top_k: int = Field(
        3,
        ge=1,
        le=50,
        description="Distinct poses of the network kept per particle, best first; of references: gallery.num_modes.",
    )
    device: Device = Field("auto", description="auto takes CUDA where there is one.")
    precision: Precision = Field("float32", description="bfloat16 runs the backbone in bfloat16.")
    threads: int = Field(0, ge=0, description="CPU threads of one worker; 0: cores shared among trainer and workers.")


class FusionSettings(Settings):
    """How the proposers' distributions over poses become one."""

    floor: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="Share of each proposer's probability that lies evenly over all rotations: no proposer can veto a "
        "pose that another is sure of.",
    )
    grid_order: int | None = Field(
        None,
        ge=1,
        le=5,
        description="Grid on which distributions are pooled; not given, the finest of the proposers'. A coarser one is "
        "quicker, and enough where poses are refined afterwards.",
    )
    keep: int = Field(512, ge=16, description="Grid rotations kept of each fused distribution, the likeliest.")
    network_keep: int = Field(
        1024,
        ge=16,
        description="Grid rotations of the network's distribution that are pooled, the likeliest; all others share "
        "evenly what these lack to 1.",
    )
    neighbourhood_steps: float = Field(
        1.0,
        gt=0,
        le=4,
        description="The weights make grid rotations within this many grid steps of the true pose likely.",
    )
    min_particles: int = Field(
        100, ge=20, description="Held-out particles below which no weights are fitted: the gallery's answer stands."
    )
    max_particles: int = Field(500, ge=20, description="Held-out particles of a half that the weights are fitted on.")

    @model_validator(mode="after")
    def _fewest_are_at_most_the_most(self) -> Self:
        return ordered(self, ("min_particles", "max_particles"))


class CalibrationSettings(Settings):
    """How confidence is fitted and watched: P(the pose is within `within_deg` of the consensus)."""

    within_deg: float = Field(5.0, gt=0, le=180, description="How near the consensus a pose must be to be right.")
    min_particles: int = Field(
        500, ge=100, description="Held-out particles of a half below which nothing is fitted; 2,000 are advised."
    )
    max_particles: int = Field(
        600,
        ge=100,
        description="Held-out particles of a half that references' confidence is fitted on at most: the first pose "
        "waits for it.",
    )
    max_fused_particles: int = Field(
        2000, ge=100, description="The same of network and references together, fitted once the network is trained."
    )
    min_group_particles: int = Field(
        300, ge=100, description="Held-out particles from which an optics group has scores of its own."
    )
    folds: int = Field(5, ge=2, le=20, description="Parts, of whole micrographs, that the figures are measured on.")
    stale_index: float = Field(
        0.2,
        gt=0,
        description="Population stability index of the scores, beyond chance, at which the calibration is stale.",
    )
    min_drift_particles: int = Field(200, ge=50, description="Scores below which no drift is claimed.")

    @model_validator(mode="after")
    def _fewest_are_at_most_the_most(self) -> Self:
        return ordered(self, ("min_particles", "max_particles"), ("min_particles", "max_fused_particles"))


class GallerySettings(Settings):
    """How particles are compared with all views of a reference."""

    score: Literal["likelihood", "correlation"] = Field(
        "likelihood",
        description="likelihood: of the whitened residual, one scale an optics group; correlation: plain normalised "
        "cross-correlation, its posterior that of white noise of unknown scale.",
    )
    grid_order: int = Field(3, ge=1, le=4, description="HEALPix order of the SO(3) grid of the result.")
    coarse_order: int = Field(
        2, ge=1, le=4, description="Order searched whole; equal to grid_order: exhaustive, nothing is left out."
    )
    keep_fraction: float = Field(
        0.02, gt=0, le=1, description="Share of the coarse views, the best ones, whose fine views are searched."
    )
    limit_angstrom: float = Field(
        0.0,
        ge=0,
        description="Finest resolution compared; 0: what each grid's step supports, or the reference's.",
    )
    shift_range_angstrom: float = Field(
        0.0,
        ge=0,
        description="Shifts within this distance are searched; 0: as far as 99 % of the aligned rows' origins reach, "
        "at least 15 (a given map: 15).",
    )
    shift_prior: bool = Field(
        True,
        description="Weigh shifts by how often the aligned rows have them; false: where those were re-extracted, "
        "centred, and what streams was not.",
    )
    shift_step_angstrom: float = Field(
        0.0, ge=0, description="Distance of the coarse search's shifts; 0: a quarter of its limit."
    )
    temperature: float = Field(1.0, gt=0, description="Log-likelihoods are divided by it before they become weights.")
    num_kept: int = Field(64, ge=1, description="Grid rotations kept in a particle's distribution.")
    num_modes: int = Field(3, ge=1, le=50, description="Distinct poses kept, best first.")
    batch_size: int = Field(32, ge=1, description="Particles in one matrix product; the last batch is padded to it.")
    memory_mib: int = Field(
        64, ge=1, description="Scores held at a time by each CPU thread; views come in tiles accordingly."
    )
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32", description="Of the coarse search's products; tf32 only means something on a GPU."
    )

    @model_validator(mode="after")
    def _coarse_is_no_finer(self) -> Self:
        return ordered(self, ("coarse_order", "grid_order"))


class RefinementSettings(Settings):
    """How proposed poses are refined against the reference."""

    radius_deg: float = Field(
        0.0, ge=0, le=60, description="Angle searched around a proposal; 0: one step of the grid that it comes from."
    )
    stages: int = Field(
        2,
        ge=1,
        le=6,
        description="Searches at least, each with half the step of the one before; more follow until the step supports "
        "the limit.",
    )
    num_modes: int = Field(3, ge=1, le=50, description="Proposals of a particle that are searched, best first.")
    least_weight: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Proposals of less posterior mass than this share of the first one's are left out.",
    )
    limit_angstrom: float = Field(0.0, ge=0, description="Finest resolution compared; 0: the reference's.")
    shift_range_angstrom: float = Field(
        0.0,
        ge=0,
        description="Shifts searched about the proposal's in x and y; 0: one and a half steps of the gallery's.",
    )
    batch_size: int = Field(16, ge=1, description="Proposals searched at a time.")
    memory_mib: int = Field(256, ge=1, description="Candidates' projections held at a time by each CPU thread.")
