"""CTF correction of images for a network, honouring what the data already carry (conventions: "one rule")."""

from typing import get_args

import numpy as np
import scipy.fft
import torch
from torch import Tensor

from cesped_stream.imaging.ctf import ctf as ctf_of
from cesped_stream.particles.table import CtfParameters, Float64
from cesped_stream.settings import CtfCorrection


def correct_ctf(images: Tensor, ctf: CtfParameters, correction: CtfCorrection, *, wiener_regulariser: float) -> Tensor:
    """Return images `(n, box, box)` corrected for their CTF C on the full box.

    Raw images y: `phase_flip` sign(C) y, `multiply` C y, `wiener` C y / (C^2 + w). Phase-flipped ones have |C| for C
    and are not flipped again; premultiplied ones hold C y already: flip and multiply leave them as they are, Wiener
    divides them. White noise of std 1 keeps it under a flip only; see `corrected_noise_std`.
    """
    done = _already_done(ctf, correction)
    if done.all():
        return images
    if done.any():
        rows = np.flatnonzero(~done)
        index = torch.from_numpy(rows).to(images.device)
        part = correct_ctf(images[index], ctf.select(rows), correction, wiener_regulariser=wiener_regulariser)
        return images.index_copy(0, index, part)
    transfer = ctf_of(ctf, images.shape[-1], device=images.device)
    return _multiplied(images, _factor(transfer, ctf, correction, wiener_regulariser))


def corrected_noise_std(
    ctf: CtfParameters, box_size: int, correction: CtfCorrection, *, wiener_regulariser: float
) -> Float64:
    """Return the std `(n,)` that background noise of std 1, white before the microscope's CTF or any flip, has after
    `correct_ctf`: 1 for a flip, sqrt(mean C^2) for `multiply`, sqrt(mean C^2 / (C^2 + w)^2) for `wiener`.

    Premultiplied images' noise has the power C^2 / mean(C^2) before it, and `multiply` leaves that at 1.
    """
    transfer = ctf_of(ctf, box_size, dtype=torch.float64)
    premultiplied = torch.from_numpy(ctf.premultiplied)[:, None, None]
    power = torch.where(premultiplied, transfer.square() / _plane_mean(transfer.square(), box_size), 1.0)
    done = torch.from_numpy(_already_done(ctf, correction))[:, None, None]
    gain = torch.where(done, 1.0, _factor(transfer, ctf, correction, wiener_regulariser).square())
    return np.asarray(_plane_mean(gain * power, box_size).sqrt()[:, 0, 0].numpy(), np.float64)


def _already_done(ctf: CtfParameters, correction: CtfCorrection) -> np.ndarray:
    if correction == "none":
        return np.ones(len(ctf.premultiplied), np.bool_)
    if correction == "phase_flip":
        return np.asarray(ctf.premultiplied | ctf.phase_flipped)
    return np.asarray(ctf.premultiplied & (correction == "multiply"))


def _factor(transfer: Tensor, ctf: CtfParameters, correction: CtfCorrection, regulariser: float) -> Tensor:
    """Return what the transforms `(n, box, box // 2 + 1)` are multiplied by."""
    if correction not in get_args(CtfCorrection):
        raise ValueError(f"ctf correction {correction!r}; it is one of {', '.join(get_args(CtfCorrection))}")
    if correction in ("none", "phase_flip"):
        return 1 - 2 * (transfer < 0).to(transfer.dtype)
    flipped, premultiplied = (
        torch.from_numpy(flags).to(transfer.device)[:, None, None] for flags in (ctf.phase_flipped, ctf.premultiplied)
    )
    numerator = torch.where(flipped, transfer.abs(), transfer)
    if correction == "multiply":
        return numerator
    return torch.where(premultiplied, 1.0, numerator) / (transfer.square() + regulariser)


def _plane_mean(values: Tensor, box_size: int) -> Tensor:
    """Return the mean `(n, 1, 1)` over the whole plane of values on `rfft2`'s half."""
    weights = torch.full((values.shape[-1],), 2.0, dtype=values.dtype)
    weights[0] = 1.0
    if box_size % 2 == 0:
        weights[-1] = 1.0
    return (values * weights).sum((1, 2), keepdim=True) / box_size**2


def _multiplied(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply the images' transforms by `factor` `(n, box, box // 2 + 1)`."""
    box = images.shape[-1]
    if images.device.type == "cpu":
        # MKL, torch's FFT on a CPU, gives a lone image of 16 or 32 pixels other bits than one among neighbours.
        transform = scipy.fft.rfft2(images.numpy()) * factor.numpy()
        return torch.from_numpy(scipy.fft.irfft2(transform, s=(box, box), overwrite_x=True))
    multiplied: Tensor = torch.fft.irfft2(torch.fft.rfft2(images) * factor, s=(box, box))
    return multiplied
