"""The views of a reference on one SO(3) grid as rows of real matrices."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cesped_stream.imaging.band import Band, band_slices
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.so3.asymmetric_unit import AsymmetricUnit, asymmetric_unit
from cesped_stream.so3.grids import num_in_plane, pose_rotations

RMS_STEP_AT_ORDER_0 = 0.511
"""Root mean square angle, in radians, between a random rotation and the nearest of the grid of order 0; it halves with
each order (7.3 degrees at order 2)."""

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Views:
    """The asymmetric unit's views of a reference: pairs of in-plane angles half a turn apart share a row.

    An image is real, so a view turned in its plane by half a turn has the conjugate coefficients: of one row the
    products with real and imaginary parts, added and subtracted, are the scores of both.
    """

    unit: AsymmetricUnit
    pair: Int64
    """`(v,)`: row of each view, in order of `unit.points`."""
    conjugate: NDArray[np.bool_]
    """`(v,)`: the view is the conjugate of its row."""
    real: Tensor
    """`(h, m)` float32."""
    imaginary: Tensor
    """`(h, m)` float32."""
    power: Tensor
    """`(h, m)` float32, squares of both added."""
    shell_power: Tensor
    """`(m,)`: mean power of all views in each coefficient's shell, without the envelope."""
    envelope: Tensor
    """`(m,)`: share of a projection's coefficients that agrees with the nearest view's (`grid_envelope`)."""

    def __len__(self) -> int:
        return len(self.pair)


def views_of(projector: MapProjector, symmetry: str, order: int, band: Band, envelope: Float64) -> Views:
    """Return the views of a map at one grid order, low-passed by `envelope` `(m,)`.

    Memory: 12 bytes a coefficient and pair of views; at order 3 in C1 with 500 coefficients 110 MB.
    """
    unit = asymmetric_unit(order, symmetry)
    count = num_in_plane(order)
    direction, in_plane = np.divmod(unit.points, count)
    keys, pair = np.unique(direction * count + in_plane % (count // 2), return_inverse=True)
    slices = band_slices(projector, band, pose_rotations(keys, order))
    shell_power = _shell_means((slices.real.square() + slices.imag.square()).mean(0), band)
    low_pass = torch.from_numpy(envelope.astype(np.float32)).to(slices.device)
    real, imaginary = (slices.real * low_pass).contiguous(), (slices.imag * low_pass).contiguous()
    return Views(
        unit=unit,
        pair=pair.astype(np.int64),
        conjugate=in_plane >= count // 2,
        real=real,
        imaginary=imaginary,
        power=real.square() + imaginary.square(),
        shell_power=shell_power,
        envelope=low_pass,
    )


def _shell_means(values: Tensor, band: Band) -> Tensor:
    shells = torch.from_numpy(band.shells).to(values.device)
    count = int(shells.max()) + 1
    sums = torch.zeros(count, device=values.device).index_add_(0, shells, values)
    members = torch.bincount(shells, minlength=count).clamp(min=1)
    return (sums / members)[shells]


def displacement_angstrom(order: int, rms_radius_angstrom: float) -> float:
    """Return how far, root mean square along an image axis, density moves between a pose and the nearest of the grid.

    A turn by the angle t about a random axis moves a point at distance r by t r sqrt(2 / 9) along x.
    """
    return float((2 / 9) ** 0.5 * RMS_STEP_AT_ORDER_0 / 2**order * rms_radius_angstrom)


def grid_envelope(band: Band, displacement: float, shift_step_angstrom: float) -> Float64:
    """Return `(m,)` how much of a coefficient survives such a displacement and a shift step, as if it were Gaussian.

    It is the mean of the views around a grid rotation over the view there: what the grid cannot resolve is not held
    against a particle. (Whitening beyond what the grid's step supports hurts: conventions.)
    """
    square = displacement**2 + shift_step_angstrom**2 / 12
    frequency = np.hypot(*band.frequencies_per_angstrom.T)
    return np.asarray(np.exp(-2 * np.pi**2 * frequency**2 * square), np.float64)


def supported_angstrom(displacement: float, shift_steps_per_limit: float) -> float:
    """Return the resolution at which `grid_envelope` is a half, where the shift step is the limit over so many."""
    # 2 pi^2 (d^2 + (limit / steps)^2 / 12) = limit^2 ln 2
    rest = np.log(2) / (2 * np.pi**2) - 1 / (12 * shift_steps_per_limit**2)
    return float(displacement / rest**0.5)


def finer_views_of(coarse: AsymmetricUnit, fine: AsymmetricUnit) -> tuple[Int64, NDArray[np.bool_]]:
    """Return for each coarse rotation the positions of the fine ones nearest to it: `(v, most)`, and which are any.

    Each fine rotation is at exactly one coarse one.
    """
    owner = coarse.nearest(fine.rotations())
    counts = np.bincount(owner, minlength=len(coarse))
    table = np.zeros((len(coarse), int(counts.max())), np.int64)
    by_owner = np.argsort(owner, kind="stable")
    place = np.arange(len(fine)) - np.repeat(np.cumsum(counts) - counts, counts)
    table[owner[by_owner], place] = by_owner
    return table, np.arange(table.shape[1]) < counts[:, None]
