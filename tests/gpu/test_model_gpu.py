"""The model on a GPU: the CPU's logits, and bits that do not depend on the batch."""

import pytest
import torch

from cesped_stream.model.image2sphere import Image2Sphere
from cesped_stream.settings import MODEL_PRESETS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

BATCH = 16


@pytest.fixture(params=["small", "paper"])
def model(request: pytest.FixtureRequest) -> Image2Sphere:
    torch.manual_seed(0)
    settings = MODEL_PRESETS[request.param][0].model_copy(update={"backbone": "resnet18"})
    model = Image2Sphere(settings)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(BATCH, 1, 64, 64))
    return model.eval()


def _images() -> torch.Tensor:
    return torch.randn(BATCH, 1, 64, 64, generator=torch.Generator().manual_seed(1))


def _flags() -> object:
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def test_logits_are_those_of_the_cpu(model: Image2Sphere) -> None:
    with torch.no_grad(), _flags():  # type: ignore[attr-defined]
        expected = model(_images())
        got = model.cuda()(_images().cuda()).cpu()
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


def test_place_and_neighbours_do_not_change_a_bit(model: Image2Sphere) -> None:
    model.cuda()
    images = _images().cuda()
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(2)).cuda()
    with torch.no_grad(), _flags():  # type: ignore[attr-defined]
        logits = model(images)
        assert torch.equal(model(images), logits)
        assert torch.equal(model(images[order]), logits[order])


def test_a_bfloat16_backbone_keeps_the_logits_near(model: Image2Sphere) -> None:
    model.cuda()
    with torch.no_grad():
        exact = model(_images().cuda())
        with torch.autocast("cuda", torch.bfloat16):
            coarse = model(_images().cuda())
    assert coarse.dtype == torch.float32
    correlation = torch.corrcoef(torch.stack([exact.flatten(), coarse.flatten()]))[0, 1]
    assert correlation > 0.98


def test_a_training_step_on_the_gpu_reduces_the_loss(model: Image2Sphere) -> None:
    model.cuda().train()
    images, labels = _images().cuda(), torch.arange(BATCH).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(20):
        logits = model(images, generator=torch.Generator().manual_seed(0))
        loss = torch.nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1
