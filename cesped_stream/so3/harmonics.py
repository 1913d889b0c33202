"""From Wigner coefficients to values on the SO(3) grid, without the dense table."""

import math

import numpy as np
import torch
from e3nn import o3
from torch import Tensor, nn

from cesped_stream.so3.grids import direction_angles, in_plane_angles, num_directions, num_in_plane


class SO3Synthesis(nn.Module):
    """Evaluates signals on SO(3) at every head-frame grid rotation: logits from the Image2Sphere head's coefficients.

    Coefficients are e3nn's: per degree l a block `(2l + 1, 2l + 1)`, row-major, joined over l. The value at a rotation
    is their sum with sqrt(2l + 1) D^l, which is the product with the published model's ``flat_wigner``.

    D(alpha, beta, gamma) = D(alpha, beta, 0) D(0, 0, gamma), and the last factor only mixes the columns n and -n, by
    cos(n gamma) and sin(n gamma). So one batched product over the frequencies |n| gives a Fourier series in gamma at
    each direction, and one small product its values: 14 M multiply-adds at order 4 and lmax 8, where the dense
    product takes 286 M.
    """

    gather: Tensor
    directions: Tensor
    waves: Tensor

    def __init__(self, lmax: int, order: int) -> None:
        super().__init__()
        self.lmax, self.order = lmax, order
        self.num_coefficients = (lmax + 1) * (2 * lmax + 1) * (2 * lmax + 3) // 3
        gather, directions = _direction_tables(lmax, order)
        gamma = torch.from_numpy(in_plane_angles(order))
        phase = torch.arange(lmax + 1, dtype=torch.float64)[:, None] * gamma
        waves = torch.stack([phase.cos(), phase.sin()], dim=1).flatten(0, 1)
        self.register_buffer("gather", gather, persistent=False)
        self.register_buffer("directions", directions.float(), persistent=False)
        self.register_buffer("waves", waves.float(), persistent=False)

    def forward(self, coefficients: Tensor) -> Tensor:
        """Return logits `(b, num_rotations)` of coefficients `(b, sum_l (2l + 1)**2)`.

        In the buffers' dtype (float32) whatever the coefficients' dtype or an autocast region around says.
        """
        if coefficients.ndim != 2 or coefficients.shape[1] != self.num_coefficients:
            raise ValueError(
                f"coefficients have shape {tuple(coefficients.shape)}; (b, {self.num_coefficients}) needed"
            )
        with torch.autocast(coefficients.device.type, enabled=False):
            x = coefficients.to(self.directions.dtype)
            batch, frequencies = len(x), self.lmax + 1
            signed = torch.cat([x, -x, x.new_zeros(batch, 1)], dim=1)
            # (b, frequency * 2 * k) -> (frequency, 2 * b, k): cosine rows, then sine rows
            picked = signed.index_select(1, self.gather).view(batch, frequencies, 2, -1)
            picked = picked.permute(1, 2, 0, 3).reshape(frequencies, 2 * batch, -1)
            series = torch.bmm(picked, self.directions).view(2 * frequencies, -1)
            return torch.mm(series.T, self.waves).view(batch, num_directions(self.order) * num_in_plane(self.order))


def _direction_tables(lmax: int, order: int) -> tuple[Tensor, Tensor]:
    """Return what `forward` gathers and multiplies.

    Indices `((lmax + 1) * 2 * 2k,)` into (coefficients, their negatives, one 0), by frequency, cosine or sine, then
    column n or -n with all l and m; and sqrt(2l + 1) D^l(alpha, beta, 0) `(lmax + 1, 2k, directions)`, k =
    (lmax + 1)**2. A frequency has no degrees below it: those places hold 0.
    """
    size = (lmax + 1) * (2 * lmax + 1) * (2 * lmax + 3) // 3
    width = (lmax + 1) ** 2
    gather = torch.full((lmax + 1, 2, 2, width), 2 * size, dtype=torch.int64)
    table = torch.zeros(lmax + 1, 2, width, num_directions(order), dtype=torch.float64)
    start = 0
    for degree, matrix in enumerate(_wigner_at_directions(lmax, order)):
        side = 2 * degree + 1
        rows = slice(degree**2, degree**2 + side)
        block = start + torch.arange(side**2).view(side, side)
        start += side**2
        for n in range(degree + 1):
            plus, minus = degree - n, degree + n  # e3nn's columns of D(0, 0, gamma): frequencies l .. -l
            gather[n, 0, 0, rows], table[n, 0, rows] = block[:, plus], matrix[:, plus]
            if n > 0:
                gather[n, 0, 1, rows], table[n, 1, rows] = block[:, minus], matrix[:, minus]
                gather[n, 1, 0, rows], gather[n, 1, 1, rows] = block[:, minus], size + block[:, plus]
    return gather.flatten(), table.view(lmax + 1, 2 * width, -1)


def _wigner_at_directions(lmax: int, order: int) -> list[Tensor]:
    """Return sqrt(2l + 1) D^l(alpha, beta, 0) as `(2l + 1, 2l + 1, directions)` for each l, float64.

    D(alpha, 0, 0) is cosines on and sines across the diagonal, and HEALPix has only 4 nside - 1 distinct beta.
    """
    alpha, beta = (torch.from_numpy(angle) for angle in direction_angles(order))
    rings, ring = np.unique(beta.numpy().round(12), return_inverse=True)
    polar = torch.from_numpy(rings)
    zero = torch.zeros_like(polar)
    matrices = []
    for degree in range(lmax + 1):
        d = math.sqrt(2 * degree + 1) * o3.wigner_D(degree, zero, polar, zero)[torch.from_numpy(ring)].permute(1, 2, 0)
        phase = torch.arange(degree, -degree - 1, -1)[:, None, None] * alpha
        matrices.append(phase.cos() * d + phase.sin() * d.flip(0))
    return matrices
