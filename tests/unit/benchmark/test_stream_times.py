"""Latency is from the last byte of a particle's batch to its pose on disk; what nobody recorded is not known."""

import json
from pathlib import Path

import numpy as np
import pytest

from cesped_stream.benchmark.plan import ROLE_LABEL
from cesped_stream.benchmark.stream_times import batch_latencies, first_pose_seconds, latency_of, stream_times
from cesped_stream.errors import InvalidStarError, UnreachableFileError
from cesped_stream.particles.table import OpticsGroup, ParticleTable

NAMES = ["000001@aligned_0001.mrcs", *(f"{k + 1:06d}@batch_0001.mrcs" for k in range(3)), "000001@batch_0002.mrcs"]
TRUTH = ParticleTable(("rlnImageName",), [(name,) for name in NAMES], (OpticsGroup(()),), np.zeros(5, np.int64))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    lines = [("aligned_0001", 1, 2.0), ("batch_0001", 3, 5.0), ("batch_0002", 1, 9.0)]
    file = tmp_path / "replay.jsonl"
    file.write_text(
        "".join(
            json.dumps({"batch": name, "rows": rows, "seconds": s, "monotonic_seconds": 100 + s}) + "\n"
            for name, rows, s in lines
        )
    )
    return file


def test_each_particle_has_its_batchs_last_byte_and_its_own_commit(log: Path) -> None:
    committed = {(0, "batch_0001.mrcs"): 108.0, (2, "batch_0001.mrcs"): 106.0, (0, "batch_0002.mrcs"): 109.5}
    times = stream_times(log, TRUTH, committed)
    assert times.landed.tolist() == [2.0, 5.0, 5.0, 5.0, 9.0]
    np.testing.assert_array_equal(times.latencies_seconds(), [np.nan, 3.0, np.nan, 1.0, 0.5])
    first, second = batch_latencies(times, np.arange(1, 5))
    assert (first.batch, first.num_particles, first.p50_seconds, first.max_seconds) == ("batch_0001", 3, 2.0, 3.0)
    assert (second.batch, second.landed_seconds, second.max_seconds) == ("batch_0002", 9.0, 0.5)


def test_a_replay_that_was_stopped_leaves_rows_that_never_landed(log: Path) -> None:
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    times = stream_times(log, TRUTH, {})
    assert np.isnan(times.landed[1:]).all()
    assert times.batch.tolist() == [0, -1, -1, -1, -1]
    assert batch_latencies(times, np.arange(1, 5)) == []


def test_latencies_are_of_those_that_are_known() -> None:
    latency = latency_of(np.array([np.nan, 1.0, 3.0]))
    assert (latency.num_particles, latency.p50_seconds, latency.max_seconds) == (2, 2.0, 3.0)
    assert latency_of(np.array([np.nan])).p50_seconds is None


def test_a_missing_or_cut_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreachableFileError, match=r"replay\.jsonl"):
        stream_times(tmp_path / "replay.jsonl", TRUTH, {})
    (tmp_path / "replay.jsonl").write_text('{"batch": "aligned_0001", "ro')
    with pytest.raises(InvalidStarError, match="cut"):
        stream_times(tmp_path / "replay.jsonl", TRUTH, {})


def test_the_first_pose_is_counted_from_the_last_aligned_row(log: Path) -> None:
    truth = TRUTH.with_columns({ROLE_LABEL: ["aligned"] + ["streamed"] * 4})
    committed = {(0, "aligned_0001.mrcs"): 103.0, (0, "batch_0001.mrcs"): 108.0, (2, "batch_0001.mrcs"): 106.0}
    assert first_pose_seconds(stream_times(log, truth, committed), truth) == pytest.approx(4.0)
    assert first_pose_seconds(stream_times(log, truth, {}), truth) is None
    streamed = TRUTH.with_columns({ROLE_LABEL: ["streamed"] * 5})
    assert first_pose_seconds(stream_times(log, streamed, committed), streamed) is None
