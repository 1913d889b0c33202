"""Soft masks."""

from pathlib import Path

import numpy as np
import pytest
from support.imaging import blobs
from support.masks import spherical_mask

from cesped_stream.errors import InvalidStackError
from cesped_stream.imaging.maps import write_map
from cesped_stream.reconstruction.mask import automatic_threshold, lowpassed, read_mask, soft_mask


def ball(box: int, radius: float, level: float = 1.0) -> np.ndarray:
    axis = np.arange(box) - box // 2
    return level * (np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2) <= radius)


def test_mask_is_1_on_the_particle_grown_and_0_beyond_the_edge() -> None:
    mask = soft_mask(ball(40, 6), 2.0, threshold=0.5, lowpass_angstrom=0, extend_pixels=3, edge_pixels=4)
    row = mask[20, 20, 20:]
    assert (row[:9] == 1).all()
    np.testing.assert_allclose(row[8:13], (1 + np.cos(np.pi * np.arange(5) / 4)) / 2, atol=1e-6)
    assert (row[12:] == 0).all()


def test_no_extension_and_no_edge_leave_the_threshold() -> None:
    mask = soft_mask(ball(24, 5), 2.0, threshold=0.5, lowpass_angstrom=0, extend_pixels=0, edge_pixels=0)
    np.testing.assert_array_equal(mask, ball(24, 5))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 400.0])
def test_automatic_threshold_lies_between_solvent_and_particle_at_any_scale(scale: float) -> None:
    noise = np.random.default_rng(0).normal(scale=0.15, size=(32, 32, 32))
    limit = automatic_threshold(scale * (ball(32, 8) + noise))
    assert 0.3 * scale < limit < 0.7 * scale


def test_automatic_mask_of_a_noisy_map_finds_the_particle() -> None:
    truth = blobs(32) / blobs(32).max()
    noisy = truth + np.random.default_rng(1).normal(scale=0.3, size=truth.shape)
    mask = soft_mask(noisy, 3.0, lowpass_angstrom=20)
    assert (truth * mask).sum() > 0.9 * truth.sum()
    assert mask.mean() < 0.5


def test_lowpass_keeps_what_is_coarser_only() -> None:
    axis = np.arange(40)
    coarse, fine = (np.cos(2 * np.pi * k * axis / 40) + np.zeros((40, 40, 1)) for k in (4, 12))
    np.testing.assert_allclose(lowpassed(coarse + fine, 2.0, 80 / 8), coarse, atol=1e-9)


def test_threshold_that_nothing_reaches_is_refused() -> None:
    with pytest.raises(ValueError, match="no voxel reaches the threshold 5"):
        soft_mask(ball(16, 4), 2.0, threshold=5.0, lowpass_angstrom=0)


def test_map_that_is_not_cubic_is_refused() -> None:
    with pytest.raises(ValueError, match="cubic"):
        soft_mask(np.zeros((8, 8, 9)), 2.0)


def test_mask_is_read_back(tmp_path: Path) -> None:
    mask = spherical_mask(16, 4, 3)
    write_map(tmp_path / "mask.mrc", mask, 3.0)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.mrc", 16, 3.001), mask)


@pytest.mark.parametrize(
    ("values", "box", "pixel_size", "said"),
    [
        (spherical_mask(16, 4), 18, 3.0, "16 pixels for maps of 18"),
        (spherical_mask(16, 4), 16, 3.5, "the maps have 3.5 A"),
        (blobs(16) * 7, 16, 3.0, "a mask has 0 to 1"),
        (np.zeros((16, 16, 16)), 16, 3.0, "0 everywhere"),
    ],
)
def test_what_is_no_mask_of_these_maps_is_refused(
    tmp_path: Path, values: np.ndarray, box: int, pixel_size: float, said: str
) -> None:
    write_map(tmp_path / "mask.mrc", values, 3.0)
    with pytest.raises(InvalidStackError, match=said):
        read_mask(tmp_path / "mask.mrc", box, pixel_size)
