"""Items of a data set are the particles of its star, in CESPED's conventions."""

import json
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from samples.particle_entries import BOX, PIXEL_SIZE, optics, simulated_entry, star_of_spots
from support.imaging import blobs
from torch.utils.data import DataLoader

from cesped_stream import ParticlesDataset
from cesped_stream.benchmark.dataset import Batch, Item
from cesped_stream.benchmark.entries import open_entry
from cesped_stream.conventions import rotation_to_euler_deg
from cesped_stream.errors import InvalidSettingsError, InvalidStarError, UnreachableFileError
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.particles.own_rows import consensus_confidences
from cesped_stream.particles.stacks import write_stack
from cesped_stream.particles.star import read_star, write_star
from cesped_stream.particles.table import ParticleTable
from cesped_stream.so3.symmetry import group_rotations


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    simulated_entry(folder, "own")
    simulated_entry(folder, "dihedral", symmetry="D2")
    simulated_entry(folder, "clean", snr=float("inf"), ctf=False, confidences=False)
    return folder


@pytest.fixture
def dataset(root: Path) -> ParticlesDataset:
    return ParticlesDataset("own", 0, benchmarkDir=root, image_size=24)


def assert_equal_batches(batch: Batch, other: Batch) -> None:
    assert list(batch[0]) == list(other[0])
    torch.testing.assert_close(batch[1], other[1], atol=1e-5, rtol=0)
    for label, of_other in zip(batch[2], other[2], strict=True):
        torch.testing.assert_close(label, of_other, atol=0, rtol=0, equal_nan=True)
    assert batch[3].keys() == other[3].keys()
    for name, column in batch[3].items():
        assert torch.equal(column, other[3][name]) if torch.is_tensor(column) else column == other[3][name]


def test_an_item_is_its_row(root: Path, dataset: ParticlesDataset) -> None:
    table = read_star(root / "own" / "particles_0.star")
    assert len(dataset) == len(table) == 12
    for row in (0, 7, 11):
        iid, image, (rotation, shift, confidence), metadata = dataset[row]
        assert iid == metadata["rlnImageName"] == table.column("rlnImageName")[row]
        assert (image.shape, image.dtype) == ((1, 24, 24), torch.float32)
        np.testing.assert_allclose(rotation, table.rotations()[row], atol=1e-6)
        np.testing.assert_allclose(shift, table.shifts_angstrom()[row], atol=1e-5)
        assert confidence.shape == (1,)
        assert confidence.item() == pytest.approx(consensus_confidences(table)[row])
        assert metadata["rlnDefocusU"] == table.numbers("rlnDefocusU")[row]
        assert isinstance(metadata["rlnRandomSubset"], int)
        assert metadata["rlnOpticsGroup"] == 1
        assert "cestreamStack" not in metadata
    assert [item[0] for item in dataset] == table.column("rlnImageName")
    assert dataset[-1][0] == dataset[11][0]


def test_properties_say_where_and_how_large(root: Path, dataset: ParticlesDataset) -> None:
    assert dataset.symmetry == "C1"
    assert dataset.image_size == 24
    assert dataset.datadir == str(root / "own")
    assert Path(dataset.starFname) == root / "own" / "particles_0.star"
    assert Path(dataset.stackFname) == root / "own" / "particles_0.mrcs"
    assert dataset.augmenter is None
    assert dataset.has_poses.all()


@pytest.mark.parametrize("compatible", ["cesped", None])
@pytest.mark.parametrize(("size", "crop"), [(None, 0.25), (24, 0.25), (16, 0.0), (20, 0.4)])
def test_sampling_rate_is_that_of_the_image(tmp_path: Path, compatible: None, size: int | None, crop: float) -> None:
    """A spot 15 A right of and 12 A above the origin is found that far from it, in the pixels that are stated."""
    star = star_of_spots(tmp_path, [(PIXEL_SIZE, 32)], 15.0, -12.0)
    centre_star = (
        star_of_spots(tmp_path / "c", [(PIXEL_SIZE, 32)], 0.0, 0.0) if (tmp_path / "c").mkdir() is None else star
    )
    options = {"image_size": size, "crop_fraction": crop, "normalise": False, "ctf_correction": "none"}
    off, centred = (ParticlesDataset.from_star(s, compatible=compatible, **options) for s in (star, centre_star))
    distance = (centre_of_mass(off[0][1]) - centre_of_mass(centred[0][1])) * off.sampling_rate
    np.testing.assert_allclose(distance, [15.0, -12.0], atol=0.4)
    assert off.sampling_rate == pytest.approx(PIXEL_SIZE * int(32 * (1 - crop)) / off.image_size)


def centre_of_mass(image: torch.Tensor) -> np.ndarray:
    mass = (image[0] - 0.03 * image.max()).clamp_(min=0).double()
    axis = torch.arange(image.shape[-1])
    return np.array([(mass.sum(0) * axis).sum(), (mass.sum(1) * axis).sum()]) / float(mass.sum())


@pytest.mark.parametrize("compatible", ["cesped", None])
def test_optics_groups_of_any_pixel_size_and_box_show_one_scale(tmp_path: Path, compatible: None) -> None:
    star = star_of_spots(tmp_path, [(3.0, 40), (2.0, 64), (4.0, 24), (3.0, 48)], 16.0, 10.0)
    dataset = ParticlesDataset.from_star(
        star, image_size=24, compatible=compatible, normalise=False, ctf_correction="none"
    )
    images = torch.stack([item[1] for item in dataset])
    assert images.shape == (8, 1, 24, 24)
    centres = np.array([centre_of_mass(image) for image in images])
    expected = np.array([16.0, 10.0]) / dataset.sampling_rate + 12
    # the bilinear resize puts the origin of each box size elsewhere, by less than a pixel
    assert np.abs(centres - expected).max() < (0.1 if compatible is None else 1.2)


def test_this_projects_steps_put_the_particle_where_its_pose_says(root: Path) -> None:
    dataset = ParticlesDataset("clean", 0, benchmarkDir=root, compatible=None, image_size_factor_for_crop=0.0)
    projector = MapProjector(blobs(BOX), PIXEL_SIZE)
    for row in range(4):
        _, image, (rotation, shift, _), _ = dataset[row]
        expected = projector.project(rotation[None].double(), shift[None].double())[0]
        assert np.corrcoef(image[0].ravel(), expected.ravel())[0, 1] > 0.9999


def test_astigmatism_is_corrected_about_its_own_axis(tmp_path: Path) -> None:
    """Phase-flipped noise-free images look more like their projection than with the axis taken from the rows."""
    folder = simulated_entry(tmp_path, "astigmatic", snr=float("inf"), max_astigmatism_angstrom=6000.0)
    options = {"benchmarkDir": tmp_path, "image_size": BOX, "image_size_factor_for_crop": 0.0}
    right = ParticlesDataset(folder.name, 0, **options)
    wrong = ParticlesDataset(folder.name, 0, compatible="cesped_exact", **options)
    projector = MapProjector(blobs(BOX), PIXEL_SIZE)

    def likeness(item: Item) -> float:
        _, image, (rotation, shift, _), _ = item
        projection = projector.project(rotation[None].double(), shift[None].double())[0]
        return float(np.corrcoef(image[0].ravel(), projection.ravel())[0, 1])

    gains = [likeness(a) - likeness(b) for a, b in zip(right, wrong, strict=True)]
    assert np.mean(gains) > 0.005
    assert np.mean(np.array(gains) > 0) > 0.7


def test_a_star_without_poses_gives_nan_and_confidence_0(tmp_path: Path) -> None:
    dataset = ParticlesDataset.from_star(star_of_spots(tmp_path, [(3.0, 32)], 0, 0))
    _, image, (rotation, shift, confidence), _ = dataset[0]
    assert image.isfinite().all()
    assert rotation.isnan().all()
    assert shift.tolist() == [0.0, 0.0]
    assert confidence.item() == 0.0
    assert not dataset.has_poses.any()
    dataset.update_poses([dataset[0][0]], angles=torch.eye(3)[None])
    assert dataset.has_poses.tolist() == [True, False]
    with pytest.raises(InvalidStarError, match="1 of 2 rows have no pose"):
        dataset.save_poses(tmp_path / "p.star")
    dataset.save_poses(tmp_path / "p.star", only_updated=True)
    assert len(read_star(tmp_path / "p.star")) == 1
    torch.testing.assert_close(dataset[0][2][0], torch.eye(3))


def test_without_the_column_the_confidence_is_1(root: Path) -> None:
    assert ParticlesDataset("clean", 0, benchmarkDir=root)[0][2][2].item() == 1.0


def test_poses_are_reduced_by_the_symmetry_on_the_maps_side(root: Path) -> None:
    dataset = ParticlesDataset("dihedral", 0, benchmarkDir=root)
    group = group_rotations("D2")
    given = read_star(root / "dihedral" / "particles_0.star").rotations()
    moved = 0
    for row, true in enumerate(given):
        rotation = dataset[row][2][0].double().numpy()
        orbit = group @ true
        nearest = orbit[np.argmax(np.trace(orbit, axis1=1, axis2=2))]
        np.testing.assert_allclose(rotation, nearest, atol=1e-6)
        moved += not np.allclose(rotation, true, atol=1e-3)
    assert moved > 3


def test_pixels_that_are_none_give_an_empty_image_without_weight(root: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(4, 16, 16)).astype(np.float32)
    images[1, 3, 3], images[2, 0, 0], images[3] = np.nan, np.inf, 7.0
    write_stack(tmp_path / "a.mrcs", images, 3.0)
    rows = [(f"{k}@a.mrcs", "1", "2", "3", "1e4", "1e4", "0") for k in range(1, 5)]
    labels = ("rlnImageName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
    labels += ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
    write_star(tmp_path / "a.star", ParticleTable(labels, rows, (optics("a", 3.0, 16),), np.zeros(4, np.int64)))
    dataset = ParticlesDataset.from_star(tmp_path / "a.star")
    items = dataset.__getitems__(range(4))
    assert [item[2][2].item() for item in items] == [1.0, 0.0, 0.0, 0.0]
    assert items[0][1].std() > 0.5
    assert all((item[1] == 0).all() for item in items[1:])
    assert all(item[2][0].isfinite().all() for item in items)


def test_without_correction_a_star_needs_no_defocus(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrcs", np.random.default_rng(0).normal(size=(2, 16, 16)).astype(np.float32), 3.0)
    table = ParticleTable(("rlnImageName",), [("1@a.mrcs",), ("2@a.mrcs",)], (optics("a", 3.0, 16),), np.zeros(2, int))
    write_star(tmp_path / "a.star", table)
    assert len(list(ParticlesDataset.from_star(tmp_path / "a.star", ctf_correction="none"))) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_what_the_items_are(dataset: ParticlesDataset, workers: int) -> None:
    loader = DataLoader(dataset, batch_size=5, num_workers=workers)
    seen = [
        row for batch in loader for row in zip(batch[0], batch[1], batch[2][0], batch[3]["rlnDefocusU"], strict=True)
    ]
    assert len(seen) == 12
    for (iid, image, rotation, defocus), item in zip(seen, dataset, strict=True):
        assert iid == item[0]
        torch.testing.assert_close(image, item[1], atol=1e-5, rtol=0)
        assert torch.equal(rotation, item[2][0])
        assert defocus.item() == item[3]["rlnDefocusU"]


def test_batches_are_a_loaders(dataset: ParticlesDataset) -> None:
    batches = list(dataset.batches(5, device="cpu"))
    loaded = list(DataLoader(dataset, batch_size=5))
    assert [len(batch[0]) for batch in batches] == [5, 5, 2]
    for batch, other in zip(batches, loaded, strict=True):
        assert_equal_batches(batch, other)
    assert [len(batch[0]) for batch in dataset.batches(5, device="cpu", drop_last=True)] == [5, 5]


def test_shuffled_batches_are_a_permutation_that_the_seed_fixes(dataset: ParticlesDataset) -> None:
    orders = [[i for batch in dataset.batches(5, device="cpu", shuffle_seed=s) for i in batch[0]] for s in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(dataset.md.ids) != orders[0]


def test_batches_left_half_way_leave_no_thread(dataset: ParticlesDataset) -> None:
    batches = dataset.batches(2, device="cpu")
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("particles")]


def test_an_error_while_reading_ahead_reaches_the_caller(tmp_path: Path) -> None:
    dataset = ParticlesDataset.from_star(star_of_spots(tmp_path, [(3.0, 32), (3.0, 32)], 0, 0))
    (tmp_path / "stack_1.mrcs").unlink()
    with pytest.raises(UnreachableFileError, match=r"stack_1\.mrcs"):
        list(dataset.batches(2, device="cpu"))


def test_no_more_files_are_open_than_allowed(tmp_path: Path) -> None:
    dataset = ParticlesDataset.from_star(star_of_spots(tmp_path, [(3.0, 32)] * 30, 0, 0), max_open_files=3)

    def open_stacks() -> int:
        links = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
        return sum(link.endswith(".mrcs") and str(tmp_path) in link for link in links)

    most = 0
    for _ in dataset:
        most = max(most, open_stacks())
    assert 1 <= most <= 3


def test_a_pickled_data_set_is_the_same(dataset: ParticlesDataset) -> None:
    dataset.augmenter = "paper"
    dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    dataset.augmenter = copy.augmenter = None
    assert_equal_batches(*(next(d.batches(12, device="cpu")) for d in (dataset, copy)))


def test_entries_are_listed(root: Path, tmp_path: Path) -> None:
    published = ParticlesDataset.published_entries()
    assert published[:2] == [("TEST", 0), ("TEST", 1)]
    assert {("10280", 1), ("10648", 0)} < set(published)
    local = ParticlesDataset.getLocallyAvailableEntries(root)
    assert local == [(name, half) for name in ("clean", "dihedral", "own") for half in (0, 1)]
    assert ParticlesDataset.getLocallyAvailableEntries(tmp_path / "none") == []


def test_added_half_opens_with_its_symmetry_and_images(root: Path, tmp_path: Path) -> None:
    star = root / "own" / "particles_1.star"
    ParticlesDataset.addNewEntryLocally(star, root / "own", "mine", 1, "c2", benchmarkDir=tmp_path)
    added = ParticlesDataset("mine", 1, benchmarkDir=tmp_path)
    assert added.symmetry == "C2"
    assert json.loads((tmp_path / "mine" / "info_1.json").read_text()) == {"symmetry": "C2"}
    assert torch.equal(added[3][1], ParticlesDataset("own", 1, benchmarkDir=root)[3][1])


@pytest.mark.parametrize(
    ("target", "half", "words"),
    [
        ("nothing", 0, "nor is it a published entry's name"),
        ("own", 2, "half-sets 0 and 1"),
        ("../x", 0, "no entry name"),
    ],
)
def test_what_is_no_entry_is_refused(root: Path, target: str, half: int, words: str) -> None:
    with pytest.raises(InvalidSettingsError, match=words):
        ParticlesDataset(target, half, benchmarkDir=root)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size_factor_for_crop": 0.6}, "0 to 0.5"),
        ({"compatible": "cespedd"}, "compatible"),
        ({"ctf_correction": "phase-flip"}, "none, phase_flip, multiply, wiener"),
        ({"ctf_correction": "phaseflip", "compatible": None}, "none, phase_flip, multiply, wiener"),
        ({"image_size": 0}, "image size 0"),
        ({"image_size": 0, "compatible": None}, "image size 0"),
        ({"image_size": 24.0}, "image size 24.0"),
        ({"augmenter": "none"}, "presets are paper, cesped"),
        ({"augmenter": 3}, "give an Augmenter"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(root: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ParticlesDataset("own", 0, benchmarkDir=root, **options)  # type: ignore[arg-type]


def test_a_number_is_a_targets_name_too(tmp_path: Path) -> None:
    simulated_entry(tmp_path, "12345")
    assert ParticlesDataset(12345, 0, benchmarkDir=tmp_path).starFname == str(tmp_path / "12345" / "particles_0.star")


def test_an_option_that_does_not_exist_is_refused_by_the_signature(root: Path) -> None:
    with pytest.raises(TypeError, match=r"__init__\(\) got an unexpected keyword argument 'augmentor'"):
        ParticlesDataset("own", 0, benchmarkDir=root, augmentor="paper")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"from_star\(\) got an unexpected keyword argument 'sead'"):
        ParticlesDataset.from_star(root / "own" / "particles_0.star", sead=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("item", "words"),
    [("000001@particles_0.mrcs", r"md\.rows_of"), (slice(0, 2), r"Subset"), (1.5, "whole number"), (None, "whole")],
)
def test_an_item_is_asked_for_by_its_number(dataset: ParticlesDataset, item: object, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        dataset[item]  # type: ignore[index]
    assert dataset[np.int64(3)][0] == dataset[3][0]  # type: ignore[index]


@pytest.mark.parametrize("device", ["gpu", "mps", ""])
def test_a_device_that_is_none_is_refused_at_once(dataset: ParticlesDataset, device: str) -> None:
    with pytest.raises(ValueError, match="auto, cuda or cpu"):
        dataset.batches(4, device=device)  # type: ignore[arg-type]


def test_beyond_the_last_particle_is_an_index_error(dataset: ParticlesDataset) -> None:
    for row in (12, -13):
        with pytest.raises(IndexError, match="of 12"):
            dataset[row]


def test_euler_angles_of_metadata_are_those_of_the_star(root: Path, dataset: ParticlesDataset) -> None:
    rotation = open_entry(root / "own").particles().rotations()[3]
    metadata = dataset[3][3]
    angles = [metadata[f"rlnAngle{name}"] for name in ("Rot", "Tilt", "Psi")]
    np.testing.assert_allclose(angles, rotation_to_euler_deg(rotation)[0], atol=1e-5)
