"""Real images: two tomograms land aligned, two are streamed, and only their poses are new when they come out."""

import io
import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from rich.console import Console

from cesped_stream.benchmark.plan import ROLE_LABEL, SOURCE_LABEL
from cesped_stream.benchmark.replay import restore_truth
from cesped_stream.benchmark.replay_settings import ReplaySettings
from cesped_stream.particles.star import read_star, write_star
from cesped_stream.particles.table import ParticleTable
from cesped_stream.settings import ModelSettings, PreprocessSettings, TrainingSettings
from cesped_stream_service.replay_command import replay_command
from cesped_stream_service.stream_settings import ReplayCommand

ALIGNED = ("Unt_083.mrc", "Unt_088.mrc")
"""One of each half-set: without rlnRandomSubset the name decides."""
STREAMED_ROWS = {"Unt_050.mrc": 370, "Unt_076.mrc": 350}
TINY = TrainingSettings(
    max_steps=4,
    batch_size=16,
    model=ModelSettings(
        backbone="resnet18",
        backbone_stages=2,
        backbone_width=8,
        stem="small",
        lmax=2,
        projector_channels=16,
        sphere_order=2,
        s2_channels=4,
        so3_activation_resolution=3,
        grid_order=1,
    ),
    preprocess=PreprocessSettings(image_size=32),
    imagenet_weights="none",
)


@pytest.fixture(scope="module")
def output(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a replay that has run."""
    folder = tmp_path_factory.mktemp("replay") / "output"
    settings = ReplayCommand(
        entry=test_data / "ribosome_70s_tilt",
        output=folder,
        replay=ReplaySettings(aligned_micrographs=ALIGNED, batch_rows=150),
        scan_seconds=0.2,
        settle_seconds=0.4,
        deadline_minutes=3,
        proposer="network",
        training=TINY,
    )
    assert replay_command(settings, Console(file=io.StringIO())) == 0
    return folder


@pytest.fixture(scope="module")
def exported(output: Path) -> ParticleTable:
    return read_star(output / "poses.star")


def test_every_landed_row_is_exported_once_and_nothing_else(output: Path, exported: ParticleTable) -> None:
    truth = read_star(output / "truth" / "truth.star")
    assert not (output / "poses_unposed.star").exists()
    assert Counter(exported.column("rlnImageName")) == Counter(truth.column("rlnImageName"))
    assert len(set(truth.column(SOURCE_LABEL))) == len(exported) == 1430
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["landed"], summary["inferred"], summary["lost"], summary["doubled"]) == (1430, 720, 0, 0)
    assert summary["foreign"] == summary["unposed"] == 0


def test_the_report_tells_when_each_streamed_row_was_posed_and_agrees_with_the_summary(output: Path) -> None:
    block = json.loads((output / "metrics.json").read_text())["cesped_stream"]
    summary = json.loads((output / "summary.json").read_text())
    stream = block["stream"]
    assert stream["counts"]["inferred"] == stream["latency"]["num_particles"] == 720
    assert sum(batch["num_particles"] for batch in stream["batches"]) == 720
    assert all(0 < batch["p50_seconds"] <= batch["max_seconds"] < 180 for batch in stream["batches"])
    assert [point["seen"] for point in stream["errors_along_the_stream"]][-1] == 720
    seconds = [point["seconds"] for point in stream["errors_along_the_stream"]]
    assert seconds == sorted(seconds)
    assert block["poses"]["together"]["mean_deg"] == summary["mean_angular_error_deg"]
    for name in ("latency", "latency_with_model"):
        for part in ("p50_seconds", "p95_seconds"):
            assert stream[name][part] == summary[f"{name}_{part}"]
    assert summary["latency_p50_seconds"] > 0
    assert stream["half_words"] == "own half's model, halves unknown: not gold standard"
    assert (output / "report.html").stat().st_size > 100_000


def test_every_streamed_row_has_a_finite_pose_of_a_named_checkpoint(exported: ParticleTable) -> None:
    status = np.array(exported.column("cestreamStatus"))
    streamed = exported.select(np.flatnonzero(status == "predicted"))
    assert Counter(streamed.micrographs()) == STREAMED_ROWS
    assert streamed.has_poses().all()
    assert np.isfinite(streamed.rotations()).all()
    assert len(set(streamed.column("cestreamCheckpoint"))) == 1
    assert streamed.column("cestreamCheckpoint")[0].startswith("i2s-")


def test_aligned_rows_come_out_with_the_poses_they_were_given(output: Path, exported: ParticleTable) -> None:
    truth = read_star(output / "truth" / "truth.star")
    given = exported.select(np.flatnonzero(np.array(exported.column("cestreamStatus")) == "given"))
    assert set(given.micrographs()) == set(ALIGNED)
    known = dict(zip(truth.column("rlnImageName"), truth.rotations(), strict=True))
    expected = np.array([known[name] for name in given.column("rlnImageName")])
    assert np.abs(given.rotations() - expected).max() < 1e-6


def test_streamed_stars_tell_nothing_of_the_poses(output: Path) -> None:
    stars = sorted((output / "landing").glob("batch_*.star"))
    labels = {label for star in stars for label in read_star(star).labels}
    assert len(stars) == 5
    assert not {label for label in labels if ("Angle" in label and label != "rlnDefocusAngle") or "Origin" in label}
    roles = Counter(read_star(output / "truth" / "truth.star").column(ROLE_LABEL))
    assert roles == {"aligned": 710, "streamed": 720}


@pytest.mark.relion
@pytest.mark.skipif(shutil.which("relion_reconstruct") is None, reason="needs RELION's relion_reconstruct")
def test_with_the_true_angles_put_back_the_map_is_that_of_the_input(
    output: Path, exported: ParticleTable, test_data: Path, tmp_path: Path
) -> None:
    restored = restore_truth(exported, read_star(output / "truth" / "truth.star"))
    write_star(tmp_path / "restored.star", restored)
    source = test_data / "ribosome_70s_tilt"
    map_of_export = reconstructed(tmp_path / "restored.star", output / "landing", tmp_path / "restored.mrc")
    map_of_input = reconstructed(source / "particles.star", source, tmp_path / "input.mrc")
    map_of_predictions = reconstructed(output / "poses.star", output / "landing", tmp_path / "predicted.mrc")
    assert correlation(map_of_export, map_of_input) >= 0.9999
    assert correlation(map_of_predictions, map_of_input) < 0.99


def reconstructed(star: Path, stacks: Path, output: Path) -> np.ndarray:
    """RELION's map of a star whose stacks are named relative to `stacks`."""
    command = ["relion_reconstruct", "--i", str(star), "--o", str(output), "--ctf", "--sym", "C1", "--pad", "2"]
    subprocess.run(command, cwd=stacks, check=True, capture_output=True, timeout=120)
    with mrcfile.open(output) as opened:
        return np.array(opened.data)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
