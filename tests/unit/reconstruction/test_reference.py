"""References: of one half's rows alone, better than a plain map, with their noise."""

from pathlib import Path

import numpy as np
import pytest
from support.matching import BOX, PIXEL_SIZE, molecule

from cesped_stream.benchmark.entries import open_entry
from cesped_stream.errors import InvalidStarError
from cesped_stream.imaging.entry import write_entry
from cesped_stream.imaging.reference import Reference
from cesped_stream.particles.identities import particle_digests
from cesped_stream.particles.stacks import StackReader, write_stack
from cesped_stream.particles.star import read_star
from cesped_stream.particles.table import ParticleTable
from cesped_stream.reconstruction.engine import BuiltinEngine
from cesped_stream.reconstruction.fsc import fsc
from cesped_stream.reconstruction.reference import reference_from_map, reference_from_rows
from cesped_stream.settings import ReferenceSettings, SimulationSettings

SETTINGS = ReferenceSettings(mask_lowpass_angstrom=20.0)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ParticleTable:
    folder = tmp_path_factory.mktemp("entry")
    settings = SimulationSettings(num_particles=500, snr=0.3, symmetry="D2", seed=3, particles_per_micrograph=20)
    write_entry(folder, molecule("D2"), PIXEL_SIZE, settings)
    return open_entry(folder).particles()


def half(table: ParticleTable, number: int = 0) -> ParticleTable:
    return table.select(np.flatnonzero(table.half_sets() == number))


@pytest.fixture(scope="module")
def own(table: ParticleTable) -> Reference:
    return reference_from_rows(half(table), "D2", SETTINGS, StackReader())


def test_it_is_a_better_template_than_the_plain_map(table: ParticleTable, own: Reference) -> None:
    plain = BuiltinEngine().reconstruct(half(table), "D2").volume
    truth = molecule("D2").ravel()
    found, before = (np.corrcoef(volume.ravel(), truth)[0, 1] for volume in (own.volume, plain))
    assert found > 0.95 and found > before + 0.01
    assert fsc(own.volume, molecule("D2"))[1:9].min() > 0.9
    assert 2 * PIXEL_SIZE < own.resolution_angstrom < 25
    assert own.volume[0, 0, 0] == 0  # masked


def test_it_knows_its_members_and_its_half(table: ParticleTable, own: Reference) -> None:
    np.testing.assert_array_equal(own.members, np.sort(particle_digests(half(table))))
    assert own.half_set == 0 and not own.shared
    assert reference_from_rows(half(table, 1), "D2", SETTINGS, StackReader()).half_set == 1


def test_the_other_half_changes_nothing(table: ParticleTable, own: Reference, tmp_path: Path) -> None:
    again = reference_from_rows(half(table), "D2", SETTINGS, StackReader())
    np.testing.assert_array_equal(again.volume, own.volume)
    with pytest.raises(InvalidStarError, match="both half-sets"):
        reference_from_rows(table, "D2", SETTINGS, StackReader())


def test_its_noise_is_that_of_the_images_and_its_scale_one(own: Reference) -> None:
    assert own.noise is not None and len(own.noise.keys) == 2
    assert own.noise.scale == pytest.approx(np.ones(3), abs=0.1)
    assert own.noise.variance.mean() == pytest.approx(1.0, abs=0.1)
    assert np.abs(own.noise.variance - 1).max() < 0.5


def test_a_group_of_many_rows_has_its_noise_however_few_rows_the_noise_is_fitted_on(table: ParticleTable) -> None:
    few = SETTINGS.model_copy(update={"noise_rows": 20})
    made = reference_from_rows(half(table), "D2", few, StackReader())
    assert made.noise is not None and len(made.noise.keys) == 2


def test_rows_of_another_pixel_size_take_part(table: ParticleTable, tmp_path: Path) -> None:
    finer = SimulationSettings(num_particles=500, snr=0.3, symmetry="D2", seed=4, particles_per_micrograph=20)
    write_entry(tmp_path, molecule("D2", 40, PIXEL_SIZE * BOX / 40), PIXEL_SIZE * BOX / 40, finer)
    other = half(open_entry(tmp_path).particles())
    mine = half(table)
    both = ParticleTable(
        mine.labels,
        mine.rows[:150] + other.rows[:100],
        mine.optics + other.optics,
        np.concatenate([mine.optics_index[:150], other.optics_index[:100] + len(mine.optics)]),
    )
    mixed = reference_from_rows(both, "D2", SETTINGS, StackReader())
    alone = reference_from_rows(mine.select(range(150)), "D2", SETTINGS, StackReader())
    assert mixed.volume.shape == alone.volume.shape == (BOX,) * 3
    truth = molecule("D2").ravel()
    assert np.corrcoef(mixed.volume.ravel(), truth)[0, 1] > np.corrcoef(alone.volume.ravel(), truth)[0, 1]
    assert len(mixed.members) == 250
    assert mixed.noise is not None and len(mixed.noise.keys) == 4


def test_fine_images_make_a_smaller_reference(table: ParticleTable) -> None:
    settings = SETTINGS.model_copy(update={"finest_angstrom": 20.0})
    small = reference_from_rows(half(table), "D2", settings, StackReader())
    assert small.volume.shape[0] == 18
    assert small.volume.shape[0] * small.pixel_size_angstrom == pytest.approx(BOX * PIXEL_SIZE)
    assert small.resolution_angstrom >= 20.0


def test_rows_without_a_usable_image_or_pose_are_left_out(table: ParticleTable, tmp_path: Path) -> None:
    stack = tmp_path / "bad.mrcs"
    write_stack(stack, np.zeros((2, BOX, BOX), np.float32), PIXEL_SIZE)
    mine = half(table).select(range(60))
    spoilt = mine.with_columns(
        {
            "cestreamStack": [str(stack)] * 2 + mine.column("cestreamStack")[2:],
            "rlnImageName": ["1@bad.mrcs", "2@bad.mrcs", *mine.column("rlnImageName")[2:]],
            "rlnAngleRot": [*mine.column("rlnAngleRot")[:59], "-999"],
        }
    )
    found = reference_from_rows(spoilt, "D2", SETTINGS, StackReader())
    assert len(found.members) == 57
    with pytest.raises(InvalidStarError, match="5 rows with a pose"):
        reference_from_rows(mine.select(range(5)), "D2", SETTINGS, StackReader())
    with pytest.raises(InvalidStarError, match="no row has a pose"):
        reference_from_rows(mine.select([]).without(["rlnRandomSubset"]), "D2", SETTINGS, StackReader())


def test_a_given_map_is_low_passed_and_shared() -> None:
    volume = molecule("D2") + np.random.default_rng(0).normal(0, 0.01, (BOX,) * 3).astype(np.float32)
    found = reference_from_map(volume, PIXEL_SIZE, "D2", 1, ReferenceSettings(map_lowpass_angstrom=25.0))
    assert found.shared and found.half_set == 1 and len(found.members) == 0 and found.noise is None
    assert found.resolution_angstrom == pytest.approx(25.0, rel=0.1)
    assert found.volume.shape[0] * found.pixel_size_angstrom == pytest.approx(BOX * PIXEL_SIZE)
    power = np.abs(np.fft.rfft(found.volume.sum((0, 1)).astype(np.float64))) ** 2
    assert power[int(BOX * PIXEL_SIZE / 15) :].sum() < 1e-3 * power.sum()


def test_stars_as_relion_writes_them_are_enough(table: ParticleTable) -> None:
    source = Path(table.column("cestreamStack")[0]).parent / "particles_0.star"
    rows = read_star(source).select(range(100))
    assert "cestreamStack" not in rows
    assert len(reference_from_rows(rows, "D2", SETTINGS, StackReader()).members) == 100
