"""Pearson correlation of two maps (eq. 6 of the CESPED paper)."""

import numpy as np
from numpy.typing import ArrayLike


def pearson(a: ArrayLike, b: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Return Pearson's correlation of the voxels of two maps `(box, box, box)`.

    With a `mask` `(box, box, box)` both maps are multiplied by it and *all* voxels correlated, the zeros beyond it
    too, as the public evaluator of CESPED does: its masked figures can stand beside these. Correlating only the
    voxels inside a mask gives another, mostly lower, number. A map without variance correlates with nothing: 0.
    ValueError for unequal shapes.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    weight = None if mask is None else np.asarray(mask, np.float64)
    if first.shape != second.shape or (weight is not None and weight.shape != first.shape):
        shapes = f"{first.shape}, {second.shape}" + ("" if weight is None else f", mask {weight.shape}")
        raise ValueError(f"maps of {shapes}; crop or pad them to one box")
    if weight is not None:
        first, second = first * weight, second * weight
    first, second = first - first.mean(), second - second.mean()
    size = np.sqrt(np.vdot(first, first) * np.vdot(second, second))
    return float(np.vdot(first, second) / size) if size > 0 else 0.0
