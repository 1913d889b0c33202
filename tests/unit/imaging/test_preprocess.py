"""From acquired images to network inputs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.imaging import blobs, ctf_parameters, random_rotations

from cesped_stream.imaging.ctf import ctf
from cesped_stream.imaging.preprocess import Preprocessor, image_flags
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.particles.flags import ImageFlag
from cesped_stream.settings import PreprocessSettings

RNG = np.random.default_rng(1)


def noise(count: int, box: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, box, box, generator=torch.Generator().manual_seed(seed))


def background(images: torch.Tensor, radius: float) -> torch.Tensor:
    box = images.shape[-1]
    axis = torch.arange(box) - box // 2
    return images[..., axis[:, None] ** 2 + axis**2 > radius**2]


def preprocessor(size: int, pixel_size: float, **settings: object) -> Preprocessor:
    return Preprocessor(PreprocessSettings(image_size=size, **settings), pixel_size)


def test_background_has_mean_0_and_std_1_at_any_offset_and_scale() -> None:
    raw = (
        noise(3, 32) * torch.tensor([0.1, 1.0, 300.0])[:, None, None] + torch.tensor([0.0, 5000.0, -1e5])[:, None, None]
    )
    raw[:, 12:20, 12:20] += 1000
    inputs = preprocessor(32, 2.0, ctf_correction="none")(raw, ctf_parameters(3))[:, 0]
    outside = background(inputs, 16)
    assert outside.mean(1).abs().max() < 2e-4
    torch.testing.assert_close(outside.std(1, correction=0), torch.ones(3), atol=2e-4, rtol=0)


def test_background_radius_is_in_angstrom() -> None:
    raw = noise(1, 32)
    raw += (background_mask := (torch.arange(32) - 16).square()[:, None] + (torch.arange(32) - 16).square() > 100) * 7.0
    inputs = preprocessor(32, 2.0, ctf_correction="none", background_radius_angstrom=20.0)(raw, ctf_parameters(1))[0, 0]
    assert abs(inputs[background_mask].mean()) < 1e-5


def test_a_particle_on_a_flat_masked_background_is_scaled_by_its_own_std() -> None:
    raw = torch.zeros(1, 32, 32)
    raw[:, 10:22, 10:22] = noise(1, 12) * 50
    inputs = preprocessor(32, 2.0, ctf_correction="none")(raw, ctf_parameters(1))
    torch.testing.assert_close(inputs.std(), torch.tensor(1.0), atol=0.02, rtol=0)


def test_phase_flip_makes_every_frequency_of_the_signal_positive() -> None:
    parameters = ctf_parameters(2, pixel_size=2.0)
    delta = torch.zeros(2, 64, 64)
    delta[:, 32, 32] = 1.0
    transfer = ctf(parameters, 64)
    raw = torch.fft.irfft2(torch.fft.rfft2(delta) * transfer)
    inputs = preprocessor(64, 2.0)(raw, parameters)[:, 0]
    spectrum = torch.fft.rfft2(torch.fft.ifftshift(inputs, (1, 2))).real[:, 1:32, 1:32]
    assert (spectrum > 0)[transfer[:, 1:32, 1:32].abs() > 1e-2].all()


@pytest.mark.parametrize("carried", ["premultiplied", "phase_flipped"])
def test_rows_that_carry_their_correction_are_not_flipped(carried: str) -> None:
    raw, parameters = noise(4, 32), ctf_parameters(4)
    mixed = replace(parameters, **{carried: np.array([True, False, True, False])})
    chosen = preprocessor(32, 2.0)
    flipped, plain = chosen(raw, parameters), preprocessor(32, 2.0, ctf_correction="none")(raw, parameters)
    assert not torch.allclose(flipped, plain)
    assert torch.equal(chosen(raw, mixed), torch.stack([plain[0], flipped[1], plain[2], flipped[3]]))


@pytest.mark.parametrize(("box", "pixel_size"), [(48, 4.0), (64, 3.0), (96, 2.0), (47, 4.0), (53, 3.7)], ids=str)
def test_one_particle_at_any_box_and_pixel_size_gives_one_input(box: int, pixel_size: float) -> None:
    """A Gaussian wave packet sampled at any pixel size arrives at the same network pixels."""

    def sampled(box: int, pixel_size: float) -> torch.Tensor:
        x = (torch.arange(box) - box // 2).double() * pixel_size
        y = x[:, None]
        return (torch.exp(-((x - 12) ** 2 + (y + 7) ** 2) / 800) * torch.cos(0.11 * x + 0.05 * y)).float()[None]

    parameters = ctf_parameters(1, pixel_size=pixel_size)
    inputs = preprocessor(40, 4.5, ctf_correction="none")(sampled(box, pixel_size), parameters)[0, 0]
    expected = sampled(40, 4.5)[0]
    assert np.corrcoef(inputs.ravel(), expected.ravel())[0, 1] > 0.9999


@pytest.mark.parametrize(("box", "pixel_size"), [(48, 8.0), (96, 1.7), (40, 9.6), (120, 3.0)])
def test_white_noise_keeps_std_1(box: int, pixel_size: float) -> None:
    size = 16
    inputs = preprocessor(size, 9.6)(noise(64, box), ctf_parameters(64, pixel_size=pixel_size))
    assert 0.93 < inputs.std() < 1.07


def test_beyond_the_box_the_input_is_0() -> None:
    inputs = preprocessor(64, 2.0)(noise(1, 32) + 9, ctf_parameters(1, pixel_size=2.0))[0, 0]
    assert (inputs[:16] == 0).all()
    assert (inputs[16:48, 16:48] != 0).all()
    finer = preprocessor(64, 1.9)(noise(1, 32) + 9, ctf_parameters(1, pixel_size=2.0))[0, 0]
    assert (finer[:15] == 0).all()
    assert (finer[16:47, 16:47] != 0).all()


def test_output_pixel_size_is_the_networks() -> None:
    assert preprocessor(40, 4.5).output_pixel_size_angstrom(53, 3.7) == 4.5
    with pytest.raises(ValueError, match="must be positive"):
        preprocessor(40, 0.0)


def test_the_input_does_not_depend_on_the_neighbours_to_the_bit() -> None:
    raw = noise(33, 48)
    parameters = ctf_parameters(33, pixel_size=np.where(np.arange(33) % 3 == 0, 1.3, 1.5))
    chosen = preprocessor(40, 1.6)
    all_at_once = chosen(raw, parameters)
    for rows in ([7], [32, 0], list(range(5, 30)), list(range(32, -1, -1))):
        assert torch.equal(chosen(raw[rows], parameters.select(np.array(rows))), all_at_once[rows])


def test_a_bad_neighbour_does_not_harm() -> None:
    raw, parameters = noise(3, 32), ctf_parameters(3)
    expected = preprocessor(24, 2.7)(raw, parameters)
    raw[1, 3, 3] = torch.nan
    found = preprocessor(24, 2.7)(raw, parameters)
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


def test_input_image_is_left_as_it_was() -> None:
    raw = noise(2, 32)
    before = raw.clone()
    preprocessor(24, 2.5)(raw, ctf_parameters(2))
    assert torch.equal(raw, before)


def test_a_projection_and_its_input_show_the_same_view() -> None:
    projections = MapProjector(blobs(48), 2.0).project(random_rotations(4, RNG))
    half = MapProjector(blobs(48), 2.0).project(np.eye(3)[None])
    inputs = preprocessor(24, 4.0, ctf_correction="none")(projections, ctf_parameters(4, pixel_size=2.0))[:, 0]
    for image, projection in zip(inputs, projections, strict=True):
        assert np.corrcoef(image.ravel(), projection[::2, ::2].ravel())[0, 1] > 0.99
        assert np.corrcoef(image.ravel(), half[0, ::2, ::2].ravel())[0, 1] < 0.9


def test_bad_images_are_flagged_one_by_one() -> None:
    raw = noise(6, 16)
    raw[1, 0, 0] = torch.nan
    raw[2, 5, 5] = torch.inf
    raw[3, 5, 5] = -torch.inf
    raw[4] = 3.0
    raw[5, 0, 0], raw[5, 1, 1] = torch.nan, torch.inf
    expected = [ImageFlag.OK, ImageFlag.NAN, ImageFlag.INF, ImageFlag.INF, ImageFlag.CONSTANT, ImageFlag.NAN]
    flags = image_flags(raw)
    assert flags.dtype == np.uint8
    assert flags.tolist() == [int(flag) for flag in expected]
