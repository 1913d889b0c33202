"""An export never lands: where the session would read it, or over a file of its own, it is refused."""

from pathlib import Path

import pytest
from support.session_bench import Bench, FakeWorker, fake_checkpoint, run_until

from cesped_stream.errors import InvalidSettingsError
from cesped_stream.particles.star import read_star
from cesped_stream_service.cli import main
from cesped_stream_service.output_paths import check_export_path, is_watched
from cesped_stream_service.process import save_settings
from cesped_stream_service.watcher import Watcher

PLACES = [
    "export.star",
    "deep/er/export.star",
    ".hidden.star",
    ".hidden/export.star",
    "deep/.hidden/export.star",
    "export.txt",
    "export.star.bak",
    "run_it007_data.star",
    "run_data.star",
    "session/export.star",
    "session2/export.star",
    "../elsewhere/export.star",
]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")))


@pytest.mark.parametrize("aligned", ["", "*_it007_data.star"])
def test_what_would_be_read_is_what_the_watcher_reads(bench: Bench, aligned: str) -> None:
    landing = bench.settings.landing.model_copy(update={"aligned": aligned})
    settings = bench.settings.model_copy(update={"session": bench.landing / "session", "landing": landing})
    watcher = Watcher(landing, without=bench.landing / "session")
    for place in PLACES:
        path = bench.landing / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("data_\n")
    watcher.scan(0.0)
    seen = {star.path for star in watcher.scan(5.0)}
    assert {place for place in PLACES if is_watched(bench.landing / place, settings)} == {
        place for place in PLACES if bench.landing / place in seen
    }
    assert len(seen) == (5 if aligned else 4)


def test_a_landing_folder_that_is_reached_by_a_link_is_known(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bench.landing)
    (bench.landing / "out").symlink_to(tmp_path)
    assert is_watched(tmp_path / "link" / "export.star", bench.settings)
    assert is_watched(bench.landing / "out" / "export.star", bench.settings), "in case links come to be followed"
    assert not is_watched(tmp_path / "export.star", bench.settings)


@pytest.mark.parametrize(
    "place",
    ["batches/batch_000001.star", "poses/mine.star", "state/x.star", "checkpoints/x.star", "session.toml", "a/b.star"],
)
def test_the_sessions_own_files_are_never_written_over(bench: Bench, place: str) -> None:
    for force in (False, True):
        with pytest.raises(InvalidSettingsError, match=r"session's own files.*export\.star"):
            check_export_path(bench.session / place, bench.settings, force=force)
    check_export_path(bench.session / "export.star", bench.settings)


def test_export_refuses_to_land_says_where_to_write_and_can_be_forced(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.land("s", 7)
    core = bench.open()
    run_until(core, bench.clock, [FakeWorker()], 7)
    save_settings(bench.settings)
    words = ["export", "star", str(bench.session), "--output"]
    inside, before = bench.landing / "all.star", (bench.landing / "s.star").read_bytes()
    assert main([*words, str(inside)]) == 2
    told = capsys.readouterr().err
    assert not inside.exists() and str(bench.session / "export.star") in told and "--force" in told
    assert main([*words, str(bench.landing / "s.star"), "--force"]) == 2
    assert "is a star that landed" in capsys.readouterr().err and (bench.landing / "s.star").read_bytes() == before
    for _ in range(2):
        assert main([*words, str(inside), "--force"]) == 0
    assert main([*words, str(bench.session / "export.star")]) == 0
    assert len(read_star(inside)) == len(read_star(bench.session / "export.star")) == 7
    core.close()
