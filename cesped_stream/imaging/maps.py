"""Maps as MRC files, and maps of fewer pixels."""

import numpy as np
import torch
from numpy.typing import NDArray

from cesped_stream.imaging.map_files import read_map, write_map

__all__ = ["crop_map", "read_map", "write_map"]

Float32 = NDArray[np.float32]


def crop_map(volume: Float32, box_size: int) -> Float32:
    """Return the map on `box_size` voxels a side, by cutting its transform; the pixel size grows by the same factor.

    Voxel values stay densities. ValueError where `box_size` is larger than the map's.
    """
    box = volume.shape[0]
    if box_size > box:
        raise ValueError(f"box size {box_size} of a map of {box}; a map is only made smaller")
    transform = torch.fft.fftn(torch.fft.ifftshift(torch.from_numpy(volume.astype(np.float64))))
    kept = torch.fft.fftfreq(box_size, 1 / box_size).round().long() % box
    cropped = torch.fft.ifftn(transform[kept][:, kept][:, :, kept]).real * (box_size / box) ** 3
    return np.asarray(torch.fft.fftshift(cropped).float().numpy())
