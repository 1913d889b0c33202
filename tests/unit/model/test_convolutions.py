"""The group convolutions and the activation against e3nn's own."""

import e3nn.nn
import pytest
import torch
from e3nn import o3

from cesped_stream.model.convolutions import (
    S2Convolution,
    SO3Activation,
    SO3Convolution,
    flat_wigner,
    near_identity_angles,
    so3_size,
)
from cesped_stream.model.projector import sphere_angles, sphere_harmonics

LMAX = 4
S2_IRREPS = o3.Irreps([(1, (degree, 1)) for degree in range(LMAX + 1)])
SO3_IRREPS = o3.Irreps([(2 * degree + 1, (degree, 1)) for degree in range(LMAX + 1)])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_coefficients_are_in_the_order_of_e3nns_irreps() -> None:
    assert so3_size(LMAX) == SO3_IRREPS.dim


def test_s2_convolution_is_e3nns_linear_with_the_filters_harmonics() -> None:
    convolution = S2Convolution(5, 3, LMAX, order=2)
    signal = torch.randn(2, 5, (LMAX + 1) ** 2)
    harmonics = sphere_harmonics(*sphere_angles(2), LMAX).float()
    psi = convolution.filters @ harmonics / len(harmonics) ** 0.5
    linear = o3.Linear(S2_IRREPS, SO3_IRREPS, f_in=5, f_out=3, internal_weights=False)
    torch.testing.assert_close(convolution(signal.permute(2, 0, 1)), linear(signal, weight=psi), rtol=1e-4, atol=1e-5)


def test_so3_convolution_is_e3nns_linear_with_the_filters_wigner_coefficients() -> None:
    convolution = SO3Convolution(5, 3, LMAX)
    signal = torch.randn(2, 5, so3_size(LMAX))
    wigner = flat_wigner(LMAX, *near_identity_angles()).float()
    psi = convolution.filters @ wigner / len(wigner) ** 0.5
    linear = o3.Linear(SO3_IRREPS, SO3_IRREPS, f_in=5, f_out=3, internal_weights=False)
    torch.testing.assert_close(convolution(signal), linear(signal, weight=psi), rtol=1e-4, atol=1e-5)


def test_local_kernel_has_the_papers_points_within_22_5_degrees() -> None:
    alpha, beta, gamma = near_identity_angles()
    assert len(beta) == 7 * 3 * 8
    tilts = o3.angles_to_matrix(alpha, beta, gamma)[:, 1, 1].acos()
    torch.testing.assert_close(tilts.max(), torch.tensor(torch.pi / 8, dtype=torch.float64))


@pytest.mark.parametrize(("lmax", "resolution"), [(3, 4), (4, 4), (4, 6)])
def test_activation_equals_e3nns(lmax: int, resolution: int) -> None:
    ours = SO3Activation(lmax, resolution)
    theirs = e3nn.nn.SO3Activation(lmax, lmax, torch.relu, resolution)
    signal = torch.randn(3, 2, so3_size(lmax))
    # e3nn estimates the gain sqrt(2) from random numbers
    expected = theirs(signal) * (2**0.5 / theirs.act.cst)
    torch.testing.assert_close(ours(signal), expected, rtol=1e-4, atol=1e-4)


def test_values_on_the_grid_are_the_wigner_expansion() -> None:
    ours = SO3Activation(LMAX, 4)
    signal = torch.randn(3, so3_size(LMAX))
    theirs = e3nn.nn.SO3Activation(LMAX, LMAX, torch.relu, 4).grid_in.to_grid(signal)
    torch.testing.assert_close(ours.to_grid(signal).transpose(1, 2), theirs, rtol=1e-4, atol=1e-4)


def test_a_signal_that_is_positive_everywhere_passes_unchanged_but_for_the_gain() -> None:
    activation = SO3Activation(LMAX, 6)
    signal = 0.05 * torch.randn(2, 1, so3_size(LMAX))
    signal[:, :, 0] = 10.0
    assert activation.to_grid(signal[:, 0]).min() > 0
    torch.testing.assert_close(activation(signal), 2**0.5 * signal, rtol=1e-4, atol=1e-4)


def test_activation_has_no_weights_to_save() -> None:
    assert not SO3Activation(LMAX, 4).state_dict()
