"""Projections of maps."""

import numpy as np
import pytest
import torch
from support.imaging import blobs, random_rotations

from cesped_stream.imaging.projector import MapProjector, move_fourier
from cesped_stream.imaging.slice_kernel import gather_slices

IDENTITY = np.eye(3)[None]


def correlation(a: object, b: object) -> float:
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


@pytest.mark.parametrize("box", [32, 33])
def test_identity_looks_along_z(box: int) -> None:
    (image,) = MapProjector(blobs(box), 1.0).project(IDENTITY)
    assert correlation(image, blobs(box).sum(0)) > 0.998


def test_rotation_takes_image_xyz_to_map_xyz() -> None:
    """A point of the map at r appears at M^T r."""
    rng = np.random.default_rng(3)
    point = np.array([5.0, -3.0, 2.0])
    axis = np.arange(32) - 16
    z, y, x = (np.exp(-((axis - c) ** 2) / 4) for c in point[::-1])
    projector = MapProjector(z[:, None, None] * y[:, None] * x, 1.0)
    for rotation in random_rotations(8, rng):
        (image,) = projector.project(rotation)
        column, row = (rotation.T @ point)[:2]
        mass = image.clamp(min=0.3 * float(image.max())) - 0.3 * image.max()
        found = [float((mass.sum(d) * torch.arange(-16, 16)).sum() / mass.sum()) for d in (0, 1)]
        np.testing.assert_allclose(found, [column, row], atol=0.15)


def test_shift_is_what_centres_the_image() -> None:
    projector = MapProjector(blobs(32), 2.0)
    (centred,) = projector.project(IDENTITY)
    (moved,) = projector.project(IDENTITY, [[6.0, -4.0]])
    torch.testing.assert_close(moved, torch.roll(centred, (2, -3), (0, 1)), atol=1e-3, rtol=0)


def test_projection_carries_the_maps_mass_to_within_the_interpolations_error() -> None:
    images = MapProjector(blobs(32), 1.0).project(random_rotations(6, np.random.default_rng(1)))
    np.testing.assert_allclose(images.sum((1, 2)), blobs(32).sum(), rtol=0.05)


def test_opposite_views_are_mirror_images() -> None:
    projector = MapProjector(blobs(32), 1.0)
    rotations = random_rotations(5, np.random.default_rng(2))
    front = projector.project(rotations)
    back = projector.project(rotations @ np.diag([1.0, -1.0, -1.0]))
    torch.testing.assert_close(back[:, 1:], front.flip(1)[:, :-1], atol=2e-3, rtol=0)


def test_ctf_multiplies_the_transform() -> None:
    projector = MapProjector(blobs(32), 1.0)
    transfer = torch.rand(1, 32, 17)
    plain, filtered = projector.project(IDENTITY), projector.project(IDENTITY, ctf=transfer)
    torch.testing.assert_close(filtered, torch.fft.irfft2(torch.fft.rfft2(plain) * transfer), atol=1e-4, rtol=0)


def test_many_poses_are_projected_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    projector = MapProjector(blobs(24), 1.0)
    rotations = random_rotations(23, np.random.default_rng(4))
    together = projector.project(rotations)
    monkeypatch.setattr("cesped_stream.imaging.projector.CHUNK_PIXELS", 1000)
    torch.testing.assert_close(projector.project(rotations), together, atol=1e-4, rtol=0)
    assert projector.project(np.zeros((0, 3, 3))).shape == (0, 24, 24)


def test_a_map_that_is_not_cubic_is_refused() -> None:
    with pytest.raises(ValueError, match="cubic"):
        MapProjector(np.zeros((8, 8, 9)), 1.0)
    with pytest.raises(ValueError, match="pixel size"):
        MapProjector(np.zeros((8, 8, 8)), 0.0)


@pytest.mark.parametrize("box", [16, 17])
def test_moving_by_whole_pixels_rolls(box: int) -> None:
    images = torch.rand(3, box, box)
    pixels = torch.tensor([[2, 0], [0, -3], [5, 1]])
    moved = torch.fft.irfft2(move_fourier(torch.fft.rfft2(images), pixels, box), s=(box, box))
    expected = torch.stack([torch.roll(i, (int(y), int(x)), (0, 1)) for i, (x, y) in zip(images, pixels, strict=True)])
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0)


def test_slices_at_whole_frequencies_are_those_of_the_projections() -> None:
    projector = MapProjector(blobs(24), 2.0)
    rotations = random_rotations(5, np.random.default_rng(0))
    kx, ky = np.array([0, 3, 1, 11]), np.array([2, -4, 0, 0])
    whole = projector.project_fourier(rotations)[:, ky % 24, kx]
    centred = whole * torch.exp(2j * torch.pi * torch.from_numpy(kx + ky) * 12 / 24)
    found = projector.slices_at(rotations, np.stack([kx, ky], 1) / 48.0)
    torch.testing.assert_close(found, centred.to(torch.complex64), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("padding", [1, 2])
def test_the_compiled_slices_are_those_of_torch(padding: int) -> None:
    projector = MapProjector(blobs(24), 2.0, padding=padding)
    rotations = random_rotations(40, np.random.default_rng(1))
    cycles = torch.from_numpy(np.random.default_rng(2).uniform(-8, 8, (50, 2)))
    expected = projector._slices(torch.from_numpy(rotations), *cycles.float().T)
    found = projector.slices_at(rotations, cycles / 48.0)
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_slices_do_not_depend_on_the_number_of_threads_and_end_at_nyquist() -> None:
    rng = np.random.default_rng(3)
    transform = (rng.normal(size=(27, 27, 14)) + 1j * rng.normal(size=(27, 27, 14))).astype(np.complex64)
    axes = random_rotations(30, rng)[:, :, :2].astype(np.float32)
    kx, ky = rng.uniform(-8, 8, (2, 60)).astype(np.float32)
    one, three = (gather_slices(transform, axes, kx, ky, num_threads=n) for n in (1, 3))
    np.testing.assert_array_equal(one, three)
    beyond = MapProjector(blobs(24), 2.0).slices_at(np.eye(3)[None], [[0.3, 0.0], [0.01, 0.0], [0.2, 0.2]])
    assert (beyond != 0).tolist() == [[False, True, False]]
