"""Batches of a data set are on CUDA what they are on the CPU."""

from pathlib import Path

import pytest
import torch
from samples.particle_entries import simulated_entry

from cesped_stream import ParticlesDataset

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("compatible", ["cesped", "cesped_exact", None])
@pytest.mark.parametrize("correction", ["phase_flip", "multiply", "wiener"])
def test_batches_are_equal(tmp_path: Path, compatible: None, correction: str) -> None:
    simulated_entry(tmp_path, "own", max_astigmatism_angstrom=500.0)
    dataset = ParticlesDataset("own", 0, tmp_path, image_size=24, compatible=compatible, ctf_correction=correction)  # type: ignore[arg-type]
    for batch, other in zip(dataset.batches(5, device="cuda"), dataset.batches(5, device="cpu"), strict=True):
        assert batch[1].is_cuda
        assert batch[2][0].is_cuda
        torch.testing.assert_close(batch[1].cpu(), other[1], atol=1e-3, rtol=0)
        torch.testing.assert_close(batch[2][0].cpu(), other[2][0])


def test_augmented_batches_have_the_draws_of_the_cpu(tmp_path: Path) -> None:
    simulated_entry(tmp_path, "own")
    images = []
    for device in ("cuda", "cpu"):
        dataset = ParticlesDataset("own", 0, tmp_path, image_size=24, augmenter="cesped", seed=3)
        images.append(torch.cat([batch[1].cpu() for batch in dataset.batches(5, device=device)]))  # type: ignore[arg-type]
    torch.testing.assert_close(*images, atol=1e-2, rtol=0)
