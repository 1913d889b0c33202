"""What tells a particle from noise and from brighter things."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.matching import flat_noise, particles, rows

from cesped_stream.imaging.band import Band
from cesped_stream.imaging.noise_model import noise_images
from cesped_stream.imaging.shift_prior import fit_shift_prior
from cesped_stream.refinement.particle_score import particle_scores, power_log_likelihood

BAND = Band(160.0, 12.0)


def test_noise_of_the_models_power_gains_little_and_a_louder_image_much() -> None:
    images = particles(40).in_band(BAND)
    noise = noise_images(images, flat_noise(), rows(40), seed=3)
    louder = replace(noise, power=noise.power * 2)
    quieter = replace(noise, power=noise.power / 2)
    gain, more, less = (power_log_likelihood(part, flat_noise(), rows(40)) for part in (noise, louder, quieter))
    shells = len(np.unique(BAND.shells))
    assert 0 <= gain.mean() < 0.5 * shells
    assert more.mean() == pytest.approx(len(BAND) * (1 - np.log(2)), rel=0.2)
    assert less.mean() < 0.1 * gain.mean()


def test_it_is_the_likelihood_ratio_of_a_shells_own_power() -> None:
    images = particles(3).in_band(BAND)
    power = torch.full_like(images.power, 3.0)
    found = power_log_likelihood(replace(images, power=power), flat_noise(variance=1.5), rows(3))
    np.testing.assert_allclose(found, len(BAND) * (2 - 1 - np.log(2)), rtol=1e-6)


def test_premultiplied_images_are_measured_by_what_their_noise_has() -> None:
    images = particles(60).in_band(BAND)
    premultiplied = replace(images, premultiplied=torch.ones(60, dtype=torch.bool))
    raw, treated = (
        power_log_likelihood(noise_images(part, flat_noise(), rows(60), seed=1), flat_noise(), rows(60))
        for part in (images, premultiplied)
    )
    assert treated.mean() < 2 * raw.mean() + 1


def test_an_unlikely_shift_lowers_the_score_and_rows_are_their_own() -> None:
    images = particles(6).in_band(BAND)
    prior = fit_shift_prior(np.zeros((100, 2)), 5.0, 60.0)
    shifts = np.zeros((6, 2))
    shifts[1, 0] = 14.0
    likelihood = np.full(6, 20.0)
    found = particle_scores(likelihood, shifts, images, flat_noise(), rows(6), prior)
    plain = particle_scores(likelihood, shifts, images, flat_noise(), rows(6), None)
    assert found[0] > plain[0] and found[1] < plain[1]
    alone = images.select(slice(2, 5))
    np.testing.assert_array_equal(
        particle_scores(likelihood[2:5], shifts[2:5], alone, flat_noise(), rows(3), prior), found[2:5]
    )
