"""The last moment of a stream's curves is the evaluation of all of it, and the ones before are of fewer particles."""

from pathlib import Path

import numpy as np
import pytest
from support.scored import small_entry, truth_of, turned

from cesped_stream.benchmark.map_metrics import compare_maps
from cesped_stream.benchmark.stream_curves import cumulative_maps, error_points, map_points, moments
from cesped_stream.benchmark.truth_maps import truth_maps
from cesped_stream.reconstruction.engine import BuiltinEngine


def test_moments_are_evenly_spread_and_end_with_the_last_particle() -> None:
    assert moments(100, 4).tolist() == [25, 50, 75, 100]
    assert moments(3, 9).tolist() == [1, 2, 3]
    assert moments(0, 9).tolist() == []


def test_errors_are_of_all_so_far_and_of_the_newest() -> None:
    points = error_points(np.array([1.0, 3.0, 10.0, 20.0]), np.array([5.0, 6.0, 7.0, np.nan]), np.array([2, 4]))
    assert [(p.seen, p.seconds, p.mean_deg, p.median_deg, p.recent_median_deg) for p in points] == [
        (2, 6.0, 2.0, 2.0, 2.0),
        (4, None, 8.5, 6.5, 15.0),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_entry(tmp_path_factory.mktemp("entry") / "toy", symmetry="C2")


def test_the_last_map_along_the_stream_is_that_of_all_particles(folder: Path) -> None:
    table, engine = truth_of(folder), BuiltinEngine()
    truth = truth_maps(table, "C2", engine)
    order = np.random.default_rng(0).permutation(len(table))
    *_, (count, halves) = cumulative_maps(table.select(order), np.array([50, len(table)]), truth, lambda done: None)
    assert count == len(table)
    for volume, whole in zip(halves, truth.halves, strict=True):
        assert volume is not None
        assert np.abs(volume - whole).max() < 1e-5 * np.abs(whole).max()


def test_more_particles_give_a_better_map_and_wrong_poses_a_worse_one(folder: Path) -> None:
    table = truth_of(folder)
    truth = truth_maps(table, "C2", BuiltinEngine())
    order = np.random.default_rng(0).permutation(len(table))
    counts, clock = np.array([20, len(table)]), np.arange(len(table), dtype=np.float64)
    few, all_of_it = map_points(table.select(order), clock, counts, truth)
    wrong = map_points(turned(table, 60.0).select(order), clock, counts, truth)[-1]
    assert (few.seen, few.seconds, all_of_it.seen) == (20, 19.0, len(table))
    assert few.to_other_half_05_angstrom is not None
    assert all_of_it.to_other_half_05_angstrom is not None
    assert few.to_other_half_05_angstrom > all_of_it.to_other_half_05_angstrom
    assert wrong.to_truth_05_angstrom is None or wrong.to_truth_05_angstrom > (all_of_it.to_truth_05_angstrom or 0)
    assert (all_of_it.to_truth_05_at_nyquist, few.to_other_half_05_at_nyquist) == (True, False)
    expected = compare_maps(*truth.halves, truth.pixel_size_angstrom).unmasked.resolution_0143_angstrom
    assert all_of_it.half_to_half_0143_angstrom == pytest.approx(expected, rel=1e-3)
