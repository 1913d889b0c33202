"""ImageNet weights from torchvision or from a local file; no pickled code is ever run."""

import pickle
import urllib.request
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import ResNet18_Weights, ResNet50_Weights, ResNet152_Weights

from cesped_stream.errors import InvalidCheckpointError, UnreachableFileError
from cesped_stream.settings import ModelSettings

_WEIGHTS = {
    "resnet18": ResNet18_Weights.DEFAULT,
    "resnet50": ResNet50_Weights.DEFAULT,
    "resnet152": ResNet152_Weights.DEFAULT,
}
_NETWORK_SECONDS = 5.0


def imagenet_weights(settings: ModelSettings, source: str | Path) -> dict[str, Tensor] | None:
    """Return torchvision's named weights of `settings.backbone`, or None where there are none to be had.

    `source`: "auto", "none", or a .pth/.safetensors file. Only "auto" may come back empty-handed: it warns once.
    """
    if str(source) == "none":
        return None
    if str(source) == "auto":
        return _from_torchvision(settings)
    weights = _from_file(Path(source))
    _check(settings, weights, str(source))
    return weights


def _from_torchvision(settings: ModelSettings) -> dict[str, Tensor] | None:
    if settings.backbone_width != 64:
        _warn(f"{settings.backbone} of width {settings.backbone_width}: ImageNet weights exist for width 64 only")
        return None
    weights = _WEIGHTS[settings.backbone]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    try:
        if not cached.exists():
            # torchvision waits for ever where packets are dropped: ask first, with a limit
            request = urllib.request.Request(weights.url, method="HEAD")
            urllib.request.urlopen(request, timeout=_NETWORK_SECONDS).close()
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: the download's hash is wrong
        _warn(f"{weights.url} cannot be had ({error})")
        return None
    return state


def _from_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UnreachableFileError(f"{path}: ImageNet weights cannot be read ({error}); name a file") from error
    except (pickle.UnpicklingError, RuntimeError, SafetensorError, EOFError) as error:
        raise InvalidCheckpointError(
            f"{path}: not a plain file of weights ({str(error).splitlines()[0]}); use torchvision's .pth"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InvalidCheckpointError(f"{path}: holds {type(state).__name__}, not a dictionary of tensors")
    return state


def _check(settings: ModelSettings, weights: dict[str, Tensor], source: str) -> None:
    """Refuse a file of another ResNet: what it must hold is each layer that this encoder keeps."""
    from cesped_stream.model.encoder import Encoder

    with torch.device("meta"):
        own = Encoder(settings).state_dict()
    for name, tensor in own.items():
        if name == "conv1.weight" and settings.stem == "small":
            continue
        got = tuple(weights[name].shape) if name in weights else "nothing"
        if got != tuple(tensor.shape):
            raise InvalidCheckpointError(
                f"{source}: {name} should be {tuple(tensor.shape)} for {settings.backbone} of width "
                f"{settings.backbone_width}, got {got}; name weights of that ResNet"
            )


def _warn(reason: str) -> None:
    warnings.warn(
        f"no ImageNet weights: {reason}; starting from random ones. Name a local file in `imagenet_weights`, "
        "or set it to none",
        stacklevel=4,
    )
