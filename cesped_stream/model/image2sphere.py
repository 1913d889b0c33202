"""Image2Sphere: from particle images to a distribution over the SO(3) grid (CESPED's Appendix B; Klee et al. 2023)."""

import torch
from torch import Tensor, nn

from cesped_stream.model.convolutions import S2Convolution, SO3Activation, SO3Convolution
from cesped_stream.model.encoder import Encoder
from cesped_stream.model.projector import SphereProjector
from cesped_stream.settings import ModelSettings
from cesped_stream.so3.harmonics import SO3Synthesis

# With the published 1 and 1 the first logits spread by about 20, and hundreds of steps go into unlearning them; smaller
# filters also move further in an optimiser step. Small preset, 4,000 easy ribosome images, 400 steps of 64, grid order
# 2, AdamW 1e-3: mean/median error 106/121 deg with (1, 1), 22/11 with (1, 0.05), 18/10 with (0.2, 0.2).
_S2_STD = 0.2
_SO3_STD = 0.2


class SphereHead(nn.Module):
    """From a feature map to logits on the SO(3) grid; turning the map by 90 degrees moves the logits exactly."""

    def __init__(self, settings: ModelSettings, in_channels: int) -> None:
        super().__init__()
        lmax = settings.lmax
        self.projector = SphereProjector(settings, in_channels)
        self.s2_convolution = S2Convolution(
            settings.projector_channels,
            settings.s2_channels,
            lmax,
            settings.sphere_order,
            initial_std=_S2_STD,
        )
        self.activation = SO3Activation(lmax, settings.so3_activation_resolution)
        self.so3_convolution = SO3Convolution(settings.s2_channels, 1, lmax, initial_std=_SO3_STD)
        self.synthesis = SO3Synthesis(lmax, settings.grid_order)

    def forward(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return logits `(b, n)` of features `(b, in_channels, f, f)`."""
        signal = self.s2_convolution(self.projector(features, generator))
        coefficients = self.so3_convolution(self.activation(signal)).squeeze(1)
        logits: Tensor = self.synthesis(coefficients)
        return logits


class Image2Sphere(nn.Module):
    """Encoder and head. `eval()` is deterministic and uses every point of the sphere; `train()` leaves some out."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = Encoder(settings)
        self.head = SphereHead(settings, self.encoder.out_channels)

    def forward(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return logits `(b, n)` over the head-frame grid of `settings.grid_order` for images `(b, 1, s, s)`.

        The encoder runs in the dtype of an autocast region, the head always in float32. `generator` (CPU) draws the
        sphere's points in training.
        """
        features = self.encoder(images)
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.head(features.float(), generator)
        return logits
