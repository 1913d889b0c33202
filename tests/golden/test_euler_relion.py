"""RELION's Euler angles: its own matrix is the transpose of our rotation."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cesped_stream.conventions import euler_deg_to_rotation, rotation_to_euler_deg

# Angles and matrix, row by row, as relion_refine 3.1.3 --sym I4 and --sym I --print_symmetry_ops printed them.
RECORDED = """\
-58.2825 36 121.717   0.5 0.80902 0.30902 -0.80902 0.30902 0.5 0.30902 -0.5 0.80902
-72 63.4349 108   0.8618 0.42533 0.27639 -0.42533 0.30902 0.85065 0.27639 -0.85065 0.44721
0 63.4349 180   -0.44721 0 0.89443 0 -1 0 0.89443 0 0.44721
"""


def assert_transposes(angles_deg: np.ndarray, matrices: np.ndarray) -> None:
    rotations = euler_deg_to_rotation(*angles_deg.T)
    np.testing.assert_allclose(rotations.transpose(0, 2, 1), matrices, atol=2e-5)
    off_pole = np.abs(matrices[:, 2, 2]) < 0.999
    found = rotation_to_euler_deg(matrices.transpose(0, 2, 1))[off_pole]
    difference = (found - angles_deg[off_pole] + 180) % 360 - 180
    np.testing.assert_allclose(difference, 0, atol=2e-3)


def test_rotation_is_the_transpose_of_what_relion_recorded() -> None:
    values = np.array([[float(v) for v in line.split()] for line in RECORDED.splitlines()])
    assert_transposes(values[:, :3], values[:, 3:].reshape(-1, 3, 3))


@pytest.mark.relion
@pytest.mark.skipif(shutil.which("relion_refine") is None, reason="relion_refine is not on PATH")
@pytest.mark.parametrize("symmetry", ["I3", "O", "D7"])
def test_rotation_is_the_transpose_of_what_the_installed_relion_prints(symmetry: str, tmp_path: Path) -> None:
    program = ["relion_refine", "--sym", symmetry, "--print_symmetry_ops", "--o", "x"]
    text = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True).stdout
    blocks = [block.split("Euler angles:") for block in re.split(r"R\(\d+\)=", text)[1:]]
    pairs = [([float(v) for v in b[1].split()[:3]], [float(v) for v in b[0].split()]) for b in blocks if len(b) == 2]
    assert len(pairs) > 5
    assert_transposes(np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs]).reshape(-1, 3, 3))
