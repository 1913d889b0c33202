"""Settings of the library's stages, typed, bounded and described; the description is the documentation. No torch."""

from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

Device = Literal["auto", "cuda", "cpu"]
Precision = Literal["float32", "bfloat16"]
CtfCorrection = Literal["none", "phase_flip", "multiply", "wiener"]


class Settings(BaseModel):
    """Base of every settings group: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Settings)


def _ordered(settings: S, *pairs: tuple[str, str]) -> S:
    """Return the settings; ValueError where the first field of a pair is above its second."""
    for least, largest in pairs:
        low, high = getattr(settings, least), getattr(settings, largest)
        if low > high:
            raise ValueError(f"{least} {low:g} is above {largest} {high:g}")
    return settings


class PreprocessSettings(Settings):
    """From acquired particle images to what the network sees."""

    image_size: int = Field(40, ge=16, le=1024, description="Side of the network's input in pixels.")
    crop_angstrom: float = Field(
        0.0,
        ge=0,
        description="Side of the square kept around the particle, in angstrom; 0 keeps the whole box. With image_size "
        "it fixes the network's pixel size, the same for every optics group and box.",
    )
    background_radius_angstrom: float = Field(
        0.0,
        ge=0,
        description="Pixels farther than this from the centre are background (normalised to mean 0, std 1); 0 takes "
        "the inscribed circle.",
    )
    ctf_correction: CtfCorrection = Field(
        "phase_flip",
        description="Done on the full box before any resize; what the data already carry is not done again. multiply: "
        "CTF y; wiener: CTF y / (CTF^2 + wiener_regulariser).",
    )
    wiener_regulariser: float = Field(
        0.1, gt=0, description="Noise power over signal power that the Wiener correction assumes at every frequency."
    )
    normalise: bool = Field(True, description="Background to mean 0 and std 1; false leaves the values as acquired.")


class ModelSettings(Settings):
    """Image2Sphere (CESPED paper, Appendix B). The presets are in `MODEL_PRESETS`."""

    backbone: Literal["resnet18", "resnet50", "resnet152"] = Field("resnet18", description="torchvision ResNet.")
    backbone_stages: int = Field(4, ge=2, le=4, description="ResNet stages kept: 4 is all, 3 ends after layer3.")
    backbone_width: int = Field(64, ge=8, le=64, description="Channels of the first stage; 64 is torchvision's.")
    stem: Literal["imagenet", "small"] = Field(
        "imagenet", description="imagenet: 7x7 stride 2 and max pooling; small: 5x5 stride 2 without pooling."
    )
    lmax: int = Field(8, ge=1, le=12, description="Highest degree of the spherical harmonics.")
    projector_channels: int = Field(512, ge=8, description="Channels after the 1x1 convolution, before the sphere.")
    sphere_order: int = Field(3, ge=1, le=4, description="HEALPix order of the sphere that features are put on.")
    sphere_coverage: float = Field(
        0.9, gt=0, le=1, description="Share of the hemisphere's radius that the image covers."
    )
    sphere_dropout: float = Field(0.5, ge=0, lt=1, description="Share of the sphere's points left out in training.")
    s2_channels: int = Field(16, ge=1, description="Filters of the S2 convolution (its output channels).")
    so3_activation_resolution: int = Field(10, ge=3, le=16, description="Resolution of e3nn's SO3Activation.")
    grid_order: int = Field(4, ge=1, le=5, description="HEALPix order of the SO(3) grid of the logits.")


MODEL_PRESETS: dict[str, tuple[ModelSettings, PreprocessSettings]] = {
    "paper": (
        ModelSettings(backbone="resnet152"),
        PreprocessSettings(image_size=256),
    ),
    "small": (
        ModelSettings(
            backbone="resnet18",
            backbone_stages=3,
            backbone_width=32,
            stem="small",
            lmax=6,
            projector_channels=256,
            so3_activation_resolution=4,
            grid_order=3,
        ),
        PreprocessSettings(image_size=40),
    ),
}


class AugmentSettings(Settings):
    """The paper's augmentations (Appendix B): ranges and probabilities."""

    shift_fraction: float = Field(0.05, ge=0, le=0.5, description="Largest shift, as a share of the image side.")
    shift_probability: float = Field(0.5, ge=0, le=1, description="Probability of a random shift.")
    rotation_deg: float = Field(20.0, ge=0, le=180, description="Largest in-plane rotation besides quarter turns.")
    rotation_probability: float = Field(0.5, ge=0, le=1, description="Probability of that rotation.")
    quarter_turn_probability: float = Field(1.0, ge=0, le=1, description="Probability of a random 90 degree turn.")
    uniform_noise_scale: float = Field(2.0, ge=0, description="Largest scale of added uniform noise.")
    uniform_noise_probability: float = Field(0.2, ge=0, le=1, description="Probability of uniform noise.")
    gaussian_noise_std: float = Field(0.5, ge=0, description="Largest std of added Gaussian noise.")
    gaussian_noise_probability: float = Field(0.2, ge=0, le=1, description="Probability of Gaussian noise.")
    zoom_fraction: float = Field(0.05, ge=0, le=0.5, description="Largest zoom-in.")
    zoom_out_fraction: float = Field(0.0, ge=0, le=0.5, description="Largest zoom-out.")
    zoom_probability: float = Field(0.2, ge=0, le=1, description="Probability of a zoom.")
    blur_least_sigma_pixels: float = Field(0.0, ge=0, description="Least sigma of the Gaussian blur.")
    blur_largest_sigma_pixels: float = Field(0.0, ge=0, le=16, description="Largest sigma of the Gaussian blur.")
    blur_probability: float = Field(0.0, ge=0, le=1, description="Probability of a Gaussian blur.")
    erase_fraction: float = Field(0.02, ge=0, le=0.5, description="Largest erased patch, as a share of the area.")
    erase_least_fraction: float = Field(0.0, ge=0, le=0.5, description="Least erased patch, as a share of the area.")
    erase_largest_aspect: float = Field(
        1.0, ge=1, le=10, description="Largest ratio of an erased patch's sides, either way; 1: squares."
    )
    erase_probability: float = Field(0.1, ge=0, le=1, description="Probability of erasing a patch.")

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> Self:
        return _ordered(
            self,
            ("blur_least_sigma_pixels", "blur_largest_sigma_pixels"),
            ("erase_least_fraction", "erase_fraction"),
        )


AUGMENT_PRESETS: dict[str, AugmentSettings] = {
    "paper": AugmentSettings(),
    "cesped": AugmentSettings(
        shift_fraction=0.0125,
        rotation_deg=10.0,
        uniform_noise_scale=0.5,
        uniform_noise_probability=0.1,
        gaussian_noise_std=0.3,
        gaussian_noise_probability=0.1,
        zoom_fraction=0.025,
        zoom_out_fraction=0.025,
        blur_least_sigma_pixels=0.001,
        blur_largest_sigma_pixels=2.0,
        blur_probability=0.2,
        erase_least_fraction=0.01,
        erase_largest_aspect=2.3,
    ),
}
"""`paper`: Appendix B. `cesped`: what the public package (25.12.0) does with the values of its configuration: it draws
+-half of each `max..` value, a shift of 1 is half the image side there, it zooms both ways, and it blurs."""


TRAINING_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {
        "optimizer": "adamw",
        "schedule": "cosine",
        "weight_decay": 1e-2,
        "learning_rate": 3e-3,
        "max_steps": 1000,
        "imagenet_weights": "none",
        "augment": {
            "shift_probability": 0.0,
            "rotation_deg": 180.0,
            "rotation_probability": 1.0,
            "quarter_turn_probability": 0.0,
            "uniform_noise_probability": 0.0,
            "gaussian_noise_probability": 0.0,
            "zoom_probability": 0.0,
            "erase_probability": 0.0,
        },
    },
}
"""What a preset sets where the user sets nothing: `paper` is Appendix B, `small` learns in minutes on two cores."""


class TrainingSettings(Settings):
    """How the trainer fine-tunes one model per half-set. What is not given is the preset's, not the default shown."""

    preset: Literal["paper", "small"] = Field(
        "small", description="Model, preprocessing and the defaults of every training setting below."
    )
    model: ModelSettings | None = Field(None, description="Model settings; what is not given is the preset's.")
    preprocess: PreprocessSettings | None = Field(
        None, description="Preprocessing settings; what is not given is the preset's."
    )
    seed: int = Field(0, ge=0, description="Seeds initial weights, batches, augmentation and validation split.")
    batch_size: int = Field(64, ge=1, description="Images per optimiser step.")
    optimizer: Literal["radam", "adamw"] = Field(
        "radam", description="RAdam is the paper's; AdamW (small preset) suits short runs."
    )
    schedule: Literal["plateau", "cosine"] = Field(
        "plateau",
        description="plateau halves the rate when validation stagnates and keeps the best epoch (paper); cosine "
        "(small preset) anneals until max_steps, or until max_minutes where that comes first, and keeps the last.",
    )
    learning_rate: float = Field(1e-3, gt=0, description="Initial (plateau) or peak (cosine) learning rate.")
    weight_decay: float = Field(1e-5, ge=0, description="Weight decay.")
    warmup_steps: int = Field(50, ge=0, description="Steps of linear warm-up of the cosine schedule.")
    max_steps: int = Field(1_000_000, ge=1, description="Optimiser steps at most, per half.")
    steps_per_epoch: int = Field(
        0, ge=0, description="Steps between validations and resume points; 0: one pass over the half's rows."
    )
    max_epochs: int = Field(400, ge=1, description="Epochs at most.")
    plateau_epochs: int = Field(10, ge=1, description="Epochs without improvement before the rate is halved.")
    stop_epochs: int = Field(12, ge=1, description="Epochs without improvement before training stops (plateau).")
    max_minutes: float = Field(
        0.0,
        ge=0,
        description="Stops earlier than max_steps when exceeded (0: no limit); the manifest then says so.",
    )
    validation_fraction: float = Field(
        0.1, ge=0, lt=1, description="Share of rows held out for validation, by whole micrographs."
    )
    symmetry: str = Field(
        "C1",
        pattern=r"^(C|D)[1-9][0-9]*$|^T$|^O$|^I[1-4]?$",
        description="Point group in RELION's orientation.",
    )
    alignment: Literal["independent", "shared_reference", "unknown"] = Field(
        "unknown",
        description="How the two half-sets of the aligned rows were refined: independent (against a reference of their "
        "own each, as Refine3D does), shared_reference (Class3D, a consensus), unknown. The half maps of all poses "
        "that follow are no more independent than that; manifest and reports say which.",
    )
    augment: AugmentSettings = Field(default_factory=AugmentSettings, description="Augmentations.")
    init_from: str = Field(
        "",
        description="Checkpoint folder to start from; shared by both halves, and said so. Never one that has "
        "seen these same particles.",
    )
    imagenet_weights: str = Field(
        "auto",
        description="auto: torchvision's, when they can be had; none; or the path of a .pth/.safetensors file.",
    )

    @model_validator(mode="before")
    @classmethod
    def _preset_fills_what_is_unset(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        preset = TRAINING_PRESETS.get(data.get("preset", "small"), {})
        augment = data.get("augment", {})
        if "augment" in preset and isinstance(augment, dict):
            data = {**data, "augment": {**preset["augment"], **augment}}
        for key, default in zip(
            ("model", "preprocess"), MODEL_PRESETS.get(data.get("preset", "small"), ()), strict=False
        ):
            if isinstance(data.get(key), dict):  # one key given: the others stay the preset's
                data = {**data, key: {**default.model_dump(), **data[key]}}
        return {**preset, **data}

    @property
    def model_settings(self) -> ModelSettings:
        """The model's settings: given ones, else the preset's."""
        return self.model or MODEL_PRESETS[self.preset][0]

    @property
    def preprocess_settings(self) -> PreprocessSettings:
        """The preprocessing's settings: given ones, else the preset's."""
        return self.preprocess or MODEL_PRESETS[self.preset][1]


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


class EngineSettings(Settings):
    """What makes maps of particles: our own backprojection, or relion_reconstruct as an external program."""

    kind: Literal["builtin", "relion"] = Field("builtin", description="Our own backprojection, or RELION's program.")
    device: Device = Field("auto", description="Of the builtin engine; auto: a GPU where there is one.")
    relion_folder: Path | None = Field(None, description="Folder of RELION's programs; default: PATH.")
    skip_gridding: bool = Field(
        False,
        description="RELION without its iterative gridding, which is then equal to the builtin engine and faster; "
        "published figures are with it.",
    )
    processes: int = Field(1, ge=1, le=512, description="Of RELION; more than 1 run under mpirun.")
    mpirun: str = Field(
        "mpirun",
        min_length=1,
        description="Command that starts MPI programs, options included: Open MPI as root needs --allow-run-as-root, "
        "for more processes than cores --oversubscribe.",
    )
    singularity_image: Path | None = Field(
        None,
        description="Singularity/Apptainer image with RELION, run instead of an installed one; relion_folder and "
        "mpirun are then the image's own.",
    )


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
        return _ordered(self, ("min_particles", "max_particles"))


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
        return _ordered(self, ("min_particles", "max_particles"), ("min_particles", "max_fused_particles"))


class OpticsSettings(Settings):
    """One optics group of a simulated entry."""

    voltage_kv: float = Field(300.0, gt=0, description="Acceleration voltage.")
    spherical_aberration_mm: float = Field(2.7, ge=0, description="Spherical aberration Cs.")
    amplitude_contrast: float = Field(0.1, ge=0, le=1, description="Amplitude contrast.")
    phase_shift_deg: float = Field(0.0, ge=0, le=180, description="Phase shift of a phase plate.")


class SimulationSettings(Settings):
    """What particles of a map a simulation makes; box and pixel size are the map's."""

    num_particles: int = Field(5000, ge=2, description="Particles of both half-sets together, half in each.")
    snr: float = Field(
        0.1,
        gt=0,
        description="Variance of the signal over that of the white noise, inside the particle circle, after the CTF, "
        "at the map's pixel size; inf: no noise.",
    )
    particle_radius_angstrom: float = Field(
        0.0, ge=0, description="Radius of the circle in which the SNR holds; 0: the circle inscribed in the box."
    )
    max_shift_angstrom: float = Field(5.0, ge=0, description="Centring errors are uniform within +- this in x and y.")
    ctf: bool = Field(True, description="false: defocus 0, Cs 0, amplitude contrast 1, whose CTF is 1 everywhere.")
    optics: tuple[OpticsSettings, ...] = Field(
        (OpticsSettings(), OpticsSettings(voltage_kv=200.0, amplitude_contrast=0.07)),
        min_length=1,
        description="Optics groups; micrographs take them in turn.",
    )
    min_defocus_angstrom: float = Field(8000.0, gt=0, description="Least mean defocus of a micrograph (underfocus).")
    max_defocus_angstrom: float = Field(20000.0, gt=0, description="Largest mean defocus of a micrograph.")
    defocus_spread_angstrom: float = Field(300.0, ge=0, description="Particles lie within +- this of their micrograph.")
    max_astigmatism_angstrom: float = Field(
        400.0, ge=0, description="DefocusU - DefocusV of a micrograph is uniform from 0 to this."
    )
    particles_per_micrograph: int = Field(50, ge=1, description="Particles on one micrograph, of both half-sets.")
    symmetry: str = Field(
        "C1",
        pattern=r"^(C|D)[1-9][0-9]*$|^T$|^O$|^I[1-4]?$",
        description="The map's point group, for info_{0,1}.json; it changes no pose.",
    )
    seed: int = Field(0, ge=0, description="Fixes every number of the entry.")

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> Self:
        if self.min_defocus_angstrom > self.max_defocus_angstrom:
            raise ValueError(
                f"min_defocus_angstrom {self.min_defocus_angstrom:g} is above max_defocus_angstrom "
                f"{self.max_defocus_angstrom:g}; exchange them"
            )
        return self


JunkKind = Literal["noise", "ice", "edge", "two_particles", "other_protein"]

REALISM_PRESETS: dict[str, dict[str, Any]] = {
    "clean": {},
    "session": {
        "junk_fraction": 0.3,
        "noise_exponent": 1.0,
        "added_noise": 0.25,
        "neighbours": 0.5,
        "min_envelope_angstrom2": 80.0,
        "max_envelope_angstrom2": 200.0,
        "snr_end_over_start": 0.5,
        "defocus_drift_angstrom": 4000.0,
        "new_optics_at": 0.5,
        "preferred_fraction": 0.8,
        "off_centre_fraction": 0.25,
        "bad_label_fraction": 0.1,
        "label_symmetry_mates": True,
    },
}
"""What a preset sets where the user sets nothing; `clean` adds nothing at all."""


class RealismSettings(Settings):
    """What real sessions contain and clean simulations do not. What is not given is the preset's."""

    preset: Literal["clean", "session"] = Field(
        "clean", description="clean: nothing of this; session: all of it. It is the default of every setting below."
    )
    seed: int = Field(0, ge=0, description="Fixes every number that realism draws.")
    junk_fraction: float = Field(0.0, ge=0, le=0.5, description="Share of the picks that show no single particle.")
    junk_kinds: tuple[JunkKind, ...] = Field(
        ("noise", "ice", "edge", "two_particles", "other_protein"), min_length=1, description="Kinds of junk, in turn."
    )
    noise_exponent: float = Field(
        0.0, ge=0, le=4, description="The noise's power falls with frequency to minus this; 0: white."
    )
    noise_corner_angstrom: float = Field(
        200.0, gt=0, description="Noise is flat below this period, so that its power stays finite."
    )
    added_noise: float = Field(
        0.0, ge=0, le=100, description="Replay: variance of noise added to all images, over the variance they have."
    )
    neighbours: float = Field(0.0, ge=0, le=4, description="Mean number of neighbouring particles around a pick.")
    min_neighbour_diameters: float = Field(0.8, gt=0, le=5, description="Least distance of a neighbour, in diameters.")
    max_neighbour_diameters: float = Field(1.2, gt=0, le=5, description="Largest distance of a neighbour.")
    particle_diameter_angstrom: float = Field(
        0.0,
        ge=0,
        description="Diameter that neighbours and clipping are measured by; 0: twice "
        "simulate.particle_radius_angstrom, else measured from the map (simulate), 0.7 of the box (replay).",
    )
    min_envelope_angstrom2: float = Field(
        0.0, ge=0, le=1000, description="Simulate: least B of a micrograph's envelope exp(-B s^2 / 4)."
    )
    max_envelope_angstrom2: float = Field(
        0.0, ge=0, le=1000, description="Simulate: largest B; the stars do not tell it, as a microscope does not."
    )
    snr_end_over_start: float = Field(
        1.0, gt=0, le=1, description="SNR of the session's last particle over that of its first; geometric in between."
    )
    defocus_drift_angstrom: float = Field(
        0.0, ge=0, le=50000, description="Simulate: how far the defocus range has moved up by the session's end."
    )
    new_optics_at: float = Field(
        0.0, ge=0, lt=1, description="Share of the session after which new optics groups replace the old; 0: never."
    )
    preferred_fraction: float = Field(
        0.0, ge=0, le=1, description="Share of the particles whose view lies in a preferred cone; 0: views as they are."
    )
    preferred_cones: int = Field(3, ge=1, le=20, description="Number of preferred cones.")
    preferred_cone_deg: float = Field(30.0, gt=0, le=90, description="Half angle of each preferred cone.")
    off_centre_fraction: float = Field(0.0, ge=0, le=1, description="Share of the picks that are badly centred.")
    min_off_centre_px: float = Field(5.0, ge=0, le=100, description="Least distance of such a pick, in pixels.")
    max_off_centre_px: float = Field(8.0, ge=0, le=100, description="Largest distance of such a pick, in pixels.")
    bad_label_fraction: float = Field(
        0.0, ge=0, le=1, description="Replay: share of the aligned particles that land with a random pose."
    )
    min_label_jitter_deg: float = Field(
        0.0, ge=0, le=180, description="Replay: every other aligned pose is turned by at least this about any axis."
    )
    max_label_jitter_deg: float = Field(0.0, ge=0, le=180, description="Replay: and by this at most.")
    label_symmetry_mates: bool = Field(
        False, description="Replay: aligned poses land as any of their symmetry mates, all as true."
    )

    @model_validator(mode="before")
    @classmethod
    def _preset_fills_what_is_unset(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {**REALISM_PRESETS.get(data.get("preset", "clean"), {}), **data}

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> Self:
        for what in ("neighbour_diameters", "envelope_angstrom2", "off_centre_px", "label_jitter_deg"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if low > high:
                raise ValueError(f"min_{what} {low:g} is above max_{what} {high:g}; exchange them")
        return self

    def beyond_preset(self) -> tuple[str, ...]:
        """Return the names of the settings that differ from what their preset says."""
        usual = RealismSettings(preset=self.preset)
        return tuple(name for name in type(self).model_fields if getattr(self, name) != getattr(usual, name))

    def without(self, names: frozenset[str]) -> Self:
        """Return these settings with the named ones off, as in the preset `clean`."""
        return self.model_copy(update={name: type(self).model_fields[name].default for name in names})

    @property
    def drifts(self) -> bool:
        """Whether later particles differ from earlier ones: in SNR, defocus or optics group."""
        return self.snr_end_over_start != 1 or self.defocus_drift_angstrom != 0 or self.new_optics_at != 0

    @property
    def is_clean(self) -> bool:
        """Whether nothing is added: what remains is to the byte what there is without these settings."""
        return all(getattr(self, name) == type(self).model_fields[name].default for name in _REALISM_SWITCHES)


SIMULATE_ONLY = frozenset({"min_envelope_angstrom2", "max_envelope_angstrom2", "defocus_drift_angstrom"})
"""What cannot be done to a recorded image: its envelope and defocus are in it, and the noise has neither."""
LABEL_SETTINGS = frozenset(
    {"bad_label_fraction", "min_label_jitter_deg", "max_label_jitter_deg", "label_symmetry_mates"}
)
"""What a replay does to the poses that it tells; the images stay."""
REPLAY_ONLY = LABEL_SETTINGS | {"added_noise"}
IMAGE_SWITCHES = frozenset(
    {
        *("junk_fraction", "noise_exponent", "neighbours", "snr_end_over_start", "new_optics_at"),
        *("preferred_fraction", "off_centre_fraction", "added_noise"),
    }
)
"""What each, at its default, turns a kind of realism in the images or the choice of particles off."""
_REALISM_SWITCHES = IMAGE_SWITCHES | SIMULATE_ONLY | LABEL_SETTINGS


class ReferenceSettings(Settings):
    """How a half-set's reference is made from its aligned rows, or from a given map."""

    finest_angstrom: float = Field(
        6.0, gt=0, description="Finest resolution kept in a reference; larger images are made smaller accordingly."
    )
    mask_lowpass_angstrom: float = Field(
        15.0, ge=0, description="Low-pass of the map from whose density the soft mask is made."
    )
    map_lowpass_angstrom: float = Field(
        20.0, gt=0, description="Low-pass of a given map: both half-sets share it, so it must not carry detail."
    )
    background_radius_angstrom: float = Field(
        0.0, ge=0, description="Pixels farther than this from the centre are background; 0: the inscribed circle."
    )
    noise_rows: int = Field(1000, ge=20, description="Aligned rows, at most, on whose residuals the noise is fitted.")
    rebuild_rows: int = Field(
        0,
        ge=0,
        description="A session makes its references anew, of aligned and of confidently posed rows, whenever so many "
        "more of the latter have accumulated in each half-set; 0: never.",
    )
    rebuild_least_confidence: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Confidence, calibrated or not, that a posed row in a rebuilt reference needs.",
    )
    rebuild_max_rows: int = Field(
        10_000, ge=20, description="Posed rows of a half-set, at most, in a rebuilt reference: the newest ones."
    )
    leave_out: bool = Field(
        True,
        description="Leave out aligned rows that the map of other rows explains, at their poses, no better than noise: "
        "junk and wrong poses.",
    )


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
    memory_mib: int = Field(64, ge=1, description="Scores held at a time; views come in tiles accordingly.")
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32", description="Of the coarse search's products; tf32 only means something on a GPU."
    )

    @model_validator(mode="after")
    def _coarse_is_no_finer(self) -> Self:
        return _ordered(self, ("coarse_order", "grid_order"))


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
    memory_mib: int = Field(256, ge=1, description="Candidates' projections held at a time.")
