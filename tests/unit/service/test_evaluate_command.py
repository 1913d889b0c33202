"""`cesped-stream evaluate` from its words to its report and files."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from support.scored import small_entry, truth_of, turned

from cesped_stream import evaluate_entry
from cesped_stream.particles.star import write_star
from cesped_stream_service.cli import main


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    truth = truth_of(small_entry(folder / "mine", num_particles=40, symmetry="C2")).without(["cestreamStack"])
    predicted = turned(truth, 6.0)
    write_star(folder / "both.star", predicted)
    (folder / "bare").mkdir()
    write_star(folder / "bare" / "particles.star", truth)
    for half in (0, 1):
        write_star(folder / f"half_{half}.star", predicted.select(np.flatnonzero(truth.half_sets() == half)))
    return folder


def evaluate(root: Path, *words: str) -> int:
    return main(["evaluate", "--root", str(root), *words])


def test_an_entry_under_the_root_is_scored(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    halves = [f"--half{half}={root}/half_{half}.star" for half in (0, 1)]
    assert evaluate(root, "--target", "mine", *halves, "--output", str(tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    assert "mine: poses (SO3, C2)" in printed and "6.00°" in printed and "Maps, masked" in printed
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["meanAngularError"] == pytest.approx(6.0, abs=1e-3)
    assert "made of the truth's map" in metrics["cesped_stream"]["mask"]
    assert (tmp_path / "out" / "slices.png").is_file() and (tmp_path / "out" / "mask.mrc").is_file()


def test_one_star_of_both_halves_and_a_star_as_truth(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(root / "mine" / "particles_0.star")
    words = ["--target", target, "--predictions", f"{root}/half_0.star", "--poses-only", "--symmetry", "C1"]
    assert evaluate(root, *words) == 0
    printed = capsys.readouterr().out
    assert "particles_0: poses (SO3, C1)" in printed and "Maps" not in printed
    assert evaluate(root, "--target", "mine", "--predictions", f"{root}/both.star", "--poses-only") == 0
    assert "40 (100 %)" in capsys.readouterr().out


def test_masked_figures_are_left_out_on_request(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(root, "--target", "mine", "--predictions", f"{root}/both.star", "--mask", "none") == 0
    printed = capsys.readouterr().out
    assert "Maps, unmasked" in printed and "Maps, masked" not in printed and "Mask: none." in printed


def test_an_output_that_cannot_be_written_is_told_before_any_map_is_made(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    cache = tmp_path / "cache"
    words = ["--target", "mine", "--predictions", f"{root}/both.star", "--cache", str(cache)]
    assert evaluate(root, *words, "--output", str(tmp_path / "file")) == 2
    assert "file is a file; give another folder" in capsys.readouterr().err
    assert evaluate(root, *words, "--output", "/proc/results") == 75
    assert "/proc/results" in capsys.readouterr().err
    assert not cache.exists()


@pytest.mark.parametrize("command", ["simulate", "replay", "protocol", "score", "preprocess"])
def test_every_command_says_so_before_it_works(
    root: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    output = ["--output", str(tmp_path / "file" / "o")]
    mine = str(root / "mine")
    words = {
        "simulate": ["simulate"],
        "replay": ["replay", mine],
        "protocol": ["protocol", mine],
        "score": ["score", str(tmp_path), "--poses", f"{root}/both.star"],
        "preprocess": ["entries", "preprocess", mine],
    }[command]
    assert main([*words, *output]) == 2
    text = capsys.readouterr().err
    assert "file is a file" in text and text.count("\n") == 1


def test_a_disk_that_fails_while_writing_is_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.json")

    monkeypatch.setattr("cesped_stream.benchmark.evaluation_files.write_whole", full)
    words = ["--target", "mine", "--predictions", f"{root}/both.star", "--poses-only", "--output", str(tmp_path / "o")]
    assert evaluate(root, *words) == 75
    assert "metrics.json: No space left on device; make room" in capsys.readouterr().err


def test_a_missing_star_ends_alike_in_both_commands_and_an_unknown_name_is_no_retry(root: Path) -> None:
    star = f"{root}/absent.star"
    assert evaluate(root, "--target", "mine", f"--half0={star}", f"--half1={root}/half_1.star") == 75
    words = ["--predictionType", "SO3", "--half0PredsFname", star, "--half1PredsFname", f"{root}/half_1.star"]
    assert evaluate_entry.main([*words, "--benchmarkDir", str(root), "--targetName", "mine"]) == 75
    assert evaluate(root, "--target", "mien", "--predictions", f"{root}/both.star") == 2
    assert evaluate_entry.main([*words, "--benchmarkDir", str(root), "--targetName", "mien"]) == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--target", "mine"], "--half0 and --half1, or --predictions"),
        (["--target", "mine", "--half0", "a.star"], "--half0 and --half1, or --predictions"),
        (
            ["--target", "mine", "--half0", "a.star", "--half1", "b.star", "--predictions", "c.star"],
            "--half0 and --half1",
        ),
        (["--target", "nothing", "--predictions", "both.star", "--poses-only"], "nothing"),
        (["--target", "mine", "--predictions", "absent.star"], "absent.star"),
        (["--target", "mine", "--predictions", "both.star", "--mask", "absent.mrc"], "absent.mrc"),
        (
            ["--target", "mine", "--predictions", "both.star", "--engine", "relion", "--processes", "0"],
            "engine: processes: got 0",
        ),
        (["--target", "mine", "--predictions", "both.star", "--processes", "4"], "--processes: of RELION"),
        (["--target", "mine", "--predictions", "both.star", "--skip-gridding"], "--skip-gridding: of RELION"),
        (
            ["--target", "mine", "--predictions", "both.star", "--engine", "relion", "--device", "cpu"],
            "--device: of the builtin engine",
        ),
        (
            ["--target", "mine", "--predictions", "both.star", "--poses-only", "--mask", "m.mrc", "--engine", "relion"],
            "--mask, --engine: of maps",
        ),
        (
            ["--target", "mine", "--predictions", "both.star", "--poses-only", "--no-confidence"],
            "--no-confidence: of maps",
        ),
        (["--target", "bare/particles.star", "--predictions", "half_0.star", "--poses-only"], "give the point group"),
        (["--target", "mine", "--predictions", "both.star", "--prediction-type", "R3"], "R3: no such choice"),
    ],
)
def test_what_is_wrong_is_one_line(
    root: Path, words: list[str], expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    assert evaluate(root, *words) in (2, 75)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("cesped-stream: error: ") and expected in err
