"""Image2Sphere as a whole: shapes, scale, gradients, learning."""

import pytest
import torch
from torch.nn import functional

from cesped_stream.model.image2sphere import Image2Sphere
from cesped_stream.settings import MODEL_PRESETS, ModelSettings
from cesped_stream.so3.grids import num_rotations

TINY = ModelSettings(
    backbone="resnet18",
    backbone_stages=2,
    backbone_width=8,
    stem="small",
    lmax=3,
    projector_channels=16,
    sphere_order=2,
    s2_channels=4,
    so3_activation_resolution=4,
    grid_order=1,
)


@pytest.fixture
def model() -> Image2Sphere:
    torch.manual_seed(0)
    return Image2Sphere(TINY)


def test_logits_cover_the_grid(model: Image2Sphere) -> None:
    assert model(torch.randn(3, 1, 16, 16)).shape == (3, num_rotations(1))


def test_first_logits_spread_by_order_one(model: Image2Sphere) -> None:
    small = Image2Sphere(MODEL_PRESETS["small"][0])
    with torch.no_grad():
        spread = small(torch.randn(16, 1, 40, 40)).std(dim=1)
    assert 0.2 < spread.mean() < 3


def test_training_and_evaluation_give_logits_of_the_same_scale(model: Image2Sphere) -> None:
    images = torch.randn(32, 1, 32, 32)
    with torch.no_grad():
        model.encoder.eval()
        ratio = model.train()(images).std()
        model.train()
        features = model.encoder.eval()(images)
        model.head.train()
        trained = torch.stack([model.head(features).std() for _ in range(20)]).mean()
        evaluated = model.head.eval()(features).std()
    assert ratio.isfinite()
    assert 0.8 < trained / evaluated < 1.25


def test_every_parameter_gets_a_gradient(model: Image2Sphere) -> None:
    functional.cross_entropy(model(torch.randn(8, 1, 32, 32)), torch.arange(8)).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


def test_it_learns_eight_images_by_heart(model: Image2Sphere) -> None:
    images = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(8) * 70
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        loss = functional.cross_entropy(model(images, generator=torch.Generator().manual_seed(2)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5
    assert (model.eval()(images).argmax(1) == labels).sum() >= 6


def test_equal_seeds_give_equal_training_steps(model: Image2Sphere) -> None:
    images = torch.randn(4, 1, 32, 32)
    first = model(images, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, model(images, generator=torch.Generator().manual_seed(1)))
    assert not torch.equal(first, model(images, generator=torch.Generator().manual_seed(2)))


def test_head_runs_in_float32_inside_a_bfloat16_region(model: Image2Sphere) -> None:
    model.eval()
    images = torch.randn(4, 1, 32, 32)
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            coarse = model(images)
    assert coarse.dtype == torch.float32
    assert 0 < (coarse - exact).abs().max() < 0.2 * exact.std() + 0.2


def test_state_holds_weights_only_not_tables(model: Image2Sphere) -> None:
    names = set(model.state_dict())
    assert {n for n in names if n.startswith("head.")} == {
        "head.projector.conv1x1.weight",
        "head.projector.conv1x1.bias",
        "head.s2_convolution.filters",
        "head.so3_convolution.filters",
    }
