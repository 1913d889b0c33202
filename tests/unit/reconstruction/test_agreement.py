"""Aligned rows that no other rows confirm are left out of a reference."""

import numpy as np
import pytest
from support.imaging import random_rotations
from support.matching import PIXEL_SIZE, molecule

from cesped_stream.benchmark.entries import open_entry
from cesped_stream.conventions import ANGLE_LABELS, rotation_to_euler_deg
from cesped_stream.imaging.entry import write_entry
from cesped_stream.imaging.reference import particle_digests
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.table import OpticsGroup, ParticleTable
from cesped_stream.reconstruction.agreement import agreeing
from cesped_stream.reconstruction.reference import reference_from_rows
from cesped_stream.settings import ReferenceSettings, SimulationSettings

SETTINGS = ReferenceSettings(mask_lowpass_angstrom=20.0)
KEEPING = SETTINGS.model_copy(update={"leave_out": False})


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ParticleTable:
    folder = tmp_path_factory.mktemp("entry")
    settings = SimulationSettings(num_particles=600, snr=0.3, seed=3, particles_per_micrograph=20)
    write_entry(folder, molecule(), PIXEL_SIZE, settings)
    particles = open_entry(folder).particles()
    return particles.select(np.flatnonzero(particles.half_sets() == 0))


@pytest.fixture(scope="module")
def spoilt(table: ParticleTable) -> tuple[ParticleTable, np.ndarray]:
    """The table with 20 % random poses, and which rows have them."""
    rows = np.flatnonzero(np.random.default_rng(4).uniform(size=len(table)) < 0.2)
    rotations = table.rotations()
    rotations[rows] = random_rotations(len(rows), np.random.default_rng(5))
    angles = rotation_to_euler_deg(rotations).T
    told = {label: [f"{v:.6f}" for v in values] for label, values in zip(ANGLE_LABELS, angles, strict=True)}
    return table.with_columns(told), rows


def test_rows_of_wrong_poses_are_left_out_and_the_map_is_the_better_for_it(
    spoilt: tuple[ParticleTable, np.ndarray],
) -> None:
    told, wrong = spoilt
    cleaned, kept = (reference_from_rows(told, "C1", chosen, StackReader()) for chosen in (SETTINGS, KEEPING))
    assert 0.8 * len(wrong) <= cleaned.num_left_out <= 1.05 * len(wrong) and kept.num_left_out == 0
    truth = molecule().ravel()
    better, worse = (np.corrcoef(own.volume.ravel(), truth)[0, 1] for own in (cleaned, kept))
    assert better > worse + 0.005
    assert cleaned.noise is not None and kept.noise is not None
    assert cleaned.noise.variance[-1, :4].mean() < kept.noise.variance[-1, :4].mean()


def test_what_was_left_out_was_looked_at_and_is_not_scored(spoilt: tuple[ParticleTable, np.ndarray]) -> None:
    made = reference_from_rows(spoilt[0], "C1", SETTINGS, StackReader())
    np.testing.assert_array_equal(made.members, np.sort(particle_digests(spoilt[0])))
    again = reference_from_rows(spoilt[0], "C1", SETTINGS, StackReader())
    np.testing.assert_array_equal(again.volume, made.volume)


def test_of_rows_that_all_agree_none_is_left_out(table: ParticleTable) -> None:
    cleaned, kept = (reference_from_rows(table, "C1", chosen, StackReader()) for chosen in (SETTINGS, KEEPING))
    assert cleaned.num_left_out == 0
    np.testing.assert_array_equal(cleaned.volume, kept.volume)


def test_a_wrong_row_that_is_alone_in_its_optics_group_is_left_out(spoilt: tuple[ParticleTable, np.ndarray]) -> None:
    told, wrong = spoilt
    alone = wrong[:25]
    index = told.optics_index.copy()
    index[alone] = len(told.optics) + np.arange(len(alone))
    own = tuple(OpticsGroup((*told.optics[0].values, ("rlnOpticsGroupName", f"own {k}"))) for k in range(len(alone)))
    table = ParticleTable(told.labels, told.rows, (*told.optics, *own), index)
    made = reference_from_rows(table, "C1", SETTINGS, StackReader())
    assert made.num_left_out >= 0.8 * len(wrong)
    kept = table.select(np.setdiff1d(np.arange(len(table)), np.setdiff1d(wrong, alone)))
    assert reference_from_rows(kept, "C1", SETTINGS, StackReader()).num_left_out >= 0.8 * len(alone)


def test_shifts_of_rows_that_are_left_out_are_not_searched(spoilt: tuple[ParticleTable, np.ndarray]) -> None:
    told, wrong = spoilt
    far = told.shifts_angstrom().copy()
    far[wrong] = 38.0 / 2**0.5
    labels = ("rlnOriginXAngst", "rlnOriginYAngst")
    moved = told.with_columns({label: [f"{v:.4f}" for v in far[:, k]] for k, label in enumerate(labels)})
    near, wide = (reference_from_rows(part, "C1", SETTINGS, StackReader()) for part in (told, moved))
    assert near.shift_prior is not None and wide.shift_prior is not None
    assert wide.num_left_out >= 0.9 * len(wrong)
    assert abs(wide.shift_prior.range_angstrom - near.shift_prior.range_angstrom) < 5


def test_the_share_that_disagrees_is_found_and_faint_particles_are_kept() -> None:
    rng = np.random.default_rng(0)
    norm = 3.0  # sum of a^2 C^2 |S|^2 over the variance: a particle has mean +norm, noise -norm, both variance 2 norm
    faint = rng.normal(norm, (2 * norm) ** 0.5, 2000)
    assert agreeing(faint).mean() > 0.99 and (faint < 0).mean() > 0.05
    mixed = np.concatenate([rng.normal(20, 40**0.5, 700), rng.normal(-20, 40**0.5, 300)])
    assert np.count_nonzero(agreeing(mixed)[:700]) > 695 and np.count_nonzero(agreeing(mixed)[700:]) < 5
