"""Masks of known shape."""

import numpy as np
from numpy.typing import NDArray


def spherical_mask(box_size: int, radius_pixels: float, edge_pixels: float = 6.0) -> NDArray[np.float32]:
    """Return a mask `(box, box, box)`: 1 within `radius_pixels` of voxel box // 2, a raised cosine edge outside it."""
    axis = np.arange(box_size) - box_size // 2
    beyond = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2) - radius_pixels
    if edge_pixels <= 0:
        return np.asarray(beyond <= 0, np.float32)
    return np.asarray((1 + np.cos(np.pi * (beyond / edge_pixels).clip(0, 1))) / 2, np.float32)
