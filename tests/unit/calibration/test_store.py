"""Calibrations on disk."""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from support.answers import held_out_answers

from cesped_stream.calibration.calibrator import Calibrator, fit_calibrator
from cesped_stream.calibration.fusion_fit import FusionFit
from cesped_stream.calibration.store import Calibration, HalfCalibration, load_calibration, save_calibration
from cesped_stream.errors import InvalidCheckpointError, UnreachableFileError
from cesped_stream.settings import CalibrationSettings

FUSION = FusionFit(
    weights={"network": 0.1, "gallery": 1 / 3}, grid_order=3, floor=0.01, neighbourhood_deg=7.3, num_particles=500,
    log_likelihood=-2.5, single_log_likelihood={"network": -4.0, "gallery": -3.0},
    chance_log_likelihood=-9.0,
)  # fmt: skip


@lru_cache
def calibrator(half_set: int, seed: int) -> Calibrator:
    answers, _ = held_out_answers(600, seed)
    return fit_calibrator(answers, half_set=half_set, seen=(), settings=CalibrationSettings())


def calibration(**changes) -> Calibration:  # type: ignore[no-untyped-def]
    halves = {half: HalfCalibration(fusion=FUSION, calibrator=calibrator(half, half)) for half in (0, 1)}
    content = {
        "checkpoint_id": "i2s-0123456789ab",
        "reference_ids": {0: "a", 1: "b"},
        "symmetry": "D2",
        "halves": halves,
    }
    return Calibration(**{**content, **changes})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Calibration]:
    return save_calibration(tmp_path_factory.mktemp("checkpoint"), calibration())


def load(path: Path) -> Calibration:
    return load_calibration(path, checkpoint_id="i2s-0123456789ab", symmetry="D2")


def test_what_is_loaded_is_what_was_saved_to_the_last_bit(saved: tuple[Path, Calibration]) -> None:
    path, kept = saved
    loaded = load(path)
    assert loaded == kept
    answers, _ = held_out_answers(300, 9)
    for half in (0, 1):
        one, other = loaded.halves[half].calibrator, kept.halves[half].calibrator
        np.testing.assert_array_equal(
            one.confidence(answers.features, answers.optics_groups, half_set=half),
            other.confidence(answers.features, answers.optics_groups, half_set=half),
        )


def test_equal_calibrations_have_one_name_and_equal_bytes(saved: tuple[Path, Calibration], tmp_path: Path) -> None:
    path, _ = saved
    again, _ = save_calibration(tmp_path, calibration())
    assert again.name == path.name
    assert again.read_bytes() == path.read_bytes()
    other, _ = save_calibration(tmp_path, calibration(symmetry="C2"))
    assert other.name != path.name


def test_a_file_that_was_edited_is_refused(saved: tuple[Path, Calibration], tmp_path: Path) -> None:
    content = json.loads(saved[0].read_text())
    content["halves"]["0"]["fusion"]["weights"]["network"] = 0.2
    edited = tmp_path / saved[0].name
    edited.write_text(json.dumps(content))
    with pytest.raises(InvalidCheckpointError, match="edited"):
        load(edited)


@pytest.mark.parametrize("text", ["", "{}", '{"format": 2}', "[1, 2"])
def test_a_file_that_is_no_calibration_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "cal-0.json"
    path.write_text(text)
    with pytest.raises(InvalidCheckpointError, match=r"cal-0.json.*calibrate again"):
        load(path)


def test_a_missing_file_may_come_back(tmp_path: Path) -> None:
    with pytest.raises(UnreachableFileError, match=r"cal-0\.json"):
        load(tmp_path / "cal-0.json")


@pytest.mark.parametrize(("checkpoint_id", "symmetry"), [("i2s-other", "D2"), ("i2s-0123456789ab", "C1")])
def test_a_calibration_of_other_networks_or_another_symmetry_is_refused(
    saved: tuple[Path, Calibration], checkpoint_id: str, symmetry: str
) -> None:
    with pytest.raises(InvalidCheckpointError, match="calibrate this one"):
        load_calibration(saved[0], checkpoint_id=checkpoint_id, symmetry=symmetry)


def test_each_half_has_its_models_calibrator_in_both_modes(saved: tuple[Path, Calibration]) -> None:
    _, kept = saved
    for half in (0, 1):
        assert kept.for_half(half, "gold_standard").calibrator.half_set == half
        assert kept.for_half(half, "cross_half").calibrator.half_set == 1 - half
    with pytest.raises(ValueError, match="half_set is 2"):
        kept.for_half(2, "gold_standard")


def test_halves_that_share_anything_are_refused() -> None:
    part = {half: HalfCalibration(fusion=FUSION, calibrator=calibrator(half, 5)) for half in (0, 1)}
    with pytest.raises(ValueError, match="same particles"):
        calibration(halves=part)
    with pytest.raises(ValueError, match="half-set 1 has the calibrator of half-set 0"):
        calibration(halves={0: part[0], 1: part[0]})
    with pytest.raises(ValueError, match="one reference"):
        calibration(reference_ids={0: "a", 1: "a"})
