"""Augmentations of training images (CESPED's Appendix B), batched, with the labels that follow."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from cesped_stream.settings import AugmentSettings


class Augmenter:
    """Turns, shifts and zooms images about their origin in one resampling; then blurs, adds noise and erases.

    The resampling is bicubic: bilinear takes a third of the white noise's std away, which inference then has.
    """

    def __init__(self, settings: AugmentSettings) -> None:
        self.settings = settings

    def __call__(
        self,
        images: Tensor,
        rotations: Tensor,
        generator: torch.Generator,
        *,
        shifts_angstrom: Tensor | None = None,
        pixel_size_angstrom: float = 1.0,
        origin_pixel: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return augmented images `(b, 1, s, s)`, and their pose rotations `(b, 3, 3)` and shifts `(b, 2)`, float64.

        Shifts (x, y) in angstrom centre the images (none given: 0), whose particle origin is `origin_pixel` `(b,)`, x
        and y alike (none given: s // 2). Turning an image in its plane by R turns the pose on the image's side:
        rotation @ R. An image sampled at R y / zoom - s, y from the origin, has the shift zoom R^T (shift - s): the
        turn and the zoom act on the given shift, a move of the particle by d lowers the shift by d. All draws come
        from `generator` (CPU), in a fixed order.
        """
        side = images.shape[-1]
        turn, matrix, move = self._draw(len(images), side, generator)
        origin = torch.full((len(images),), float(side // 2)) if origin_pixel is None else origin_pixel.cpu()
        # in affine_grid's units pixel k is at 2 k / (side - 1) - 1; the origin stays where it is
        half = (side - 1) / 2
        centre = (origin.double() / half - 1)[:, None].expand(-1, 2)
        offset = centre - (matrix @ centre[:, :, None])[:, :, 0] - move / half
        grid = functional.affine_grid(
            torch.cat([matrix, offset[:, :, None]], dim=2).to(images), list(images.shape), align_corners=True
        )
        images = functional.grid_sample(images, grid, mode="bicubic", align_corners=True, padding_mode="reflection")
        images = self._erase(self._noise(self._blur(images, generator), generator), generator)
        shifts = move.new_zeros(len(images), 2) if shifts_angstrom is None else shifts_angstrom.cpu().double()
        from_sampled = torch.linalg.inv(matrix)
        shifts = (from_sampled @ (shifts - move * pixel_size_angstrom)[:, :, None])[:, :, 0]
        return images, rotations @ turn.to(rotations), shifts

    def _draw(self, batch: int, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return in-plane turns `(b, 3, 3)`, the sampling's matrices `(b, 2, 2)`, and how far the particles move
        against (x, y), `(b, 2)` pixels before turn and zoom; float64."""
        s = self.settings

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(batch, *shape, generator=generator, dtype=torch.float64)

        def chosen(probability: float) -> Tensor:
            return (torch.rand(batch, generator=generator) < probability).double()

        angle = torch.deg2rad(uniform(-s.rotation_deg, s.rotation_deg)) * chosen(s.rotation_probability)
        quarter = torch.randint(0, 4, (batch,), generator=generator) * (math.pi / 2)
        angle = angle + quarter * chosen(s.quarter_turn_probability)
        zoom = 1 + uniform(-s.zoom_out_fraction, s.zoom_fraction) * chosen(s.zoom_probability)
        move = uniform(-s.shift_fraction, s.shift_fraction, 2) * side * chosen(s.shift_probability)[:, None]
        cosine, sine = angle.cos(), angle.sin()
        turn = torch.zeros(batch, 3, 3, dtype=torch.float64)
        turn[:, 0, 0], turn[:, 0, 1], turn[:, 1, 0], turn[:, 1, 1], turn[:, 2, 2] = cosine, -sine, sine, cosine, 1.0
        return turn, turn[:, :2, :2] / zoom[:, None, None], move

    def _blur(self, images: Tensor, generator: torch.Generator) -> Tensor:
        s = self.settings
        if s.blur_probability == 0 or s.blur_largest_sigma_pixels == 0:
            return images
        batch, side = len(images), images.shape[-1]
        chosen = torch.rand(batch, generator=generator) < s.blur_probability
        reach = s.blur_largest_sigma_pixels - s.blur_least_sigma_pixels
        sigma = (s.blur_least_sigma_pixels + torch.rand(batch, generator=generator) * reach) * chosen
        square = torch.fft.fftfreq(side)[:, None] ** 2 + torch.fft.rfftfreq(side) ** 2
        transfer = torch.exp(-2 * (math.pi * sigma[:, None, None, None]) ** 2 * square).to(images)
        blurred = torch.fft.irfft2(torch.fft.rfft2(images) * transfer, s=(side, side))
        return torch.where(chosen[:, None, None, None].to(images.device), blurred, images)

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
        reach = s.erase_fraction - s.erase_least_fraction
        area = s.erase_least_fraction + torch.rand(batch, generator=generator) * reach
        length = (area.sqrt() * side * chosen)[:, None] * self._aspect(batch, generator)
        corner = torch.rand(batch, 2, generator=generator) * (side - length)
        pixel = torch.arange(side)
        inside = (pixel >= corner[:, :, None]) & (pixel < (corner + length)[:, :, None])
        patch = inside[:, 1, :, None] & inside[:, 0, None, :]
        return images.masked_fill(patch[:, None].to(images.device), 0.0)

    def _aspect(self, batch: int, generator: torch.Generator) -> Tensor:
        """Return factors `(b, 2)` of an erased patch's sides whose product is 1."""
        largest = self.settings.erase_largest_aspect
        if largest == 1:
            return torch.ones(batch, 2)
        stretch = largest ** (torch.rand(batch, generator=generator) - 0.5)
        return torch.stack([stretch, 1 / stretch], 1)
