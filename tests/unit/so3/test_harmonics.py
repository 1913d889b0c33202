"""The factorised synthesis is e3nn's dense product."""

import time

import numpy as np
import pytest
import torch
from e3nn import o3
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cesped_stream.so3.grids import head_rotations, num_in_plane, num_rotations
from cesped_stream.so3.harmonics import SO3Synthesis


def dense_table(lmax: int, rotations: np.ndarray) -> Tensor:
    """Return the published model's flat_wigner `(n, coefficients)` at head-frame rotations `(n, 3, 3)`, by e3nn."""
    angles = o3.matrix_to_angles(torch.from_numpy(rotations))
    blocks = [(2 * n + 1) ** 0.5 * o3.wigner_D(n, *angles).flatten(-2) for n in range(lmax + 1)]
    return torch.cat(blocks, dim=1)


def random_coefficients(synthesis: SO3Synthesis, batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, synthesis.num_coefficients, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("lmax", "order", "points"),
    [
        (0, 0, None),
        (8, 1, None),
        (4, 2, None),
        (8, 2, 1_000),
        (6, 3, 1_000),
        (8, 4, 1_000),
        pytest.param(8, 3, None, marks=pytest.mark.slow),
    ],
)
def test_values_are_e3nns_dense_product(lmax: int, order: int, points: int | None) -> None:
    """At `points` grid rotations drawn at random; None is all of them."""
    synthesis = SO3Synthesis(lmax, order)
    indices = np.random.default_rng(0).permutation(num_rotations(order))[:points]
    coefficients = random_coefficients(synthesis, 3)
    found = synthesis(coefficients)
    assert found.shape == (3, num_rotations(order))
    largest = 0.0
    for part in np.array_split(indices, -(-len(indices) // 5_000)):
        expected = coefficients.double() @ dense_table(lmax, head_rotations(part, order)).T
        largest = max(largest, float(expected.abs().max()))
        torch.testing.assert_close(found[:, part].double(), expected, rtol=0, atol=1e-5 * largest)


def test_gradient_is_that_of_the_dense_product() -> None:
    synthesis = SO3Synthesis(4, 1)
    coefficients = random_coefficients(synthesis, 2).requires_grad_()
    upstream = torch.randn(2, num_rotations(1), generator=torch.Generator().manual_seed(1))
    synthesis(coefficients).backward(upstream)
    expected = upstream.double() @ dense_table(4, head_rotations(np.arange(num_rotations(1)), 1))
    torch.testing.assert_close(coefficients.grad, expected.float(), rtol=1e-4, atol=1e-3)


def test_autocast_and_half_precision_input_leave_the_synthesis_in_float32() -> None:
    synthesis = SO3Synthesis(5, 1)
    coefficients = random_coefficients(synthesis, 2)
    plain = synthesis(coefficients)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(synthesis(coefficients), plain, rtol=0, atol=0)
    rounded = coefficients.bfloat16()
    torch.testing.assert_close(synthesis(rounded), synthesis(rounded.float()), rtol=0, atol=0)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    synthesis = SO3Synthesis(6, 2)
    coefficients = random_coefficients(synthesis, 16)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    assert torch.equal(synthesis(coefficients)[order], synthesis(coefficients[order]))
    alone = torch.zeros_like(coefficients)
    alone[5] = coefficients[5]
    assert torch.equal(synthesis(alone)[5], synthesis(coefficients)[5])


def test_turning_the_image_by_an_in_plane_step_rolls_the_logits() -> None:
    lmax, order = 5, 2
    synthesis = SO3Synthesis(lmax, order)
    coefficients = random_coefficients(synthesis, 2)
    zero, step = torch.tensor([0.0, 2 * torch.pi / num_in_plane(order)], dtype=torch.float64)
    turned, start = [], 0
    for degree in range(lmax + 1):
        side = 2 * degree + 1
        block = coefficients[:, start : start + side**2].view(-1, side, side)
        turned.append((block @ o3.wigner_D(degree, zero, zero, step).float()).flatten(1))
        start += side**2
    before = synthesis(coefficients).view(2, -1, num_in_plane(order))
    after = synthesis(torch.cat(turned, dim=1)).view(2, -1, num_in_plane(order))
    torch.testing.assert_close(after, before.roll(1, dims=2), rtol=1e-4, atol=1e-4)


def test_the_largest_preset_builds_within_a_second_and_saves_nothing() -> None:
    started = time.process_time()
    synthesis = SO3Synthesis(8, 4)
    assert time.process_time() - started < 1.0
    assert synthesis.state_dict() == {}
    assert sum(b.numel() * b.element_size() for b in synthesis.buffers()) < 20e6


class AllocatedBytes(TorchDispatchMode):
    """Adds up all that operations allocate: an upper bound of the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, int] = {}
        self._alive: list[object] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self._alive.append(result)
            self.storages[result.untyped_storage().data_ptr()] = result.untyped_storage().nbytes()
        return result


def test_a_batch_of_32_at_order_4_allocates_a_tenth_of_the_dense_table() -> None:
    synthesis = SO3Synthesis(8, 4)
    coefficients = random_coefficients(synthesis, 32)
    with torch.no_grad(), AllocatedBytes() as allocated:
        logits = synthesis(coefficients)
    bytes_of_logits = 32 * num_rotations(4) * 4
    assert logits.untyped_storage().nbytes() == bytes_of_logits
    dense_table_bytes = 969 * num_rotations(4) * 4
    assert bytes_of_logits < sum(allocated.storages.values()) < dense_table_bytes / 10


def test_wrong_number_of_coefficients_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 10\).*\(b, 35\)"):
        SO3Synthesis(2, 0)(torch.zeros(2, 10))
