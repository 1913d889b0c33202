"""Turning the image by 90 degrees in its plane moves the logits, exactly: the group convolutions commute with it."""

from functools import lru_cache

import numpy as np
import pytest
import torch

from cesped_stream.model.image2sphere import Image2Sphere
from cesped_stream.settings import ModelSettings
from cesped_stream.so3.grids import nearest_index, pose_grid

SETTINGS = ModelSettings(
    backbone="resnet18",
    backbone_stages=2,
    backbone_width=8,
    stem="small",
    lmax=4,
    projector_channels=12,
    sphere_order=2,
    s2_channels=4,
    so3_activation_resolution=4,
    grid_order=1,
)
# an image turned by this has the content of +row on +column and of +column on -row (x columns, y rows, z away)
QUARTER_TURN = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


@lru_cache(maxsize=4)
def _model(grid_order: int) -> Image2Sphere:
    torch.manual_seed(grid_order)
    model = Image2Sphere(SETTINGS.model_copy(update={"grid_order": grid_order}))
    with torch.no_grad():
        model(torch.randn(16, 1, 32, 32))
    return model.eval()


def _turned_indices(grid_order: int, turns: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The grid rotation that a particle at each grid rotation has once its image is turned: M g^-1."""
    turn = np.linalg.matrix_power(QUARTER_TURN, turns)
    return nearest_index(pose_grid(grid_order) @ turn.T, grid_order)


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("grid_order", [1, 2])
def test_turning_the_feature_map_moves_the_logits(grid_order: int, turns: int) -> None:
    head = _model(grid_order).head
    features = torch.rand(2, 16, 9, 9, generator=torch.Generator().manual_seed(turns))
    with torch.no_grad():
        logits = head(features).numpy()
        turned = head(torch.rot90(features, turns, (2, 3))).numpy()
    error = np.abs(turned[:, _turned_indices(grid_order, turns)] - logits).max()
    assert error < 1e-4 * logits.std()
    assert np.abs(turned - logits).max() > 0.1 * logits.std()


def test_a_network_of_turn_symmetric_filters_is_equivariant_from_image_to_logits() -> None:
    """Only so if the image turns about pixel s/2, and features and sphere turn about the same point."""
    model = _model(1)
    for module in model.encoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            kernel = module.weight.data
            module.weight.data = sum(torch.rot90(kernel, k, (2, 3)) for k in range(4)) / 4
    side = 32
    images = torch.randn(2, 1, side, side, generator=torch.Generator().manual_seed(0))
    images[:, :, 0], images[:, :, :, 0] = 0, 0  # pixel 0 has no partner on the other side of s/2
    around = torch.nn.functional.pad(images, (0, 1, 0, 1))
    turned_images = torch.rot90(around, 1, (2, 3))[:, :, :side, :side]
    with torch.no_grad():
        logits, turned = model(images).numpy(), model(turned_images).numpy()
    error = np.abs(turned[:, _turned_indices(1, 1)] - logits).max()
    assert error < 1e-3 * logits.std()
    _model.cache_clear()
