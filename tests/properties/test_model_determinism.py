"""A particle's logits have the same bits at any place of a batch, beside any neighbours, at any time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cesped_stream.model.image2sphere import Image2Sphere
from cesped_stream.settings import MODEL_PRESETS, ModelSettings

BATCH = 16
SIDE = 32
ODD_SIZES = ModelSettings(
    backbone_stages=2,
    backbone_width=8,
    stem="small",
    lmax=3,
    projector_channels=11,
    sphere_order=2,
    s2_channels=5,
    so3_activation_resolution=4,
    grid_order=1,
)
HEAD_OF_PAPER = MODEL_PRESETS["paper"][0].model_copy(
    update={"backbone": "resnet18", "backbone_width": 8, "projector_channels": 64, "grid_order": 2}
)
MODELS = {
    "small": MODEL_PRESETS["small"][0].model_copy(update={"grid_order": 2}),
    "odd": ODD_SIZES,
    "paper head": HEAD_OF_PAPER,
}


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest) -> Image2Sphere:
    torch.manual_seed(0)
    model = Image2Sphere(MODELS[request.param])
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(8, 1, SIDE, SIDE))
    return model.eval()


@given(seed=st.integers(0, 2**31))
@settings(max_examples=5, deadline=None, derandomize=True)
def test_place_and_neighbours_do_not_change_a_bit(model: Image2Sphere, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(BATCH, 1, SIDE, SIDE, generator=generator)
    order = torch.randperm(BATCH, generator=generator)
    alone = torch.zeros_like(images)
    alone[seed % BATCH] = images[0]
    with torch.no_grad():
        logits = model(images)
        assert torch.equal(model(images[order]), logits[order])
        assert torch.equal(model(alone)[seed % BATCH], logits[0])


def test_the_same_input_twice_gives_the_same_bits(model: Image2Sphere) -> None:
    images = torch.randn(BATCH, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(images), model(images))
