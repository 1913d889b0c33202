"""What a map will need is said before it is made, where that is much."""

import logging
from pathlib import Path

import pytest
from support.scored import small_entry, truth_of

from cesped_stream.reconstruction import memory
from cesped_stream.reconstruction.backproject import Backprojector
from cesped_stream.reconstruction.engine import BuiltinEngine
from cesped_stream.reconstruction.memory import map_memory_bytes, memory_words


def test_the_bytes_are_those_of_the_backprojectors_sums_and_what_a_map_takes_beside_them() -> None:
    sums = Backprojector(32, 4.0)._sums
    assert map_memory_bytes(32, symmetric=False) == pytest.approx(3.5 * sums.nbytes, abs=1)
    both = map_memory_bytes(32, symmetric=True, num_maps=2)
    assert both == pytest.approx(4.7 * sums.nbytes, abs=1)
    assert 11e9 < map_memory_bytes(320, symmetric=False) < map_memory_bytes(320) < 12e9


def test_little_is_not_told_much_is_and_too_much_with_a_remedy() -> None:
    assert memory_words(64, 10**8, 10**9) == memory_words(64, 10**8, None) == ""
    assert memory_words(320, 11_800_000_000, None) == "maps of 320 px need 11.8 GB of memory"
    assert memory_words(320, 11_800_000_000, 64 * 10**9).endswith("64.0 GB are free")
    assert "bin or crop" in memory_words(320, 11_800_000_000, 8 * 10**9)
    assert "bin or crop" in memory_words(64, 10**8, 10**7)


def test_an_engine_says_it_once_and_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    table = truth_of(small_entry(tmp_path / "toy", num_particles=20))
    monkeypatch.setattr(memory, "LARGE_BYTES", 0)
    monkeypatch.setattr(memory, "_MEMORY_INFO", tmp_path / "absent")
    engine, done = BuiltinEngine(), list[int]()

    def on_progress(number: int) -> None:
        done.append(number)
        assert len(caplog.records) == 1

    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            engine.reconstruct(table, "C1", on_progress=on_progress)
    assert done and [record.getMessage()[:8] for record in caplog.records] == ["maps of "]
