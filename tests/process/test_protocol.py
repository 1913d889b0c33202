"""The paper's 2-fold protocol as one command, a checkpoint on another entry, and a foreign tool's star on a stream."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from support.scored import small_entry, turned

from cesped_stream.benchmark.entries import open_entry
from cesped_stream.benchmark.entry_folder import folder_lock
from cesped_stream.model.checkpoint import read_manifest
from cesped_stream.particles.star import read_star, write_star
from cesped_stream.published import MANIFEST_NAME
from cesped_stream.training.fit import TrainingStopped
from cesped_stream_service.cli import build_parser, main, settings_from
from cesped_stream_service.process import StopRequest
from cesped_stream_service.protocol_command import protocol_command
from cesped_stream_service.stream_settings import ProtocolCommand
from cesped_stream_service.toml import toml_text

from .conftest import TINY_TRAINING

FILES = {"predictions_0.star", "predictions_1.star", "metrics.json", "report.html", "protocol.json", "predicted.mrc"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two entries: `toy`, C1, and `twofold`, C2, of 96 particles each; and tiny settings."""
    folder = tmp_path_factory.mktemp("entries")
    small_entry(folder / "toy", num_particles=96)
    small_entry(folder / "twofold", num_particles=96, symmetry="C2", seed=5)
    inference = {"batch_size": 16, "device": "cpu", "threads": 1}
    (folder / "tiny.toml").write_text(toml_text({"training": TINY_TRAINING, "inference": inference}))
    (folder / "infer.toml").write_text(toml_text({"inference": inference}))
    return folder


def words(root: Path, entry: str, output: Path, settings: str = "tiny.toml") -> list[str]:
    return ["protocol", entry, "--root", str(root), "--output", str(output), "--settings", str(root / settings)]


@pytest.fixture(scope="module")
def output(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The protocol, run on `toy`."""
    folder = tmp_path_factory.mktemp("protocol") / "out"
    assert main(words(root, "toy", folder)) == 0
    return folder


def checkpoint_of(output: Path) -> Path:
    (folder,) = (output / "checkpoints").glob("i2s-*")
    return folder


def test_each_half_is_posed_by_the_other_halfs_model_and_scored(root: Path, output: Path) -> None:
    assert {path.name for path in output.iterdir()} >= FILES
    truth = open_entry(root / "toy")
    for half, star in enumerate(truth.stars):
        predicted = read_star(output / f"predictions_{half}.star")
        assert predicted.column("rlnImageName") == read_star(star).column("rlnImageName")
        assert predicted.column("rlnParticleFigureOfMerit") == predicted.column("cestreamConfidence")
    metrics = json.loads((output / "metrics.json").read_text())
    own = metrics["cesped_stream"]
    assert own["coverage"]["together"]["num_predicted"] == 96
    assert own["half_words"] == "cross half (CESPED's protocol), not gold standard"
    assert metrics["meanAngularError"] > 0
    assert metrics["GT_resolution05"] is not None
    assert read_manifest(checkpoint_of(output)).trained_on == "toy"


def test_a_second_start_does_nothing_twice_and_other_settings_are_refused(
    root: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (*output.glob("*.star"), checkpoint_of(output))}
    metrics = (output / "metrics.json").read_bytes()
    capsys.readouterr()
    assert main(words(root, "toy", output)) == 0
    said = "".join(capsys.readouterr().out.split("open ")[-1].split())
    assert said.startswith(f"{output}/report.html{output}/metrics.json{output}/predictions_0.star")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (output / "metrics.json").read_bytes() == metrics
    assert main([*words(root, "toy", output), "--training.seed", "9"]) == 2
    assert "begun with training.seed 0, now 9; go on" in capsys.readouterr().err


def test_a_run_that_was_cut_after_one_half_ends_with_the_same_predictions(root: Path, output: Path) -> None:
    before = {half: (output / f"predictions_{half}.star").read_bytes() for half in (0, 1)}
    (output / "predictions_1.star").unlink()
    assert main(words(root, "toy", output)) == 0
    assert {half: (output / f"predictions_{half}.star").read_bytes() for half in (0, 1)} == before


class StopsAfter(StopRequest):
    """A request to stop that comes when it was asked about so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._left = times

    def asked(self) -> bool:
        self._left -= 1
        return self._left < 0


def test_a_training_that_was_stopped_goes_on_and_ends_with_the_same_predictions(
    root: Path, output: Path, tmp_path: Path
) -> None:
    command = words(root, "toy", tmp_path / "cut")
    settings = settings_from(build_parser("protocol").parse_args(command), ProtocolCommand)
    with pytest.raises(TrainingStopped):
        protocol_command(settings, StopsAfter(9), Console(quiet=True))
    assert not list((tmp_path / "cut").glob("predictions_*"))
    assert main(command) == 0
    for half in (0, 1):
        name = f"predictions_{half}.star"
        assert (tmp_path / "cut" / name).read_bytes() == (output / name).read_bytes()


def test_a_models_own_training_particles_are_not_evaluated(
    root: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gold = [*words(root, "toy", tmp_path / "gold"), "--protocol", "gold_standard"]
    assert main(gold) == 2
    assert "very particles that it was trained on" in capsys.readouterr().err
    assert main([*gold, "--checkpoint", str(checkpoint_of(output))]) == 2
    assert not (tmp_path / "gold").exists()


def test_a_checkpoint_of_another_entry_poses_this_one_and_the_result_says_so(
    root: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "transfer"
    given = [*words(root, "twofold", folder, "infer.toml"), "--checkpoint", str(checkpoint_of(output))]
    assert main(given) == 2
    assert "is for C1, this entry is C2" in capsys.readouterr().err
    assert not folder.exists()
    assert main([*given, "--allow-symmetry", "--protocol", "gold_standard"]) == 0
    own = json.loads((folder / "metrics.json").read_text())["cesped_stream"]
    assert (own["symmetry"], own["trained_on"], own["trained_for_symmetry"]) == ("C2", "toy", "C1")
    assert own["half_words"] == "own half's model, halves unknown: not gold standard"
    assert own["warnings"] == ["Trained for C1; errors are under C2."]
    assert not (folder / "checkpoints").exists()
    assert "trained on toy" in (folder / "report.html").read_text()


def test_gold_standard_needs_a_checkpoint_known_to_be_of_another_entry(
    root: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        *words(root, "twofold", tmp_path / "gold", "infer.toml"),
        "--allow-symmetry",
        "--protocol",
        "gold_standard",
    ]
    for name, why in (
        ("", "does not name what"),
        ("particles_0.star", "a star file"),
        ("consensus_twofold", "consensus_twofold"),
    ):
        checkpoint = tmp_path / f"trained_on_{name or 'nothing'}"
        shutil.copytree(checkpoint_of(output), checkpoint)
        manifest = read_manifest(checkpoint).model_copy(update={"trained_on": name})
        manifest = manifest.model_copy(update={"checkpoint_id": manifest.content_id()})
        (checkpoint / MANIFEST_NAME).write_text(manifest.model_dump_json())
        assert main([*given, "--checkpoint", str(checkpoint)]) == 2
        assert why in capsys.readouterr().err
    assert not (tmp_path / "gold").exists()


def test_a_folder_of_something_else_is_not_written_to(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(words(root, "toy", tmp_path)) == 2
    assert "not of this command" in capsys.readouterr().err


def test_a_page_states_what_the_stream_contained_and_junk_is_in_no_error(root: Path, tmp_path: Path) -> None:
    replayed, plain = tmp_path / "session", tmp_path / "plain"
    words = ["--root", str(root), "--no-roles", "--first-aligned-micrographs", "1", "--batch", "30"]
    given = ["--realism.preset", "session", "--realism.particle_diameter_angstrom", "120"]
    assert main(["replay", "toy", "--output", str(replayed), *words, *given]) == 0
    assert main(["replay", "toy", "--output", str(plain), *words]) == 0
    truth = read_star(replayed / "truth" / "truth.star")
    junk = sum(kind != "particle" for kind in truth.column("cestreamKind"))
    labels = ("rlnImageName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
    turned_table = turned(truth, 4.0)
    write_star(tmp_path / "other.star", turned_table.without([x for x in turned_table.labels if x not in labels]))
    output = tmp_path / "scored"
    score = ["score", str(replayed), "--poses", str(tmp_path / "other.star"), "--output", str(output)]
    assert main(score) == 0
    block = json.loads((output / "metrics.json").read_text())["cesped_stream"]
    coverage = block["coverage"]["together"]
    assert 0 < coverage["num_junk_predicted"] <= junk
    assert coverage["num_predicted"] + coverage["num_junk_predicted"] == block["stream"]["counts"]["streamed"]
    assert block["poses"]["together"]["num_particles"] == coverage["num_predicted"]
    assert block["poses"]["together"]["median_deg"] == pytest.approx(4.0, abs=1e-3)
    page = (output / "report.html").read_text()
    assert "This stream: preset session, junk fraction 0.3" in page
    assert "rows of junk are in the maps" in page
    contained = json.loads((plain / "truth" / "stream.json").read_text())["contained"]
    assert not any("preset session" in words for words in contained)


def test_another_tools_star_is_scored_on_a_replayed_stream(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replayed = tmp_path / "replayed"
    settings = ["--batch", "20", "--first-aligned-micrographs", "1", "--order", "recorded"]
    assert main(["replay", "toy", "--root", str(root), "--output", str(replayed), "--no-roles", *settings]) == 0
    truth = read_star(replayed / "truth" / "truth.star")
    names = [name.replace("@", "@Extract/job003/") for name in truth.column("rlnImageName")]
    labels = ("rlnImageName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")
    other = turned(truth.with_columns({"rlnImageName": names}), 4.0).select(range(10, len(truth)))
    other = other.without([label for label in other.labels if label not in labels])
    write_star(tmp_path / "other.star", other)
    output = tmp_path / "scored"
    score = ["score", str(replayed), "--poses", str(tmp_path / "other.star"), "--output", str(output)]
    assert main([*score, "--prediction-type", "SO3xR2", "--name", "Other Tool"]) == 0
    metrics = json.loads((output / "metrics.json").read_text())
    stream = metrics["cesped_stream"]["stream"]
    streamed = stream["counts"]["streamed"]
    assert 0 < streamed < 96
    assert stream["counts"]["inferred"] == streamed
    assert (stream["counts"]["foreign"], stream["counts"]["doubled"]) == (0, 0)
    assert metrics["cesped_stream"]["poses"]["together"]["median_deg"] == pytest.approx(4.0, abs=1e-3)
    assert metrics["shiftsRMSE"] == pytest.approx(0.0, abs=1e-3)
    assert np.isfinite(metrics["mapVsGT_resolution05"])
    assert "Other Tool" in (output / "report.html").read_text()
    assert main(["score", str(tmp_path), "--poses", str(tmp_path / "other.star")]) == 75
    assert "give the output folder of a replay" in capsys.readouterr().err


def test_record_cut_by_a_kill_is_no_obstacle_and_a_damaged_one_is_told(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".protocol.json.tmp").write_text('{"ent')
    stop = StopRequest()
    stop.ask()
    with pytest.raises(TrainingStopped):
        protocol_command(settings_of(root, tmp_path / "out"), stop, Console())
    assert (tmp_path / "out" / "protocol.json").exists()
    (tmp_path / "out" / "protocol.json").write_text('{"entry": ')
    assert main(words(root, "toy", tmp_path / "out")) == 2
    assert "damaged" in capsys.readouterr().err


def test_changed_images_are_refused_and_a_folder_serves_one_process(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_entry(tmp_path / "own", num_particles=96)
    order = words(tmp_path, "own", tmp_path / "out")
    order[order.index("--settings") + 1] = str(root / "tiny.toml")
    with folder_lock(tmp_path / "out"):
        assert main(order) != 0
    assert str(os.getpid()) in capsys.readouterr().err
    arguments, _ = build_parser("protocol").parse_known_args(order)
    stop = StopRequest()
    stop.ask()
    with pytest.raises(TrainingStopped):
        protocol_command(settings_from(arguments, ProtocolCommand), stop, Console())
    stack = next((tmp_path / "own").glob("*.mrcs"))
    os.utime(stack, ns=(1, 1))
    assert main(order) == 2
    assert f"begun with another {stack}" in capsys.readouterr().err


def settings_of(root: Path, output: Path) -> ProtocolCommand:
    arguments, _ = build_parser("protocol").parse_known_args(words(root, "toy", output))
    return settings_from(arguments, ProtocolCommand)
