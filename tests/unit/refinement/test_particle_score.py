"""What tells a particle from noise and from brighter things."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.matching import PIXEL_SIZE, Particles, flat_noise, molecule, particles, rows

from cesped_stream.imaging.band import Band, BandImages, band_slices
from cesped_stream.imaging.noise_model import noise_images
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.imaging.shift_prior import fit_shift_prior
from cesped_stream.refinement.particle_score import (
    AMPLITUDE_ERROR,
    expected_gains,
    particle_scores,
    pose_log_likelihoods,
    power_log_likelihood,
    unsure_share,
)

BAND = Band(160.0, 12.0)


def at_truth(truth: Particles, rms: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return slices `(n, m)` at the true rotations, of root mean square `rms`, and their mean power `(m,)`."""
    slices = band_slices(MapProjector(molecule(), PIXEL_SIZE), BAND, truth.rotations)
    slices *= rms / slices.abs().square().mean().sqrt()
    return slices, slices.abs().square().mean(0)


def as_premultiplied(images: BandImages) -> BandImages:
    """Return what the same images are once multiplied by their CTF."""
    treated = torch.ones_like(images.premultiplied)
    return replace(images, power=images.power * images.ctf_square, premultiplied=treated)


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


def test_a_pose_gains_what_two_normal_densities_differ_by() -> None:
    truth = particles(8, snr=0.5)
    images, (slices, power) = truth.in_band(BAND), at_truth(truth, 0.5)
    variance, scale = 1.3, 0.8
    found = pose_log_likelihoods(
        slices, power, truth.shifts_angstrom, images, flat_noise(variance=variance, scale=scale), rows(8)
    )
    # C y against a C^2 S, so that no CTF is divided by
    transfer = images.ctf_square.double()
    wide = variance + scale**2 * transfer * (power * unsure_share(BAND)).double()
    centred = images.matched.to(torch.complex128) * BAND.shift_phases(torch.from_numpy(truth.shifts_angstrom))
    residual = (centred - scale * transfer * slices).abs().square() / transfer
    as_particle = -residual / wide - wide.log()
    as_noise = -centred.abs().square() / transfer / variance - np.log(variance)
    np.testing.assert_allclose(found, (as_particle - as_noise).sum(1).numpy(), rtol=1e-4, atol=1e-3)


def test_what_an_image_carries_changes_no_pose_s_gain() -> None:
    truth = particles(8, snr=0.5)
    images, (slices, power) = truth.in_band(BAND), at_truth(truth, 0.5)
    raw, treated = (
        pose_log_likelihoods(slices, power, truth.shifts_angstrom, part, flat_noise(), rows(8))
        for part in (images, as_premultiplied(images))
    )
    np.testing.assert_allclose(treated, raw, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("strength", [1.0, 30.0, 1000.0])
def test_a_right_pose_gains_more_than_its_power_loses_however_strong_the_signal(strength: float) -> None:
    truth = particles(20, snr=0.5 * strength)
    images, (slices, power) = truth.in_band(BAND), at_truth(truth, 1.0)
    # images are a times the molecule's, and noise; the reference is off by a tenth
    amplitude = float((images.matched.conj() * slices_in_place(truth, slices)).real.sum())
    amplitude /= float((images.ctf_square * slices.abs().square()).sum())
    for off in (0.9, 1.0, 1.1):
        noise = flat_noise(scale=off * amplitude)
        gain = pose_log_likelihoods(slices, power, truth.shifts_angstrom, images, noise, rows(20))
        score = particle_scores(gain, truth.shifts_angstrom, images, noise, rows(20), None)
        assert score.min() > 0 and np.median(score) > 15


def slices_in_place(truth: Particles, slices: torch.Tensor) -> torch.Tensor:
    return slices * BAND.shift_phases(torch.from_numpy(-truth.shifts_angstrom))


def test_noise_loses_at_a_pose_on_average_what_it_would_gain_were_it_a_particle() -> None:
    truth = particles(200)
    slices, power = at_truth(truth, 0.5)
    scale = 0.6
    nothing = noise_images(truth.in_band(BAND), flat_noise(), rows(200), seed=4)
    gains = scale**2 * expected_gains(power, nothing, flat_noise(), rows(200))
    found = pose_log_likelihoods(slices, power, truth.shifts_angstrom, nothing, flat_noise(scale=scale), rows(200))
    assert found.mean() == pytest.approx(-gains.mean(), rel=0.25)
    assert found.std() == pytest.approx((2 * gains.mean()) ** 0.5, rel=0.25)


def test_noise_seldom_scores_high_at_a_pose_whatever_the_signal_should_be() -> None:
    """Likelihood ratios of noise are 1 on average: above t with a probability of at most exp(-t)."""
    truth = particles(400)
    slices, power = at_truth(truth, 0.5)
    nothing = noise_images(truth.in_band(BAND), flat_noise(), rows(400), seed=5)
    for scale in (0.1, 0.3, 1.0, 3.0):
        noise = flat_noise(scale=scale)
        gain = pose_log_likelihoods(slices, power, truth.shifts_angstrom, nothing, noise, rows(400))
        score = particle_scores(gain, truth.shifts_angstrom, nothing, noise, rows(400), None)
        assert (gain > 2).mean() < np.exp(-2) and (score > 2).mean() < np.exp(-2)


def test_the_coarse_is_unsure_by_its_amplitude_the_fine_by_the_pose_as_well() -> None:
    share, lengths = unsure_share(BAND).numpy(), np.hypot(*BAND.frequencies_per_angstrom.T)
    assert share[lengths.argmin()] == pytest.approx(AMPLITUDE_ERROR**2, abs=0.02)
    assert share[lengths.argmax()] == pytest.approx(AMPLITUDE_ERROR**2 + 0.75, abs=0.02)
