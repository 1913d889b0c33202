"""Fused answers beside the single ones, and the features of their certainty."""

import numpy as np
import pytest
from support.proposers import FakeProposer, random_rotations

from cesped_stream.calibration.answers import Feature, Proposer, confidence_features, fuse_answers
from cesped_stream.calibration.fusion_fit import FusionFit, fit_fusion
from cesped_stream.settings import FusionSettings
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations

NETWORK, GALLERY = Proposer.NETWORK, Proposer.GALLERY


def fitted(symmetry: str, count: int = 200):  # type: ignore[no-untyped-def]
    truth = random_rotations(count, 1)
    proposers = {
        NETWORK: FakeProposer(12, 12).propose(truth, symmetry, 2),
        GALLERY: FakeProposer(8, 3, outliers=0.15, in_unit=True).propose(truth, symmetry, 3),
    }
    return truth, proposers, fit_fusion(proposers, truth, symmetry, FusionSettings())


@pytest.mark.parametrize("symmetry", ["C1", "D2"])
def test_fused_poses_are_right_oftener_than_either_proposers(symmetry: str) -> None:
    truth, proposers, fit = fitted(symmetry)
    answers, group = fuse_answers(proposers, fit, symmetry, k=3), group_rotations(symmetry)

    def share_right(rotations: np.ndarray) -> float:
        return float((angular_error_deg(truth, rotations, group) < 25).mean())

    fused = share_right(answers.rotation[:, 0])
    assert fused > share_right(answers.single[NETWORK]) + 0.02
    assert fused > share_right(answers.single[GALLERY]) + 0.02


def test_single_answers_and_their_angle_are_those_of_the_proposers_alone() -> None:
    _, proposers, fit = fitted("D2")
    answers = fuse_answers(proposers, fit, "D2", k=2)
    group = group_rotations("D2")
    for name in proposers:
        best = proposers[name].rotations()[:, 0]
        np.testing.assert_allclose(angular_error_deg(best, answers.single[name], group), 0, atol=1e-5)
    assert answers.apart_deg is not None
    np.testing.assert_allclose(
        answers.apart_deg, angular_error_deg(answers.single[NETWORK], answers.single[GALLERY], group)
    )


def test_one_proposer_alone_answers_and_has_no_angle() -> None:
    truth, proposers, _ = fitted("C1")
    alone = {NETWORK: proposers[NETWORK]}
    answers = fuse_answers(alone, fit_fusion(alone, truth, "C1", FusionSettings()), "C1", k=1)
    assert answers.apart_deg is None
    np.testing.assert_allclose(answers.rotation[:, 0], answers.single[NETWORK])


def test_a_silent_proposer_leaves_the_answer_to_the_other_and_silence_of_both_is_nan() -> None:
    _, proposers, fit = fitted("C1")
    proposers[NETWORK].log_weights[:2] = np.nan
    proposers[GALLERY].log_weights[1] = np.nan
    answers = fuse_answers(proposers, fit, "C1", k=2)
    np.testing.assert_allclose(answers.rotation[0, 0], answers.single[GALLERY][0])
    assert np.isnan(answers.rotation[1]).all()
    assert np.isnan(answers.probability[1]).all()
    assert answers.apart_deg is not None
    np.testing.assert_array_equal(np.isnan(answers.apart_deg[:3]), [True, True, False])
    assert np.isfinite(answers.rotation[2:]).all()


def test_proposers_that_the_weights_do_not_know_are_refused() -> None:
    _, proposers, fit = fitted("C1")
    with pytest.raises(ValueError, match="fit anew"):
        fuse_answers({NETWORK: proposers[NETWORK]}, fit, "C1", k=1)


def test_a_fit_without_any_weight_has_no_finite_temperature() -> None:
    fit = FusionFit(
        weights={"network": 0.0, "gallery": 0.0}, grid_order=1, floor=0.1, neighbourhood_deg=5, num_particles=9,
        log_likelihood=-3.0, single_log_likelihood={},
        chance_log_likelihood=-9.0,
    )  # fmt: skip
    assert fit.temperature == np.inf
    assert fit.shares == {"network": 0.5, "gallery": 0.5}


def test_each_feature_grows_with_certainty() -> None:
    features = confidence_features(
        [[0.3, 0.2], [0.6, 0.2], [0.99, 0.0]],
        above_noise=[-1.0, 2.0, 9.0],
        apart_deg=[90.0, 9.0, 0.0],
        log_likelihood=[-1.0, 3.0, 8.0],
        runner_up=[-1.0, 2.0, -np.inf],
    )
    assert set(features) == set(Feature)
    for values in features.values():
        assert np.isfinite(values).all()
        assert (np.diff(values) > 0).all()


def test_features_that_cannot_be_known_are_absent() -> None:
    assert set(confidence_features([[0.5]])) == {Feature.MASS}
    assert set(confidence_features([[0.5, 0.1]])) == {Feature.MASS, Feature.MARGIN}
    assert np.isnan(confidence_features([[np.nan, 0.1]])[Feature.MASS]).all()
