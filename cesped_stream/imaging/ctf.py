"""Contrast transfer function on the half plane of `torch.fft.rfft2`, in RELION's sign and units."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from cesped_stream.conventions import electron_wavelength_angstrom
from cesped_stream.particles.table import CtfParameters, Float64

_SQUARE_AT_CORNER = 0.5
"""(cycles a pixel)^2 of the finest frequency of an image."""
_MOST_EXPONENT = 20.0
"""Of the envelope: its fourth power still is a float32."""


def ctf(
    parameters: CtfParameters,
    box_size: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return the CTF of n images, `(n, box_size, box_size // 2 + 1)`, positive at low frequency for underfocus.

    Astigmatism angle from the x axis (columns), B-factor envelope and scale factor included. What an image already
    carries (`premultiplied`, `phase_flipped`) does not enter. The phase is formed in float64: at 1 A/px it reaches
    hundreds of radians. Source: conventions, equal to RELION 3.1's CTF.
    """
    terms = torch.from_numpy(ctf_terms(parameters)).to(device)
    x2, xy, y2 = (basis.to(device) for basis in _quadratic_basis(box_size))
    square = x2 + y2
    phase = (terms[0] * x2 + terms[4]) + terms[2] * y2
    phase.addcmul_(terms[1], xy).addcmul_(terms[3], square.square(), value=-1)
    values = phase.remainder_(2 * torch.pi).to(dtype).sin_()
    if np.any(parameters.bfactor_angstrom2 != 0):
        values = values * torch.exp(terms[5] * square).to(dtype)
    if np.any(parameters.scale != 1):
        values = values * terms[6].to(dtype)
    return values


def has_ctf(parameters: CtfParameters) -> NDArray[np.bool_]:
    """Return `(n,)` whether the CTF of each image is a number everywhere.

    It is none where a value is none, for a voltage or pixel size that is not above 0, an amplitude contrast above 1,
    and a negative B-factor that float32 cannot hold.
    """
    with np.errstate(all="ignore"):
        terms = ctf_terms(parameters)[:, :, 0, 0]
    at_corner = terms[5] * _SQUARE_AT_CORNER
    fine = np.isfinite(terms).all(0) & (at_corner < _MOST_EXPONENT)
    return np.asarray(fine & (parameters.voltage_kv > 0) & (parameters.pixel_size_angstrom > 0), np.bool_)


def ctf_terms(p: CtfParameters) -> Float64:
    """Return coefficients `(7, n, 1, 1)`: of x^2, xy, y^2, -s^4 and 1 in the phase, of s^2 in the envelope, the scale.

    x, y and s are in cycles a pixel; the CTF is scale exp(envelope) sin(phase).
    """
    wavelength = electron_wavelength_angstrom(p.voltage_kv)
    square = p.pixel_size_angstrom**-2.0
    mean = (p.defocus_u_angstrom + p.defocus_v_angstrom) / 2
    half = (p.defocus_u_angstrom - p.defocus_v_angstrom) / 2
    twice = 2 * np.deg2rad(p.defocus_angle_deg)
    defocus = np.pi * wavelength * square
    spherical = np.pi / 2 * p.spherical_aberration_mm * 1e7 * wavelength**3 * square**2
    terms = np.stack(
        [
            defocus * (mean + half * np.cos(twice)),
            defocus * 2 * half * np.sin(twice),
            defocus * (mean - half * np.cos(twice)),
            spherical,
            np.arcsin(p.amplitude_contrast) + np.deg2rad(p.phase_shift_deg),
            -p.bfactor_angstrom2 / 4 * square,
            p.scale,
        ]
    )
    return np.asarray(terms[:, :, None, None], np.float64)


@lru_cache(maxsize=8)
def _quadratic_basis(box_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x^2, xy, y^2 in (cycles a pixel)^2: float64 `(1, box)`, `(box, box // 2 + 1)`, `(box, 1)`."""
    x = torch.fft.rfftfreq(box_size, dtype=torch.float64)[None]
    y = torch.fft.fftfreq(box_size, dtype=torch.float64)[:, None]
    return x.square(), x * y, y.square()
