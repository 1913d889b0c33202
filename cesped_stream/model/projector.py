"""From a feature map to spherical harmonics: orthographic projection onto the HEALPix hemisphere."""

import healpy
import numpy as np
import torch
from e3nn import o3
from torch import Tensor, nn
from torch.nn import functional

from cesped_stream.settings import ModelSettings

_TAPER_START = np.deg2rad(75.0)


def sphere_angles(order: int) -> tuple[Tensor, Tensor]:
    """Return alpha and beta `(12 * 4**order,)` in radians of the HEALPix points, pole on e3nn's y, RING order."""
    nside = 2**order
    beta, alpha = healpy.pix2ang(nside, np.arange(12 * nside**2))
    return torch.from_numpy(alpha), torch.from_numpy(beta)


def sphere_harmonics(alpha: Tensor, beta: Tensor, lmax: int) -> Tensor:
    """Return e3nn's real harmonics `(points, (lmax + 1)**2)`, component normalisation, float64."""
    harmonics: Tensor = o3.spherical_harmonics_alpha_beta(list(range(lmax + 1)), alpha, beta, normalization="component")
    return harmonics


def bilinear_matrix(rows: Tensor, columns: Tensor, side: int) -> Tensor:
    """Return weights `(points, side * side)` that sample a row-major map at fractional pixels inside it."""

    def hat(at: Tensor) -> Tensor:
        return (1 - (at[:, None] - torch.arange(side, dtype=at.dtype)).abs()).clamp(min=0)

    return (hat(rows)[:, :, None] * hat(columns)[:, None, :]).reshape(len(rows), side * side)


class SphereProjector(nn.Module):
    """Puts features on the hemisphere towards the viewer and expands them in harmonics up to `lmax`.

    Head frame: x is the image's columns, z its rows, y points at the viewer. Sampling is one product with a constant
    matrix. The points' weight falls to 0 between 75 and 90 degrees from the pole, as in Klee et al. 2023. In training
    a share of the points is left out, another one each call; the rest is scaled up, so logits keep their scale.
    """

    harmonics: Tensor
    taper: Tensor
    unit_rows: Tensor
    unit_columns: Tensor
    sampling: Tensor

    def __init__(self, settings: ModelSettings, in_channels: int) -> None:
        super().__init__()
        self.dropout = settings.sphere_dropout
        self.conv1x1 = nn.Conv2d(in_channels, settings.projector_channels, 1)
        alpha, beta = sphere_angles(settings.sphere_order)
        front = beta < np.pi / 2 - 1e-9
        alpha, beta = alpha[front], beta[front]
        self.num_points = len(beta)
        taper = ((np.pi / 2 - beta) / (np.pi / 2 - _TAPER_START)).clamp(max=1)
        radius = beta.sin() / beta.sin().max() * settings.sphere_coverage
        # the mean over the points, times sqrt(points) as in the published model
        harmonics = sphere_harmonics(alpha, beta, settings.lmax).T / self.num_points**0.5
        self.register_buffer("harmonics", harmonics.float().contiguous(), persistent=False)
        self.register_buffer("taper", taper, persistent=False)
        self.register_buffer("unit_rows", radius * alpha.cos(), persistent=False)
        self.register_buffer("unit_columns", radius * alpha.sin(), persistent=False)
        self.register_buffer("sampling", torch.empty(0, 0), persistent=False)

    def forward(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return coefficients `((lmax + 1)**2, b, channels)` of features `(b, in_channels, f, f)`.

        `generator` (CPU) draws the points left out in training; None is torch's own.
        """
        batch, _, side, _ = features.shape
        pixels = self.conv1x1(features).permute(0, 2, 3, 1).reshape(batch, side * side, -1)
        sampling, harmonics = self._matrix(side), self.harmonics
        if self.training and self.dropout > 0:
            kept = torch.randperm(self.num_points, generator=generator)
            kept = kept[: round(self.num_points * (1 - self.dropout))].to(features.device)
            sampling = sampling[kept]
            harmonics = harmonics[:, kept] * (self.num_points / len(kept))
        on_sphere = functional.relu(torch.matmul(sampling, pixels))
        return torch.matmul(harmonics, on_sphere).transpose(0, 1).contiguous()

    def _matrix(self, side: int) -> Tensor:
        if self.sampling.shape[1] != side * side:
            centre = (side - 1) / 2
            rows, columns = (centre * (1 + u.cpu()) for u in (self.unit_rows, self.unit_columns))
            with torch.inference_mode(False):  # else a later training step could not use it
                matrix = bilinear_matrix(rows, columns, side) * self.taper.cpu()[:, None]
                self.sampling = matrix.float().to(self.harmonics.device)
        return self.sampling
