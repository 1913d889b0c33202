"""Maps from particle images at known poses: CTF-weighted backprojection in Fourier space."""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from cesped_stream.imaging.ctf import ctf as ctf_of
from cesped_stream.imaging.ctf import ctf_terms
from cesped_stream.imaging.projector import move_fourier, signed_rows, slice_pixels
from cesped_stream.particles.table import CtfParameters

CHUNK_PIXELS = 1_000_000
DENOMINATOR_FLOOR = 1e-3
SOFT_EDGE_PIXELS = 3

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class Backprojector:
    """Accumulates numerator and denominator of a map from raw particle images, in float64.

    Each slice is laid trilinearly into the padded half transform, as RELION's `relion_reconstruct --ctf` does; sums of
    backprojectors of disjoint images are the backprojector of their union. On the CPU a compiled loop does it, with
    torch's number of threads, and the same calls give the same bits for any number; on CUDA torch does, and the order
    of additions is not fixed. Memory: 24 bytes for each of (2 reach + 1)^2 (reach + 1) voxels, reach = padding box / 2
    + 1 (27 MB at 64 px, 1.7 GB at 256, 3.2 GB at 320), and in `map` about four times that.
    """

    def __init__(
        self,
        box_size: int,
        pixel_size_angstrom: float,
        *,
        padding: int = 2,
        device: torch.device | str = "cpu",
        compiled: bool = True,
    ) -> None:
        """`compiled` false does on the CPU what is done on a GPU, in torch: equal to rounding, and slower."""
        self.box_size = box_size
        self.pixel_size_angstrom = pixel_size_angstrom
        self._padding = padding
        self._reach = padding * (box_size // 2) + 1
        self._device = torch.device(device)
        self._compiled = compiled and self._device.type == "cpu"
        side = 2 * self._reach + 1
        self._shape = (side, side, self._reach + 1)
        self._sums = torch.zeros(*self._shape, 3, dtype=torch.float64, device=self._device)
        """(z, y, x), z and y from -reach, x from 0; real and imaginary numerator, denominator."""
        rows, columns = slice_pixels(box_size, self._device)
        # Of the x = 0 column's Hermitian mates one is laid down; the other would count the same value twice.
        once = (columns > 0) | (signed_rows(rows, box_size) >= 0)
        self._rows, self._columns = rows[once], columns[once]

    def add(
        self,
        images: ArrayLike | torch.Tensor,
        ctf: CtfParameters,
        rotations: ArrayLike,
        shifts_angstrom: ArrayLike | None = None,
        *,
        weights: ArrayLike | None = None,
        group: ArrayLike | None = None,
    ) -> None:
        """Add raw images `(n, box, box)` (not flipped by us) at `rotations` `(n, 3, 3)`, image to map.

        `shifts_angstrom` `(n, 2)` (x, y) centre the images. `weights` `(n,)` weigh numerator and denominator. `group`
        `(g, 3, 3)` are symmetry rotations: the image is added at every g.M. What the images already carry follows
        `ctf`: phase-flipped ones use |CTF|, premultiplied ones go unchanged over CTF^2. ValueError for wrong shapes.
        """
        pixels = torch.as_tensor(np.asarray(images) if not torch.is_tensor(images) else images)
        matrix = torch.from_numpy(np.array(rotations, np.float64).reshape(-1, 3, 3))
        if pixels.shape != (len(matrix), self.box_size, self.box_size):
            raise ValueError(f"images are {tuple(pixels.shape)}, box size {self.box_size}, {len(matrix)} rotations")
        shifts = np.zeros((len(matrix), 2)) if shifts_angstrom is None else np.asarray(shifts_angstrom, np.float64)
        weight = np.ones(len(matrix)) if weights is None else np.asarray(weights, np.float64)
        mates = torch.eye(3, dtype=torch.float64)[None] if group is None else torch.from_numpy(np.array(group))
        step = max(1, CHUNK_PIXELS // len(self._rows))
        for start in range(0, len(matrix), step):
            part = slice(start, start + step)
            slices = self._weighted_slices(pixels[part], ctf.select(part), shifts[part], weight[part])
            for mate in mates.double():
                self._lay(slices, (mate @ matrix[part]).to(self._device))

    def merge(self, other: "Backprojector") -> None:
        """Add another backprojector's sums. ValueError where box, padding or pixel size differ."""
        mine, its = ((one.box_size, one._padding, one.pixel_size_angstrom) for one in (self, other))
        if mine != its:
            raise ValueError(f"box size, padding, pixel size are {mine} and {its}; they must be equal")
        self._sums += other._sums.to(self._device)

    def mean_denominator(self) -> Float64:
        """Return the denominator's mean in each shell, `(box // 2 + 1,)`; shell k is k cycles a box."""
        return _shell_means(self._completed()[2], (self._radius() + 0.5).long(), self.box_size // 2 + 1).numpy()

    def map(self, prior: ArrayLike | None = None, *, group: ArrayLike | None = None) -> Float32:
        """Return the map `(box, box, box)` (z, y, x) in the units whose projections are the images.

        Numerator over denominator, the latter at least `DENOMINATOR_FLOOR` of its shell's mean, zero beyond Nyquist,
        divided by sinc^2(r / (padding box)), and beyond the inscribed sphere a soft edge to the corners' mean: all that
        `relion_reconstruct --skip_gridding` does. `prior` `(box // 2 + 1,)` is 1/tau^2 a shell (`wiener_prior`), added
        to the denominator: for a template, never for a map whose FSC is taken. A voxel that nothing reached is 0.
        `group` `(g, 3, 3)` are symmetry rotations that the sums are averaged over first, as RELION does: for more than
        a few hundred images much cheaper than `add` at every g.M, and interpolated once more.
        """
        real, imaginary, denominator = self._completed(group)
        radius = self._radius()
        inside = radius < self.box_size // 2
        shells = radius.long().clamp(max=self.box_size // 2)
        floor = DENOMINATOR_FLOOR * _shell_means(denominator, shells, self.box_size // 2 + 1)
        weight = torch.maximum(denominator, floor[shells])
        if prior is not None:
            nearest = (radius + 0.5).long().clamp(max=self.box_size // 2)
            weight = weight + torch.from_numpy(np.array(prior, np.float64))[nearest]
        usable = inside & (weight > 0)
        quotient = torch.where(usable, torch.complex(real, imaginary) / torch.where(usable, weight, 1.0), 0.0)
        return self._to_real_space(quotient)

    def _weighted_slices(
        self, images: torch.Tensor, ctf: CtfParameters, shifts_angstrom: Float64, weights: Float64
    ) -> torch.Tensor:
        """Real and imaginary numerator and denominator `(3, n, pixels)` float32."""
        transform = torch.fft.rfft2(images.to(self._device, torch.float32))
        if self._compiled:
            return self._compiled_slices(transform, ctf, shifts_angstrom, weights)
        pixels = torch.from_numpy(shifts_angstrom / self.pixel_size_angstrom) - self.box_size // 2
        transform = move_fourier(transform, pixels, self.box_size)[:, self._rows, self._columns]
        transfer = ctf_of(ctf, self.box_size, device=self._device)[:, self._rows, self._columns]
        flipped, premultiplied = (
            torch.from_numpy(state).to(self._device)[:, None] for state in (ctf.phase_flipped, ctf.premultiplied)
        )
        transfer = torch.where(flipped & ~premultiplied, transfer.abs(), transfer)
        weight = torch.from_numpy(weights).to(self._device, torch.float32)[:, None]
        numerator = torch.where(premultiplied, 1.0, transfer) * weight
        return torch.stack([transform.real * numerator, transform.imag * numerator, transfer.square() * weight])

    def _compiled_slices(
        self, transform: torch.Tensor, ctf: CtfParameters, shifts_angstrom: Float64, weights: Float64
    ) -> torch.Tensor:
        from cesped_stream.reconstruction.scatter import weighted_slices

        treated = np.where(ctf.premultiplied, 2, np.where(ctf.phase_flipped, 1, 0))
        values = weighted_slices(
            transform.numpy(),
            ctf_terms(ctf)[:, :, 0, 0],
            shifts_angstrom / self.pixel_size_angstrom - self.box_size // 2,
            weights,
            treated,
            self._rows.numpy(),
            self._columns.numpy(),
            num_threads=torch.get_num_threads(),
        )
        return torch.from_numpy(values)

    def _lay(self, slices: torch.Tensor, rotations: torch.Tensor) -> None:
        kx = self._columns.double() * self._padding
        ky = signed_rows(self._rows, self.box_size).double() * self._padding
        if not self._compiled:
            self._lay_by_index(slices, rotations, kx, ky)
            return
        from cesped_stream.reconstruction.scatter import lay_slices

        arrays = (tensor.numpy() for tensor in (self._sums, slices, rotations, kx, ky))
        lay_slices(*arrays, num_threads=torch.get_num_threads())

    def _lay_by_index(self, slices: torch.Tensor, rotations: torch.Tensor, kx: torch.Tensor, ky: torch.Tensor) -> None:
        x, y, z = (rotations[:, axis, :1] * kx + rotations[:, axis, 1:2] * ky for axis in range(3))
        sign = 1 - 2 * (x < 0).double()
        corner = [(component * sign).floor() for component in (z, y, x)]
        fraction = [component * sign - low for component, low in zip((z, y, x), corner, strict=True)]
        values = torch.stack([slices[0], slices[1] * sign, slices[2]], -1)
        first = ((corner[0] + self._reach) * self._shape[1] + corner[1] + self._reach) * self._shape[2] + corner[2]
        for up in np.ndindex(2, 2, 2):
            offset = (up[0] * self._shape[1] + up[1]) * self._shape[2] + up[2]
            share = torch.ones_like(x)
            for is_up, part in zip(up, fraction, strict=True):
                share = share * (part if is_up else 1 - part)
            laid = (values * share[..., None]).reshape(-1, 3)
            self._sums.view(-1, 3).index_add_(0, (first.long() + offset).ravel(), laid)

    def _completed(self, group: ArrayLike | None = None) -> torch.Tensor:
        """The sums `(3, side, side, reach + 1)` on the CPU, the x = 0 plane completed by its Hermitian mate."""
        sums = self._sums.cpu().clone()
        plane = sums[:, :, 0]
        sums[:, :, 0] = plane + plane.flip(0, 1) * torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
        mates = None if group is None else np.array(group, np.float64).reshape(-1, 3, 3)
        if mates is not None and len(mates) > 1:
            from cesped_stream.reconstruction.scatter import symmetrised

            sums = torch.from_numpy(symmetrised(sums.numpy(), mates, num_threads=torch.get_num_threads()))
        return sums.permute(3, 0, 1, 2)

    def _radius(self) -> torch.Tensor:
        """Radius of each element of the half transform in cycles a box."""
        full = torch.arange(-self._reach, self._reach + 1, dtype=torch.float64)
        half = full[self._reach :]
        return (full[:, None, None] ** 2 + full[:, None] ** 2 + half**2).sqrt() / self._padding

    def _to_real_space(self, transform: torch.Tensor) -> Float32:
        box, padded, reach = self.box_size, self._padding * self.box_size, self._reach
        # Zero at and beyond the Nyquist sphere, so nothing is lost where the ends of an axis meet.
        kept = torch.arange(-(reach - 1), reach)
        full = torch.zeros(padded, padded, padded // 2 + 1, dtype=torch.complex128)
        inner = transform[1:-1, 1:-1, :reach]
        z, y = (kept % padded)[:, None], (kept % padded)[None]
        full[z, y, : inner.shape[2]] = inner
        density = torch.fft.fftshift(torch.fft.irfftn(full, s=(padded, padded, padded)))
        first = padded // 2 - box // 2
        density = density[(slice(first, first + box),) * 3]
        axis = torch.arange(box, dtype=torch.float64) - box // 2
        radius = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
        density = density / torch.sinc(radius / padded).square()
        beyond = ((radius - box / 2) / SOFT_EDGE_PIXELS).clamp(0, 1)
        outside = (1 - torch.cos(torch.pi * beyond)) / 2
        mean = (density * outside).sum() / outside.sum()
        return np.asarray(density.lerp(mean, outside).float().numpy())


def _shell_means(values: torch.Tensor, shells: torch.Tensor, count: int) -> torch.Tensor:
    """Mean of `values` in each of the first `count` shells, 0 in an empty one."""
    flat = shells.ravel()
    sums = torch.bincount(flat, values.ravel(), minlength=count)[:count]
    return sums / torch.bincount(flat, minlength=count)[:count].clamp(min=1)


def wiener_prior(correlation: ArrayLike, mean_denominator: ArrayLike) -> Float64:
    """Return 1/tau^2 `(shells,)` for `Backprojector.map` from the half maps' FSC and the denominator's shell means.

    tau^2 = FSC / (1 - FSC) / denominator (RELION); a shell with FSC <= 0 is suppressed by a factor of 1,000, and so is
    every shell after the first of them.
    """
    curve = np.asarray(correlation, np.float64).copy()
    lost = np.flatnonzero(curve[1:] <= 0)
    if len(lost):
        curve[lost[0] + 1 :] = 0
    curve = curve.clip(1e-3, 0.999)
    return np.asarray(np.asarray(mean_denominator, np.float64) * (1 - curve) / curve, np.float64)
