"""`train` and `infer` work on star files without a daemon, and `run` ends politely."""

import json
from pathlib import Path

import pytest

from cesped_stream.particles.stacks import write_stack
from cesped_stream.particles.star import read_star
from cesped_stream_service.cli import main
from cesped_stream_service.toml import toml_text

from .conftest import BOX, PIXEL_SIZE, QUICK_SERVICE, TINY_TRAINING, MakeSession, land


def test_train_then_infer_gives_every_row_a_pose_of_its_halfs_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    land(data, "aligned", 64, aligned=True, seed=1)
    land(data, "more", 30, aligned=False, seed=2)
    file = tmp_path / "settings.toml"
    file.write_text(
        toml_text({"training": TINY_TRAINING, "inference": {"batch_size": 16, "device": "cpu", "threads": 1}})
    )
    common = ["--settings", str(file)]
    output = tmp_path / "checkpoints"
    assert main(["train", *common, "--star", str(data / "aligned.star"), "--output", str(output)]) == 0
    (checkpoint,) = output.glob("i2s-*")
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert manifest["halves"]["0"]["steps"] == TINY_TRAINING["max_steps"]

    posed = tmp_path / "out" / "posed.star"
    words = ["infer", *common, "--checkpoint", str(checkpoint), "--star", str(data / "more.star"), "--output"]
    assert main([*words, str(posed)]) == 0
    table = read_star(posed)
    assert table.column("rlnImageName") == read_star(data / "more.star").column("rlnImageName")
    assert table.has_poses().all()
    assert set(table.column("cestreamCheckpoint")) == {checkpoint.name}
    again = tmp_path / "again.star"
    assert main([*words, str(again)]) == 0
    assert again.read_bytes() == posed.read_bytes()
    assert main([*words, str(again), "--half_mode", "cross_half"]) == 0
    assert again.read_bytes() != posed.read_bytes()
    capsys.readouterr()


def test_infer_sets_unusable_images_apart_and_names_what_is_missing(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    data = tmp_path / "data"
    land(data, "batch", 6, aligned=False, seed=3)
    images = np.random.default_rng(0).standard_normal((6, BOX, BOX)).astype(np.float32)
    images[2] = np.nan
    write_stack(data / "batch.mrcs", images, PIXEL_SIZE)
    posed = tmp_path / "posed.star"
    words = ["infer", "--checkpoint", str(tiny_checkpoint), "--star", str(data / "batch.star"), "--output", str(posed)]
    words += ["--inference.batch_size", "16", "--inference.device", "cpu", "--inference.threads", "1"]
    assert main(words) == 0
    assert len(read_star(posed)) == 5
    flagged = read_star(tmp_path / "posed_unposed.star")
    assert flagged.column("rlnImageName") == ["000003@batch.mrcs"]
    assert flagged.column("cestreamStatus") == ["nan"]
    (data / "batch.mrcs").unlink()
    capsys.readouterr()
    assert main(words) == 75, "it may come yet"
    error = capsys.readouterr().err
    assert "batch.mrcs" in error
    assert "Traceback" not in error


def test_run_prints_its_settings_and_ends_with_0_on_sigterm(make_session: MakeSession, tmp_path: Path) -> None:
    landing = tmp_path / "landing"
    land(landing, "batch_1", 20, aligned=True, seed=1)
    session = make_session("s", landing, service=QUICK_SERVICE | {"trainers": 0, "workers": 0})
    run = session.start("run")
    session.wait_for("20 given poses on disk", lambda status: status["posed"] == 20)
    assert session.stop(run) == 0
    said = (session.folder / "run.out").read_text()
    assert f'session = "{session.folder}"' in said
    assert "20 posed" in said
    lines = (session.folder / "logs" / "coordinator.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["event"] == "coordinator stops"
    assert (session.folder / "logs" / "coordinator.stderr").read_text() == ""
