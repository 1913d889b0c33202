"""Simulated particles: what the settings state is what the particles have."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.imaging import blobs

from cesped_stream.imaging.ctf import ctf
from cesped_stream.imaging.simulate import CHUNK, MapProjector, SimulatedParticles, random_rotations, simulate_particles
from cesped_stream.settings import OpticsSettings, SimulationSettings

BOX = 24
NOISELESS = float("inf")


@pytest.fixture(scope="module")
def projector() -> MapProjector:
    return MapProjector(blobs(BOX), 6.0)


def simulated(projector: MapProjector, rotations: np.ndarray | None = None, **settings: object) -> SimulatedParticles:
    """All particles as one chunk."""
    chunks = list(simulate_particles(projector, SimulationSettings(**settings), rotations=rotations))
    names = [name for name in SimulatedParticles.__dataclass_fields__ if name != "ctf"]
    joined = {name: np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in names}
    fields = chunks[0].ctf.__dataclass_fields__
    parts = {name: np.concatenate([getattr(chunk.ctf, name) for chunk in chunks]) for name in fields}
    return SimulatedParticles(**joined, ctf=replace(chunks[0].ctf, **parts))


@pytest.mark.parametrize(("snr", "radius"), [(1.0, 0.0), (0.1, 50.0)])
def test_snr_is_that_inside_the_particle_circle_after_the_ctf(
    projector: MapProjector, snr: float, radius: float
) -> None:
    settings = {"num_particles": 600, "particle_radius_angstrom": radius, "seed": 3}
    noisy = simulated(projector, snr=snr, **settings)
    clean = simulated(projector, snr=NOISELESS, **settings)
    axis = np.arange(BOX) - BOX // 2
    circle = axis[:, None] ** 2 + axis**2 <= ((radius or BOX * 6.0 / 2) / 6.0) ** 2
    signal = clean.images * np.float32(np.sqrt(snr))
    noise = noisy.images - signal
    assert noise.var() == pytest.approx(1.0, rel=0.01)
    assert signal[:, circle].var(1).mean() / noise.var() == pytest.approx(snr, rel=0.05)
    assert abs(noise.mean()) < 0.01
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.2


def test_images_are_the_projections_at_their_poses_shifts_and_ctf(projector: MapProjector) -> None:
    particles = simulated(projector, num_particles=300, snr=NOISELESS, max_shift_angstrom=9.0)
    expected = projector.project(particles.rotations, particles.shifts_angstrom, ctf(particles.ctf, BOX)).numpy()
    factor = particles.images.std() / expected.std()
    np.testing.assert_allclose(particles.images, expected * factor, atol=1e-3)
    assert 7 < np.abs(particles.shifts_angstrom).max() <= 9


def test_optics_groups_differ_in_ctf_and_follow_the_micrograph(projector: MapProjector) -> None:
    groups = (OpticsSettings(voltage_kv=300), OpticsSettings(voltage_kv=200, amplitude_contrast=0.07))
    particles = simulated(projector, num_particles=400, optics=groups, particles_per_micrograph=30)
    assert set(particles.ctf.voltage_kv[particles.optics_index == 1]) == {200.0}
    for micrograph in np.unique(particles.micrograph):
        rows = particles.micrograph == micrograph
        assert rows.sum() in (30, 400 % 30)
        assert len(set(particles.optics_index[rows])) == 1
        assert len(set(particles.ctf.defocus_angle_deg[rows])) == 1
        assert np.ptp(particles.ctf.defocus_u_angstrom[rows]) <= 600
        assert {0, 1} == set(particles.half_sets[rows])
    astigmatism = particles.ctf.defocus_u_angstrom - particles.ctf.defocus_v_angstrom
    assert astigmatism.min() >= 0
    assert 200 < astigmatism.max() <= 400


@pytest.mark.parametrize("count", [2, 257, 600])
def test_half_sets_are_equal_to_one_particle(projector: MapProjector, count: int) -> None:
    halves = simulated(projector, num_particles=count).half_sets
    assert len(halves) == count
    assert abs(int((halves == 0).sum()) - int((halves == 1).sum())) <= count % 2
    assert count < 100 or not np.array_equal(halves[::2], np.zeros(len(halves[::2])))


def test_without_ctf_the_ctf_of_every_particle_is_1(projector: MapProjector) -> None:
    particles = simulated(projector, num_particles=40, ctf=False)
    torch.testing.assert_close(ctf(particles.ctf, BOX), torch.ones(40, BOX, BOX // 2 + 1))


def test_given_poses_are_used_and_their_number_is_checked(projector: MapProjector) -> None:
    rotations = random_rotations(300, np.random.default_rng(0))
    np.testing.assert_array_equal(simulated(projector, rotations, num_particles=300).rotations, rotations)
    with pytest.raises(ValueError, match="300 particles"):
        simulated(projector, rotations[:299], num_particles=300)


def test_same_seed_same_bits_and_a_chunk_is_what_is_held(projector: MapProjector) -> None:
    settings = SimulationSettings(num_particles=600, seed=11)
    first, second = list(simulate_particles(projector, settings)), list(simulate_particles(projector, settings))
    assert [len(chunk.images) for chunk in first] == [CHUNK, CHUNK, 600 - 2 * CHUNK]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
    other = next(iter(simulate_particles(projector, settings.model_copy(update={"seed": 12}))))
    assert not np.allclose(other.rotations, first[0].rotations)


def test_views_are_uniform_on_the_sphere_and_in_the_plane(projector: MapProjector) -> None:
    rotations = random_rotations(20000, np.random.default_rng(5))
    assert np.abs(rotations.mean(0)).max() < 0.02
    np.testing.assert_allclose(np.cov(rotations[:, :, 2].T), np.eye(3) / 3, atol=0.01)
    assert np.linalg.det(rotations) == pytest.approx(np.ones(20000))


def test_an_empty_map_is_refused() -> None:
    with pytest.raises(ValueError, match="map empty"):
        simulated(MapProjector(np.zeros((16, 16, 16)), 6.0), num_particles=10)


def test_settings_refuse_an_inverted_defocus_range() -> None:
    with pytest.raises(ValueError, match="exchange them"):
        SimulationSettings(min_defocus_angstrom=2e4, max_defocus_angstrom=1e4)
