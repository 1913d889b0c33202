"""The summary has its keys, unknown figures are null, the random predictor is right, and the figure is drawn."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy.spatial.transform import Rotation

from cesped_stream.benchmark.compare import compare
from cesped_stream.benchmark.figure import FigureData, Gallery, Timeline, draw_figure, save_figure, view_counts
from cesped_stream.benchmark.metrics import random_mean_deg
from cesped_stream.benchmark.plan import ROLE_LABEL
from cesped_stream.benchmark.pose_ways import errors_of_ways, limit_of_noise
from cesped_stream.benchmark.report import (
    RunFacts,
    figure_data,
    random_predictor_density,
    summarise,
    summary_table,
    write_summary,
)
from cesped_stream.imaging.preprocess import Preprocessor
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.particles.stacks import write_stack
from cesped_stream.particles.table import OpticsGroup, ParticleTable
from cesped_stream.settings import PreprocessSettings
from cesped_stream.so3.symmetry import group_rotations

REQUIRED = {
    "landed", "inferred", "lost", "doubled", "mean_angular_error_deg", "median_angular_error_deg",
    "weighted_mean_angular_error_deg", "latency_p50_seconds", "latency_p95_seconds", "training_seconds",
    "total_seconds", "particles_per_second", "half_mode",
}  # fmt: skip
WAYS = {
    "first_pose_seconds", "network_median_angular_error_deg", "gallery_median_angular_error_deg",
    "refined_median_angular_error_deg", "refined_mean_angular_error_deg", "refined_fraction_within_5_deg",
    "refined_shift_error_angstrom", "limit_median_angular_error_deg", "limit_fraction_within_5_deg",
    "network_fraction_within_5_deg", "gallery_fraction_within_5_deg", "poses_by_proposer", "sureness",
}  # fmt: skip
FACTS = RunFacts("gold_standard", 12.0, 34.0, None, None, 56.0, 78.0, 90.0, entry={"stated": "an easy stream"})
OPTICS = OpticsGroup(
    (
        ("rlnOpticsGroupName", "a"), ("rlnImagePixelSize", "4.0"), ("rlnVoltage", "300"),
        ("rlnSphericalAberration", "2.7"), ("rlnAmplitudeContrast", "0.1"),
    )
)  # fmt: skip
LABELS = (
    "rlnImageName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle",
    "rlnRandomSubset", ROLE_LABEL, "cestreamStatus",
)  # fmt: skip


def rows(count: int) -> ParticleTable:
    cells = [
        (
            f"{k + 1:06d}@batch_0001.mrcs",
            f"{k}",
            "90",
            "0",
            "10000",
            "9000",
            "0",
            f"{k % 2 + 1}",
            "streamed",
            "predicted",
        )
        for k in range(count)
    ]
    return ParticleTable(LABELS, cells, (OPTICS,), np.zeros(count, np.int64))


def turned(table: ParticleTable, rot_deg: float) -> ParticleTable:
    return table.with_columns({"rlnAngleRot": [f"{float(rot) + rot_deg}" for rot in table.column("rlnAngleRot")]})


def test_the_summary_has_every_required_key_and_is_json(tmp_path: Path) -> None:
    summary = summarise(compare([turned(rows(6), 5.0)], rows(6), "C1"), FACTS)
    write_summary(summary, tmp_path / "summary.json")
    read = json.loads((tmp_path / "summary.json").read_text())
    assert set(read) >= REQUIRED
    assert read["mean_angular_error_deg"] == pytest.approx(5.0)
    assert read["latency_with_model_p50_seconds"] is None
    assert [half["half_set"] for half in read["per_half"]] == [0, 1]
    assert read["random_predictor_mean_deg"] == pytest.approx(126.5, abs=0.1)


def test_the_summary_names_each_way_of_making_poses_and_how_sure_they_are() -> None:
    comparison = compare([turned(rows(6), 5.0)], rows(6), "C1")
    errors = errors_of_ways(comparison, None) | limit_of_noise(comparison, None, comparison.truth)
    summary = summarise(comparison, replace(FACTS, pose_errors=errors, sureness={"confidence": {}}))
    assert set(summary) >= WAYS
    assert {summary[key] for key in WAYS - {"poses_by_proposer", "sureness"}} == {None}
    assert summary["sureness"] == {"confidence": {}}


def test_nothing_inferred_gives_null_errors_not_zero() -> None:
    summary = summarise(compare([rows(6).select([])], rows(6), "C1"), FACTS)
    assert summary["lost"] == 6
    assert {summary[key] for key in REQUIRED if "error" in key} == {None}


def test_the_table_names_what_matters() -> None:
    out = io.StringIO()
    Console(file=out, width=100).print(summary_table(summarise(compare([turned(rows(6), 5.0)], rows(6), "C1"), FACTS)))
    text = out.getvalue()
    for words in ("lost", "doubled", "12.0 s / 34.0 s", "- / -", "median angular error", "5.0°", "half 1", "56 s"):
        assert words in text


def test_the_table_is_whole_on_a_terminal_of_80_columns() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(summary_table(summarise(compare([turned(rows(6), 5.0)], rows(6), "C1"), FACTS)))
    text = out.getvalue()
    assert "…" not in text
    assert "latency, last byte to pose on disk, p50 / p95" in text


@pytest.mark.parametrize("symmetry", ["C1", "C2", "D2", "O"])
def test_the_random_predictors_density_integrates_to_one_with_the_right_mean(symmetry: str) -> None:
    degrees, density = random_predictor_density(symmetry, samples=50_000)
    step = degrees[1] - degrees[0]
    assert density.sum() * step == pytest.approx(1.0, abs=0.01)
    assert (density * degrees).sum() * step == pytest.approx(random_mean_deg(group_rotations(symmetry)), abs=1.0)


def test_view_counts_keep_their_total_and_see_a_preferred_view() -> None:
    uniform = view_counts(Rotation.random(20_000, random_state=np.random.default_rng(0)).as_matrix())
    assert uniform.sum() == pytest.approx(20_000, rel=0.02)
    assert 0.4 < uniform.min() / uniform.mean() < uniform.max() / uniform.mean() < 1.7
    from_the_top = view_counts(np.repeat(np.eye(3)[None], 100, axis=0))
    assert np.flatnonzero(from_the_top).max() < 24


def test_the_figure_shows_the_landed_particles_their_network_input_and_both_poses(tmp_path: Path) -> None:
    truth = rows(12)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((12, 32, 32)).astype(np.float32)
    write_stack(tmp_path / "batch_0001.mrcs", images, 4.0)
    comparison = compare([turned(truth, 5.0)], truth, "C1")
    density = np.zeros((32, 32, 32), np.float32)
    density[14:18, 14:18, 10:20] = 1
    data = figure_data(
        comparison,
        summarise(comparison, FACTS),
        tmp_path,
        preprocessor=Preprocessor(PreprocessSettings(image_size=16), 8.0),
        reference=MapProjector(density, 4.0),
        timeline=Timeline(np.arange(3.0), np.array([0, 6, 12]), np.array([0, 0, 12]), ((1.0, "model published"),)),
        title="t",
        columns=5,
    )
    assert data.gallery is not None
    shapes = [(label.split("\n")[0], shown.shape) for label, shown in data.gallery.rows]
    assert shapes == [
        ("raw", (5, 32, 32)), ("as the network", (5, 16, 16)), ("map at the", (5, 32, 32)), ("map at the", (5, 32, 32)),
    ]  # fmt: skip
    assert all((image == images).all((1, 2)).any() for image in data.gallery.rows[0][1])
    save_figure(data, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    figure = draw_figure(data)
    titles = {axes.get_title() for axes in figure.axes}
    assert {"Angular error of the streamed particles", "Landed and posed", "off by 5.0°"} <= titles


def test_a_figure_without_gallery_and_timeline_says_so() -> None:
    nothing = np.zeros(0)
    data = FigureData("t", ("s",), np.zeros((0, 3, 3)), (nothing, nothing), random_predictor_density("C1"))
    words = {text.get_text() for axes in draw_figure(data).axes for text in axes.texts}
    assert {"no streamed particle with a pose", "not recorded"} <= words
    empty = replace(data, gallery=Gallery((), nothing))
    assert any("no streamed particle" in text.get_text() for axes in draw_figure(empty).axes for text in axes.texts)
