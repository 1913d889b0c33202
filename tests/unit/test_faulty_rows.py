"""Rows that end a computation with an error are flagged; the others get the poses that they get among any others."""

import numpy as np
import pytest
import torch

from cesped_stream.errors import InvalidCheckpointError, NotSettledError, PermanentError
from cesped_stream.faulty_rows import is_device_lost, is_fault_of_no_row, poses_of_each
from cesped_stream.inference import PoseBatch
from cesped_stream.particles.flags import ImageFlag
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.table import OpticsGroup, ParticleTable


def table(count: int) -> ParticleTable:
    rows = [(f"{k:06d}@s.mrcs",) for k in range(count)]
    return ParticleTable(("rlnImageName",), rows, (OpticsGroup(()),), np.zeros(count, np.int64))


class FaultyProposer:
    """Gives each row its number as confidence; fails where a row of `faults` is among them, with that error."""

    checkpoint_id, proposer, rows_at_once = "c", "p", 8

    def __init__(self, faults: dict[int, Exception]) -> None:
        self.faults, self.calls = faults, 0

    def poses(self, table: ParticleTable, reader: StackReader) -> PoseBatch:
        self.calls += 1
        numbers = [int(name.partition("@")[0]) for name in table.column("rlnImageName")]
        for number in numbers:
            if number in self.faults:
                raise self.faults[number]
        poses = PoseBatch.empty(len(table), 3)
        poses.confidence[:] = numbers
        return poses


def test_each_faulty_row_is_flagged_by_what_was_in_the_way_and_the_others_are_posed() -> None:
    broken, short = torch.linalg.LinAlgError("linalg.eigh"), NotSettledError("s.mrcs: 3 images, row 7 asks for 8")
    proposer = FaultyProposer({3: broken, 60: short})
    poses, faults = poses_of_each(proposer, table(100), StackReader())
    assert faults == {3: broken, 60: short}
    assert np.flatnonzero(poses.flag).tolist() == [3, 60]
    assert poses.flag[[3, 60]].tolist() == [ImageFlag.FAILED, ImageFlag.UNREADABLE]
    others = np.delete(np.arange(100), [3, 60])
    np.testing.assert_array_equal(poses.confidence[others], others)
    assert proposer.calls <= 1 + 2 * 2 * 7


def test_a_table_without_a_faulty_row_is_computed_once() -> None:
    proposer = FaultyProposer({})
    poses, faults = poses_of_each(proposer, table(5), StackReader())
    assert (proposer.calls, faults, poses.flag.any()) == (1, {}, False)


def test_where_every_row_fails_the_error_is_raised_unless_others_went_well_before() -> None:
    broken = RuntimeError("no kernel")
    proposer = FaultyProposer({k: broken for k in range(4)})
    with pytest.raises(RuntimeError, match="no kernel"):
        poses_of_each(proposer, table(4), StackReader())
    poses, faults = poses_of_each(proposer, table(4), StackReader(), works=True)
    assert (poses.flag == ImageFlag.FAILED).all() and len(faults) == 4


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        InvalidCheckpointError("sha256"),
        RuntimeError("CUDA error: misaligned address"),
        PermanentError("1 of 4 particles is in the reference"),
    ],
)
def test_what_is_no_rows_fault_is_raised_at_once(error: Exception) -> None:
    proposer = FaultyProposer({3: error})
    with pytest.raises(type(error)):
        poses_of_each(proposer, table(64), StackReader(), works=True)
    assert proposer.calls == 1


def test_a_lost_device_is_told_from_an_error_of_the_rows() -> None:
    assert is_device_lost(RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"))
    assert not is_device_lost(torch.linalg.LinAlgError("linalg.eigh: the input matrix is ill-conditioned"))
    cusolver = "cusolver error: CUSOLVER_STATUS_EXECUTION_FAILED ... if the input matrix contains NaN; CUDA error"
    assert not is_device_lost(torch.linalg.LinAlgError(cusolver))
    assert is_fault_of_no_row(torch.cuda.OutOfMemoryError("out of memory"))
    assert not is_fault_of_no_row(IndexError("index 3"))
