"""An augmented item's labels are its image's, and the draws are seeded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from samples.particle_entries import BOX, PIXEL_SIZE, simulated_entry
from support.imaging import blobs
from torch.utils.data import DataLoader

from cesped_stream import ParticlesDataset
from cesped_stream.imaging.augment import Augmenter
from cesped_stream.imaging.maps import crop_map
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.settings import AUGMENT_PRESETS, AugmentSettings

GEOMETRY = AugmentSettings(
    **{name: 0.0 for name in AugmentSettings.model_fields if name.endswith("_probability")}
    | {name: 1.0 for name in ("shift_probability", "rotation_probability", "quarter_turn_probability")}
    | {"zoom_probability": 1.0, "rotation_deg": 180.0}
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    simulated_entry(folder, "clean", box=48, snr=float("inf"), ctf=False, max_shift_angstrom=9.0)
    return folder


@pytest.mark.parametrize(("compatible", "image_size"), [("cesped", 48), ("cesped", 32), (None, 48), (None, 32)])
def test_the_simulated_label_is_the_augmented_item(root: Path, compatible: None, image_size: int) -> None:
    """Whatever the steps: those of cesped, which move the origin off pixel N / 2, or this project's."""
    dataset = ParticlesDataset(
        "clean", 0, root, image_size=image_size, image_size_factor_for_crop=0.0, compatible=compatible
    )
    dataset.augmenter = Augmenter(GEOMETRY)
    projector = MapProjector(crop_map(blobs(48), image_size), dataset.sampling_rate)
    off = 0.0
    if compatible == "cesped":
        off = (24.5 * image_size / 48 - 0.5 - image_size // 2) * dataset.sampling_rate
    for _, image, (rotation, shift, _), _ in dataset:
        simulated = projector.project(rotation[None].double(), (shift - off)[None].double())[0]
        assert np.corrcoef(image[0].ravel(), simulated.ravel())[0, 1] > 0.95


def test_presets_go_by_name(root: Path) -> None:
    dataset = ParticlesDataset("clean", 0, root, augmenter="cesped")
    assert dataset.augmenter is not None
    assert dataset.augmenter.settings == AUGMENT_PRESETS["cesped"]
    assert AUGMENT_PRESETS["paper"] == AugmentSettings()


def images_of(dataset: ParticlesDataset, workers: int, epochs: int, seed: int) -> list[torch.Tensor]:
    loader = DataLoader(dataset, batch_size=3, num_workers=workers, generator=torch.Generator().manual_seed(seed))
    return [torch.cat([batch[1] for batch in loader]) for _ in range(epochs)]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_epoch_has_draws_of_its_own_and_a_seed_fixes_them(root: Path, workers: int) -> None:
    first, again, other = (
        images_of(ParticlesDataset("clean", 0, root, augmenter="paper", seed=seed), workers, 2, seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.allclose(first[0], first[1], atol=0.1)
    assert not torch.allclose(first[0], other[0], atol=0.1)


def test_workers_do_not_draw_the_same(tmp_path: Path) -> None:
    """Two workers on two rows that are the same image: the images they give differ."""
    simulated_entry(tmp_path, "clean", snr=float("inf"), ctf=False)
    dataset = ParticlesDataset("clean", 0, tmp_path, augmenter=Augmenter(GEOMETRY))
    same = torch.utils.data.Subset(dataset, [0, 0])
    first, second = (batch[1][0] for batch in DataLoader(same, batch_size=1, num_workers=2))
    assert not torch.allclose(first, second, atol=0.1)


def test_setting_the_augmenter_begins_the_draws_anew(root: Path) -> None:
    dataset = ParticlesDataset("clean", 0, root, seed=4)
    images = []
    for _ in range(2):
        dataset.augmenter = Augmenter(GEOMETRY)
        images.append([dataset[0][1], dataset[0][1]])
    assert torch.equal(images[0][0], images[1][0])
    assert not torch.allclose(images[0][0], images[0][1], atol=0.1)
    dataset.augmenter = None
    assert torch.equal(dataset[0][1], dataset[0][1])


def test_entry_is_large_enough_to_tell_shifts(root: Path) -> None:
    """The label test above would see a lost shift: given ones reach several pixels."""
    dataset = ParticlesDataset("clean", 0, root, image_size=BOX)
    shifts = torch.stack([item[2][1] for item in dataset])
    assert shifts.abs().max() > 2 * PIXEL_SIZE
