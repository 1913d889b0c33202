"""Noise from residuals: its spectrum and the signal's scale, by optics group."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.imaging import random_rotations
from support.matching import molecule

from cesped_stream.errors import PermanentError
from cesped_stream.imaging.band import Band, BandImages, band_slices
from cesped_stream.imaging.noise_model import (
    PRIOR_ROWS,
    NoiseModel,
    NoiseScores,
    fit_noise,
    optics_key,
    own_levels,
    whitened_weights,
)
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.particles.table import OpticsGroup, ParticleTable

BAND = Band(160.0, 12.0)
COUNT = 400


def group(name: str, voltage: str = "300") -> OpticsGroup:
    return OpticsGroup((("rlnOpticsGroupName", name), ("rlnVoltage", voltage), ("rlnImagePixelSize", "5")))


@pytest.fixture(scope="module")
def slices() -> torch.Tensor:
    projector = MapProjector(molecule(), 5.0)
    found = band_slices(projector, BAND, random_rotations(COUNT, np.random.default_rng(0)))
    return found / found.abs().square().mean().sqrt()


def observed(
    slices: torch.Tensor, variance: torch.Tensor, scale: torch.Tensor, *, premultiplied: bool = False
) -> BandImages:
    """Images y = a C S + n of slices `(n, m)`, variances `(n, m)` and scales `(n, 1)`."""
    generator = torch.Generator().manual_seed(3)
    transfer = torch.cos(torch.linspace(0, 40, len(BAND))) * torch.ones(len(slices), 1)
    noise = torch.view_as_complex(torch.randn(*slices.shape, 2, generator=generator) / 2**0.5) * variance.sqrt()
    y = scale * transfer * slices + noise
    power = y.abs().square() * (transfer.square() if premultiplied else 1.0)
    carried = torch.full((len(slices),), premultiplied)
    return BandImages(BAND, transfer * y, transfer.square(), power, carried, torch.ones(len(slices)))


@pytest.mark.parametrize("premultiplied", [False, True])
def test_spectrum_and_scale_of_each_group_are_found(slices: torch.Tensor, premultiplied: bool) -> None:
    groups = np.arange(COUNT) % 2
    shell = torch.from_numpy(BAND.shells)
    spectra = torch.stack([1 + 4 * torch.exp(-shell / 3.0), torch.full((len(BAND),), 0.5)])
    scales = torch.tensor([[0.7], [1.6]])
    images = observed(slices, spectra[groups], scales[groups], premultiplied=premultiplied)
    model = fit_noise(images, slices, groups, ["one", "two"])
    np.testing.assert_allclose(model.scale[:2], scales[:, 0].numpy(), rtol=0.05)
    found = model.variance_in(BAND)
    assert (found[:2] / spectra - 1).abs().mean() < 0.05
    assert found.shape == (3, len(BAND))
    # the power alone would hold the signal
    power = images.power[groups == 1].mean() if not premultiplied else torch.tensor(9.0)
    assert power > 1.2 * found[1].mean()


def test_weights_are_the_likelihoods(slices: torch.Tensor) -> None:
    variance, scale = torch.full((COUNT, len(BAND)), 2.0), torch.full((COUNT, 1), 0.5)
    images = replace(observed(slices, variance, scale), information=torch.full((COUNT,), 0.25))
    model = NoiseModel((), np.ones(1), np.full((1, 1), 2.0), np.full(1, 0.5))
    linear, square = whitened_weights(images, model, np.zeros(COUNT, np.int64))
    torch.testing.assert_close(linear, torch.full_like(linear, 2 * 0.5 / 2 * 0.25))
    torch.testing.assert_close(square, torch.full_like(square, 0.25 / 2 * 0.25))


def test_a_group_is_known_by_content_and_an_unknown_one_gets_the_mean(slices: torch.Tensor) -> None:
    images = observed(slices, torch.ones(COUNT, len(BAND)), torch.ones(COUNT, 1))
    keys = [optics_key(group("a")), optics_key(group("b", "200"))]
    model = fit_noise(images, slices, np.arange(COUNT) % 2, keys)
    renumbered = (group("new"), group("b", "200.0"), group("a"))
    table = ParticleTable(("rlnImageName",), [("1@a.mrcs",)] * 3, renumbered, np.arange(3))
    assert model.rows_of(table).tolist() == [2, 1, 0]
    assert model.scale[2] == pytest.approx(model.scale[:2].mean())


@pytest.mark.parametrize("premultiplied", [False, True])
@pytest.mark.parametrize(("level", "scale"), [(1.0, 0.5), (1.6, 1.0), (0.7, 1.5)])
def test_an_images_own_power_tells_its_noise_and_its_scale(
    slices: torch.Tensor, level: float, scale: float, premultiplied: bool
) -> None:
    signal = torch.from_numpy(mean_power(slices))
    variance = torch.ones(COUNT, len(BAND))
    images = observed(slices, level * variance, torch.full((COUNT, 1), scale), premultiplied=premultiplied)
    found, own = own_levels(images, variance, signal, torch.ones(COUNT, 1))
    assert found.median() == pytest.approx(level, rel=0.15)
    assert own.median() == pytest.approx(scale, rel=0.25)
    assert abs(own.median() - scale) <= abs(1.0 - scale) / 2 + 0.06
    alone = own_levels(images.select(slice(7, 9)), variance[7:9], signal, torch.ones(2, 1))
    np.testing.assert_array_equal(alone[1].numpy(), own[7:9].numpy())


def test_an_image_of_nothing_gets_little_scale_and_an_empty_one_finite_weights(slices: torch.Tensor) -> None:
    signal, variance = torch.from_numpy(mean_power(slices)), torch.ones(COUNT, len(BAND))
    nothing = observed(slices, variance, torch.zeros(COUNT, 1))
    _, own = own_levels(nothing, variance, signal, torch.ones(COUNT, 1))
    assert own.median() < 0.5
    assert own.min() > 0
    empty = nothing.select(slice(0, 0)).padded(3)
    assert all(torch.isfinite(part).all() for part in own_levels(empty, variance[:3], signal, torch.ones(3, 1)))


def test_only_rows_of_unseen_groups_have_levels_of_their_own(slices: torch.Tensor) -> None:
    images = observed(slices, torch.ones(COUNT, len(BAND)), torch.full((COUNT, 1), 0.5))
    model = replace(fit_noise(images, slices, np.zeros(COUNT, np.int64), ["a"]), scale=np.ones(2))
    rows = np.arange(COUNT) % 2
    linear, square = whitened_weights(images, model, rows)
    known = whitened_weights(images, model, np.zeros(COUNT, np.int64))
    np.testing.assert_array_equal(linear[::2], known[0][::2])
    assert (square[1::2] < 0.6 * known[1][1::2]).float().mean() > 0.9
    without = replace(model, signal_power=None)
    np.testing.assert_array_equal(whitened_weights(images, without, rows)[1], known[1])


def test_a_group_of_few_images_leans_on_all_of_them(slices: torch.Tensor) -> None:
    groups = np.zeros(COUNT, np.int64)
    groups[:4], groups[-1] = 1, 2
    level = torch.where(torch.from_numpy(groups == 1), 3.0, 1.0)[:, None]
    scale = torch.where(torch.from_numpy(groups == 2), 0.0, 1.0)[:, None]
    images = observed(slices, level.expand(COUNT, len(BAND)), scale)
    model = fit_noise(images, slices, groups, ["many", "four of thrice the noise", "a wrong one"])
    noise = model.variance_in(BAND).mean(1)
    assert noise[0].item() == pytest.approx(1.0, abs=0.1)
    assert noise[1].item() == pytest.approx((4 * 3 + PRIOR_ROWS) / (4 + PRIOR_ROWS), rel=0.1)
    assert model.scale[[0, 1]] == pytest.approx(1.0, abs=0.15)
    assert model.scale[2] == pytest.approx(PRIOR_ROWS / (1 + PRIOR_ROWS), abs=0.1)


def mean_power(slices: torch.Tensor) -> np.ndarray:
    """Mean |S|^2 in each coefficient's shell, `(m,)`."""
    power, shells = slices.abs().square().mean(0).numpy(), BAND.shells
    return (np.bincount(shells, power) / np.bincount(shells).clip(1))[shells].astype(np.float32)


def test_a_model_comes_back_from_json_and_a_damaged_one_is_refused() -> None:
    model = NoiseModel(("a",), np.array([0.1, 0.2]), np.ones((2, 2)), np.ones(2), np.array([3.0, 4.0]))
    again = NoiseModel.from_json(model.to_json())
    np.testing.assert_array_equal(again.variance, model.variance)
    assert again.signal_power is not None
    np.testing.assert_array_equal(again.signal_power, [3.0, 4.0])
    assert again.keys == model.keys
    with pytest.raises(PermanentError, match="variance"):
        NoiseModel.from_json(model.to_json() | {"keys": []})
    with pytest.raises(PermanentError, match="signal power"):
        NoiseModel.from_json(model.to_json() | {"signal_power": [1.0]})
    with pytest.raises(PermanentError, match="scale"):
        NoiseModel.from_json({"keys": [], "frequencies_per_angstrom": [1.0], "variance": [[1.0]]})


def test_a_group_without_images_is_refused(slices: torch.Tensor) -> None:
    images = observed(slices, torch.ones(COUNT, len(BAND)), torch.ones(COUNT, 1))
    with pytest.raises(PermanentError, match="'two'"):
        fit_noise(images, slices, np.zeros(COUNT, np.int64), ["one", "two"])


def test_standard_deviations_above_noise_are_those_that_are_as_rare() -> None:
    of_noise = NoiseScores(mean=5.0, std=3.0, hardest=True)
    np.testing.assert_allclose(of_noise.above(np.array([8.0, 12.5, 5.0, 40.0, -42.0])), [0, 3, -(6**0.5), 8, -10])
    scores = np.linspace(-300, 300, 1001)
    assert (np.diff(of_noise.above(scores)) > 0).all()
    assert np.isnan(of_noise.above(np.array([np.nan]))).all()
