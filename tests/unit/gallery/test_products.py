"""Products of images with views are those of complex numbers, whatever pieces they are taken in."""

import numpy as np
import torch

from cesped_stream.gallery.products import VIEWS_AT_ONCE, blocks, products, shift_grid, waves


def test_products_with_waves_are_scores_of_moved_images() -> None:
    generator = torch.Generator().manual_seed(0)
    views, images, phases = (
        torch.view_as_complex(torch.randn(*shape, 2, generator=generator)) for shape in ((2, 5, 7), (2, 1, 7), (3, 7))
    )
    phases = phases / phases.abs()
    found = torch.matmul(products(views.real, views.imag, images.real, images.imag), waves(phases))
    moved = images[:, :, None] * phases
    torch.testing.assert_close(found, (views.conj()[:, :, None] * moved).real.sum(3), rtol=1e-5, atol=1e-5)


def test_blocks_cover_every_view_once() -> None:
    for count in (0, 1, VIEWS_AT_ONCE, 2 * VIEWS_AT_ONCE + 3):
        assert [k for part in blocks(count) for k in range(count)[part]] == list(range(count))


def test_shifts_lie_in_a_circle_and_hold_none() -> None:
    shifts = shift_grid(15.0, 4.0)
    assert np.hypot(*shifts.T).max() <= 15.0 and (shifts == 0).all(1).any()
    assert len(np.unique(shifts, axis=0)) == len(shifts) == 45
