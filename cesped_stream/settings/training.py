"""Settings of the training and its augmentations."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from cesped_stream.settings.base import Settings, Symmetry, ordered
from cesped_stream.settings.network import MODEL_PRESETS, ModelSettings, PreprocessSettings


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
    def _ranges_areordered(self) -> Self:
        return ordered(
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
    symmetry: Symmetry = Field(
        "C1",
        description="Point group of the particle, as RELION's --sym names it: C1, C4, D2, T, O, I (I2), I1 to I4.",
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
