"""Fusion weights fitted on particles whose truth is known, judged on others."""

import numpy as np
import pytest
from support.proposers import FakeProposer, random_rotations

from cesped_stream.calibration.fusion_fit import FusionFit, fit_fusion, mean_log_likelihood
from cesped_stream.settings import FusionSettings
from cesped_stream.so3.distribution import SparseDistribution
from cesped_stream.so3.fusion import to_unit
from cesped_stream.so3.symmetry import group_rotations

SETTINGS = FusionSettings()
Proposals = dict[str, SparseDistribution]


def proposals(network: FakeProposer, gallery: FakeProposer, count: int, symmetry: str, seed: int):  # type: ignore[no-untyped-def]
    truth = random_rotations(count, seed)
    return {
        "network": network.propose(truth, symmetry, seed + 1),
        "gallery": gallery.propose(truth, symmetry, seed + 2),
    }, truth


BROAD_NETWORK = FakeProposer(sigma_deg=20, claimed_deg=20)
SURE_GALLERY = FakeProposer(sigma_deg=8, claimed_deg=3, outliers=0.15, in_unit=True)
CASES = {
    "sure gallery with outliers": (BROAD_NETWORK, SURE_GALLERY),
    "good network, poor gallery": (FakeProposer(8, 8), FakeProposer(30, 12, outliers=0.5, in_unit=True)),
    "of two orders": (FakeProposer(15, 8), FakeProposer(15, 8, order=1, in_unit=True)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("symmetry", ["C1", "D3"])
def test_the_pool_is_no_worse_than_the_better_proposer_on_other_particles(case: str, symmetry: str) -> None:
    held_out, truth = proposals(*CASES[case], 200, symmetry, 10)
    fit = fit_fusion(held_out, truth, symmetry, SETTINGS)
    assert fit.log_likelihood >= max(fit.single_log_likelihood.values()) - 1e-9
    fresh, fresh_truth = proposals(*CASES[case], 200, symmetry, 20)
    pooled = mean_log_likelihood(fit, fresh, fresh_truth, symmetry)
    for name in fresh:
        alone = fit_fusion({name: held_out[name]}, truth, symmetry, SETTINGS)
        # two weights fitted on 200 particles cost about 2 / (2 x 200) in the mean
        assert pooled >= _on_one_order(alone, fit, fresh, name, fresh_truth, symmetry) - 0.02


def _on_one_order(
    alone: FusionFit, fit: FusionFit, fresh: Proposals, name: str, truth: np.ndarray, symmetry: str
) -> float:
    """The proposer alone, measured on the pool's grid and within its radius."""
    placed = alone.model_copy(update={"grid_order": fit.grid_order, "neighbourhood_deg": fit.neighbourhood_deg})
    return mean_log_likelihood(placed, {name: fresh[name]}, truth, symmetry)


def test_proposers_that_both_know_something_are_better_together() -> None:
    held_out, truth = proposals(BROAD_NETWORK, SURE_GALLERY, 250, "C1", 30)
    fit = fit_fusion(held_out, truth, "C1", SETTINGS)
    assert fit.log_likelihood > max(fit.single_log_likelihood.values()) + 0.1
    assert min(fit.weights.values()) > 0.05


def test_a_proposer_that_claims_too_much_is_cooled_and_a_modest_one_is_not() -> None:
    truth, no_floor = random_rotations(120, 40), FusionSettings(floor=1e-9)
    for claimed_deg, low, high in [(6.0, 2.0, 50.0), (18.0, 0.75, 1.35)]:
        proposer = FakeProposer(sigma_deg=18, claimed_deg=claimed_deg, keep=800).propose(truth, "C1", 41)
        fit = fit_fusion({"network": proposer}, truth, "C1", no_floor)
        assert low < fit.temperature < high


def test_a_proposer_that_knows_nothing_gets_no_weight() -> None:
    truth = random_rotations(300, 50)
    guesses = FakeProposer(1, 10, outliers=1.0).propose(truth, "C1", 51)
    good = FakeProposer(10, 10).propose(truth, "C1", 52)
    fit = fit_fusion({"network": guesses, "gallery": good}, truth, "C1", SETTINGS)
    assert fit.shares["network"] < 0.1
    assert fit.weights["gallery"] > 0.5


TURNED = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])


@pytest.mark.parametrize("symmetry", ["C1", "D2"])
def test_truths_in_another_frame_disagree_with_what_the_gallery_says(symmetry: str) -> None:
    held_out, truth = proposals(BROAD_NETWORK, SURE_GALLERY, 200, symmetry, 55)
    assert not fit_fusion(held_out, truth, symmetry, SETTINGS).disagrees("gallery")
    assert fit_fusion(held_out, TURNED @ truth, symmetry, SETTINGS).disagrees("gallery")


def test_a_gallery_that_is_wrong_gives_way_to_a_network_that_is_right() -> None:
    truth = random_rotations(200, 57)
    good, wrong = BROAD_NETWORK.propose(truth, "C1", 58), SURE_GALLERY.propose(TURNED @ truth, "C1", 59)
    fit = fit_fusion({"network": good, "gallery": wrong}, truth, "C1", SETTINGS)
    assert not fit.disagrees("gallery")
    assert fit.shares["network"] > 0.9


def test_the_form_in_which_a_distribution_comes_does_not_matter() -> None:
    held_out, truth = proposals(BROAD_NETWORK, SURE_GALLERY, 150, "D2", 60)
    folded = {name: to_unit(distribution, "D2", 2) for name, distribution in held_out.items()}
    fit, other = fit_fusion(held_out, truth, "D2", SETTINGS), fit_fusion(folded, truth, "D2", SETTINGS)
    assert other.log_likelihood == pytest.approx(fit.log_likelihood, abs=1e-5)
    for name in fit.weights:
        assert other.weights[name] == pytest.approx(fit.weights[name], abs=0.01)


def test_truths_mates_and_the_order_of_particles_change_nothing() -> None:
    held_out, truth = proposals(BROAD_NETWORK, SURE_GALLERY, 150, "D2", 70)
    fit = fit_fusion(held_out, truth, "D2", SETTINGS)
    order = np.random.default_rng(0).permutation(150)
    mixed = {
        name: SparseDistribution(d.grid_order, d.asymmetric_unit, d.indices[order], d.log_weights[order])
        for name, d in held_out.items()
    }
    mates = group_rotations("D2")[np.arange(150) % 4] @ truth
    other = fit_fusion(mixed, mates[order], "D2", SETTINGS)
    assert other.log_likelihood == pytest.approx(fit.log_likelihood, abs=1e-7)


def test_the_grid_that_is_pooled_on_may_be_coarser_than_the_proposers() -> None:
    held_out, truth = proposals(BROAD_NETWORK, SURE_GALLERY, 120, "D2", 75)
    fit = fit_fusion(held_out, truth, "D2", FusionSettings(grid_order=1))
    assert fit.grid_order == 1
    assert fit.neighbourhood_deg == pytest.approx(29.3)
    assert fit.log_likelihood > fit_fusion(held_out, truth, "D2", SETTINGS).log_likelihood


def test_too_few_particles_or_unequal_ones_are_refused() -> None:
    held_out, truth = proposals(BROAD_NETWORK, SURE_GALLERY, 30, "C1", 80)
    with pytest.raises(ValueError, match="30 held-out particles; fusion weights need 100"):
        fit_fusion(held_out, truth, "C1", SETTINGS)
    with pytest.raises(ValueError, match="29 true poses"):
        fit_fusion(held_out, truth[1:], "C1", SETTINGS)
    fit = fit_fusion(held_out, truth, "C1", FusionSettings(min_particles=20))
    with pytest.raises(ValueError, match="network"):
        mean_log_likelihood(fit, {"network": held_out["network"]}, truth, "C1")


@pytest.mark.parametrize("seed", [40, 50, 60])
def test_chance_agreement_of_a_nearly_even_proposer_gives_it_next_to_no_weight(seed: int) -> None:
    nearly_even = FakeProposer(sigma_deg=180, claimed_deg=300, outliers=1.0, order=1, keep=576)
    held_out, truth = proposals(nearly_even, SURE_GALLERY, 200, "C1", seed)
    fit = fit_fusion(held_out, truth, "C1", SETTINGS)
    assert fit.weights["network"] < 2
    assert fit.log_likelihood == pytest.approx(fit.single_log_likelihood["gallery"], abs=0.01)
