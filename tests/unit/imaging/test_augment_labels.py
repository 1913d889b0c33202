"""Rotation and shift that the augmenter gives are those of the augmented image: its simulation says so."""

import numpy as np
import pytest
import torch
from support.imaging import blobs, random_rotations

from cesped_stream.imaging.augment import Augmenter
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.settings import AUGMENT_PRESETS, AugmentSettings

PIXEL_SIZE = 3.0
NONE = AugmentSettings(**{name: 0.0 for name in AugmentSettings.model_fields if name.endswith("_probability")})
ALONE: dict[str, dict[str, float]] = {
    "shift": {"shift_probability": 1.0, "shift_fraction": 0.1},
    "rotation": {"rotation_probability": 1.0, "rotation_deg": 180.0},
    "quarter turn": {"quarter_turn_probability": 1.0},
    "zoom": {"zoom_probability": 1.0},
    "zoom out": {"zoom_probability": 1.0, "zoom_fraction": 0.0, "zoom_out_fraction": 0.05},
    "blur": {"blur_probability": 1.0, "blur_largest_sigma_pixels": 1.0},
    "uniform noise": {"uniform_noise_probability": 1.0, "uniform_noise_scale": 0.4},
    "Gaussian noise": {"gaussian_noise_probability": 1.0, "gaussian_noise_std": 0.3},
    "erasing": {"erase_probability": 1.0},
}
EVERYTHING = {name: 1.0 for name in AugmentSettings.model_fields if name.endswith("_probability")}


def correlations(images: torch.Tensor, others: torch.Tensor) -> np.ndarray:
    """Return the correlation of each pair over the pixels that are not erased, 0, in the first."""
    return np.array([np.corrcoef(a[a != 0], b[a != 0])[0, 1] for a, b in zip(images, others, strict=True)])


def augmented_and_simulated(
    settings: AugmentSettings, side: int = 48, count: int = 24, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return augmented projections of shifted particles, their simulation at the labels given back, and the shifts."""
    projector = MapProjector(blobs(side), PIXEL_SIZE)
    rng = np.random.default_rng(seed)
    rotations = torch.from_numpy(random_rotations(count, rng))
    shifts = torch.from_numpy(rng.uniform(-4, 4, (count, 2)) * PIXEL_SIZE)
    images = projector.project(rotations, shifts)[:, None]
    images = images / images.std()
    generator = torch.Generator().manual_seed(seed)
    changed, labels, moved = Augmenter(settings)(
        images, rotations, generator, shifts_angstrom=shifts, pixel_size_angstrom=PIXEL_SIZE
    )
    return changed[:, 0], projector.project(labels, moved), moved


@pytest.mark.parametrize("side", [48, 49])
@pytest.mark.parametrize("kind", list(ALONE))
def test_simulation_at_the_labels_is_the_augmented_image(kind: str, side: int) -> None:
    images, simulated, _ = augmented_and_simulated(NONE.model_copy(update=ALONE[kind]), side)
    assert correlations(images, simulated).min() > 0.95


def test_all_geometric_augmentations_together_keep_the_labels() -> None:
    everything = NONE.model_copy(
        update={
            **{
                key: value
                for kind in ("shift", "rotation", "quarter turn", "zoom")
                for key, value in ALONE[kind].items()
            }
        }
    )
    images, simulated, moved = augmented_and_simulated(everything, count=48)
    assert correlations(images, simulated).min() > 0.95
    assert moved.std() > PIXEL_SIZE


@pytest.mark.parametrize("preset", ["paper", "cesped"])
def test_presets_with_everything_drawn_keep_the_labels(preset: str) -> None:
    """Of the noise only little is left in, and blurs are kept small: it is the labels that are looked at."""
    quiet = {"uniform_noise_scale": 0.2, "gaussian_noise_std": 0.1, "blur_largest_sigma_pixels": 0.8}
    images, simulated, _ = augmented_and_simulated(AUGMENT_PRESETS[preset].model_copy(update={**EVERYTHING, **quiet}))
    assert correlations(images, simulated).min() > 0.95


@pytest.mark.parametrize(
    "wrong",
    [
        lambda images, labels, shifts, true: (true, shifts),
        lambda images, labels, shifts, true: (labels, torch.zeros_like(shifts)),
        lambda images, labels, shifts, true: (labels, -shifts),
        lambda images, labels, shifts, true: (labels, shifts.flip(1)),
    ],
    ids=["rotation untouched", "no shift", "sign of shift", "x for y"],
)
def test_wrong_labels_would_be_seen(wrong: object) -> None:
    """The same measure falls below 0.95 for labels with a mistake: the tests above can fail."""
    projector = MapProjector(blobs(48), PIXEL_SIZE)
    rng = np.random.default_rng(0)
    rotations = torch.from_numpy(random_rotations(24, rng))
    shifts = torch.from_numpy(rng.uniform(-4, 4, (24, 2)) * PIXEL_SIZE)
    settings = NONE.model_copy(update={**ALONE["rotation"], **ALONE["shift"]})
    images, labels, moved = Augmenter(settings)(
        projector.project(rotations, shifts)[:, None],
        rotations,
        torch.Generator().manual_seed(0),
        shifts_angstrom=shifts,
        pixel_size_angstrom=PIXEL_SIZE,
    )
    rotation, shift = wrong(images, labels, moved, rotations)  # type: ignore[operator]
    assert np.median(correlations(images[:, 0], projector.project(rotation, shift))) < 0.9


def test_turns_are_about_the_origin_that_is_given() -> None:
    """An image whose particle origin is half a pixel off keeps its labels when the augmenter is told so."""
    projector = MapProjector(blobs(48), PIXEL_SIZE)
    rotations = torch.from_numpy(random_rotations(16, np.random.default_rng(3)))
    off = torch.full((16, 2), -1.5 * PIXEL_SIZE, dtype=torch.float64)
    images = projector.project(rotations, off)[:, None]  # the origin is at pixel 25.5
    settings = NONE.model_copy(update=ALONE["rotation"])
    told, untold = (
        Augmenter(settings)(
            images,
            rotations,
            torch.Generator().manual_seed(1),
            shifts_angstrom=torch.zeros(16, 2),
            pixel_size_angstrom=PIXEL_SIZE,
            origin_pixel=origin,
        )
        for origin in (torch.full((16,), 25.5), None)
    )
    assert correlations(told[0][:, 0], projector.project(told[1], told[2] + off)).min() > 0.95
    assert correlations(untold[0][:, 0], projector.project(untold[1], untold[2] + off)).min() < 0.85


def test_ranges_that_are_not_ordered_are_refused() -> None:
    with pytest.raises(ValueError, match=r"erase_least_fraction 0\.1 is above erase_fraction 0\.02"):
        AugmentSettings(erase_least_fraction=0.1)
