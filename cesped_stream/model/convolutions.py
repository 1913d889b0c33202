"""Group convolutions and the SO(3) activation, in e3nn's irreps: per degree l a block `(2l + 1, 2l + 1)`.

A signal on SO(3) is `(..., sum_l (2l + 1)**2)`, the blocks in order of l, each row-major; its value at a rotation is
the sum of coefficient times sqrt(2l + 1) times e3nn's Wigner D. Convolutions act on a block's rows (the map's side),
so turning the image, which acts on its columns, commutes with them exactly.
"""

import math

import numpy as np
import torch
from e3nn import o3
from torch import Tensor, nn
from torch.nn import functional

from cesped_stream.model.projector import sphere_angles, sphere_harmonics

KERNEL_MAX_BETA = math.pi / 8
KERNEL_MAX_GAMMA = 2 * math.pi
KERNEL_NUM_ALPHA = 8
KERNEL_NUM_BETA = 3
_VECTOR = 16


def _sizes(lmax: int) -> list[int]:
    """Return 2l + 1 for l = 0 .. lmax."""
    return [2 * degree + 1 for degree in range(lmax + 1)]


def so3_size(lmax: int) -> int:
    """Return the number of coefficients of a signal on SO(3): sum_l (2l + 1)**2."""
    return (lmax + 1) * (2 * lmax + 1) * (2 * lmax + 3) // 3


def flat_wigner(lmax: int, alpha: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
    """Return sqrt(2l + 1) D^l, flattened and joined over l: `(..., sum_l (2l + 1)**2)`."""
    sizes = _sizes(lmax)
    blocks = [math.sqrt(n) * o3.wigner_D(n // 2, alpha, beta, gamma).flatten(-2) for n in sizes]
    return torch.cat(blocks, dim=-1)


def near_identity_angles() -> tuple[Tensor, Tensor, Tensor]:
    """Return alpha, beta, gamma `(168,)` of the local SO(3) kernel's points (e3nn's layout, paper's Appendix B)."""
    beta = torch.arange(1, KERNEL_NUM_BETA + 1, dtype=torch.float64) * KERNEL_MAX_BETA / KERNEL_NUM_BETA
    alpha = torch.linspace(0, 2 * math.pi, KERNEL_NUM_ALPHA, dtype=torch.float64)[:-1]
    in_plane = torch.linspace(-KERNEL_MAX_GAMMA, KERNEL_MAX_GAMMA, KERNEL_NUM_ALPHA, dtype=torch.float64)
    a, b, g = (t.flatten() for t in torch.meshgrid(alpha, beta, in_plane, indexing="ij"))
    return a, b, g - a


def _rows_product(rows: Tensor, weights: Tensor) -> Tensor:
    """Return ``rows @ weights`` such that a row's bits do not depend on its place among the rows.

    MKL's kernels for few or odd columns round differently from row to row (measured, AVX-512); whole vectors do not.
    """
    columns = weights.shape[1]
    padded = functional.pad(weights, (0, -columns % _VECTOR))
    return (rows @ padded)[:, :columns]


class S2Convolution(nn.Module):
    """Correlates signals on the sphere with filters of global support: sphere in, SO(3) out.

    `initial_std` is that of the filters' values at the start (the published model's is 1).
    """

    points: Tensor

    def __init__(self, in_channels: int, out_channels: int, lmax: int, order: int, *, initial_std: float = 1.0) -> None:
        super().__init__()
        self.lmax, self.in_channels, self.out_channels = lmax, in_channels, out_channels
        harmonics = sphere_harmonics(*sphere_angles(order), lmax)
        self.filters = nn.Parameter(initial_std * torch.randn(in_channels, out_channels, len(harmonics)))
        scale = 1 / math.sqrt(len(harmonics) * in_channels)
        self.register_buffer("points", (harmonics * scale).float(), persistent=False)

    def forward(self, signal: Tensor) -> Tensor:
        """Return `(b, out_channels, sum_l (2l + 1)**2)` of coefficients `((lmax + 1)**2, b, in_channels)`."""
        batch = signal.shape[1]
        kernel = self.filters @ self.points
        blocks, start = [], 0
        for size in _sizes(self.lmax):
            part = slice(start, start + size)
            start += size
            product = _rows_product(signal[part].reshape(size * batch, -1), kernel[:, :, part].flatten(1))
            block = product.view(size, batch, self.out_channels, size)
            blocks.append(block.permute(1, 2, 3, 0).reshape(batch, self.out_channels, size * size))
        return torch.cat(blocks, dim=-1)


class SO3Convolution(nn.Module):
    """Correlates signals on SO(3) with filters that live near the identity: SO(3) in, SO(3) out.

    `initial_std` is that of the filters' values at the start (the published model's is 1).
    """

    points: Tensor

    def __init__(self, in_channels: int, out_channels: int, lmax: int, *, initial_std: float = 1.0) -> None:
        super().__init__()
        self.lmax, self.in_channels, self.out_channels = lmax, in_channels, out_channels
        wigner = flat_wigner(lmax, *near_identity_angles())
        self.filters = nn.Parameter(initial_std * torch.randn(in_channels, out_channels, len(wigner)))
        fan_in = torch.cat([torch.full((n * n,), float(in_channels * n)).double() for n in _sizes(lmax)])
        scale = (len(wigner) * fan_in).rsqrt()
        self.register_buffer("points", (wigner * scale).float(), persistent=False)

    def forward(self, signal: Tensor) -> Tensor:
        """Return `(b, out_channels, sum_l (2l + 1)**2)` of `(b, in_channels, sum_l (2l + 1)**2)`."""
        batch = len(signal)
        kernel = self.filters @ self.points
        blocks, start = [], 0
        for size in _sizes(self.lmax):
            part = slice(start, start + size * size)
            start += size * size
            inputs = signal[:, :, part].view(batch, self.in_channels, size, size).permute(0, 3, 1, 2)
            weights = kernel[:, :, part].reshape(self.in_channels, self.out_channels, size, size)
            weights = weights.transpose(1, 2).reshape(self.in_channels * size, self.out_channels * size)
            product = _rows_product(inputs.reshape(batch * size, self.in_channels * size), weights)
            block = product.view(batch, size, self.out_channels, size).permute(0, 2, 3, 1)
            blocks.append(block.reshape(batch, self.out_channels, size * size))
        return torch.cat(blocks, dim=-1)


class SO3Activation(nn.Module):
    """ReLU of a signal's values on e3nn's SO(3) grid, expanded again: equal to e3nn's SO3Activation.

    The Wigner D factorises over the two azimuths: one batched product per pair of frequencies (|m|, |m'|) goes to
    the polar angle, then one small product each to alpha and gamma: 15 times fewer multiply-adds than the dense table.
    """

    gather: Tensor
    scatter: Tensor
    to_polar: Tensor
    from_polar: Tensor
    waves: Tensor

    def __init__(self, lmax: int, resolution: int) -> None:
        super().__init__()
        self.lmax, self.num_polar, self.num_azimuth = lmax, 2 * resolution, 4 * resolution
        beta = (torch.arange(self.num_polar, dtype=torch.float64) + 0.5) * math.pi / self.num_polar
        gather, polar = _polar_blocks(lmax, beta)
        scatter = torch.empty(so3_size(lmax), dtype=torch.int64)
        used = gather < so3_size(lmax)
        scatter[gather[used]] = torch.arange(len(gather))[used]
        size = so3_size(lmax) ** 0.5
        weights = (_fejer_weights(beta) / self.num_azimuth**2).repeat_interleave(4)
        azimuth = torch.arange(self.num_azimuth, dtype=torch.float64) * 2 * math.pi / self.num_azimuth
        phase = torch.arange(lmax + 1, dtype=torch.float64)[:, None] * azimuth
        waves = torch.stack([phase.cos(), phase.sin()], dim=1).flatten(0, 1)
        self.register_buffer("gather", gather, persistent=False)
        self.register_buffer("scatter", scatter, persistent=False)
        self.register_buffer("to_polar", (polar / size).float(), persistent=False)
        # ReLU halves a normal signal's second moment: sqrt(2) restores it
        back = polar * weights * (size * math.sqrt(2))
        self.register_buffer("from_polar", back.transpose(1, 2).float().contiguous(), persistent=False)
        self.register_buffer("waves", waves.float(), persistent=False)

    def forward(self, signal: Tensor) -> Tensor:
        """Return the activated signal, of the same shape `(b, channels, sum_l (2l + 1)**2)`."""
        flat = signal.flatten(0, 1)
        return self.from_grid(functional.relu(self.to_grid(flat))).view_as(signal)

    def to_grid(self, signal: Tensor) -> Tensor:
        """Return values `(n, beta, alpha, gamma)` of signals `(n, sum_l (2l + 1)**2)`."""
        n, degrees = len(signal), self.lmax + 1
        picked = functional.pad(signal, (0, 1)).index_select(1, self.gather).view(n, degrees**2, 4 * degrees)
        polar = torch.bmm(picked.transpose(0, 1), self.to_polar)
        polar = polar.view(degrees, degrees, n, self.num_polar, 2, 2).permute(2, 3, 0, 4, 1, 5)
        polar = polar.reshape(n, self.num_polar, 2 * degrees, 2 * degrees)
        return torch.matmul(self.waves.T, torch.matmul(polar, self.waves))

    def from_grid(self, values: Tensor) -> Tensor:
        """Return coefficients `(n, sum_l (2l + 1)**2)` of values `(n, beta, alpha, gamma)`."""
        n, degrees = len(values), self.lmax + 1
        polar = torch.matmul(self.waves, torch.matmul(values, self.waves.T))
        polar = polar.view(n, self.num_polar, degrees, 2, degrees, 2).permute(2, 4, 0, 1, 3, 5)
        polar = polar.reshape(degrees**2, n, 4 * self.num_polar)
        picked = torch.bmm(polar, self.from_polar).transpose(0, 1).reshape(n, -1)
        return picked.index_select(1, self.scatter)


def _fejer_weights(beta: Tensor) -> Tensor:
    """Return weights at the midpoints `beta` that average polynomials in cos(beta) over the sphere; they add to 1."""
    j = torch.arange(1, len(beta) // 2 + 1, dtype=torch.float64)
    series = (torch.cos(2 * beta[:, None] * j) / (4 * j**2 - 1)).sum(1)
    return (1 - 2 * series) / len(beta)


def _polar_blocks(lmax: int, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Return the coefficients of each frequency pair and their weights at the polar angles.

    Indices `((lmax + 1)**2 * (lmax + 1) * 4,)`, by |m|, |m'|, l and both signs (sum_l (2l + 1)**2 where there is
    none), and weights `((lmax + 1)**2, (lmax + 1) * 4, beta * 4)` onto (cos, sin) of alpha times (cos, sin) of gamma.
    """
    degrees = lmax + 1
    gather = torch.full((degrees, degrees, degrees, 2, 2), so3_size(lmax), dtype=torch.int64)
    weights = torch.zeros(degrees, degrees, degrees, 2, 2, len(beta), 2, 2, dtype=torch.float64)
    zero = torch.zeros_like(beta)
    start = 0
    for degree, size in enumerate(_sizes(lmax)):
        wigner = math.sqrt(size) * o3.wigner_D(degree, zero, beta, zero)  # rows, columns: frequencies l .. -l
        for p, q in np.ndindex(size, size):
            m, n = degree - p, degree - q
            slot = (abs(m), abs(n), degree, int(m < 0), int(n < 0))
            gather[slot] = start + p * size + q
            # D(alpha, beta, gamma) = X(alpha) d(beta) X(gamma): X has cos(m a) on, sin(m a) across the diagonal
            alpha_terms = ((p, 0, 1.0), (size - 1 - p, 1, math.copysign(1, m)))
            gamma_terms = ((q, 0, 1.0), (size - 1 - q, 1, -math.copysign(1, n)))
            for row, sin_alpha, a in alpha_terms:
                for column, sin_gamma, c in gamma_terms:
                    weights[(*slot, slice(None), sin_alpha, sin_gamma)] += a * c * wigner[:, row, column]
        start += size * size
    return gather.flatten(), weights.reshape(degrees**2, degrees * 4, len(beta) * 4)
