"""Augmented images keep their labels' meaning."""

import numpy as np
import pytest
import torch
from support.imaging import blobs, random_rotations

from cesped_stream.imaging.augment import Augmenter
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.settings import AugmentSettings, TrainingSettings

NONE = AugmentSettings(
    shift_probability=0,
    rotation_probability=0,
    quarter_turn_probability=0,
    uniform_noise_probability=0,
    gaussian_noise_probability=0,
    zoom_probability=0,
    erase_probability=0,
)


def augmented(
    images: torch.Tensor, rotations: torch.Tensor | None = None, seed: int = 0, **settings: float
) -> tuple[torch.Tensor, torch.Tensor]:
    if rotations is None:
        rotations = torch.eye(3, dtype=torch.float64).expand(len(images), 3, 3)
    augmenter = Augmenter(NONE.model_copy(update=settings))
    return augmenter(images, rotations, torch.Generator().manual_seed(seed))[:2]


def noise(count: int = 16, side: int = 40) -> torch.Tensor:
    return torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("side", [40, 41])
@pytest.mark.parametrize(
    "settings", [{"quarter_turn_probability": 1.0}, {"rotation_probability": 1.0, "rotation_deg": 180.0}]
)
def test_a_turned_image_is_the_projection_at_the_turned_label(side: int, settings: dict[str, float]) -> None:
    projector = MapProjector(blobs(side), 1.0)
    rotations = torch.from_numpy(random_rotations(24, np.random.default_rng(2)))
    images, labels = augmented(projector.project(rotations)[:, None], rotations, **settings)
    at_label = projector.project(labels)
    for image, expected in zip(images[:, 0], at_label, strict=True):
        assert np.corrcoef(image.ravel(), expected.ravel())[0, 1] > 0.995
    assert (labels - rotations).abs().amax((1, 2)).median() > 0.5
    torch.testing.assert_close(labels[:, :, 2], rotations[:, :, 2])


def test_quarter_turns_move_pixels_and_change_none_about_the_origin() -> None:
    images = noise()
    turned, labels = augmented(images, quarter_turn_probability=1.0)
    for image, source, label in zip(turned[:, 0], images[:, 0], labels, strict=True):
        quarters = round(float(torch.rad2deg(torch.atan2(label[1, 0], label[0, 0]))) / 90) % 4
        expected = torch.rot90(source[1:, 1:], quarters, (0, 1))
        torch.testing.assert_close(image[1:, 1:], expected, atol=1e-4, rtol=0)
    assert len({tuple(label.round().ravel().tolist()) for label in labels}) == 4


def test_shift_moves_the_image_and_not_the_label() -> None:
    delta = torch.zeros(32, 1, 40, 40)
    delta[:, :, 20, 20] = 1.0
    blurred = torch.nn.functional.avg_pool2d(delta, 3, 1, 1)
    moved, labels = augmented(blurred, shift_probability=1.0, shift_fraction=0.1)
    axis = torch.arange(40.0) - 20
    mass = moved.sum((1, 2, 3))
    centre = torch.stack([(moved.sum((1, 2)) * axis).sum(1), (moved.sum((1, 3)) * axis).sum(1)], 1) / mass[:, None]
    assert centre.abs().max() <= 4.05
    assert centre.std() > 1
    torch.testing.assert_close(labels, torch.eye(3, dtype=torch.float64).expand(32, 3, 3))


def test_zoom_enlarges_about_the_origin() -> None:
    axis = torch.arange(40.0) - 20
    disc = (axis[:, None] ** 2 + axis**2 < 100).float().expand(64, 1, 40, 40).contiguous()
    zoomed, _ = augmented(disc, zoom_probability=1.0, zoom_fraction=0.2)
    growth = (zoomed.sum((1, 2, 3)) / disc.sum((1, 2, 3))).sqrt()
    assert 0.98 < growth.min() < 1.04
    assert 1.14 < growth.max() < 1.22


@pytest.mark.parametrize("kind", ["uniform_noise", "gaussian_noise"])
def test_noise_is_added_to_the_chosen_share_of_images(kind: str) -> None:
    size = {"uniform_noise": "uniform_noise_scale", "gaussian_noise": "gaussian_noise_std"}[kind]
    blank = torch.zeros(400, 1, 8, 8)
    noisy, _ = augmented(blank, **{f"{kind}_probability": 0.25, size: 2.0})
    stds = noisy.std((1, 2, 3))
    assert 70 < (stds > 0).sum() < 130
    assert stds.max() < 2.6
    assert noisy.mean().abs() < 0.05


def test_erased_patch_is_a_square_of_at_most_the_stated_area() -> None:
    erased, _ = augmented(torch.ones(300, 1, 50, 50), erase_probability=1.0, erase_fraction=0.04)
    share = (erased == 0).float().mean((1, 2, 3))
    assert share.max() <= 0.0485
    assert 0.012 < share.mean() < 0.028
    for image in erased[:, 0][share > 0][:20]:
        rows, columns = torch.nonzero(image == 0, as_tuple=True)
        assert (image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] == 0).all()


def test_nothing_chosen_changes_nothing() -> None:
    images = noise()
    same, _ = augmented(images)
    torch.testing.assert_close(same, images, atol=1e-4, rtol=0)


def test_same_seed_same_bits_and_another_seed_another_image() -> None:
    settings = AugmentSettings().model_dump()
    images = noise()
    first, second, third = (augmented(images, seed=seed, **settings) for seed in (3, 3, 4))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.allclose(first[0], third[0])


def test_small_preset_keeps_most_of_white_noises_std() -> None:
    """At inference nothing is resampled: a training that saw only smooth noise would meet another."""
    augmenter = Augmenter(TrainingSettings(preset="small").augment)
    images, _, _ = augmenter(
        noise(64), torch.eye(3, dtype=torch.float64).expand(64, 3, 3), torch.Generator().manual_seed(1)
    )
    assert images[..., 10:30, 10:30].std() > 0.8
