"""A data set goes to worker processes that start from nothing."""

from pathlib import Path

import torch
from samples.particle_entries import simulated_entry
from torch.utils.data import DataLoader

from cesped_stream import ParticlesDataset


def test_spawned_workers_give_what_this_process_gives(tmp_path: Path) -> None:
    simulated_entry(tmp_path, "own")
    dataset = ParticlesDataset("own", 0, benchmarkDir=tmp_path, image_size=24)
    dataset[0]  # files are open here: the workers open their own
    spawned = list(DataLoader(dataset, batch_size=6, num_workers=1, multiprocessing_context="spawn"))
    here = list(DataLoader(dataset, batch_size=6))
    assert [batch[0] for batch in spawned] == [batch[0] for batch in here]
    for batch, other in zip(spawned, here, strict=True):
        assert torch.equal(batch[1], other[1])
        assert torch.equal(batch[2][0], other[2][0])
