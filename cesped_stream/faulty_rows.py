"""Poses of rows of which some end a computation with an error: those are flagged, the others get their poses."""

from typing import Final

import numpy as np
import torch

from cesped_stream.errors import CespedStreamError, InvalidCheckpointError, PermanentError
from cesped_stream.inference import PoseBatch
from cesped_stream.particles.flags import ImageFlag
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.table import Int64, ParticleTable
from cesped_stream.pipeline import Proposer

_GPU_LIBRARIES: Final = ("CUDA error", "cuDNN error", "CUDNN_STATUS", "CUBLAS_STATUS", "CUFFT_")
"""In the text of errors that torch gives no class of their own."""


def is_device_lost(error: Exception) -> bool:
    """Return whether an error leaves a GPU that this process cannot use any more."""
    if isinstance(error, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        return False  # cuSOLVER says "execution failed" of a matrix that holds NaN
    said = isinstance(error, RuntimeError) and any(name in str(error) for name in _GPU_LIBRARIES)
    return isinstance(error, torch.AcceleratorError) or said


def is_fault_of_no_row(error: Exception) -> bool:
    """Return whether an error is the device's, the memory's or the checkpoint's, whatever rows it met."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError, InvalidCheckpointError)):
        return True
    return is_device_lost(error)


def poses_of_each(
    proposer: Proposer, table: ParticleTable, reader: StackReader, *, works: bool = False
) -> tuple[PoseBatch, dict[int, Exception]]:
    """Return the poses of a table's rows, in their order, and the error of each row that ends with one.

    Rows that fail together are halved until each that is to blame is alone: it is flagged UNREADABLE where a file was
    in the way, else FAILED. A row's pose is what it is among any others. Where all rows fail the first one's error is
    raised, unless the proposer is known to be one that `works`. An error that is no row's fault, or tells of a use that
    is wrong (PermanentError itself: a row that is in the reference), is always raised.
    """
    parts: list[tuple[Int64, PoseBatch]] = []
    faults: dict[int, Exception] = {}
    waiting = [np.arange(len(table))]
    while waiting:
        rows = waiting.pop()
        try:
            parts.append((rows, proposer.poses(table.select(rows), reader)))
        except Exception as error:
            if is_fault_of_no_row(error) or type(error) is PermanentError:
                raise
            if len(rows) == 1:
                faults[int(rows[0])] = error
            else:
                waiting += [rows[len(rows) // 2 :], rows[: len(rows) // 2]]
    if faults and not parts and not works:
        raise next(iter(faults.values()))
    poses = PoseBatch.empty(len(table), parts[0][1].top_probability.shape[1] if parts else 1)
    for rows, part in parts:
        poses.put(rows, part)
    for row, fault in faults.items():
        of_file = isinstance(fault, (CespedStreamError, OSError))
        poses.flag[row] = ImageFlag.UNREADABLE if of_file else ImageFlag.FAILED
    return poses, faults
