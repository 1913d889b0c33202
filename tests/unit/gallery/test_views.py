"""Views as rows of matrices: what a row means, and which views there are."""

import numpy as np
import pytest
import torch
from support.imaging import random_rotations
from support.matching import BOX, PIXEL_SIZE, molecule, reference

from cesped_stream.gallery.views import (
    RMS_STEP_AT_ORDER_0,
    displacement_angstrom,
    finer_views_of,
    grid_envelope,
    supported_angstrom,
    views_of,
)
from cesped_stream.imaging.band import Band, band_slices
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.so3.asymmetric_unit import asymmetric_unit
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.grids import nearest_index, pose_rotations
from cesped_stream.so3.symmetry import group_rotations

BAND = Band(BOX * PIXEL_SIZE, 16.0)


@pytest.mark.parametrize("symmetry", ["C1", "C3", "D2"])
def test_a_row_and_its_conjugate_are_the_views_of_the_unit(symmetry: str) -> None:
    projector = MapProjector(molecule(symmetry), PIXEL_SIZE)
    envelope = np.linspace(1, 0.2, len(BAND))
    views = views_of(projector, symmetry, 1, BAND, envelope)
    assert len(views) == len(asymmetric_unit(1, symmetry))
    expected = band_slices(projector, BAND, views.unit.rotations()) * torch.from_numpy(envelope).float()
    sign = torch.from_numpy(np.where(views.conjugate, -1.0, 1.0)).float()
    found = torch.complex(views.real[views.pair], views.imaginary[views.pair] * sign[:, None])
    torch.testing.assert_close(found, expected, atol=2e-4 * float(expected.abs().max()), rtol=0)
    torch.testing.assert_close(views.power, views.real**2 + views.imaginary**2)
    assert len(views.real) < 0.6 * len(views)


def test_each_fine_view_is_at_the_coarse_one_nearest_to_it() -> None:
    coarse, fine = asymmetric_unit(1, "D2"), asymmetric_unit(2, "D2")
    table, is_any = finer_views_of(coarse, fine)
    assert sorted(table[is_any].tolist()) == list(range(len(fine)))
    group, rotations = group_rotations("D2"), fine.rotations()
    own = np.repeat(np.arange(len(coarse)), is_any.sum(1))
    mine = angular_error_deg(coarse.rotations()[own], rotations[table[is_any]], group)
    others = np.stack([angular_error_deg(r, rotations[table[is_any]], group) for r in coarse.rotations()[:40]])
    assert (mine <= others.min(0) + 1e-4).all()


@pytest.mark.parametrize("order", [1, 3])
def test_the_step_of_the_grid_is_what_is_claimed(order: int) -> None:
    rotations = random_rotations(4000, np.random.default_rng(0))
    nearest = pose_rotations(nearest_index(rotations, order), order)
    error = np.deg2rad(angular_error_deg(rotations, nearest, np.eye(3)[None]))
    assert np.sqrt((error**2).mean()) * 2**order == pytest.approx(RMS_STEP_AT_ORDER_0, rel=0.02)


def test_the_envelope_is_how_much_of_a_view_the_nearest_grid_view_has() -> None:
    projector = MapProjector(molecule(), PIXEL_SIZE)
    rotations = random_rotations(300, np.random.default_rng(1))
    nearest = pose_rotations(nearest_index(rotations, 2), 2)
    true, found = band_slices(projector, BAND, rotations), band_slices(projector, BAND, nearest)
    displacement = displacement_angstrom(2, reference().rms_radius_angstrom())
    expected = grid_envelope(BAND, displacement, 0.0)
    for shell in (3, 6, 9):
        members = BAND.shells == shell
        agree = float((true[:, members].conj() * found[:, members]).real.sum() / found[:, members].abs().square().sum())
        assert agree == pytest.approx(expected[members].mean(), abs=0.08)


def test_the_supported_resolution_is_where_half_is_left() -> None:
    limit = supported_angstrom(2.0, 4.0)
    band = Band(100 * limit, limit)
    envelope = grid_envelope(band, 2.0, limit / 4)
    assert envelope[band.shells == 100].mean() == pytest.approx(0.5, abs=0.01)
