"""From proposers that claim too much to confidence that comes true, on particles that no fit has seen."""

import numpy as np
from support.proposers import FakeProposer, random_rotations

from cesped_stream.calibration.answers import Proposer, confidence_features, fuse_answers
from cesped_stream.calibration.calibrator import HeldOutAnswers, fit_calibrator
from cesped_stream.calibration.fusion_fit import FusionFit, fit_fusion
from cesped_stream.calibration.metrics import area_under_curve, expected_calibration_error
from cesped_stream.settings import CalibrationSettings, FusionSettings
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations

NETWORK, GALLERY = (
    FakeProposer(25, 12, outliers=0.2, order=1, keep=40),
    FakeProposer(14, 6, outliers=0.25, order=1, keep=40, in_unit=True),
)
WITHIN_DEG = 35.0
"""As wide as the coarse grid of this test is."""


def proposals(count: int, seed: int):  # type: ignore[no-untyped-def]
    truth = random_rotations(count, seed)
    return truth, {
        Proposer.NETWORK: NETWORK.propose(truth, "D2", seed + 1),
        Proposer.GALLERY: GALLERY.propose(truth, "D2", seed + 2),
    }


def answered(truth: np.ndarray, proposers: dict, fusion: FusionFit, seed: int) -> tuple[HeldOutAnswers, np.ndarray]:
    answers = fuse_answers(proposers, fusion, "D2", k=3)
    errors = angular_error_deg(truth, answers.rotation[:, 0], group_rotations("D2"))
    features = confidence_features(answers.probability, apart_deg=answers.apart_deg)
    names = [f"{seed}_{k}" for k in range(len(truth))]
    micrographs = [f"mic_{k // 50}" for k in range(len(truth))]
    held_out = HeldOutAnswers(names, features, errors, ["opticsGroup1"] * len(truth), micrographs)
    return held_out, answers.probability[:, 0]


def test_fused_answers_of_overconfident_proposers_are_calibrated_on_fresh_particles() -> None:
    truth, proposers = proposals(2000, 100)
    fusion = fit_fusion(proposers, truth, "D2", FusionSettings())
    settings = CalibrationSettings(within_deg=WITHIN_DEG)
    held_out, _ = answered(truth, proposers, fusion, 100)
    calibrator = fit_calibrator(held_out, half_set=1, seen=["another"], settings=settings)
    fresh_truth, fresh_proposers = proposals(2000, 200)
    fresh, claimed = answered(fresh_truth, fresh_proposers, fusion, 200)
    confidence = calibrator.confidence(fresh.features, fresh.optics_groups, half_set=1)
    right = fresh.errors_deg <= WITHIN_DEG
    assert expected_calibration_error(claimed, right) > 0.07
    assert expected_calibration_error(confidence, right) <= 0.05
    area, own = area_under_curve(confidence, right), area_under_curve(claimed, right)
    assert area is not None
    assert own is not None
    assert area >= max(own - 0.01, 0.65)
