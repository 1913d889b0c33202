"""Every way of making poses answers the same streamed rows, and is measured on the same particles."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples.models import TINY
from scipy.spatial.transform import Rotation
from support.matching import PIXEL_SIZE, molecule

from cesped_stream.benchmark import pose_answers
from cesped_stream.benchmark.bench_proposers import ProposersFigures, bench_proposers, figures_table, way_figures
from cesped_stream.benchmark.entries import open_entry
from cesped_stream.benchmark.plan import ReplayPlan, plan_replay, tells_pose
from cesped_stream.benchmark.pose_answers import AnsweringWays, Answers
from cesped_stream.benchmark.replay_settings import ReplaySettings
from cesped_stream.benchmark.ways_stream import LandedRows, land_rows, with_poses
from cesped_stream.conventions import euler_deg_to_rotation
from cesped_stream.imaging.entry import write_entry
from cesped_stream.imaging.junk import KIND_LABEL
from cesped_stream.imaging.maps import write_map
from cesped_stream.reference_pair import MatchingSettings
from cesped_stream.settings import (
    GallerySettings,
    InferenceSettings,
    PreprocessSettings,
    ReferenceSettings,
    RefinementSettings,
    SimulationSettings,
    TrainingSettings,
)
from cesped_stream_service.cli import main

ALIGNED, STREAMED = 240, 60
REPLAY = ReplaySettings(first_aligned=ALIGNED, limit=ALIGNED + STREAMED, batch_rows=40)
GALLERY = {"grid_order": 2, "coarse_order": 1, "keep_fraction": 0.2, "batch_size": 16}
WAYS = [
    "network",
    "network+refinement",
    "gallery",
    "gallery+refinement",
    "network+gallery+refinement",
    "true poses+refinement",
]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ReplayPlan:
    folder = tmp_path_factory.mktemp("entry")
    settings = SimulationSettings(
        num_particles=ALIGNED + STREAMED, snr=1.0, symmetry="D2", seed=5, particles_per_micrograph=20
    )
    write_entry(folder, molecule("D2"), PIXEL_SIZE, settings)
    return plan_replay(open_entry(folder), REPLAY)


@pytest.fixture
def rows(plan: ReplayPlan, tmp_path: Path) -> LandedRows:
    return land_rows(plan, tmp_path, REPLAY, "D2")


def ways(rows: LandedRows, folder: Path) -> AnsweringWays:
    return AnsweringWays(
        rows,
        folder,
        TrainingSettings(symmetry="D2", model=TINY, preprocess=PreprocessSettings(image_size=32), max_steps=2),
        InferenceSettings(device="cpu", batch_size=16),
        MatchingSettings(
            ReferenceSettings(mask_lowpass_angstrom=20.0), GallerySettings(**GALLERY), RefinementSettings()
        ),
        network_radius_deg=15.0,
    )


def turned(rows: LandedRows, degrees: float) -> np.ndarray:
    return rows.truth.rotations() @ euler_deg_to_rotation(np.full(len(rows.truth), degrees), 0, 0)


def test_streamed_rows_tell_no_pose_and_the_truth_stands_in_the_same_order(rows: LandedRows) -> None:
    assert (len(rows.aligned), len(rows.streamed)) == (ALIGNED, STREAMED)
    assert rows.aligned.has_poses().all()
    assert not [label for label in rows.streamed.labels if tells_pose(label)]
    assert rows.streamed.column("rlnImageName") == rows.truth.column("rlnImageName")
    assert rows.truth.has_poses().all()


def test_rows_that_landed_whole_are_kept_and_cut_ones_land_again(
    plan: ReplayPlan, rows: LandedRows, tmp_path: Path
) -> None:
    star = tmp_path / "landing" / "aligned_0001.star"
    before = star.stat().st_mtime_ns
    land_rows(plan, tmp_path, REPLAY, "D2")
    assert star.stat().st_mtime_ns == before
    log = tmp_path / "truth" / "replay.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    again = land_rows(plan, tmp_path, REPLAY, "D2")
    assert star.stat().st_mtime_ns > before
    assert again.streamed.rows == rows.streamed.rows


def test_a_way_is_measured_on_particles_that_it_posed_and_on_no_junk(rows: LandedRows) -> None:
    kinds = ["ice"] * 6 + ["particle"] * (STREAMED - 6)
    with_junk = LandedRows(rows.aligned, rows.streamed, rows.truth.with_columns({KIND_LABEL: kinds}), rows.symmetry)
    rotation, shift = turned(rows, 3.0), rows.truth.shifts_angstrom() + np.array([3.0, 4.0])
    rotation[:6] = Rotation.random(6, random_state=np.random.default_rng(1)).as_matrix()
    rotation[-4:], shift[-4:] = np.nan, np.nan
    confidence = np.where(np.arange(STREAMED) < 6, 0.1, 0.9)
    figures = way_figures(Answers("any", rotation, shift, confidence), with_junk)
    assert figures.num_particles == STREAMED - 10
    assert (figures.median_deg, figures.mean_deg) == pytest.approx((3.0, 3.0), abs=1e-4)
    assert (figures.within_5_deg, figures.within_15_deg) == (1.0, 1.0)
    assert figures.shift_rmse_angstrom == pytest.approx(5.0)
    assert figures.junk_auc == 1.0
    assert way_figures(Answers("any", rotation, np.full_like(shift, np.nan), confidence), rows).junk_auc is None


def test_poses_put_into_rows_are_those_given(rows: LandedRows) -> None:
    rotations = turned(rows, 40.0)
    posed = with_poses(rows.truth, rotations)
    np.testing.assert_allclose(posed.rotations(), rotations, atol=1e-7)
    assert not posed.shifts_angstrom().any()


def test_every_way_answers_and_nothing_is_made_twice(
    rows: LandedRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[str] = []
    figures = bench_proposers(ways(rows, tmp_path), on_stage=stages.append)
    found = {way.way: way for way in figures.ways}
    assert list(found) == WAYS
    assert stages[:2] == ["references", "networks"]
    assert {way.num_particles for way in figures.ways} == {STREAMED}
    assert figures.training_steps == (2, 2)
    assert found["gallery+refinement"].median_deg < found["gallery"].median_deg < 8
    assert found["true poses+refinement"].median_deg < 2.5
    assert found["network"].median_deg > 20  # of two steps
    assert found["network"].shift_rmse_angstrom is None
    assert found["gallery+refinement"].shift_rmse_angstrom < 3  # type: ignore[operator]
    for way in ("network", "network+refinement", "gallery+refinement"):
        assert min(found[way].particles_per_second, found[way].cpu_ms_per_particle, found[way].first_pose_seconds) > 0  # type: ignore[type-var, operator]

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("made twice")

    monkeypatch.setattr(pose_answers.fit, "fit_pair", never)
    monkeypatch.setattr(pose_answers, "publish_references", never)
    again = bench_proposers(ways(rows, tmp_path))
    assert [way.median_deg for way in again.ways] == [way.median_deg for way in figures.ways]


def test_true_poses_given_as_the_networks_refine_to_the_limit(rows: LandedRows, tmp_path: Path) -> None:
    bench = ways(rows, tmp_path)
    references = bench.make_references()
    candidates = np.stack([turned(rows, 170.0), turned(rows, 8.0)], 1)  # the second one is the near one
    rotation, shift = bench._refined_candidates(candidates, bench._matchers(references))
    from_candidates = way_figures(Answers("any", rotation, shift, np.ones(STREAMED)), rows)
    limit = way_figures(bench.of_truth(references), rows)
    assert from_candidates.median_deg < limit.median_deg + 0.1


def test_command_simulates_measures_and_refuses_another_measurement_in_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_map(tmp_path / "map.mrc", molecule("D2"), PIXEL_SIZE)
    words = ["bench", "proposers", "--output", str(tmp_path / "ways"), "--aligned", "160", "--streamed", "40"]
    words += ["--snr", "1", "--symmetry", "D2", "--simulate.map", str(tmp_path / "map.mrc"), "--steps", "1"]
    words += ["--simulate.particle_radius_angstrom", "60", "--simulate.particles_per_micrograph", "20"]
    words += ["--training.model", TINY.model_dump_json(), "--training.preprocess.image_size", "32", "--threads", "1"]
    words += ["--inference.device", "cpu", "--inference.batch_size", "16", "--referencing.mask_lowpass_angstrom", "20"]
    words += [f"--gallery.{key}={value}" for key, value in GALLERY.items()]
    assert main([*words, "--json"]) == 0
    figures = ProposersFigures.model_validate_json(capsys.readouterr().out)
    assert figures == ProposersFigures.model_validate(json.loads((tmp_path / "ways" / "figures.json").read_text()))
    assert (figures.num_aligned, figures.num_streamed, figures.symmetry) == (160, 40, "D2")
    assert [line.split()[0] for line in figures_table(figures).splitlines()[2:5]] == WAYS[:3]
    assert main([*words, "--streamed", "60"]) == 2
    assert "streamed" in capsys.readouterr().err


def test_an_entry_that_leaves_nothing_to_stream_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_entry(tmp_path / "entry", molecule("D2"), PIXEL_SIZE, SimulationSettings(num_particles=20, symmetry="D2"))
    ways = ["--output", str(tmp_path / "ways"), "--aligned", "20"]
    assert main(["bench", "proposers", str(tmp_path / "entry"), *ways]) == 2
    assert "20 particles, of which --aligned 20 leaves none to stream; give less" in capsys.readouterr().err
    assert main(["bench", "proposers", str(tmp_path / "none"), *ways]) == 75
    assert not (tmp_path / "ways").exists()
