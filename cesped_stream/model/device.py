"""Which device a setting means, and how many CPU threads work for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

import torch

from cesped_stream.settings import Device


def pick_device(device: Device) -> torch.device:
    """Return the device of a setting; ValueError for none of them, and where CUDA is asked for and there is none."""
    if device not in get_args(Device):
        raise ValueError(f"device {device!r}; it is auto, cuda or cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, and this machine has no usable CUDA GPU; set it to auto or cpu")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def cpu_threads(device: torch.device) -> int:
    """Return how many threads may share work on a device: torch's on a CPU, one beside a GPU."""
    return torch.get_num_threads() if device.type == "cpu" else 1


@contextmanager
def intra_op_threads(count: int) -> Iterator[None]:
    """Run the block with `count` torch threads in this thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
