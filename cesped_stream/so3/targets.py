"""Training targets on the SO(3) grid."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cesped_stream.so3.distance import rotations_to_numpy
from cesped_stream.so3.grids import nearest_index


def symmetric_targets(rotations: Any, group: Any, order: int) -> tuple[Tensor, Tensor]:
    """Return grid indices and masses of every symmetry mate: `(b, g)` int64 and `(b, g)` float32, rows adding to 1.

    `rotations` are pose rotations `(b, 3, 3)`, `group` `(g, 3, 3)` acts on their left. Each mate has mass 1/g;
    where several fall on one grid point, the first of them carries their sum and the others 0. On the CPU.
    """
    truth, mates = rotations_to_numpy(rotations), rotations_to_numpy(group)
    size = len(mates)
    index = nearest_index(np.matmul(mates, truth[:, None]).reshape(-1, 3, 3), order).reshape(-1, size)
    same = index[:, :, None] == index[:, None, :]
    is_first = same.argmax(axis=2) == np.arange(size)
    mass = np.where(is_first, same.sum(axis=2) / size, 0.0).astype(np.float32)
    return torch.from_numpy(index), torch.from_numpy(mass)
