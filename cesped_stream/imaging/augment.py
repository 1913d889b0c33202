"""Augmentations of training images (CESPED's Appendix B), batched, with the labels that follow."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from cesped_stream.settings import AugmentSettings


class Augmenter:
    """Turns, shifts and zooms images about their origin, pixel N/2, in one resampling; then adds noise and erases.

    The resampling is bicubic: bilinear takes a third of the white noise's std away, which inference then has.
    """

    def __init__(self, settings: AugmentSettings) -> None:
        self.settings = settings

    def __call__(self, images: Tensor, rotations: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return augmented images `(b, 1, s, s)` and pose rotations `(b, 3, 3)` float64 of them.

        Turning an image in its plane by R (2D) turns the pose on the image's side: rotation @ R. Shifts and zooms
        leave the rotation as it is. All draws come from `generator` (CPU), in a fixed order.
        """
        turn, matrix, offset = self._draw(len(images), images.shape[-1], generator)
        grid = functional.affine_grid(
            torch.cat([matrix, offset[:, :, None]], dim=2).to(images), list(images.shape), align_corners=True
        )
        images = functional.grid_sample(images, grid, mode="bicubic", align_corners=True, padding_mode="reflection")
        images = self._erase(self._noise(images, generator), generator)
        return images, rotations @ turn

    def _draw(self, batch: int, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return in-plane turns `(b, 3, 3)` float64, and the sampling's matrices `(b, 2, 2)` and offsets `(b, 2)`."""
        s = self.settings

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(batch, *shape, generator=generator, dtype=torch.float64)

        def chosen(probability: float) -> Tensor:
            return (torch.rand(batch, generator=generator) < probability).double()

        angle = torch.deg2rad(uniform(-s.rotation_deg, s.rotation_deg)) * chosen(s.rotation_probability)
        quarter = torch.randint(0, 4, (batch,), generator=generator) * (math.pi / 2)
        angle = angle + quarter * chosen(s.quarter_turn_probability)
        zoom = 1 + uniform(0, s.zoom_fraction) * chosen(s.zoom_probability)
        shift = uniform(-s.shift_fraction, s.shift_fraction, 2) * side * chosen(s.shift_probability)[:, None]
        cosine, sine = angle.cos(), angle.sin()
        turn = torch.zeros(batch, 3, 3, dtype=torch.float64)
        turn[:, 0, 0], turn[:, 0, 1], turn[:, 1, 0], turn[:, 1, 1], turn[:, 2, 2] = cosine, -sine, sine, cosine, 1.0
        matrix = turn[:, :2, :2] / zoom[:, None, None]
        # in affine_grid's units pixel k is at 2 k / (side - 1) - 1; the origin N/2 stays where it is
        half = (side - 1) / 2
        origin = torch.full((2,), (side // 2) / half - 1, dtype=torch.float64)
        return turn, matrix, origin - matrix @ origin - shift / half

    def _noise(self, images: Tensor, generator: torch.Generator) -> Tensor:
        s = self.settings
        for scale, probability, draw in (
            (s.uniform_noise_scale, s.uniform_noise_probability, torch.rand),
            (s.gaussian_noise_std, s.gaussian_noise_probability, torch.randn),
        ):
            if probability == 0 or scale == 0:
                continue
            chosen = torch.rand(len(images), generator=generator) < probability
            size = torch.rand(len(images), generator=generator) * scale * chosen
            noise = draw(images.shape, generator=generator)
            noise = 2 * noise - 1 if draw is torch.rand else noise
            images = images + (size[:, None, None, None] * noise).to(images)
        return images

    def _erase(self, images: Tensor, generator: torch.Generator) -> Tensor:
        s = self.settings
        if s.erase_probability == 0 or s.erase_fraction == 0:
            return images
        batch, side = len(images), images.shape[-1]
        chosen = torch.rand(batch, generator=generator) < s.erase_probability
        length = (torch.rand(batch, generator=generator) * s.erase_fraction).sqrt() * side * chosen
        corner = torch.rand(batch, 2, generator=generator) * (side - length)[:, None]
        pixel = torch.arange(side)
        inside = (pixel >= corner[:, :, None]) & (pixel < (corner + length[:, None])[:, :, None])
        patch = inside[:, 1, :, None] & inside[:, 0, None, :]
        return images.masked_fill(patch[:, None].to(images.device), 0.0)
