"""A calibration is stale where confidences of now are unlike those of its fit; nothing is said of too few."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.session_bench import Bench, fake_checkpoint, tell

from cesped_stream.calibration.drift import DriftState, read_fitted_confidences
from cesped_stream.errors import InvalidCheckpointError
from cesped_stream.settings import CalibrationSettings
from cesped_stream_service.calibration_watch import CalibrationWatch
from cesped_stream_service.finished import Finished, Poses
from cesped_stream_service.messages import Control

ID = "ref-000000000001"


def checkpoint(folder: Path, calibrated: bool = True) -> Path:
    """A checkpoint whose fit saw confidences spread evenly from 0.5 to 1."""
    calibrator = {"confidence_quantiles": np.linspace(0.5, 1, 101).tolist(), "num_particles": 600, "within_deg": 5.0}
    halves = {half: {"calibrator": calibrator if calibrated else None} for half in "01"}
    (folder / ID).mkdir()
    (folder / ID / "cal-000000000001.json").write_text(json.dumps({"halves": halves}))
    return folder / ID


def finished(confidence: np.ndarray, *, checkpoint_id: str = ID, flagged: int = 0) -> Finished:
    n = len(confidence)
    poses = Poses(
        **{name: np.zeros((n, 3)) for name in Poses.__dataclass_fields__}
        | {
            "confidence": confidence,
            "flag": (np.arange(n) < flagged).astype(np.uint8),
            "calibrated": np.ones(n, np.uint8),
        }
    )
    return Finished(1, 0, n, poses=poses, checkpoint_id=checkpoint_id)


def state_after(watch: CalibrationWatch) -> DriftState | None:
    drift = watch.drift()
    return drift.state if drift else None


def test_confidences_of_now_that_are_unlike_those_of_the_fit_make_it_stale(tmp_path: Path) -> None:
    watch, rng = CalibrationWatch(CalibrationSettings()), np.random.default_rng(0)
    watch.look_at(ID, checkpoint(tmp_path))
    watch.see(finished(rng.uniform(0.5, 1, 150)))
    assert state_after(watch) is DriftState.TOO_FEW
    watch.see(finished(rng.uniform(0.5, 1, 250)))
    assert state_after(watch) is DriftState.STEADY
    watch.see(finished(rng.uniform(0.5, 0.7, 1900)))
    assert state_after(watch) is DriftState.STALE


def test_confidences_that_differ_in_the_third_decimal_are_no_drift(tmp_path: Path) -> None:
    watch = CalibrationWatch(CalibrationSettings())
    folder = checkpoint(tmp_path)
    file = next(folder.glob("cal-*.json"))
    sure = {
        "calibrator": {"confidence_quantiles": [0.991] * 60 + [0.998] * 41, "num_particles": 600, "within_deg": 5.0}
    }
    file.write_text(json.dumps({"halves": {"0": sure, "1": sure}}))
    watch.look_at(ID, folder)
    watch.see(finished(np.full(400, 0.991)))
    assert state_after(watch) is DriftState.STEADY
    watch.see(finished(np.full(400, 0.8)))
    assert state_after(watch) is DriftState.STALE


def test_only_calibrated_results_of_the_checkpoint_in_use_count(tmp_path: Path) -> None:
    watch = CalibrationWatch(CalibrationSettings())
    watch.look_at(ID, checkpoint(tmp_path))
    watch.see(finished(np.zeros(500), checkpoint_id="ref-000000000002"))
    watch.see(finished(np.zeros(500), flagged=500))
    drift = watch.drift()
    assert drift is not None and drift.num_particles == 0


def test_a_checkpoint_without_confidence_is_not_watched(tmp_path: Path) -> None:
    watch = CalibrationWatch(CalibrationSettings())
    watch.look_at(ID, checkpoint(tmp_path, calibrated=False))
    assert watch.drift() is None
    (tmp_path / "networks").mkdir()
    assert read_fitted_confidences(tmp_path / "networks") is None
    (tmp_path / "networks" / "cal-1.json").write_text("{}")
    with pytest.raises(InvalidCheckpointError, match="publish the checkpoint again"):
        read_fitted_confidences(tmp_path / "networks")


def test_a_checkpoint_in_a_folder_of_another_name_is_watched(tmp_path: Path) -> None:
    watch = CalibrationWatch(CalibrationSettings())
    watch.look_at(ID, checkpoint(tmp_path).rename(tmp_path / "of last week"))
    watch.see(finished(np.full(400, 0.5)))
    assert state_after(watch) is DriftState.STALE


def test_a_calibration_that_cannot_be_read_leaves_no_former_one_and_is_read_again(tmp_path: Path) -> None:
    watch = CalibrationWatch(CalibrationSettings())
    watch.look_at("ref-000000000002", checkpoint(tmp_path))
    file = tmp_path / ID / "cal-000000000001.json"
    content = file.read_text()
    file.write_text("{}")
    with pytest.raises(InvalidCheckpointError, match="publish the checkpoint again"):
        watch.look_at(ID, tmp_path / ID)
    assert watch.drift() is None
    file.write_text(content)
    watch.look_at(ID, tmp_path / ID)
    watch.see(finished(np.full(400, 0.5)))
    assert state_after(watch) is DriftState.STALE


def test_the_status_tells_of_an_unreadable_calibration_until_another_checkpoint_is_in_use(tmp_path: Path) -> None:
    given = fake_checkpoint(tmp_path / "given", ID)
    (given / "cal-000000000001.json").write_text("{}")
    bench = Bench(tmp_path / "b", checkpoint=str(given))
    fake_checkpoint(bench.session / "checkpoints", "ref-000000000002")
    core = bench.open()
    assert any("publish the checkpoint again" in problem for problem in core.status().problems)
    assert tell(core, b"cli", Control(action="reinfer", argument="ref-000000000002"))[0].ok  # type: ignore[union-attr]
    assert not core.status().problems
    core.close()
