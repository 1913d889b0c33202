"""Maps from point models: a Gaussian a point, band-limited to the map's Nyquist."""

from importlib import resources

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from cesped_stream.errors import InvalidSettingsError

SIGMA_PER_RESOLUTION = 0.225
"""Width of each point's Gaussian over the resolution (conventions; as in ChimeraX's molmap)."""

_OVERSAMPLING = 2
_REACH = 5
_SPREAD = (_REACH**2 / 2) ** 0.25 / np.pi**0.5
"""Spreading Gaussian's sigma in fine pixels: truncation at `_REACH` and aliasing both fall to 1.5e-5 (Greengard and Lee
2004, for an oversampling of 2)."""
_POINTS_A_CHUNK = 512

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


def embedded_ribosome() -> tuple[Float64, Float64]:
    """Return `xyz_angstrom` (14219, 3), centred on its mass, and `mass_dalton` (14219,) of PDB 6ZU5, one a residue."""
    source = resources.files("cesped_stream") / "data" / "ribosome_6zu5_residues.npz"
    with source.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        return arrays["xyz_angstrom"].astype(np.float64), arrays["mass_dalton"].astype(np.float64)


def molecule_to_map(
    xyz_angstrom: ArrayLike,
    mass_dalton: ArrayLike,
    box_size: int,
    pixel_size_angstrom: float,
    resolution_angstrom: float,
) -> Float32:
    """Return the map `(box, box, box)` (z, y, x) of points `(n, 3)` (x, y, z about voxel box // 2), in dalton a voxel.

    Each point is a Gaussian of sigma 0.225 `resolution_angstrom`, truncated at Nyquist in Fourier space and nowhere in
    real space (relative error below 1e-4). InvalidSettingsError where the points do not fit into the box.
    """
    xyz = np.asarray(xyz_angstrom, np.float64)
    reach = float(np.abs(xyz).max()) / pixel_size_angstrom
    if reach > box_size // 2 - 1:
        raise InvalidSettingsError(
            f"a molecule that reaches {np.abs(xyz).max():.0f} A from its centre does not fit into {box_size} pixels of "
            f"{pixel_size_angstrom} A; take a larger box or pixel"
        )
    fine = _OVERSAMPLING * box_size
    grid = _spread(xyz[:, ::-1] / pixel_size_angstrom * _OVERSAMPLING, np.asarray(mass_dalton, np.float64), fine)
    kept = torch.fft.fftfreq(box_size, 1 / box_size).long() % fine
    transform = torch.fft.fftn(torch.from_numpy(grid))[kept][:, kept][:, :, kept]
    sigma_pixels = SIGMA_PER_RESOLUTION * resolution_angstrom / pixel_size_angstrom
    frequency = torch.fft.fftfreq(box_size, dtype=torch.float64)
    along = torch.exp(-2 * np.pi**2 * frequency**2 * (sigma_pixels**2 - (_SPREAD / _OVERSAMPLING) ** 2))
    density = torch.fft.ifftn(transform * along[:, None, None] * along[:, None] * along).real
    return np.asarray(torch.fft.fftshift(density).float().numpy())


def _spread(zyx_fine_pixels: Float64, mass: Float64, fine: int) -> Float64:
    """Points' masses as Gaussians of sigma `_SPREAD` on a periodic grid `(fine, fine, fine)` about voxel 0."""
    grid = np.zeros(fine**3)
    offsets = np.arange(-_REACH, _REACH + 1)
    for start in range(0, len(mass), _POINTS_A_CHUNK):
        points = zyx_fine_pixels[start : start + _POINTS_A_CHUNK]
        nearest = np.rint(points).astype(np.int64)
        distance = offsets - (points - nearest)[:, :, None]
        weights = np.exp(-(distance**2) / (2 * _SPREAD**2)) / (_SPREAD * np.sqrt(2 * np.pi))
        index = (nearest[:, :, None] + offsets) % fine
        z, y, x = (index[:, axis] for axis in range(3))
        flat = (z[:, :, None, None] * fine + y[:, None, :, None]) * fine + x[:, None, None, :]
        value = np.einsum("p,pi,pj,pk->pijk", mass[start : start + _POINTS_A_CHUNK], *weights.transpose(1, 0, 2))
        grid += np.bincount(flat.ravel(), value.ravel(), fine**3)
    return grid.reshape(fine, fine, fine)
