"""SO(3) on the GPU gives what the CPU gives."""

import numpy as np
import pytest
import torch

from cesped_stream.so3.distribution import top_poses
from cesped_stream.so3.grids import num_rotations
from cesped_stream.so3.harmonics import SO3Synthesis
from cesped_stream.so3.symmetry import group_rotations

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_synthesis_on_the_gpu_is_that_of_the_cpu() -> None:
    synthesis = SO3Synthesis(8, 4)
    coefficients = torch.randn(4, synthesis.num_coefficients, generator=torch.Generator().manual_seed(0))
    expected = synthesis(coefficients)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = synthesis.cuda()(coefficients.cuda())
    assert found.dtype == torch.float32
    assert (found.cpu() - expected).abs().max() / expected.abs().max() < 1e-5


@pytest.mark.parametrize("symmetry", ["C1", "D2"])
def test_top_poses_on_the_gpu_are_those_of_the_cpu(symmetry: str) -> None:
    logits = torch.randn(5, num_rotations(3), generator=torch.Generator().manual_seed(1)) * 3
    group = group_rotations(symmetry)
    poses, probabilities = top_poses(logits, 3, group, 3, 15.0)
    found_poses, found = top_poses(logits.cuda(), 3, group, 3, 15.0)
    np.testing.assert_array_equal(found_poses, poses)
    np.testing.assert_allclose(found, probabilities, rtol=1e-4)
