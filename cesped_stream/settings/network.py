"""Settings of the network and of what it sees."""

from typing import Literal

from pydantic import Field

from cesped_stream.settings.base import CtfCorrection, Settings


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
