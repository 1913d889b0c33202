"""`cesped`'s steps, against numpy and scipy written from the package's documented behaviour; the package itself is
compared in tests/peers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from samples.particle_entries import spot
from scipy.ndimage import map_coordinates
from support.imaging import ctf_parameters

from cesped_stream.imaging.cesped_steps import CespedSteps
from cesped_stream.particles.table import CtfParameters


def without_astigmatism(count: int, pixel_size: float = 2.0) -> CtfParameters:
    parameters = ctf_parameters(count, pixel_size=pixel_size)
    return replace(parameters, defocus_v_angstrom=parameters.defocus_u_angstrom)


def by_numpy(image: np.ndarray, defocus: float, pixel_size: float, size: int, new_pixel_size: float) -> np.ndarray:
    box = len(image)
    axis = np.linspace(-(box // 2), box // 2, box)
    background = image[np.hypot(axis[:, None], axis) > box // 2]
    image = (image - background.mean()) / background.std(ddof=1)
    square = (np.fft.fftfreq(box, pixel_size)[:, None] ** 2) + np.fft.fftfreq(box, pixel_size) ** 2
    wavelength = 12.2639 / np.sqrt(3e5 + 0.97845e-6 * 3e5**2)
    phase = np.pi * wavelength * defocus * square - np.pi / 2 * 2.7e7 * wavelength**3 * square**2
    sign = np.sign(np.sqrt(1 - 0.1**2) * np.sin(phase) + 0.1 * np.cos(phase))
    flipped = np.clip(np.fft.ifft2(np.fft.fft2(image) * sign).real, image.min(), image.max())
    scale = pixel_size / new_pixel_size
    where = (np.arange(int(box * scale)) + 0.5) / scale - 0.5
    resized = map_coordinates(flipped, np.meshgrid(where, where, indexing="ij"), order=1, mode="nearest")
    start = (len(where) - size) // 2
    return np.asarray(resized[start : start + size, start : start + size])


@pytest.mark.parametrize(("box", "size", "new"), [(48, 48, 1.5), (48, 36, 2.0), (49, 30, 2.4), (64, 40, 2.4)])
def test_steps_are_numpys(box: int, size: int, new: float) -> None:
    parameters = without_astigmatism(4)
    images = np.random.default_rng(1).normal(3, 2, (4, box, box)).astype(np.float32)
    steps = CespedSteps(size, new, normalise=True, ctf_correction="phase_flip")
    outputs = steps(torch.from_numpy(images), parameters)[:, 0].numpy()
    for output, image, defocus in zip(outputs, images, parameters.defocus_u_angstrom, strict=True):
        expected = by_numpy(image.astype(np.float64), defocus, 2.0, size, new)
        assert np.abs(output - expected).max() < 1e-3


@pytest.mark.parametrize(("box", "size", "new"), [(48, 48, 1.5), (48, 36, 2.0), (49, 30, 2.4), (32, 40, 2.0)])
def test_origin_is_where_the_particle_comes_to_lie(box: int, size: int, new: float) -> None:
    steps = CespedSteps(size, new, normalise=False, ctf_correction="none")
    image = torch.from_numpy(spot(box, 2.0, 0.0, 0.0, sigma_angstrom=5.0))[None]
    output = steps(image, ctf_parameters(1))[0, 0].double().clamp_(min=0.02) - 0.02
    centre = float((output.sum(0) * torch.arange(size)).sum() / output.sum())
    assert abs(centre - steps.origin_pixel(box, np.array([2.0]))[0]) < 0.02


def test_only_the_exact_steps_have_the_faults() -> None:
    images = torch.randn(2, 49, 49, generator=torch.Generator().manual_seed(3))
    astigmatic = ctf_parameters(2, phase_shift_deg=40.0)
    right, exact = (CespedSteps(36, 2.0, normalise=True, ctf_correction="phase_flip", exact=e) for e in (False, True))
    assert not torch.allclose(right(images, astigmatic), exact(images, astigmatic), atol=0.05)
    mirrored = replace(astigmatic, defocus_angle_deg=90 - astigmatic.defocus_angle_deg, phase_shift_deg=np.zeros(2))
    assert torch.equal(exact(images, astigmatic), right(images, mirrored))
    flipped = replace(astigmatic, phase_flipped=np.ones(2, np.bool_))
    assert torch.equal(exact(images, flipped), exact(images, astigmatic))
    assert not torch.equal(right(images, flipped), right(images, astigmatic))


def test_exact_steps_are_those_of_a_whole_fourier_plane() -> None:
    """Rows and columns at Nyquist included, which a half plane has on one side only."""
    images = np.random.default_rng(2).normal(size=(6, 32, 32))
    p = ctf_parameters(6)
    frequency = np.fft.fftfreq(32, 2.0)
    angle, square = np.arctan2(frequency, frequency[:, None]), frequency[:, None] ** 2 + frequency**2
    wavelength = 12.2639 / np.sqrt(3e5 + 0.97845e-6 * 3e5**2)
    outputs = CespedSteps(32, 2.0, normalise=False, ctf_correction="phase_flip", exact=True)(
        torch.from_numpy(images), p
    )[:, 0]
    for k, image in enumerate(images):
        mean, half = (p.defocus_u_angstrom[k] + s * p.defocus_v_angstrom[k] for s in (1, -1))
        defocus = mean / 2 + half / 2 * np.cos(2 * (angle - np.deg2rad(p.defocus_angle_deg[k])))
        phase = np.pi * wavelength * defocus * square - np.pi / 2 * 2.7e7 * wavelength**3 * square**2
        sign = np.sign(np.sqrt(1 - 0.1**2) * np.sin(phase) + 0.1 * np.cos(phase))
        expected = np.clip(np.fft.ifft2(np.fft.fft2(image) * sign).real, image.min(), image.max())
        assert np.abs(outputs[k].numpy() - expected).max() < 1e-3


def test_only_flipped_phases_are_clipped() -> None:
    images = torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    for correction, clipped in (("phase_flip", True), ("multiply", False), ("wiener", False)):
        outputs = CespedSteps(32, 2.0, normalise=False, ctf_correction=correction)(images, ctf_parameters(4))
        assert (float(outputs.abs().max()) <= 1) == clipped, correction
