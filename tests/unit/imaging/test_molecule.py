"""Maps of point models."""

import numpy as np
import pytest

from cesped_stream.errors import InvalidSettingsError
from cesped_stream.imaging.molecule import embedded_ribosome, molecule_to_map


def test_embedded_ribosome_is_centred_and_has_its_mass() -> None:
    xyz, mass = embedded_ribosome()
    assert xyz.shape == (14219, 3)
    assert mass.sum() == pytest.approx(2.29e6, rel=0.01)
    assert np.abs(mass @ xyz / mass.sum()).max() < 0.1
    assert 150 < np.linalg.norm(xyz, axis=1).max() < 200


@pytest.mark.parametrize("box", [24, 25])
def test_map_is_the_band_limited_sum_of_gaussians(box: int) -> None:
    rng = np.random.default_rng(0)
    pixel_size, resolution = 3.0, 7.0
    xyz, mass = rng.uniform(-25, 25, (30, 3)), rng.uniform(1, 2, 30)
    k = np.fft.fftfreq(box, pixel_size)
    z, y, x = k[:, None, None], k[:, None], k
    waves = sum(m * np.exp(-2j * np.pi * (x * p[0] + y * p[1] + z * p[2])) for p, m in zip(xyz, mass, strict=True))
    envelope = np.exp(-2 * np.pi**2 * (0.225 * resolution) ** 2 * (x**2 + y**2 + z**2))
    expected = np.fft.fftshift(np.fft.ifftn(waves * envelope).real)
    np.testing.assert_allclose(molecule_to_map(xyz, mass, box, pixel_size, resolution), expected, atol=1e-4)


def test_a_point_lies_at_its_voxel_z_y_x() -> None:
    volume = molecule_to_map([[6.0, -4.0, 2.0]], [5.0], 20, 2.0, 8.0)
    assert np.unravel_index(volume.argmax(), volume.shape) == (10 + 1, 10 - 2, 10 + 3)
    assert volume.sum() == pytest.approx(5.0, rel=1e-4)


def test_a_molecule_larger_than_the_box_is_refused() -> None:
    with pytest.raises(InvalidSettingsError, match=r"reaches 50 A .* larger box or pixel"):
        molecule_to_map([[50.0, 0.0, 0.0]], [1.0], 20, 2.0, 8.0)
