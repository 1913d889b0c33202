"""The top of a parabola through samples around a maximum."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Float64 = NDArray[np.float64]


def quadratic_peak(offsets: Float64, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return where a quadratic fitted to samples is largest, `(n, d)`, and its value there, `(n,)`, float64.

    `offsets` `(p, d)` are the samples' places, on both sides of 0 along each axis; `values` `(n, p)`, those about a
    maximum. The place is kept within the samples' reach along each axis. Where the fit has no maximum, or a value is no
    number, it is the best sample's.
    """
    heights = values.double()
    inverse = torch.from_numpy(np.linalg.pinv(_terms(offsets))).to(heights.device)
    dimension = offsets.shape[1]
    fitted = (heights[:, None] * inverse).sum(2)  # no matrix product: bits would depend on the neighbours
    slope = fitted[:, 1 : dimension + 1]
    hessian = _hessian(fitted[:, dimension + 1 :], dimension)
    hill = -torch.eye(dimension, dtype=torch.float64, device=heights.device)
    is_number = hessian.isfinite().all(2).all(1)  # eigvalsh refuses all of a batch for one that is none
    known = torch.where(is_number[:, None, None], hessian, hill)
    has_peak = is_number & (torch.linalg.eigvalsh(known).amax(1) < 0)
    safe = torch.where(has_peak[:, None, None], hessian, hill)
    reach = torch.from_numpy(np.abs(offsets).max(0)).to(heights.device)
    place = -torch.linalg.solve(safe, slope[:, :, None])[:, :, 0]
    place = torch.minimum(torch.maximum(place, -reach), reach)
    height = fitted[:, 0] + (slope * place).sum(1) + (place[:, :, None] * hessian * place[:, None]).sum((1, 2)) / 2
    best, index = heights.max(1)
    samples = torch.from_numpy(offsets).to(heights.device)[index]
    return torch.where(has_peak[:, None], place, samples), torch.where(has_peak, height, best)


def _terms(offsets: Float64) -> Float64:
    """1, x_i, x_i^2 / 2 and x_i x_j of places `(p, d)`."""
    count, dimension = offsets.shape
    columns = [np.ones(count), *offsets.T]
    for i in range(dimension):
        columns += [offsets[:, i] * offsets[:, j] * (0.5 if i == j else 1.0) for j in range(i, dimension)]
    return np.stack(columns, -1)


def _hessian(second: Tensor, dimension: int) -> Tensor:
    hessian = second.new_zeros(len(second), dimension, dimension)
    rows, columns = np.triu_indices(dimension)
    hessian[:, rows, columns] = second
    hessian[:, columns, rows] = second
    return hessian
