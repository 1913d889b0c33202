"""Backprojection: the map of the images, whatever they carry."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.imaging import blobs, ctf_parameters, random_rotations

from cesped_stream.imaging.ctf import ctf
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.particles.table import CtfParameters
from cesped_stream.reconstruction.backproject import Backprojector, wiener_prior
from cesped_stream.reconstruction.fsc import fsc
from cesped_stream.so3.symmetry import group_rotations

BOX, PIXEL_SIZE, COUNT = 24, 5.0, 400


@pytest.fixture(scope="module")
def poses() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return random_rotations(COUNT, rng), rng.uniform(-8, 8, (COUNT, 2))


@pytest.fixture(scope="module")
def parameters() -> CtfParameters:
    return ctf_parameters(COUNT, pixel_size=PIXEL_SIZE)


@pytest.fixture(scope="module")
def images(poses: tuple[np.ndarray, np.ndarray], parameters: CtfParameters) -> torch.Tensor:
    return MapProjector(blobs(BOX), PIXEL_SIZE).project(*poses, ctf(parameters, BOX))


def reconstructed(
    images: torch.Tensor,
    parameters: CtfParameters,
    poses: tuple[np.ndarray, np.ndarray],
    *,
    compiled: bool = True,
    **options: object,
) -> Backprojector:
    backprojector = Backprojector(BOX, PIXEL_SIZE, compiled=compiled)
    backprojector.add(images, parameters, *poses, **options)
    return backprojector


def test_map_of_projections_is_the_map_in_its_own_units(
    images: torch.Tensor, parameters: CtfParameters, poses: tuple[np.ndarray, np.ndarray]
) -> None:
    volume = reconstructed(images, parameters, poses).map()
    # The blobs have no power to speak of beyond.
    assert fsc(volume, blobs(BOX))[:9].min() > 0.99
    slope = np.polyfit(blobs(BOX).ravel(), volume.ravel(), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.05)


def test_phase_flipped_and_premultiplied_images_give_the_same_map(
    images: torch.Tensor, parameters: CtfParameters, poses: tuple[np.ndarray, np.ndarray]
) -> None:
    expected = reconstructed(images, parameters, poses).map()
    transfer = ctf(parameters, BOX)
    for carried, factor in (("phase_flipped", torch.sign(transfer)), ("premultiplied", transfer)):
        treated = torch.fft.irfft2(torch.fft.rfft2(images) * factor)
        marked = replace(parameters, **{carried: np.ones(COUNT, bool)})
        found = reconstructed(treated, marked, poses).map()
        assert fsc(found, expected)[: BOX // 2 - 1].min() > 0.9999
        wrong = reconstructed(treated, parameters, poses).map()
        assert fsc(wrong, expected)[: BOX // 2 - 1].min() < 0.99


def test_sums_of_parts_are_the_sum_of_all(
    images: torch.Tensor, parameters: CtfParameters, poses: tuple[np.ndarray, np.ndarray]
) -> None:
    whole = reconstructed(images, parameters, poses)
    first = Backprojector(BOX, PIXEL_SIZE)
    second = Backprojector(BOX, PIXEL_SIZE)
    for part, rows in ((first, slice(0, 150)), (second, slice(150, None))):
        part.add(images[rows], parameters.select(rows), poses[0][rows], poses[1][rows])
    first.merge(second)
    np.testing.assert_allclose(first.map(), whole.map(), atol=1e-5)
    np.testing.assert_allclose(first.mean_denominator(), whole.mean_denominator(), rtol=1e-9)
    with pytest.raises(ValueError, match="must be equal"):
        first.merge(Backprojector(BOX + 2, PIXEL_SIZE))


def test_the_same_images_give_the_same_bits_for_any_number_of_threads(
    images: torch.Tensor,
    parameters: CtfParameters,
    poses: tuple[np.ndarray, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    maps = []
    for threads in (1, 2, 3, 1):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        maps.append(reconstructed(images, parameters, poses).map(group=group_rotations("C3")))
    for other in maps[1:]:
        np.testing.assert_array_equal(other, maps[0])


def test_compiled_loops_give_what_torch_gives(poses: tuple[np.ndarray, np.ndarray]) -> None:
    """Raw, phase-flipped and premultiplied images, with envelopes, scales and weights."""
    rng = np.random.default_rng(6)
    parameters = ctf_parameters(COUNT, pixel_size=PIXEL_SIZE, bfactor_angstrom2=60.0, scale=0.8)
    carried = np.arange(COUNT) % 3
    parameters = replace(parameters, phase_flipped=carried == 1, premultiplied=carried == 2)
    noise = torch.from_numpy(rng.normal(size=(COUNT, BOX, BOX)).astype(np.float32))
    both = [
        reconstructed(noise, parameters, poses, compiled=compiled, weights=np.linspace(0.1, 2, COUNT))
        for compiled in (True, False)
    ]
    np.testing.assert_allclose(both[0].mean_denominator(), both[1].mean_denominator(), rtol=1e-5)
    np.testing.assert_allclose(both[0].map(), both[1].map(), atol=1e-4 * both[1].map().std())


def test_odd_box_is_reconstructed_too() -> None:
    rotations, parameters = random_rotations(200, np.random.default_rng(3)), ctf_parameters(200, pixel_size=PIXEL_SIZE)
    volume = blobs(25)
    images = MapProjector(volume, PIXEL_SIZE).project(rotations, None, ctf(parameters, 25))
    maps = []
    for compiled in (True, False):
        backprojector = Backprojector(25, PIXEL_SIZE, compiled=compiled)
        backprojector.add(images, parameters, rotations)
        maps.append(backprojector.map())
    np.testing.assert_allclose(maps[0], maps[1], atol=1e-4 * maps[1].std())
    assert fsc(maps[0], volume)[:9].min() > 0.98


def test_weights_choose_the_images(
    images: torch.Tensor, parameters: CtfParameters, poses: tuple[np.ndarray, np.ndarray]
) -> None:
    weights = np.zeros(COUNT)
    weights[:200] = 2.0
    spoilt = images.clone()
    spoilt[200:] = torch.randn(200, BOX, BOX)
    found = reconstructed(spoilt, parameters, poses, weights=weights).map()
    half = slice(0, 200)
    expected = reconstructed(images[half], parameters.select(half), (poses[0][half], poses[1][half])).map()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_symmetry_adds_each_image_at_every_mate_on_the_left() -> None:
    group = group_rotations("C3")
    rotations = random_rotations(60, np.random.default_rng(2))
    parameters = ctf_parameters(60, pixel_size=PIXEL_SIZE)
    symmetric = sum(MapProjector(blobs(BOX), PIXEL_SIZE).project(g @ rotations) for g in group)
    images = torch.fft.irfft2(torch.fft.rfft2(symmetric) * ctf(parameters, BOX))
    expanded = Backprojector(BOX, PIXEL_SIZE)
    for g in group:
        expanded.add(images, parameters, g @ rotations)
    by_group = Backprojector(BOX, PIXEL_SIZE)
    by_group.add(images, parameters, rotations, group=group)
    np.testing.assert_allclose(by_group.map(), expanded.map(), atol=1e-5)
    by_group_of_one = Backprojector(BOX, PIXEL_SIZE)
    by_group_of_one.add(images, parameters, rotations)
    assert not np.allclose(by_group_of_one.map(), by_group.map(), atol=1e-2)


@pytest.mark.parametrize("symmetry", ["C4", "D2", "O"])
def test_symmetry_of_the_sums_is_that_of_the_images_where_mates_meet_the_grid(
    images: torch.Tensor, parameters: CtfParameters, poses: tuple[np.ndarray, np.ndarray], symmetry: str
) -> None:
    """Quarter turns take voxels to voxels: nothing is interpolated, the two ways must be equal."""
    group = group_rotations(symmetry)
    few = slice(0, 40)
    part = images[few], parameters.select(few), (poses[0][few], poses[1][few])
    np.testing.assert_allclose(
        reconstructed(*part).map(group=group), reconstructed(*part, group=group).map(), atol=1e-5
    )


def test_symmetry_of_the_sums_is_that_of_the_images_to_interpolation_elsewhere(
    images: torch.Tensor, parameters: CtfParameters, poses: tuple[np.ndarray, np.ndarray]
) -> None:
    group = group_rotations("C3")
    volume = reconstructed(images, parameters, poses).map(group=group)
    expected = reconstructed(images, parameters, poses, group=group).map()
    assert fsc(volume, expected)[:9].min() > 0.99
    assert fsc(volume, reconstructed(images, parameters, poses).map())[4:9].min() < 0.9


def test_nothing_added_gives_an_empty_map() -> None:
    assert (Backprojector(BOX, PIXEL_SIZE).map() == 0).all()


def test_wrong_shapes_are_refused(parameters: CtfParameters) -> None:
    with pytest.raises(ValueError, match="2 rotations"):
        Backprojector(BOX, PIXEL_SIZE).add(np.zeros((3, BOX, BOX)), parameters.select(slice(0, 2)), np.zeros((2, 3, 3)))


def test_wiener_prior_makes_a_noisy_map_a_better_template(
    images: torch.Tensor, parameters: CtfParameters, poses: tuple[np.ndarray, np.ndarray]
) -> None:
    noisy = images + 3 * images.std() * torch.randn(images.shape, generator=torch.Generator().manual_seed(5))
    halves = [
        reconstructed(noisy[half::2], parameters.select(slice(half, None, 2)), (poses[0][half::2], poses[1][half::2]))
        for half in (0, 1)
    ]
    prior = wiener_prior(fsc(halves[0].map(), halves[1].map()), halves[0].mean_denominator())
    truth = blobs(BOX)
    plain, filtered = halves[0].map(), halves[0].map(prior)
    assert np.corrcoef(filtered.ravel(), truth.ravel())[0, 1] > np.corrcoef(plain.ravel(), truth.ravel())[0, 1] + 0.05
    assert prior.shape == (BOX // 2 + 1,)
    assert prior[BOX // 2 - 1] > 20 * prior[2] > 0
