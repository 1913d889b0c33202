"""The contrast transfer function: signs, units, axes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.imaging import ctf_parameters

from cesped_stream.conventions import electron_wavelength_angstrom
from cesped_stream.imaging.ctf import ctf, has_ctf

BOX = 64


def frequencies(pixel_size: float) -> tuple[np.ndarray, np.ndarray]:
    return np.fft.fftfreq(BOX, pixel_size)[:, None], np.fft.rfftfreq(BOX, pixel_size)[None]


def test_it_is_the_formula_of_the_conventions_in_float64() -> None:
    parameters = ctf_parameters(3, pixel_size=1.1, phase_shift_deg=30.0, bfactor_angstrom2=40.0, scale=0.7)
    y, x = frequencies(1.1)
    square, theta = y**2 + x**2, np.arctan2(y, x)
    for i, found in enumerate(ctf(parameters, BOX, dtype=torch.float64).numpy()):
        u, v = parameters.defocus_u_angstrom[i], parameters.defocus_v_angstrom[i]
        defocus = (u + v) / 2 + (u - v) / 2 * np.cos(2 * (theta - np.deg2rad(parameters.defocus_angle_deg[i])))
        wavelength = electron_wavelength_angstrom(300.0)
        phase = np.pi * wavelength * defocus * square - np.pi / 2 * 2.7e7 * wavelength**3 * square**2
        expected = 0.7 * np.exp(-10 * square) * np.sin(phase + np.arcsin(0.1) + np.pi / 6)
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_float32_is_exact_where_the_phase_is_hundreds_of_radians() -> None:
    parameters = ctf_parameters(4, pixel_size=0.6, defocus=30000.0)
    exact = ctf(parameters, 256, dtype=torch.float64)
    assert (ctf(parameters, 256) - exact).abs().max() < 1e-6


def test_it_is_positive_at_low_frequency_for_underfocus() -> None:
    values = ctf(ctf_parameters(5), BOX)
    torch.testing.assert_close(values[:, 0, 0], torch.full((5,), 0.1))
    assert (values[:, 0, 1] > 0.1).all()
    assert (ctf(ctf_parameters(2, defocus=-15000.0, amplitude_contrast=0.0), BOX)[:, 0, 1] < 0).all()


def test_astigmatism_angle_is_measured_from_the_columns_axis() -> None:
    parameters = replace(
        ctf_parameters(1),
        defocus_u_angstrom=np.array([20000.0]),
        defocus_v_angstrom=np.array([10000.0]),
        defocus_angle_deg=np.array([0.0]),
    )
    (values,) = ctf(parameters, BOX)
    for defocus, line in ((20000.0, values[0]), (10000.0, values[: BOX // 2 + 1, 0])):
        round_one = replace(parameters, defocus_u_angstrom=np.array([defocus]), defocus_v_angstrom=np.array([defocus]))
        expected = ctf(round_one, BOX)[0, 0]
        # The last element of the column is the other Nyquist frequency, of equal square.
        torch.testing.assert_close(line, expected, atol=1e-5, rtol=0)


def test_what_images_already_carry_does_not_change_it() -> None:
    parameters = ctf_parameters(2)
    carried = replace(parameters, premultiplied=np.ones(2, bool), phase_flipped=np.ones(2, bool))
    assert torch.equal(ctf(parameters, BOX), ctf(carried, BOX))


@pytest.mark.parametrize("box", [32, 33])
def test_it_has_the_shape_of_the_half_plane(box: int) -> None:
    assert ctf(ctf_parameters(2), box).shape == torch.fft.rfft2(torch.zeros(2, box, box)).shape


def test_each_particle_has_its_own_pixel_size_and_voltage() -> None:
    both = ctf_parameters(2, pixel_size=np.array([1.0, 2.0]), voltage_kv=np.array([300.0, 200.0]))
    for i in range(2):
        torch.testing.assert_close(ctf(both.select(slice(i, i + 1)), BOX)[0], ctf(both, BOX)[i], rtol=0, atol=0)
    assert not torch.allclose(*ctf(both, BOX))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("voltage_kv", 0.0),
        ("voltage_kv", -300.0),
        ("amplitude_contrast", 10.0),
        ("defocus_u_angstrom", np.nan),
        ("defocus_angle_deg", np.inf),
        ("phase_shift_deg", np.nan),
        ("spherical_aberration_mm", np.nan),
        ("scale", np.nan),
        ("pixel_size_angstrom", 0.0),
        ("bfactor_angstrom2", -1e7),
    ],
)
def test_an_image_has_a_ctf_exactly_where_it_is_a_number_everywhere(name: str, value: float) -> None:
    fine = ctf_parameters(3)
    values = getattr(fine, name).copy()
    values[1] = value
    spoilt = replace(fine, **{name: values})
    assert has_ctf(fine).all() and has_ctf(spoilt).tolist() == [True, False, True]
    assert torch.isfinite(ctf(spoilt.select(np.array([0, 2])), 16)).all()
