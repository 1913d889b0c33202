"""Projections of a map at given poses, by the Fourier slice theorem with RELION's interpolation."""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

CHUNK_PIXELS = 2_000_000


class MapProjector:
    """Projects a map `(box, box, box)` (z, y, x) that is band-limited to its Nyquist sphere.

    The map is divided by sinc^2(r / (padding box)) and padded, and slices are cut trilinearly from its transform, as
    RELION does. Bounded memory: the padded half transform, and `CHUNK_PIXELS` slice pixels at a time. A projection's
    pixel is the sum of the map along the view.
    """

    def __init__(
        self,
        volume: ArrayLike | torch.Tensor,
        pixel_size_angstrom: float,
        *,
        padding: int = 2,
        device: torch.device | str = "cpu",
    ) -> None:
        """ValueError unless `volume` is cubic and `pixel_size_angstrom` positive."""
        density = torch.as_tensor(np.asarray(volume) if not torch.is_tensor(volume) else volume).to(device).float()
        if density.ndim != 3 or len(set(density.shape)) != 1:
            raise ValueError(f"a map is cubic, got shape {tuple(density.shape)}; crop or pad it")
        if not pixel_size_angstrom > 0:
            raise ValueError(f"pixel size {pixel_size_angstrom} A; give the map's own")
        self.box_size = density.shape[0]
        self.pixel_size_angstrom = float(pixel_size_angstrom)
        self.device = density.device
        self._padding = padding
        self._reach = padding * (self.box_size // 2) + 1
        self._transform = self._padded_transform(density)
        self._complex_transform: NDArray[np.complex64] | None = None
        self._rows, self._columns = slice_pixels(self.box_size, self.device)
        self._kx = self._columns.float()
        self._ky = signed_rows(self._rows, self.box_size).float()

    def project(
        self,
        rotations: ArrayLike | torch.Tensor,
        shifts_angstrom: ArrayLike | torch.Tensor | None = None,
        ctf: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return images `(n, box, box)` float32 (y, x) of the map seen at `rotations` `(n, 3, 3)`, image to map.

        `shifts_angstrom` `(n, 2)` (x, y) are those that centre the images: the projection is moved by their negative.
        `ctf` `(n, box, box // 2 + 1)` multiplies the transform.
        """
        transform = self.project_fourier(rotations, shifts_angstrom)
        if len(transform) == 0:
            return transform.new_zeros(0, self.box_size, self.box_size, dtype=torch.float32)
        if ctf is not None:
            transform *= ctf
        images: torch.Tensor = torch.fft.irfft2(transform, s=(self.box_size, self.box_size))
        return images

    def project_fourier(
        self, rotations: ArrayLike | torch.Tensor, shifts_angstrom: ArrayLike | torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return `rfft2` of the projections, `(n, box, box // 2 + 1)` complex64, zero beyond Nyquist."""
        matrix = torch.as_tensor(np.asarray(rotations) if not torch.is_tensor(rotations) else rotations)
        matrix = matrix.to(self.device, torch.float64).reshape(-1, 3, 3)
        step = max(1, CHUNK_PIXELS // len(self._rows))
        slices = [self._slices(matrix[i : i + step], self._kx, self._ky) for i in range(0, len(matrix), step)]
        transform = torch.zeros(
            len(matrix), self.box_size, self.box_size // 2 + 1, dtype=torch.complex64, device=self.device
        )
        if slices:
            transform[:, self._rows, self._columns] = torch.cat(slices)
        origin = torch.zeros(len(matrix), 2, dtype=torch.float64, device=self.device)
        if shifts_angstrom is not None:
            shifts = shifts_angstrom if torch.is_tensor(shifts_angstrom) else np.asarray(shifts_angstrom)
            origin = torch.as_tensor(shifts).to(self.device, torch.float64) / self.pixel_size_angstrom
        return move_fourier(transform, self.box_size // 2 - origin, self.box_size)

    def slices_at(
        self, rotations: ArrayLike | torch.Tensor, frequencies_per_angstrom: ArrayLike | torch.Tensor
    ) -> torch.Tensor:
        """Return the transform of the projections at any frequencies, `(n, m)` complex64, about the map's origin.

        `rotations` `(n, 3, 3)`, `frequencies_per_angstrom` `(m, 2)` (x, y). In units of a pixel's sum, as
        `project_fourier`; zero beyond the map's Nyquist sphere. Memory: `CHUNK_PIXELS` samples at a time.
        """
        matrix = torch.as_tensor(rotations).to(self.device, torch.float64).reshape(-1, 3, 3)
        frequencies = torch.as_tensor(frequencies_per_angstrom).to(self.device, torch.float64)
        cycles = (frequencies * (self.box_size * self.pixel_size_angstrom)).float()
        inside = cycles.square().sum(1) <= (self.box_size // 2) ** 2
        if self.device.type == "cpu":
            slices = self._gathered(matrix, cycles * inside[:, None])
        else:
            step = max(1, CHUNK_PIXELS // max(1, len(cycles)))
            starts = range(0, max(1, len(matrix)), step)
            slices = torch.cat([self._slices(matrix[i : i + step], cycles[:, 0], cycles[:, 1]) for i in starts])
        return slices if bool(inside.all()) else slices * inside

    def _gathered(self, rotations: torch.Tensor, cycles: torch.Tensor) -> torch.Tensor:
        """As `_slices`, by the compiled loop."""
        from cesped_stream.imaging.slice_kernel import gather_slices

        if self._complex_transform is None:
            self._complex_transform = torch.view_as_complex(self._transform[0].permute(1, 2, 3, 0).contiguous()).numpy()
        axes = (rotations[:, :, :2] * self._padding).float().numpy()
        kx, ky = (np.ascontiguousarray(part) for part in cycles.numpy().T)
        threads = torch.get_num_threads()
        return torch.from_numpy(gather_slices(self._complex_transform, axes, kx, ky, num_threads=threads))

    def _padded_transform(self, density: torch.Tensor) -> torch.Tensor:
        """Half transform `(1, 2, 2 reach + 1, 2 reach + 1, reach + 1)` (re/im; z, y, x) about the map's origin."""
        box, padding = self.box_size, self._padding
        axis = torch.arange(box, device=self.device, dtype=torch.float32) - box // 2
        radius = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
        density = density / torch.sinc(radius / (padding * box)).square()
        before = (padding * box) // 2 - box // 2
        after = (padding - 1) * box - before
        padded = torch.nn.functional.pad(density, [before, after] * 3)
        full = torch.fft.rfftn(torch.fft.ifftshift(padded))
        reach = self._reach
        index = torch.arange(-reach, reach + 1, device=self.device) % (padding * box)
        half = full[index][:, index][:, :, index[reach:].clamp(max=full.shape[2] - 1)]
        return torch.view_as_real(half).permute(3, 0, 1, 2).contiguous()[None]

    def _slices(self, rotations: torch.Tensor, kx: torch.Tensor, ky: torch.Tensor) -> torch.Tensor:
        """Central slices `(n, pixels)` complex64 at frequencies `(pixels,)` in cycles a box."""
        axes = (rotations[:, :, :2] * (self._padding / self._reach)).float()
        grid = torch.empty(len(rotations), len(kx), 1, 1, 3, device=self.device)
        x, y, z = (torch.addcmul(kx * axes[:, axis, :1], ky, axes[:, axis, 1:]) for axis in range(3))
        sign = 1 - 2 * (x < 0).float()
        grid[..., 0, 0, 0] = 2 * x * sign - 1
        grid[..., 0, 0, 1] = y * sign
        grid[..., 0, 0, 2] = z * sign
        sampled = torch.nn.functional.grid_sample(
            self._transform.expand(len(rotations), -1, -1, -1, -1),
            grid,
            mode="bilinear",
            padding_mode="zeros",
            align_corners=True,
        )[..., 0, 0]
        return torch.complex(sampled[:, 0], sampled[:, 1] * sign)


def move_fourier(transform: torch.Tensor, pixels: torch.Tensor, box_size: int) -> torch.Tensor:
    """Return the `rfft2` transforms `(n, box, box // 2 + 1)` of images moved by `pixels` `(n, 2)` (x, y)."""
    move = pixels.to(transform.device, torch.float64) * (-2 * torch.pi)
    x = torch.fft.rfftfreq(box_size, dtype=torch.float64, device=transform.device)
    y = torch.fft.fftfreq(box_size, dtype=torch.float64, device=transform.device)
    along_x, along_y = (
        torch.polar(torch.ones_like(angle), angle).to(transform.dtype) for angle in (move[:, :1] * x, move[:, 1:] * y)
    )
    return transform * along_y[:, :, None] * along_x[:, None, :]


def slice_pixels(box_size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows and columns of the `rfft2` half plane's pixels within the Nyquist circle."""
    ky = torch.fft.fftfreq(box_size, 1 / box_size, device=device)
    kx = torch.arange(box_size // 2 + 1, device=device)
    rows, columns = torch.nonzero(ky[:, None] ** 2 + kx**2 <= (box_size // 2) ** 2, as_tuple=True)
    return rows, columns


def signed_rows(rows: torch.Tensor, box_size: int) -> torch.Tensor:
    """Return the signed frequency of each row of `rfft2`, in cycles a box; row box // 2 of an even box is positive."""
    return torch.where(rows > box_size // 2, rows - box_size, rows)
