"""The truth's maps are cached by what they are made of, whatever it is called."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.scored import small_entry, truth_of

from cesped_stream.benchmark.truth_maps import TruthMaps, truth_maps
from cesped_stream.particles.table import ParticleTable
from cesped_stream.reconstruction.engine import BuiltinEngine, Reconstruction


class CountingEngine(BuiltinEngine):
    """The builtin engine, and how many maps it made."""

    def __init__(self, name: str = "builtin") -> None:
        super().__init__()
        self.made = 0
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    def reconstruct(
        self,
        table: ParticleTable,
        symmetry: str,
        *,
        weights: np.ndarray | None = None,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> Reconstruction:
        self.made += 1
        return super().reconstruct(table, symmetry, weights=weights, on_progress=on_progress)


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    return small_entry(tmp_path / "entry", num_particles=20)


def maps_made(entry: Path, cache: Path, *, symmetry: str = "C1", engine: str = "builtin") -> tuple[TruthMaps, int]:
    counting = CountingEngine(engine)
    return truth_maps(truth_of(entry), symmetry, counting, cache=cache), counting.made


def test_maps_are_made_once(entry: Path, tmp_path: Path) -> None:
    first, made = maps_made(entry, tmp_path / "cache")
    again, made_again = maps_made(entry, tmp_path / "cache")
    assert (made, made_again) == (2, 0)
    for one, other in zip(first.halves, again.halves, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (again.num_particles, again.pixel_size_angstrom) == (first.num_particles, first.pixel_size_angstrom)
    assert (again.engine, again.symmetry) == ("builtin", "C1")


def test_the_same_entry_under_another_name_is_the_same(entry: Path, tmp_path: Path) -> None:
    maps_made(entry, tmp_path / "cache")
    moved = tmp_path / "elsewhere"
    entry.rename(moved)
    assert maps_made(moved, tmp_path / "cache")[1] == 0


def test_columns_that_no_map_follows_from_do_not_matter(entry: Path, tmp_path: Path) -> None:
    maps_made(entry, tmp_path / "cache")
    truth = truth_of(entry).with_columns({"rlnMaxValueProbDistribution": ["0.5"] * 20, "rlnClassNumber": ["1"] * 20})
    engine = CountingEngine()
    truth_maps(truth, "C1", engine, cache=tmp_path / "cache")
    assert engine.made == 0


@pytest.mark.parametrize("label", ["rlnAnglePsi", "rlnOriginXAngst", "rlnDefocusU", "rlnRandomSubset"])
def test_another_value_that_a_map_follows_from_makes_other_maps(entry: Path, tmp_path: Path, label: str) -> None:
    maps_made(entry, tmp_path / "cache")
    truth = truth_of(entry)
    values = truth.column(label)
    values[0] = {"1": "2", "2": "1"}[values[0]] if label == "rlnRandomSubset" else f"{float(values[0]) + 1:.6f}"
    engine = CountingEngine()
    truth_maps(truth.with_columns({label: values}), "C1", engine, cache=tmp_path / "cache")
    assert engine.made == 2


def test_another_symmetry_or_engine_makes_other_maps(entry: Path, tmp_path: Path) -> None:
    maps_made(entry, tmp_path / "cache")
    assert maps_made(entry, tmp_path / "cache", symmetry="C2")[1] == 2
    assert maps_made(entry, tmp_path / "cache", engine="another")[1] == 2
    assert maps_made(entry, tmp_path / "cache", symmetry="c1")[1] == 0


def test_other_pixels_under_the_same_name_size_and_time_make_other_maps(entry: Path, tmp_path: Path) -> None:
    first, _ = maps_made(entry, tmp_path / "cache")
    stack = entry / "particles_1.mrcs"
    before = stack.stat()
    data = bytearray(stack.read_bytes())
    half = np.frombuffer(data, np.float32, offset=1024 + len(data) // 8 * 4)
    half *= -1
    stack.write_bytes(data)
    os.utime(stack, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert stack.stat().st_size == before.st_size
    second, made = maps_made(entry, tmp_path / "cache")
    assert made == 2
    assert not np.array_equal(first.halves[1], second.halves[1])
    np.testing.assert_array_equal(first.halves[0], second.halves[0])


def test_a_stack_is_read_once_when_it_has_been_left_alone(
    entry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr("cesped_stream.benchmark.truth_maps.time.time", lambda: now + 60)
    maps_made(entry, tmp_path / "cache")
    kept = (tmp_path / "cache" / "stacks.json").read_text()
    assert kept.count(":") == 2
    (tmp_path / "cache" / "stacks.json").write_text(kept.replace('": "', '": "00'))
    assert maps_made(entry, tmp_path / "cache")[1] == 2  # what was kept was believed, and its digests were others


def test_a_stack_that_changed_just_now_is_read_again(entry: Path, tmp_path: Path) -> None:
    maps_made(entry, tmp_path / "cache")
    assert not (tmp_path / "cache" / "stacks.json").exists()


@pytest.mark.parametrize("name", ["half_0.mrc", "half_1.mrc", "maps.json"])
@pytest.mark.parametrize("harm", ["cut", "changed", "gone"])
def test_a_damaged_cache_is_made_again(entry: Path, tmp_path: Path, name: str, harm: str) -> None:
    first, _ = maps_made(entry, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob(f"*/{name}")
    data = file.read_bytes()
    if harm == "gone":
        file.unlink()
    else:
        middle = len(data) // 2
        file.write_bytes(data[:middle] if harm == "cut" else data[:middle] + b"\x7f\x7f" + data[middle + 2 :])
    again, made = maps_made(entry, tmp_path / "cache")
    assert made == 2
    np.testing.assert_array_equal(first.halves[0], again.halves[0])
    assert maps_made(entry, tmp_path / "cache")[1] == 0


def test_a_cache_that_cannot_be_written_is_done_without(entry: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert maps_made(entry, tmp_path / "cache")[1] == 2


def test_junk_is_in_no_map_of_the_truth(entry: Path) -> None:
    truth = truth_of(entry)
    kinds = ["particle"] * 16 + ["ice"] * 4
    with_junk = truth_maps(truth.with_columns({"cestreamKind": kinds}), "C1", BuiltinEngine())
    without = truth_maps(truth.select(range(16)), "C1", BuiltinEngine())
    np.testing.assert_array_equal(with_junk.combined, without.combined)
    assert sum(with_junk.num_particles) == 16
