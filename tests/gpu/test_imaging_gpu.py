"""Imaging and backprojection give on CUDA what they give on the CPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.imaging import blobs, ctf_parameters, random_rotations

from cesped_stream.imaging.ctf import ctf
from cesped_stream.imaging.preprocess import Preprocessor, image_flags
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.reconstruction.backproject import Backprojector
from cesped_stream.settings import PreprocessSettings
from cesped_stream.so3.symmetry import group_rotations

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

PARAMETERS = ctf_parameters(40, pixel_size=np.where(np.arange(40) % 3 == 0, 1.1, 1.3))


def test_ctf_is_equal() -> None:
    torch.testing.assert_close(ctf(PARAMETERS, 96, device="cuda").cpu(), ctf(PARAMETERS, 96), atol=1e-5, rtol=0)


def test_network_inputs_are_equal() -> None:
    raw = torch.randn(40, 96, 96, generator=torch.Generator().manual_seed(0)) * 30 + 500
    raw[3, 0, 0] = torch.nan
    chosen = Preprocessor(PreprocessSettings(image_size=48), 2.4)
    found = chosen(raw.cuda(), PARAMETERS).cpu()
    torch.testing.assert_close(found, chosen(raw, PARAMETERS), atol=1e-3, rtol=0, equal_nan=True)
    np.testing.assert_array_equal(image_flags(raw.cuda()), image_flags(raw))


def test_projections_and_maps_are_equal() -> None:
    rng = np.random.default_rng(0)
    rotations, shifts = random_rotations(200, rng), rng.uniform(-5, 5, (200, 2))
    parameters = ctf_parameters(200, pixel_size=3.0)
    maps = []
    for device in ("cpu", "cuda"):
        projector = MapProjector(blobs(32), 3.0, device=device)
        images = projector.project(rotations, shifts, ctf(parameters, 32, device=device))
        backprojector = Backprojector(32, 3.0, device=device)
        backprojector.add(images, parameters, rotations, shifts)
        maps.append((images.cpu(), backprojector.map()))
    torch.testing.assert_close(maps[1][0], maps[0][0], atol=1e-3, rtol=0)
    np.testing.assert_allclose(maps[1][1], maps[0][1], atol=1e-3)


def test_symmetric_weighted_maps_of_treated_images_are_equal() -> None:
    rng = np.random.default_rng(1)
    rotations, shifts, weights = random_rotations(300, rng), rng.uniform(-5, 5, (300, 2)), rng.uniform(0, 2, 300)
    parameters = ctf_parameters(300, pixel_size=3.0, bfactor_angstrom2=40.0)
    kinds = np.arange(300) % 3
    parameters = replace(parameters, phase_flipped=kinds == 1, premultiplied=kinds == 2)
    images = rng.normal(size=(300, 32, 32)).astype(np.float32)
    maps = []
    for device in ("cpu", "cuda"):
        backprojector = Backprojector(32, 3.0, device=device)
        backprojector.add(images, parameters, rotations, shifts, weights=weights)
        maps.append(backprojector.map(group=group_rotations("D3")))
    np.testing.assert_allclose(maps[1], maps[0], atol=1e-4 * maps[0].std())
