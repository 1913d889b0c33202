"""The encoder's three channels, its geometry and its ImageNet weights."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter
from torchvision.models import resnet18

from cesped_stream.errors import InvalidCheckpointError, UnreachableFileError
from cesped_stream.model import imagenet
from cesped_stream.model.encoder import Encoder, ThreeChannels
from cesped_stream.settings import MODEL_PRESETS, ModelSettings

RESNET18 = ModelSettings(backbone="resnet18")
SMALL = MODEL_PRESETS["small"][0]


@pytest.fixture(scope="module")
def imagenet_like() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return resnet18(weights=None).state_dict()


def test_channels_are_raw_then_sigma_1_then_sigma_2() -> None:
    image = np.random.default_rng(0).normal(size=(24, 24)).astype(np.float32)
    channels = ThreeChannels()(torch.from_numpy(image)[None, None])[0].numpy()
    np.testing.assert_array_equal(channels[0], image)
    for channel, sigma in ((1, 1.0), (2, 2.0)):
        truth = gaussian_filter(image, sigma, mode="mirror", truncate=4.0)
        np.testing.assert_allclose(channels[channel], truth, atol=2e-6)


def test_channels_of_one_image_do_not_mix_with_the_next() -> None:
    images = torch.randn(3, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    together = ThreeChannels()(images)
    for k in range(3):
        torch.testing.assert_close(together[k], ThreeChannels()(images[k : k + 1])[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("preset", ["paper", "small"])
def test_features_are_centred_on_the_particles_pixel(preset: str) -> None:
    """The middle feature moves with a point at pixel s/2, not with one at (s - 1)/2: gradients are symmetric."""
    settings = MODEL_PRESETS[preset][0].model_copy(update={"backbone": "resnet18", "backbone_width": 8})
    encoder = _symmetric(Encoder(settings).eval())
    side = 64
    image = torch.zeros(1, 1, side, side)
    image[0, 0, side // 2, side // 2] = 1
    image[0, 0, side // 2 - 6 : side // 2 + 7, side // 2 - 6 : side // 2 + 7] += 0.1
    features = encoder(image)[0]
    torch.testing.assert_close(features, features.flip(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features, features.transpose(-1, -2), rtol=1e-4, atol=1e-5)


def _symmetric(encoder: Encoder) -> Encoder:
    for module in encoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            w = module.weight.data
            w = (w + w.flip(-1)) / 2
            w = (w + w.flip(-2)) / 2
            module.weight.data = (w + w.transpose(-1, -2)) / 2
    return encoder


def test_all_of_torchvisions_weights_are_taken_from_a_pth_file(
    tmp_path: Path, imagenet_like: dict[str, torch.Tensor]
) -> None:
    torch.save(imagenet_like, tmp_path / "resnet18.pth")
    encoder = Encoder(RESNET18)
    assert encoder.load_imagenet(tmp_path / "resnet18.pth")
    expected = {k for k in imagenet_like if not k.startswith("fc.")}
    assert set(encoder.state_dict()) == expected
    for name in expected:
        torch.testing.assert_close(encoder.state_dict()[name], imagenet_like[name], rtol=0, atol=0)


def test_the_loaded_encoder_computes_what_torchvisions_resnet_computes(
    tmp_path: Path, imagenet_like: dict[str, torch.Tensor]
) -> None:
    save_file(imagenet_like, tmp_path / "resnet18.safetensors")
    encoder = Encoder(RESNET18).eval()
    assert encoder.load_imagenet(tmp_path / "resnet18.safetensors")
    reference = resnet18(weights=None).eval()
    reference.load_state_dict(imagenet_like)
    layers = torch.nn.Sequential(*list(reference.children())[:-2])
    images = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        padded = encoder.three_channels(torch.nn.functional.pad(images, (0, 1, 0, 1)))
        torch.testing.assert_close(encoder(images), layers(padded), rtol=1e-4, atol=1e-4)


def test_the_small_stem_keeps_its_own_first_convolution(tmp_path: Path, imagenet_like: dict[str, torch.Tensor]) -> None:
    save_file(imagenet_like, tmp_path / "w.safetensors")
    encoder = Encoder(SMALL.model_copy(update={"backbone_width": 64}))
    stem = encoder.conv1.weight.detach().clone()
    assert encoder.load_imagenet(tmp_path / "w.safetensors")
    torch.testing.assert_close(encoder.conv1.weight, stem, rtol=0, atol=0)
    torch.testing.assert_close(
        encoder.state_dict()["layer3.0.conv1.weight"], imagenet_like["layer3.0.conv1.weight"], rtol=0, atol=0
    )


def test_a_file_that_runs_code_is_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Path("x")}, tmp_path / "evil.pth")
    with pytest.raises(InvalidCheckpointError, match=r"evil\.pth: not a plain file of weights"):
        Encoder(RESNET18).load_imagenet(tmp_path / "evil.pth")


def test_weights_of_another_resnet_are_refused_by_layer(tmp_path: Path, imagenet_like: dict[str, torch.Tensor]) -> None:
    save_file(imagenet_like, tmp_path / "w.safetensors")
    encoder = Encoder(RESNET18.model_copy(update={"backbone_width": 32}))
    with pytest.raises(InvalidCheckpointError, match=r"conv1\.weight should be \(32, 3, 7, 7\)"):
        encoder.load_imagenet(tmp_path / "w.safetensors")


def test_a_missing_named_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UnreachableFileError, match=r"absent\.pth"):
        Encoder(RESNET18).load_imagenet(tmp_path / "absent.pth")


def test_without_network_or_file_there_is_one_warning_and_random_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr(imagenet.urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    encoder = Encoder(RESNET18)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    with pytest.warns(UserWarning, match="no ImageNet weights.*network is unreachable.*random") as caught:
        assert not encoder.load_imagenet("auto")
    assert len(caught) == 1
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())


def test_none_asks_for_nothing_and_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not Encoder(SMALL).load_imagenet("none")
