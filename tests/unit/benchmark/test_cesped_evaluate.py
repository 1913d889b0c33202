"""The `cesped` package's evaluator under its own names; Listings 3 and 4 of the paper."""

import json
import math
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from support.masks import spherical_mask
from support.scored import BOX, PIXEL_SIZE_ANGSTROM, small_entry, turned

import cesped_stream
from cesped_stream import evaluate_entry
from cesped_stream.benchmark import cesped_evaluate
from cesped_stream.benchmark.catalogue import CATALOGUE
from cesped_stream.benchmark.evaluate_target import TargetEvaluation
from cesped_stream.errors import InvalidSettingsError, UnreachableFileError
from cesped_stream.imaging.maps import write_map
from cesped_stream.particles.star import read_star, write_star

LISTING_3 = """
python -m cespded.evaluateEntry --predictionType SO3 --targetName 10280
--half0PredsFname particles_preds_0.star
--half1PredsFname particles_preds_1.star
--n_cpus 12 --outdir evaluation/
"""

LISTING_4 = """
from cespded.evaluateEntry import evaluate
evaluation_metrics = evaluate(targetName="10280",
                             half0PredsFname="particles_preds_0.star",
                             half1PredsFname="particles_preds_1.star",
                             predictionType="SO3", #Literal["S2", "SO3", "SO3xR2"],
                             usePredConfidence=True,
                             n_cpus=4,
                             outdir="output/directory")
"""

TURN_DEG = (4.0, 8.0)
"""By which the predictions of the halves are off."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose default benchmark folder holds a simulated "10280" with its mask, and predictions in it."""
    folder = tmp_path_factory.mktemp("home")
    entry = small_entry(folder / "cesped_stream_entries" / "10280", num_particles=40, symmetry="C2")
    for record in CATALOGUE["10280"].records:
        (entry / f"SUCCESSFUL_DOWNLOAD_{record}.txt").write_text("simulated\n")
    write_map(entry / "10280_mask.mrc", spherical_mask(BOX, 7, 3), PIXEL_SIZE_ANGSTROM)
    for half, degrees in enumerate(TURN_DEG):
        table = turned(read_star(entry / f"particles_{half}.star"), degrees)
        confidence = np.random.default_rng(half).uniform(0.1, 1, len(table))
        merit = {"rlnParticleFigureOfMerit": [f"{value:.4f}" for value in confidence]}
        write_star(folder / f"particles_preds_{half}.star", table.with_columns(merit))
    return folder


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    return home


def evaluated(home: Path, **other: object) -> tuple[dict[str, float], TargetEvaluation]:
    results: list[TargetEvaluation] = []
    arguments: dict[str, object] = {
        "targetName": "10280",
        "half0PredsFname": home / "particles_preds_0.star",
        "half1PredsFname": str(home / "particles_preds_1.star"),
        "predictionType": "SO3",
        "benchmarkDir": home / "cesped_stream_entries",
    }
    metrics = cesped_evaluate.evaluate(**{**arguments, "on_result": results.append, **other})  # type: ignore[arg-type]
    return metrics, results[0]


def test_listing_4_runs(at_home: Path) -> None:
    names: dict[str, dict[str, float]] = {}
    exec(LISTING_4.replace("cespded.evaluateEntry", "cesped_stream"), names)
    metrics = names["evaluation_metrics"]
    assert metrics["meanAngularError"] == pytest.approx(sum(TURN_DEG) / 2, abs=1e-4)
    assert metrics["shiftsRMSE"] == 0.0
    assert 0.5 < metrics["mapVsGT_correlaton_masked"] <= 1
    assert len(metrics) == 15 and all(math.isfinite(value) for value in metrics.values())
    written = json.loads((at_home / "output" / "directory" / "metrics.json").read_text())
    block = written.pop("cesped_stream")
    assert written == pytest.approx(metrics)
    assert (block["symmetry"], block["target"]) == ("C2", "10280")
    assert block["mask"].endswith("10280_mask.mrc")


def test_listing_3_runs(at_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module, *flags = shlex.split(LISTING_3)[2:]
    assert module == "cespded.evaluateEntry"
    monkeypatch.delitem(sys.modules, "cesped_stream.evaluate_entry")
    monkeypatch.setattr(sys, "argv", ["evaluate_entry", *flags])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("cesped_stream.evaluate_entry", run_name="__main__")
    assert ended.value.code == 0
    assert "10280: poses (SO3, C2)" in capsys.readouterr().out
    metrics = json.loads((at_home / "evaluation" / "metrics.json").read_text())
    assert metrics["meanAngularError"] == pytest.approx(sum(TURN_DEG) / 2, abs=1e-4)


def test_evaluate_is_the_packages_own() -> None:
    assert cesped_stream.evaluate is cesped_evaluate.evaluate
    with pytest.raises(AttributeError, match="no attribute 'evaluated'"):
        _ = cesped_stream.evaluated


def test_predicted_confidence_weighs_the_maps_unless_it_is_not_to_be_used(home: Path) -> None:
    weighted, result = evaluated(home)
    plain, _ = evaluated(home, usePredConfidence=False)
    maps = result.evaluation.maps
    assert maps is not None and maps.weighted is not None
    assert weighted["mapVsGT_correlaton_unmasked"] == maps.weighted.to_truth.unmasked.pearson
    assert plain["mapVsGT_correlaton_unmasked"] == maps.unweighted.to_truth.unmasked.pearson
    assert plain["mapVsGT_correlaton_unmasked"] != weighted["mapVsGT_correlaton_unmasked"]


def test_symmetry_is_the_entrys_unless_it_is_ignored(home: Path) -> None:
    assert evaluated(home)[1].evaluation.symmetry == "C2"
    assert evaluated(home, ignore_symmetry=True)[1].evaluation.symmetry == "C1"


def test_without_the_published_mask_everything_is_unmasked_and_said_to_be(home: Path, tmp_path: Path) -> None:
    metrics, result = evaluated(home, use_gt_mask=False)
    assert math.isnan(metrics["mapVsGT_correlaton_masked"])
    assert result.mask is None
    entry = small_entry(tmp_path / "mine", num_particles=20)
    stars = {f"half{half}PredsFname": entry / f"particles_{half}.star" for half in (0, 1)}
    metrics, result = evaluated(home, targetName="mine", benchmarkDir=tmp_path, **stars)
    assert math.isnan(metrics["mapVsGT_correlaton_masked"])
    assert result.notes[0] == "mine has no published mask: every figure is unmasked."


def test_a_published_mask_that_cannot_be_had_is_no_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(target: str, root: Path) -> Path:
        raise UnreachableFileError(f"{target}: no network")

    monkeypatch.setattr("cesped_stream.benchmark.download_entry.download_mask", offline)
    monkeypatch.setattr("cesped_stream.benchmark.cesped_evaluate.mask_path", lambda folder: folder / "absent.mrc")
    _, result = evaluated(home)
    assert "10280: no network" in result.notes[0] and "unmasked" in result.notes[0]
    assert result.mask is None


def test_truth_maps_are_kept_under_the_benchmark_folder(home: Path) -> None:
    evaluated(home)
    kept = {file: file.stat().st_mtime_ns for file in (home / "cesped_stream_entries" / ".truth_maps").glob("*/*.mrc")}
    evaluated(home)
    assert len(kept) >= 2
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())


def test_partial_and_swapped_predictions_are_scored_by_what_they_name(home: Path, tmp_path: Path) -> None:
    some = read_star(home / "particles_preds_1.star").select(range(5))
    write_star(tmp_path / "some.star", some)
    metrics, result = evaluated(
        home, half0PredsFname=tmp_path / "some.star", half1PredsFname=home / "particles_preds_0.star"
    )
    coverage = result.evaluation.coverage
    assert [one.num_predicted for one in coverage] == [20, 5, 25]
    assert metrics["meanAngularError"] == pytest.approx(sum(TURN_DEG) / 2, abs=1e-4)


def test_one_star_twice_is_refused(home: Path) -> None:
    with pytest.raises(InvalidSettingsError, match="same star is given twice"):
        evaluated(home, half1PredsFname=home / "particles_preds_0.star")


def test_what_is_wrong_is_one_line_and_exit_code_2(at_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = shlex.split(LISTING_3)[3:]
    assert evaluate_entry.main([word.replace("10280", "10999") for word in flags]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("evaluate_entry: error: ") and "10999" in err and err.count("\n") == 1
    assert out == ""


def test_cespeds_flags_are_understood() -> None:
    base = shlex.split("--targetName T --half0PredsFname 0 --half1PredsFname 1 --predictionType S2")
    plain = vars(evaluate_entry.build_parser().parse_args(base))
    assert plain["usePredConfidence"] and plain["use_gt_mask"] and plain["rm_prev_reconstructions"]
    assert (plain["n_cpus"], plain["ignore_symmetry"], plain["benchmarkDir"]) == (2, False, None)
    switches = "--NOT_usePredConfidence --NOT_rm_prev_reconstructions --ignore_symmetry --NOT_use_gt_mask"
    values = "--benchmarkDir B --relionBinDir R --mpirun M --relionSingularity S --n_cpus 3 --outdir O"
    given = vars(evaluate_entry.build_parser().parse_args([*base, *shlex.split(f"{switches} {values}")]))
    assert not (given["usePredConfidence"] or given["use_gt_mask"] or given["rm_prev_reconstructions"])
    assert given["ignore_symmetry"]
    named = ("benchmarkDir", "relionBinDir", "mpirun", "relionSingularity", "n_cpus", "outdir")
    assert [given[key] for key in named] == ["B", "R", "M", "S", 3, "O"]
    image = evaluate_entry.build_parser().parse_args([*base, "--singularityImgFile", "I", "--usePredConfidence"])
    assert (image.relionSingularity, image.usePredConfidence) == ("I", True)


def test_relion_makes_the_maps_where_it_is_asked_for(home: Path) -> None:
    settings = cesped_evaluate._engine_settings
    assert settings(None, None, "mpirun", None, 8).kind == "builtin"
    by_folder = settings(None, "~/relion/bin", None, None, 8)
    assert (by_folder.kind, by_folder.processes, by_folder.mpirun) == ("relion", 8, "mpirun")
    assert by_folder.relion_folder == Path("~/relion/bin").expanduser()
    assert settings(None, None, None, "relion.sif", 1).singularity_image == Path("relion.sif")
    assert settings("relion", None, None, None, 1).kind == "relion"
    with pytest.raises(InvalidSettingsError, match="engine: processes: got 0"):
        settings("relion", None, None, None, 0)


def test_a_prediction_type_that_is_none_is_refused(home: Path) -> None:
    with pytest.raises(InvalidSettingsError, match="'SO2' is none; S2"):
        evaluated(home, predictionType="SO2")
