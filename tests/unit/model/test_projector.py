"""The orthographic projection to the hemisphere and its harmonics."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from cesped_stream.model.projector import SphereProjector, bilinear_matrix, sphere_angles, sphere_harmonics
from cesped_stream.settings import ModelSettings

SETTINGS = ModelSettings(lmax=4, projector_channels=8, sphere_order=2)


def _identity_projector(settings: ModelSettings = SETTINGS) -> SphereProjector:
    projector = SphereProjector(settings, settings.projector_channels)
    torch.nn.init.eye_(projector.conv1x1.weight.data.view(8, 8))
    torch.nn.init.zeros_(projector.conv1x1.bias)
    return projector


def test_bilinear_matrix_is_linear_interpolation() -> None:
    rng = np.random.default_rng(0)
    image, at = rng.normal(size=(7, 7)), rng.uniform(0, 6, (2, 50))
    matrix = bilinear_matrix(torch.from_numpy(at[0]), torch.from_numpy(at[1]), 7).numpy()
    np.testing.assert_allclose(matrix @ image.ravel(), map_coordinates(image, at, order=1), atol=1e-12)


def test_a_feature_on_the_right_of_the_image_lands_on_head_frame_x() -> None:
    """x is columns and z is rows: the first harmonics of a bright right side point to +x, of a bottom to +z."""
    projector = _identity_projector().eval()
    side = 9
    ramp = torch.linspace(-1, 1, side).clamp(min=0).expand(1, 8, side, side)
    right = projector(ramp)[1:4, 0, 0]  # l = 1 in e3nn's order x, y, z
    bottom = projector(ramp.transpose(-1, -2))[1:4, 0, 0]
    assert right[0] > 10 * abs(right[2]) and right[1] > 0
    assert bottom[2] > 10 * abs(bottom[0])


def test_a_constant_map_gives_the_tapered_hemispheres_harmonics() -> None:
    projector = _identity_projector().eval()
    alpha, beta = sphere_angles(2)
    front = beta < np.pi / 2 - 1e-9
    weight = ((np.pi / 2 - beta[front]) / np.deg2rad(15)).clamp(max=1)
    expected = sphere_harmonics(alpha[front], beta[front], 4).T @ weight / int(front.sum()) ** 0.5
    got = projector(torch.ones(1, 8, 5, 5))[:, 0, 3]
    np.testing.assert_allclose(got.detach().numpy(), expected.numpy(), atol=1e-4)


def test_dropping_points_keeps_the_scale() -> None:
    projector = _identity_projector()
    features = torch.rand(1, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        trained = torch.stack([projector.train()(features, generator)[:, 0] for _ in range(400)])
        full = projector.eval()(features)[:, 0]
    standard_error = trained.std(0) / 400**0.5
    assert ((trained.mean(0) - full).abs() < 5 * standard_error + 1e-5).all()
    assert (trained.std(0)[1:] > 0).all()


def test_half_of_the_points_are_dropped_by_the_generator_alone() -> None:
    projector = _identity_projector().train()
    features = torch.rand(2, 8, 5, 5)
    first = projector(features, torch.Generator().manual_seed(3))
    again = projector(features, torch.Generator().manual_seed(3))
    other = projector(features, torch.Generator().manual_seed(4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_eval_uses_every_point_and_no_random_number() -> None:
    projector = _identity_projector().eval()
    features = torch.rand(2, 8, 5, 5)
    state = torch.get_rng_state()
    assert torch.equal(projector(features), projector(features))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("sides", [(5, 8, 5)])
def test_the_side_of_the_map_may_change_between_calls(sides: tuple[int, ...]) -> None:
    projector = _identity_projector().eval()
    for side in sides:
        constant = projector(torch.ones(1, 8, side, side))
        torch.testing.assert_close(constant, _identity_projector().eval()(torch.ones(1, 8, side, side)))


def test_a_matrix_made_in_inference_mode_still_trains() -> None:
    projector = _identity_projector()
    with torch.inference_mode():
        projector.eval()(torch.ones(1, 8, 5, 5))
    projector.train()(torch.ones(1, 8, 5, 5)).sum().backward()
    assert projector.conv1x1.weight.grad is not None
