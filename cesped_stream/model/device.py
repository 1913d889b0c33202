"""Which device a setting means."""

import torch

from cesped_stream.settings import Device


def pick_device(device: Device) -> torch.device:
    """Return the device of a setting; ValueError where CUDA is asked for and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, and this machine has no usable CUDA GPU; set it to auto or cpu")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)
