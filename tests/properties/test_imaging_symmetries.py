"""What rotating, moving and resampling an image must and must not change."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from support.imaging import blobs, ctf_parameters, random_rotations

from cesped_stream.imaging.ctf import ctf
from cesped_stream.imaging.preprocess import Preprocessor
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.settings import PreprocessSettings

PROJECTOR = MapProjector(blobs(32), 2.0)
seeds = st.integers(0, 2**31)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, quarter=st.integers(1, 3))
def test_turning_the_pose_in_its_plane_turns_the_projection(seed: int, quarter: int) -> None:
    rotation = random_rotations(1, np.random.default_rng(seed))
    turn = Rotation.from_euler("Z", 90 * quarter, degrees=True).as_matrix()
    (image,) = PROJECTOR.project(rotation)
    (turned,) = PROJECTOR.project(rotation @ turn)
    torch.testing.assert_close(turned[1:, 1:], torch.rot90(image[1:, 1:], quarter), atol=2e-2, rtol=0)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, x=st.integers(-6, 6), y=st.integers(-6, 6))
def test_a_shift_undone_gives_the_centred_projection(seed: int, x: int, y: int) -> None:
    rotation = random_rotations(1, np.random.default_rng(seed))
    (image,) = PROJECTOR.project(rotation, [[2.0 * x, 2.0 * y]])
    (centred,) = PROJECTOR.project(rotation)
    torch.testing.assert_close(torch.roll(image, (y, x), (0, 1)), centred, atol=2e-2, rtol=0)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, box=st.integers(16, 40), scale=st.floats(0.01, 100), offset=st.floats(-1000, 1000))
def test_an_input_does_not_depend_on_the_images_scale_and_offset(
    seed: int, box: int, scale: float, offset: float
) -> None:
    raw = torch.randn(2, box, box, generator=torch.Generator().manual_seed(seed))
    parameters = ctf_parameters(2, pixel_size=3.0, seed=seed % 1000)
    chosen = Preprocessor(PreprocessSettings(image_size=16), 3.3)
    affine = raw * scale + scale * offset
    torch.testing.assert_close(chosen(affine, parameters), chosen(raw, parameters), atol=5e-3, rtol=0)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, count=st.integers(1, 20), box=st.integers(16, 33))
def test_an_input_has_the_same_bits_among_any_neighbours(seed: int, count: int, box: int) -> None:
    rng = np.random.default_rng(seed)
    raw = torch.from_numpy(rng.normal(size=(count, box, box)).astype(np.float32))
    parameters = ctf_parameters(count, pixel_size=rng.choice([2.5, 3.0], count), seed=seed % 1000)
    chosen = Preprocessor(PreprocessSettings(image_size=20), 3.0)
    together = chosen(raw, parameters)
    row = int(rng.integers(count))
    assert torch.equal(chosen(raw[[row]], parameters.select(np.array([row])))[0], together[row])


@settings(max_examples=25, deadline=None)
@given(seed=seeds, turn_deg=st.floats(-180, 180))
def test_turning_the_astigmatism_by_half_a_turn_changes_nothing(seed: int, turn_deg: float) -> None:
    parameters = ctf_parameters(2, seed=seed % 1000)
    turned = parameters.select(slice(None))
    turned.defocus_angle_deg[:] = parameters.defocus_angle_deg + 180 * np.sign(turn_deg)
    torch.testing.assert_close(ctf(turned, 32), ctf(parameters, 32), atol=1e-5, rtol=0)
    exchanged = parameters.select(slice(None))
    exchanged.defocus_u_angstrom[:], exchanged.defocus_v_angstrom[:] = (
        parameters.defocus_v_angstrom.copy(),
        parameters.defocus_u_angstrom.copy(),
    )
    exchanged.defocus_angle_deg[:] = parameters.defocus_angle_deg + 90
    torch.testing.assert_close(ctf(exchanged, 32), ctf(parameters, 32), atol=1e-5, rtol=0)
