import itertools

import pytest
import torch

from cesped_stream.settings import MODEL_PRESETS, TrainingSettings
from cesped_stream.training.loss import pose_loss
from cesped_stream.training.schedule import Plateau, cosine_rate


def test_cosine_warms_up_and_ends_at_zero() -> None:
    rates = [cosine_rate(step, 100, 10) for step in range(101)]
    assert rates[0] == pytest.approx(0.1, rel=1e-2)
    assert max(rates) == rates[9] or max(rates) == rates[10]
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))


def test_plateau_halves_after_ten_stagnant_epochs_and_stops_after_twelve() -> None:
    settings = TrainingSettings(preset="paper")
    plateau = Plateau()
    assert plateau.observe(1.0, settings)
    for _ in range(9):
        assert not plateau.observe(1.0, settings)
    assert plateau.rate == 1.0
    plateau.observe(1.5, settings)
    assert plateau.rate == 0.5
    plateau.observe(1.5, settings)
    assert not plateau.is_over(settings)
    plateau.observe(1.5, settings)
    assert plateau.is_over(settings)


def test_an_improvement_starts_both_counts_again() -> None:
    settings = TrainingSettings(preset="paper")
    plateau = Plateau()
    for loss in [2.0] * 10 + [1.0] + [1.0] * 9:
        plateau.observe(loss, settings)
    assert (plateau.rate, plateau.epochs_since_best) == (1.0, 9)


def test_the_loss_is_equation_10() -> None:
    logits = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([[4, 9], [7, 7], [0, 49]])
    mass = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    confidence = torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64)
    target = torch.zeros(3, 50, dtype=torch.float64).scatter_add_(1, index, mass)
    expected = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    assert pose_loss(logits, index, mass, confidence).item() == pytest.approx((confidence * expected).mean().item())


def test_a_preset_fills_only_what_is_unset() -> None:
    assert TrainingSettings(preset="small").optimizer == "adamw"
    assert TrainingSettings(preset="paper").optimizer == "radam"
    mixed = TrainingSettings.model_validate(
        {"preset": "small", "optimizer": "radam", "augment": {"zoom_fraction": 0.2}}
    )
    assert (mixed.optimizer, mixed.schedule) == ("radam", "cosine")
    assert (mixed.augment.zoom_fraction, mixed.augment.rotation_deg) == (0.2, 180.0)


@pytest.mark.parametrize("preset", ["paper", "small"])
def test_one_key_of_a_presets_model_or_preprocessing_leaves_its_others(preset: str) -> None:
    given = {"preset": preset, "preprocess": {"crop_angstrom": 300.0}, "model": {"lmax": 5}}
    settings = TrainingSettings.model_validate(given)
    model, preprocess = MODEL_PRESETS[preset]
    assert settings.preprocess_settings == preprocess.model_copy(update={"crop_angstrom": 300.0})
    assert settings.model_settings == model.model_copy(update={"lmax": 5})
