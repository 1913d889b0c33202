"""The image encoder: one channel to three by Gaussian filters, then a ResNet without its pooling and classifier."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, Bottleneck

from cesped_stream.model.imagenet import imagenet_weights
from cesped_stream.settings import ModelSettings

_BLOCKS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
_SIGMAS_PIXELS = (1.0, 2.0)
_RADIUS = 8  # four of the widest sigma


def gaussian_kernels() -> Tensor:
    """Return the filters of the second and third channel `(2, 17)`: sigma 1 and 2 pixels, each of sum 1."""
    x = torch.arange(-_RADIUS, _RADIUS + 1, dtype=torch.float64)
    kernels = [torch.where(x.abs() <= 4 * s, torch.exp(-0.5 * (x / s) ** 2), 0.0) for s in _SIGMAS_PIXELS]
    return torch.stack([k / k.sum() for k in kernels]).float()


class ThreeChannels(nn.Module):
    """Stacks the image, and the image filtered with sigma 1 and sigma 2 pixels (paper, Appendix B)."""

    kernels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernels", gaussian_kernels(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return `(b, 3, s, s)` from `(b, 1, s, s)`; the border is mirrored about its outermost pixel."""
        padded = functional.pad(images, (_RADIUS,) * 4, mode="reflect")
        columns = functional.conv2d(padded, self.kernels[:, None, :, None])
        return torch.cat([images, functional.conv2d(columns, self.kernels[:, None, None, :], groups=2)], dim=1)


class Encoder(nn.Module):
    """ResNet feature maps of particle images; parameter names are torchvision's.

    An image of side s has its particle on pixel s/2. One row and one column of background are added, so that this
    pixel is the middle one and every stride-2 convolution keeps it in the middle: the feature map of an in-plane
    rotated image is centred where that of the image is.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        block, depths = _BLOCKS[settings.backbone]
        width = settings.backbone_width
        self.three_channels = ThreeChannels()
        kernel = 7 if settings.stem == "imagenet" else 5
        self.conv1 = nn.Conv2d(3, width, kernel, stride=2, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if settings.stem == "imagenet" else nn.Identity()
        channels = width
        for stage, depth in enumerate(depths[: settings.backbone_stages]):
            layer = _stage(block, channels, width * 2**stage, depth, stride=1 if stage == 0 else 2)
            setattr(self, f"layer{stage + 1}", layer)
            channels = width * 2**stage * block.expansion
        self.out_channels = channels
        self._initialise()
        self.to(memory_format=torch.channels_last)  # oneDNN's and cuDNN's faster layout

    def forward(self, images: Tensor) -> Tensor:
        """Return features `(b, out_channels, f, f)` of images `(b, 1, s, s)`; f = 1 + s / stride."""
        x: Tensor = self.three_channels(functional.pad(images, (0, 1, 0, 1)))
        x = self.conv1(x.contiguous(memory_format=torch.channels_last))
        x = self.maxpool(functional.relu(self.bn1(x)))
        for stage in range(self.settings.backbone_stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x

    def load_imagenet(self, source: str | Path = "auto") -> bool:
        """Load ImageNet weights where there are any; return whether any were loaded.

        `source`: "auto" asks torchvision (network or its cache), "none" leaves the weights as they are, else a .pth or
        .safetensors file of torchvision's names. The small stem keeps its own first convolution. Warns once where
        "auto" finds none; raises UnreachableFileError or InvalidCheckpointError for a named file that cannot be used.
        """
        weights = imagenet_weights(self.settings, source)
        if weights is None:
            return False
        self.load_weights(weights)
        return True

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Take what `imagenet_weights` gave for these settings; the small stem keeps its own first convolution."""
        own = self.state_dict()
        usable = {k: v for k, v in weights.items() if k in own and not (k == "conv1.weight" and self._own_stem)}
        self.load_state_dict({**own, **usable})

    @property
    def _own_stem(self) -> bool:
        return self.settings.stem == "small"

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _stage(
    block: type[BasicBlock] | type[Bottleneck], channels: int, planes: int, depth: int, *, stride: int
) -> nn.Sequential:
    out = planes * block.expansion
    downsample = None
    if stride != 1 or channels != out:
        downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
    first = block(channels, planes, stride, downsample)
    return nn.Sequential(first, *(block(out, planes) for _ in range(depth - 1)))
