"""Which device a setting means."""

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
