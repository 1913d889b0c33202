"""Settings of the library's stages, typed, bounded and described; the description is the documentation. No torch."""

from cesped_stream.settings.base import CtfCorrection, Device, Precision, Settings, Symmetry
from cesped_stream.settings.maps import EngineSettings, ReferenceSettings
from cesped_stream.settings.network import MODEL_PRESETS, ModelSettings, PreprocessSettings
from cesped_stream.settings.posing import (
    CalibrationSettings,
    FusionSettings,
    GallerySettings,
    InferenceSettings,
    RefinementSettings,
)
from cesped_stream.settings.realism import (
    IMAGE_SWITCHES,
    LABEL_SETTINGS,
    REALISM_PRESETS,
    REPLAY_ONLY,
    SIMULATE_ONLY,
    JunkKind,
    RealismSettings,
)
from cesped_stream.settings.simulation import OpticsSettings, SimulationSettings
from cesped_stream.settings.training import AUGMENT_PRESETS, TRAINING_PRESETS, AugmentSettings, TrainingSettings

__all__ = [
    "AUGMENT_PRESETS",
    "IMAGE_SWITCHES",
    "LABEL_SETTINGS",
    "MODEL_PRESETS",
    "REALISM_PRESETS",
    "REPLAY_ONLY",
    "SIMULATE_ONLY",
    "TRAINING_PRESETS",
    "AugmentSettings",
    "CalibrationSettings",
    "CtfCorrection",
    "Device",
    "EngineSettings",
    "FusionSettings",
    "GallerySettings",
    "InferenceSettings",
    "JunkKind",
    "ModelSettings",
    "OpticsSettings",
    "Precision",
    "PreprocessSettings",
    "RealismSettings",
    "ReferenceSettings",
    "RefinementSettings",
    "Settings",
    "SimulationSettings",
    "Symmetry",
    "TrainingSettings",
]
