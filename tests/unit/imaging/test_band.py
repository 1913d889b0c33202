"""Coefficients inside a limit: those of the image, whatever its box, pixel size and treatment."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.imaging import blobs, ctf_parameters, random_rotations

from cesped_stream.imaging.band import (
    Band,
    BandImages,
    band_ctf,
    band_images,
    band_slices,
    centred_slices,
    exact_product,
)
from cesped_stream.imaging.ctf import ctf
from cesped_stream.imaging.maps import crop_map
from cesped_stream.imaging.preprocess import background_normalised
from cesped_stream.imaging.projector import MapProjector, move_fourier

BOX, PIXEL_SIZE = 32, 4.0
BAND = Band(BOX * PIXEL_SIZE, 10.0)


def no_ctf(count: int, pixel_size: float = PIXEL_SIZE) -> object:
    parameters = ctf_parameters(count, pixel_size=pixel_size)
    nothing = np.zeros(count)
    return replace(
        parameters,
        defocus_u_angstrom=nothing,
        defocus_v_angstrom=nothing,
        spherical_aberration_mm=nothing,
        amplitude_contrast=np.ones(count),
    )


def test_a_band_holds_one_of_each_hermitian_pair_and_not_the_mean() -> None:
    pairs = {tuple(k) for k in BAND.indices.tolist()}
    assert len(pairs) == len(BAND) and (0, 0) not in pairs
    assert not pairs & {(-x, -y) for x, y in pairs}
    inside = {(x, y) for x in range(-13, 14) for y in range(-13, 14) if 0 < x * x + y * y <= 12.8**2}
    assert pairs | {(-x, -y) for x, y in pairs} == inside
    assert BAND.reach == 12


@pytest.mark.parametrize("box", [32, 33])
def test_coefficients_are_the_fourier_transform_about_the_images_centre(box: int) -> None:
    images = torch.randn(3, box, box)
    band = Band(box * PIXEL_SIZE, 10.0)
    found = band_images(images, no_ctf(3), band)
    normalised = background_normalised(images, 0.0, PIXEL_SIZE)
    transform = move_fourier(torch.fft.rfft2(normalised), torch.full((3, 2), -(box // 2)), box) / box
    kx, ky = band.indices.T
    torch.testing.assert_close(found.matched, transform[:, ky % box, kx], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.power, found.matched.abs().square(), atol=1e-4, rtol=1e-4)


def test_ctf_in_the_band_is_the_images_ctf() -> None:
    parameters = ctf_parameters(4, pixel_size=PIXEL_SIZE)
    kx, ky = BAND.indices.T
    torch.testing.assert_close(band_ctf(parameters, BAND), ctf(parameters, BOX)[:, ky % BOX, kx], atol=1e-5, rtol=0)


def test_what_images_carry_changes_neither_matched_nor_ctf_square() -> None:
    parameters = ctf_parameters(4, pixel_size=PIXEL_SIZE)
    transfer = ctf(parameters, BOX)
    raw = torch.randn(4, BOX, BOX, generator=torch.Generator().manual_seed(1))
    expected = band_images(raw, parameters, BAND)
    for carried, factor in (("phase_flipped", torch.sign(transfer)), ("premultiplied", transfer)):
        treated = torch.fft.irfft2(torch.fft.rfft2(raw) * factor)
        marked = replace(parameters, **{carried: np.ones(4, bool)})
        found = band_images(treated, marked, BAND)
        torch.testing.assert_close(found.ctf_square, expected.ctf_square)
        # the background's std differs with the treatment: compare directions
        overlap = (found.matched.conj() * expected.matched).sum(1).real
        assert (overlap / found.matched.norm(dim=1) / expected.matched.norm(dim=1)).min() > 0.9999
        unmarked = band_images(treated, parameters, BAND).matched
        assert (unmarked.conj() * expected.matched).sum(1).real.div(unmarked.norm(dim=1)).div(
            expected.matched.norm(dim=1)
        ).max() < 0.99


@pytest.mark.parametrize(("box", "pixel_size"), [(48, 4.0 * 32 / 48), (44, 4.0), (24, 4.0)])
def test_images_of_other_boxes_and_pixel_sizes_have_the_same_coefficients(box: int, pixel_size: float) -> None:
    volume, rotations = blobs(48), random_rotations(5, np.random.default_rng(0))
    fine = MapProjector(volume, 4.0 * 32 / 48)
    images = fine.project(rotations)
    if box != 48:  # the same field of view in 32 pixels, then more or less of it around the centre
        coarse = MapProjector(crop_map(volume, 32), 4.0).project(rotations)
        change = (box - 32) // 2
        images = torch.nn.functional.pad(coarse, [change] * 4)
    band = Band(128.0, 16.0)
    found = band_images(images, no_ctf(5, pixel_size), band).matched
    expected = band_images(fine.project(rotations), no_ctf(5, 4.0 * 32 / 48), band).matched
    overlap = (found.conj() * expected).sum(1).real / found.norm(dim=1) / expected.norm(dim=1)
    assert overlap.min() > (0.999 if box > 24 else 0.98)


def test_white_noise_has_variance_one_and_a_small_box_says_that_it_knows_less() -> None:
    generator = torch.Generator().manual_seed(0)
    for box, share in ((32, 1.0), (48, 1.0), (16, 0.25)):
        found = band_images(torch.randn(200, box, box, generator=generator), no_ctf(200), BAND)
        assert float(found.power.mean()) == pytest.approx(share, rel=0.08)
        assert found.information.tolist() == pytest.approx([share] * 200)


def test_shift_phases_move_a_particle_to_the_centre() -> None:
    projector = MapProjector(blobs(BOX), PIXEL_SIZE)
    rotations = random_rotations(4, np.random.default_rng(2))
    shifts = np.random.default_rng(3).uniform(-8, 8, (4, 2))
    off_centre = band_images(projector.project(rotations, shifts), no_ctf(4), BAND).matched
    centred = band_images(projector.project(rotations), no_ctf(4), BAND).matched
    moved = off_centre * BAND.shift_phases(torch.from_numpy(shifts))
    overlap = (moved.conj() * centred).sum(1).real / moved.norm(dim=1) / centred.norm(dim=1)
    assert overlap.min() > 0.999
    assert ((off_centre.conj() * centred).sum(1).real / moved.norm(dim=1) / centred.norm(dim=1)).min() < 0.9


def test_slices_of_a_map_are_the_coefficients_of_its_projections() -> None:
    projector = MapProjector(blobs(BOX), PIXEL_SIZE)
    rotations = random_rotations(4, np.random.default_rng(2))
    shifts = np.random.default_rng(3).uniform(-8, 8, (4, 2))
    images = projector.project(rotations, shifts)
    kx, ky = BAND.indices.T
    transform = move_fourier(torch.fft.rfft2(images), torch.full((4, 2), -(BOX // 2)), BOX)[:, ky % BOX, kx] / BOX
    expected = centred_slices(projector, BAND, rotations, shifts)
    torch.testing.assert_close(transform, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
    assert band_slices(projector, BAND, rotations[:0]).shape == (0, len(BAND))


def test_an_images_bits_do_not_depend_on_its_neighbours() -> None:
    images, parameters = torch.randn(7, BOX, BOX), ctf_parameters(7, pixel_size=PIXEL_SIZE)
    together = band_images(images, parameters, BAND).matched
    for k in (0, 3, 6):
        alone = band_images(images[k : k + 1], parameters.select(slice(k, k + 1)), BAND).matched
        assert torch.equal(alone[0], together[k])


def test_padding_joining_and_picking_keep_the_images() -> None:
    images = band_images(torch.randn(5, BOX, BOX), ctf_parameters(5, pixel_size=PIXEL_SIZE), BAND)
    padded = images.padded(8)
    assert len(padded) == 8 and not padded.matched[5:].abs().any()
    again = BandImages.joined([padded.select(slice(0, 2)), images.select(torch.tensor([2, 3, 4]))])
    assert torch.equal(again.matched, images.matched)
    with pytest.raises(ValueError, match="one band"):
        BandImages.joined([])


def test_images_within_a_coarser_limit_are_the_images_in_that_band() -> None:
    images, parameters = torch.randn(3, BOX, BOX), ctf_parameters(3, pixel_size=PIXEL_SIZE)
    found = band_images(images, parameters, BAND).within(20.0)
    expected = band_images(images, parameters, Band(BOX * PIXEL_SIZE, 20.0))
    assert found.band == expected.band
    torch.testing.assert_close(found.matched, expected.matched, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.ctf_square, expected.ctf_square, atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="limit 5 A"):
        found.within(5.0)


def test_exact_products_are_products() -> None:
    a, b = (torch.view_as_complex(torch.randn(40, 2)) for _ in range(2))
    torch.testing.assert_close(torch.complex(*exact_product(a, b)), a * b)


def test_a_limit_coarser_than_the_extent_is_refused() -> None:
    with pytest.raises(ValueError, match="no frequency"):
        Band(100.0, 120.0)
