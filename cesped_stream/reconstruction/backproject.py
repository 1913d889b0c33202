"""Maps from particle images at known poses: CTF-weighted backprojection in Fourier space."""

from collections.abc import Iterator

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
PLANES_AT_ONCE = 16

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class Backprojector:
    """Accumulates numerator and denominator of a map from raw particle images, in float64.

    Each slice is laid trilinearly into the padded half transform, as RELION's `relion_reconstruct --ctf` does; sums of
    backprojectors of disjoint images are the backprojector of their union. On the CPU a compiled loop does it, with
    torch's number of threads, and the same calls give the same bits for any number; on CUDA torch does, and the order
    of additions is not fixed. Memory: 24 bytes for each of (2 reach + 1)^2 (reach + 1) voxels, reach = padding box / 2
    + 1 (27 MB at 64 px, 1.7 GB at 256, 3.2 GB at 320), and 3.5 times that while `map` runs, 3.7 times with a symmetry.
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
        return self._shell_means(*self._completed(None), rounding=0.5).numpy()

    def map(self, prior: ArrayLike | None = None, *, group: ArrayLike | None = None) -> Float32:
        """Return the map `(box, box, box)` (z, y, x) in the units whose projections are the images.

        Numerator over denominator, the latter at least `DENOMINATOR_FLOOR` of its shell's mean, zero beyond Nyquist,
        divided by sinc^2(r / (padding box)), and beyond the inscribed sphere a soft edge to the corners' mean: all that
        `relion_reconstruct --skip_gridding` does. `prior` `(box // 2 + 1,)` is 1/tau^2 a shell (`wiener_prior`), added
        to the denominator: for a template, never for a map whose FSC is taken. A voxel that nothing reached is 0.
        `group` `(g, 3, 3)` are symmetry rotations that the sums are averaged over first, as RELION does: for more than
        a few hundred images much cheaper than `add` at every g.M, and interpolated once more.
        """
        tau = None if prior is None else torch.from_numpy(np.array(prior, np.float64))
        return self._to_real_space(self._quotient(*self._completed(group), tau))

    def _quotient(self, sums: torch.Tensor, edge: torch.Tensor, prior: torch.Tensor | None) -> torch.Tensor:
        """The map's transform `(padded, padded, padded // 2 + 1)` complex128 in the order of `rfftn`."""
        padded, reach, last = self._padding * self.box_size, self._reach, self.box_size // 2
        floor = DENOMINATOR_FLOOR * self._shell_means(sums, edge, rounding=0.0)
        transform = torch.zeros(padded, padded, padded // 2 + 1, dtype=torch.complex128)
        # Zero at and beyond the Nyquist sphere, so nothing is lost where the ends of an axis meet.
        place = torch.arange(-(reach - 1), reach) % padded
        for planes, part, radius in self._by_planes(sums, edge):
            weight = torch.maximum(part[..., 2], floor[radius.long().clamp(max=last)])
            if prior is not None:
                weight = weight + prior[(radius + 0.5).long().clamp(max=last)]
            usable = (radius < last) & (weight > 0)
            quotient = torch.complex(part[..., 0], part[..., 1]) / torch.where(usable, weight, 1.0)
            quotient = torch.where(usable, quotient, 0.0)[:, 1:-1, :reach]
            inner = [z for z in range(planes.start, planes.stop) if 0 < z < 2 * reach]
            first = planes.start
            transform[place[[z - 1 for z in inner]][:, None], place[None], :reach] = quotient[
                [z - first for z in inner]
            ]
        return transform

    def _shell_means(self, sums: torch.Tensor, edge: torch.Tensor, *, rounding: float) -> torch.Tensor:
        """The denominator's mean in each shell floor(radius + `rounding`), `(box // 2 + 1,)`; 0 in an empty one."""
        count = self.box_size // 2 + 1
        totals, voxels = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
        for _, part, radius in self._by_planes(sums, edge):
            shells = (radius + rounding).long().ravel()
            totals += torch.bincount(shells, part[..., 2].ravel(), minlength=count)[:count]
            voxels += torch.bincount(shells, minlength=count)[:count]
        return totals / voxels.clamp(min=1)

    def _by_planes(self, sums: torch.Tensor, edge: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Yield some z planes at a time, with their sums, complete, and radii in cycles a box: no copy of the whole."""
        axis = torch.arange(-self._reach, self._reach + 1, dtype=torch.float64)
        for start in range(0, len(axis), PLANES_AT_ONCE):
            planes = slice(start, min(start + PLANES_AT_ONCE, len(axis)))
            part = sums[planes].cpu().clone()
            part[:, :, 0] = edge[planes]
            square = axis[planes, None, None] ** 2 + axis[:, None] ** 2 + axis[self._reach :] ** 2
            yield planes, part, square.sqrt() / self._padding

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

    def _completed(self, group: ArrayLike | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The sums, and on the CPU their x = 0 plane `(side, side, 3)` completed by its Hermitian mate.

        Symmetrised where `group` has more than one rotation.
        """
        plane = self._sums[:, :, 0].cpu()
        edge = plane + plane.flip(0, 1) * torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
        mates = None if group is None else np.array(group, np.float64).reshape(-1, 3, 3)
        if mates is None or len(mates) == 1:
            return self._sums, edge
        from cesped_stream.reconstruction.scatter import symmetrised

        whole = self._sums.cpu().clone()
        whole[:, :, 0] = edge
        whole = torch.from_numpy(symmetrised(whole.numpy(), mates, num_threads=torch.get_num_threads()))
        return whole, whole[:, :, 0]

    def _to_real_space(self, transform: torch.Tensor) -> Float32:
        box, padded = self.box_size, self._padding * self.box_size
        centred = (torch.arange(box) - box // 2) % padded
        density = torch.fft.irfftn(transform, s=(padded, padded, padded))
        density = density[centred[:, None, None], centred[:, None], centred]
        axis = torch.arange(box, dtype=torch.float64) - box // 2
        radius = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
        density = density / torch.sinc(radius / padded).square()
        beyond = ((radius - box / 2) / SOFT_EDGE_PIXELS).clamp(0, 1)
        outside = (1 - torch.cos(torch.pi * beyond)) / 2
        mean = (density * outside).sum() / outside.sum()
        return np.asarray(density.lerp(mean, outside).float().numpy())


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
