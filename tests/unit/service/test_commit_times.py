"""The coordinator's log tells when each particle's pose was on disk, and a cut line takes nothing else with it."""

import logging
from pathlib import Path

import pytest
from support.session_bench import Bench, FakeWorker, crash, fake_checkpoint, run_until

from cesped_stream.particles.stacks import parse_image_name
from cesped_stream.particles.star import read_star
from cesped_stream_service.commit_times import committed_at
from cesped_stream_service.process import JsonLines
from cesped_stream_service.session import SessionFolder


def test_every_committed_row_has_a_time_and_the_log_is_read_past_a_cut_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")))
    bench.land("a", 5, aligned=True)
    bench.land("b", 7)
    core = bench.open()
    with caplog.at_level(logging.INFO):
        run_until(core, bench.clock, [FakeWorker()], 12)
    session = SessionFolder.of(bench.settings)
    events = [record for record in caplog.records if record.getMessage() == "poses committed"]
    lines = [JsonLines("coordinator").format(record) for record in events]
    logs = session.root / "logs"
    logs.mkdir(exist_ok=True)
    (logs / "coordinator.jsonl.1").write_text(lines[0] + "\n" + lines[1][:40] + "\n")
    (logs / "coordinator.jsonl").write_text("\n".join([lines[-1], *lines[1:]]) + "\n")
    found = committed_at(session)
    posed = [name for star in session.poses.glob("poses*.star") for name in read_star(star).column("rlnImageName")]
    assert set(found) == {parse_image_name(name) for name in posed}
    assert len(found) == 12
    times = [vars(record)["monotonic_seconds"] for record in events]
    assert min(times) <= min(found.values()) <= max(found.values()) <= max(times)
    crash(core)


def test_a_session_without_logs_has_no_times(tmp_path: Path) -> None:
    assert committed_at(SessionFolder(tmp_path, tmp_path)) == {}
