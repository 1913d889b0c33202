"""Settings that were given and that nothing will read: said when a command starts, so that nobody waits for them."""

from typing import Protocol

from cesped_stream.settings import TrainingSettings

from .settings import SessionSettings

OF_REFERENCES_TOO = {"symmetry", "alignment", "seed", "validation_fraction"}
"""What of `training` references are made with; the rest is the network's."""


class _Trained(Protocol):
    @property
    def proposer(self) -> str: ...
    @property
    def training(self) -> TrainingSettings: ...


def of_training(settings: _Trained) -> tuple[str, ...]:
    """Return a sentence where settings of the network's training are given and no network is trained."""
    if settings.proposer != "gallery":
        return ()
    said, usual = settings.training, TrainingSettings(preset=settings.training.preset)
    given = [name for name in TrainingSettings.model_fields if getattr(said, name) != getattr(usual, name)]
    given = ["preset"] * (said.preset != TrainingSettings().preset) + given
    idle = [f"training.{name}" for name in given if name not in OF_REFERENCES_TOO]
    if not idle:
        return ()
    return (f"no effect of {', '.join(idle)}: proposer gallery trains no network; both or network do",)


def of_session(settings: SessionSettings) -> tuple[str, ...]:
    """Return a sentence for each group of a session's settings that have no effect."""
    said = of_training(settings)
    if (
        settings.reference is None
        and settings.noise_rows_per_half != SessionSettings.model_fields["noise_rows_per_half"].default
    ):
        said += ("no effect of noise_rows_per_half: only a given map (reference) waits for rows to learn noise from",)
    return said
