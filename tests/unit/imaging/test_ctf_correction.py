"""CTF corrections are what numpy's FFT says, and honour what the data carry."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.imaging import ctf_parameters

from cesped_stream.imaging.ctf import ctf
from cesped_stream.imaging.ctf_correction import correct_ctf, corrected_noise_std
from cesped_stream.particles.table import CtfParameters
from cesped_stream.settings import CtfCorrection

W = 0.2
CORRECTIONS: tuple[CtfCorrection, ...] = ("none", "phase_flip", "multiply", "wiener")


def full_plane(half: np.ndarray, box: int) -> np.ndarray:
    """Return `fft2`'s plane of the values on `rfft2`'s half, by f(-k) = f(k)."""
    plane = np.zeros((len(half), box, box))
    plane[:, :, : box // 2 + 1] = half
    for x in range(box // 2 + 1, box):
        plane[:, :, x] = half[:, (-np.arange(box)) % box, box - x]
    return plane


def carried(parameters: CtfParameters, what: str) -> CtfParameters:
    flags = np.ones(len(parameters.scale), np.bool_)
    return parameters if what == "raw" else replace(parameters, **{what: flags})


def expected_factor(c: np.ndarray, correction: str, what: str) -> np.ndarray:
    numerator = {"raw": c, "phase_flipped": np.abs(c), "premultiplied": np.ones_like(c)}[what]
    flip = np.where(c < 0, -1.0, 1.0) if what == "raw" else np.ones_like(c)
    return {"none": np.ones_like(c), "phase_flip": flip, "multiply": numerator, "wiener": numerator / (c**2 + W)}[
        correction
    ]


@pytest.mark.parametrize("box", [32, 33])
@pytest.mark.parametrize("what", ["raw", "phase_flipped", "premultiplied"])
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_correction_is_numpys(correction: CtfCorrection, what: str, box: int) -> None:
    parameters = carried(ctf_parameters(3, pixel_size=1.5), what)
    images = np.random.default_rng(0).normal(size=(3, box, box)).astype(np.float32)
    factor = expected_factor(full_plane(ctf(parameters, box).double().numpy(), box), correction, what)
    expected = np.fft.ifft2(np.fft.fft2(images) * factor).real
    corrected = correct_ctf(torch.from_numpy(images), parameters, correction, wiener_regulariser=W)
    # on the rows and columns at Nyquist fft2's mirror is the pixel itself: an astigmatic sign there is a convention
    assert np.abs(corrected.numpy() - expected).max() < (1e-4 if box % 2 else 0.2)
    middle = tuple(np.s_[k] for k in (slice(None), np.r_[: box // 2, box // 2 + 1 : box]))
    difference = np.fft.fft2(corrected.numpy() - expected)[middle][:, :, np.r_[: box // 2, box // 2 + 1 : box]]
    assert np.abs(difference).max() < 1e-3


def test_rows_that_carry_different_things_are_each_done_as_alone() -> None:
    images = torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(0))
    parameters = replace(
        ctf_parameters(4),
        premultiplied=np.array([True, False, False, False]),
        phase_flipped=np.array([False, True, False, True]),
    )
    for correction in CORRECTIONS:
        together = correct_ctf(images, parameters, correction, wiener_regulariser=W)
        for k in range(4):
            alone = correct_ctf(images[[k]], parameters.select(np.array([k])), correction, wiener_regulariser=W)
            assert torch.equal(together[k], alone[0])


def test_a_correction_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="phase-flip"):
        correct_ctf(torch.zeros(1, 16, 16), ctf_parameters(1), "phase-flip", wiener_regulariser=W)  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["raw", "premultiplied"])
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_noise_has_the_std_that_is_stated(correction: CtfCorrection, what: str) -> None:
    count, box = 200, 32
    parameters = ctf_parameters(1, pixel_size=1.5).select(np.zeros(count, np.int64))
    noise = torch.randn(count, box, box, generator=torch.Generator().manual_seed(1))
    if what == "premultiplied":
        noise = correct_ctf(noise, parameters, "multiply", wiener_regulariser=W)
        noise = noise / noise.std()
    parameters = carried(parameters, what)
    stated = corrected_noise_std(parameters, box, correction, wiener_regulariser=W)
    measured = correct_ctf(noise, parameters, correction, wiener_regulariser=W).std()
    assert abs(float(measured) / stated[0] - 1) < 0.02
    if correction == "phase_flip":
        assert abs(stated[0] - 1) < 1e-12
    if correction == "multiply" and what == "raw":
        assert 0.5 < stated[0] < 0.8
