"""Pearson correlation of maps."""

import numpy as np
import pytest
from scipy.stats import pearsonr
from support.imaging import blobs
from support.masks import spherical_mask

from cesped_stream.reconstruction.correlation import pearson

NOISY = blobs(24) + np.random.default_rng(0).normal(scale=0.5, size=(24, 24, 24))


def test_it_is_scipys() -> None:
    assert pearson(blobs(24), NOISY) == pytest.approx(pearsonr(blobs(24).ravel(), NOISY.ravel()).statistic, abs=1e-12)


def test_masked_correlates_all_voxels_of_the_masked_maps() -> None:
    mask = spherical_mask(24, 6, 3)
    expected = pearsonr((blobs(24) * mask).ravel(), (NOISY * mask).ravel()).statistic
    assert pearson(blobs(24), NOISY, mask) == pytest.approx(expected, abs=1e-7)
    assert pearson(blobs(24), NOISY, mask) > pearson(blobs(24), NOISY) + 0.01


def test_scale_and_offset_do_not_matter_and_a_constant_map_correlates_with_nothing() -> None:
    assert pearson(NOISY, -3 * NOISY + 7) == pytest.approx(-1)
    assert pearson(NOISY, np.ones_like(NOISY)) == 0.0


def test_unequal_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one box"):
        pearson(np.zeros((4, 4, 4)), np.zeros((5, 5, 5)))
    with pytest.raises(ValueError, match="one box"):
        pearson(np.zeros((4, 4, 4)), np.zeros((4, 4, 4)), np.zeros((5, 5, 5)))
