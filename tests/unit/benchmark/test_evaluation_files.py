"""What an evaluation leaves on disk and prints."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console
from support.masks import spherical_mask
from support.scored import BOX, PIXEL_SIZE_ANGSTROM, small_entry, truth_of, turned

from cesped_stream.benchmark.evaluation import Evaluation, evaluate_poses
from cesped_stream.benchmark.evaluation_figures import central_slice
from cesped_stream.benchmark.evaluation_files import write_evaluation
from cesped_stream.benchmark.evaluation_page import map_table
from cesped_stream.benchmark.evaluation_report import delta_notes, evaluation_report
from cesped_stream.benchmark.map_metrics import Deltas
from cesped_stream.imaging.maps import read_map
from cesped_stream.reconstruction.engine import BuiltinEngine


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    truth = truth_of(small_entry(tmp_path_factory.mktemp("entry"), num_particles=40))
    confidence = {"cestreamConfidence": [f"{k / 40:.3f}" for k in range(40)]}
    predicted = turned(truth, np.linspace(0, 80, 40)).with_columns(confidence).select(range(0, 40))
    mask = spherical_mask(BOX, 7, 3)
    return evaluate_poses(truth, predicted, symmetry="C1", engine=BuiltinEngine(), mask=mask)


def poses_only(scored: Evaluation) -> Evaluation:
    return Evaluation(**{**vars(scored), "maps": None})


def report_text(evaluation: Evaluation) -> str:
    console = Console(width=80, file=None, record=True, quiet=False, force_terminal=False)
    with console.capture() as captured:
        console.print(evaluation_report(evaluation, "10280", ["The mask is a sphere."]))
    return captured.get()


def test_maps_on_disk_are_those_that_were_scored(scored: Evaluation, tmp_path: Path) -> None:
    mask = spherical_mask(BOX, 7, 3)
    written = {path.name for path in write_evaluation(scored, tmp_path, "10280", mask=mask)}
    assert scored.maps is not None and scored.maps.weighted is not None
    for name, expected in {
        "truth_half_1.mrc": scored.maps.truth.halves[1],
        "truth.mrc": scored.maps.truth.combined,
        "predicted_half_0.mrc": scored.maps.unweighted.halves[0],
        "predicted.mrc": scored.maps.unweighted.combined,
        "predicted_weighted.mrc": scored.maps.weighted.combined,
        "mask.mrc": mask,
    }.items():
        volume, pixel_size = read_map(tmp_path / name)
        np.testing.assert_array_equal(volume, expected)
        assert pixel_size == pytest.approx(PIXEL_SIZE_ANGSTROM)
    assert len(written) == 14
    assert written == {path.name for path in tmp_path.iterdir()}


def test_metrics_json_has_cespeds_keys_at_its_top_and_ours_under_one(scored: Evaluation, tmp_path: Path) -> None:
    write_evaluation(scored, tmp_path, "10280", context={"target": "10280"})
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    ours = metrics.pop("cesped_stream")
    assert metrics == pytest.approx(scored.cesped_metrics())
    assert ours["target"] == "10280"
    assert ours["maps"]["weighted"]["weighted_by"] == "cestreamConfidence"


def test_pictures_are_drawn(scored: Evaluation, tmp_path: Path) -> None:
    write_evaluation(scored, tmp_path, "10280")
    for name, colours in (("fsc.png", 20), ("errors.png", 20), ("slices.png", 100)):
        image = imread(tmp_path / name)
        assert image.shape[1] > 600
        assert len(np.unique(image[..., :3].sum(-1))) > colours


def test_what_a_former_evaluation_left_and_this_one_lacks_is_removed(scored: Evaluation, tmp_path: Path) -> None:
    write_evaluation(scored, tmp_path, "10280")
    written = write_evaluation(poses_only(scored), tmp_path, "10280")
    assert {path.name for path in tmp_path.iterdir()} == {"errors.png", "metrics.json"}
    assert [path.name for path in written] == ["errors.png", "metrics.json"]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["GT_correlation"] is None
    assert metrics["meanAngularError"] == pytest.approx(40.0)


def test_slices_go_through_the_middle() -> None:
    volume = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(central_slice(volume, 0), volume[4])
    np.testing.assert_array_equal(central_slice(volume, 2), volume[:, :, 4])


def test_the_report_fits_80_columns_and_says_what_was_measured(scored: Evaluation) -> None:
    text = report_text(scored)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert scored.poses is not None and scored.maps is not None
    assert f"{scored.poses.together.mean_deg:.2f}°" in text
    assert f"{scored.maps.unweighted.to_truth.unmasked.pearson:.3f}" in text
    masked = scored.maps.unweighted.to_truth.masked
    assert masked is not None and f"{masked.pearson:.3f}" in text
    assert "cestreamConfidence" in text and "Engine: builtin" in text and "The mask is a sphere." in text


def test_a_report_of_poses_alone_speaks_of_no_map(scored: Evaluation) -> None:
    text = report_text(poses_only(scored))
    assert "Maps" not in text and "Engine" not in text


def test_masked_rows_of_the_page_say_whether_they_are_corrected_for_the_mask(scored: Evaluation) -> None:
    assert scored.maps is not None
    table = map_table(scored.maps)
    assert "masked, uncorrected for the mask: half map 0 against half map 1" in table
    assert "masked, corrected for the mask: half map 0 against half map 1" in table


@pytest.mark.parametrize(("pearson", "angstrom", "told"), [(-0.04, 0.2, True), (0.01, -1.5, True), (0.01, 0.2, False)])
def test_a_map_better_than_the_truth_is_told_to_be_shared_noise(pearson: float, angstrom: float, told: bool) -> None:
    figures = SimpleNamespace(unweighted=SimpleNamespace(deltas_unmasked=Deltas(pearson, angstrom, angstrom)))
    assert any("share" in note for note in delta_notes(figures)) == told
