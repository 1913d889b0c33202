"""Our point groups are RELION's: the same rotations in the same orientation."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cesped_stream.so3.symmetry import group_rotations

# One line an operation: group, nine elements row by row, as relion_refine 3.1.3 --print_symmetry_ops printed them.
RECORDED = Path(__file__).parent / "data" / "symmetry_ops_relion_3.1.3.txt"
GROUPS = ("C1", "C2", "C3", "C7", "D2", "D3", "D7", "T", "O", "I", "I1", "I2", "I3", "I4")
PRINTED_DIGITS = 1e-5  # RELION prints five and its own constants are good to 1e-6


def recorded_operations(symmetry: str) -> np.ndarray:
    lines = (line.split() for line in RECORDED.read_text().splitlines())
    return np.array([[float(v) for v in cells[1:]] for cells in lines if cells[0] == symmetry]).reshape(-1, 3, 3)


def printed_operations(symmetry: str, folder: Path) -> np.ndarray:
    program = ["relion_refine", "--sym", symmetry, "--print_symmetry_ops", "--o", "x"]
    text = subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=30, check=True).stdout
    matrices = [block.split("Euler")[0] for block in re.split(r"R\(\d+\)=", text)[1:]]
    return np.array([[float(v) for v in matrix.split()] for matrix in matrices]).reshape(-1, 3, 3)


def assert_same_set(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert len(ours) == len(theirs)
    distance = np.abs(ours[:, None] - theirs[None]).max(axis=(2, 3))
    assert distance.min(axis=0).max() < PRINTED_DIGITS
    assert distance.min(axis=1).max() < PRINTED_DIGITS


@pytest.mark.parametrize("symmetry", GROUPS)
def test_group_is_what_relion_printed(symmetry: str) -> None:
    assert_same_set(group_rotations(symmetry), recorded_operations(symmetry))


def test_transposed_or_reoriented_groups_would_be_noticed() -> None:
    turned = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    for symmetry in ("T", "I1", "I3"):
        ours = turned @ group_rotations(symmetry) @ turned.T
        with pytest.raises(AssertionError):
            assert_same_set(ours, recorded_operations(symmetry))


@pytest.mark.relion
@pytest.mark.skipif(shutil.which("relion_refine") is None, reason="relion_refine is not on PATH")
@pytest.mark.parametrize("symmetry", [*GROUPS, "C12", "D9"])
def test_group_is_what_the_installed_relion_prints(symmetry: str, tmp_path: Path) -> None:
    assert_same_set(group_rotations(symmetry), printed_operations(symmetry, tmp_path))
