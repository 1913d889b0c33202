"""From a training order's rows to published checkpoints: networks, references, or both and what fuses them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cesped_stream.fused_pair import FusedParts, publish_fused
from cesped_stream.particles.aligned_rows import Alignment
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.table import ParticleTable
from cesped_stream.reference_pair import publish_references
from cesped_stream.training.fit import Progress, TrainingStopped, fit_pair, sole_trainer

from .settings import SessionSettings, TrainCommand
from .worker import matching_settings


@dataclass(frozen=True)
class Published:
    """A checkpoint's folder and id."""

    folder: Path
    checkpoint_id: str


@dataclass(frozen=True)
class Publisher:
    """Publishes what a command's `proposer` says, in `checkpoints_folder`; a killed run started again ends the same.

    TrainingStopped once `should_stop` is true; else what training, making references and fusing raise.
    """

    settings: SessionSettings | TrainCommand
    table: ParticleTable
    work_folder: Path
    checkpoints_folder: Path
    trained_on: str = ""
    alignment: Alignment | None = None
    """What the rows make of the independence that settings state; none: that itself."""
    on_progress: Callable[[Progress], None] = lambda progress: None
    should_stop: Callable[[], bool] = lambda: False

    def publish(self, on_published: Callable[[Published], None] = lambda published: None) -> Published:
        """Return the order's checkpoint; `on_published` is told of one that can give poses until that is there."""
        if self.settings.proposer == "network":
            return self.networks()
        references = self.references()
        if self.settings.proposer == "gallery":
            return references
        on_published(references)
        return self.fused(self.networks(), references)

    def networks(self) -> Published:
        """Train both half-models and publish them."""
        folder, manifest = fit_pair(
            self.table,
            StackReader(),
            self.settings.training,
            self.settings.inference,
            work_folder=self.work_folder,
            checkpoints_folder=self.checkpoints_folder,
            trained_on=self.trained_on,
            alignment=self.alignment,
            on_progress=self.on_progress,
            should_stop=self.should_stop,
        )
        return Published(folder, manifest.checkpoint_id)

    def references(self) -> Published:
        """Make both references and publish them."""
        with sole_trainer(self.work_folder):
            folder, manifest = publish_references(
                self.table,
                StackReader(),
                self.settings.training,
                matching_settings(self.settings),
                work_folder=self.work_folder,
                checkpoints_folder=self.checkpoints_folder,
                trained_on=self.trained_on,
                alignment=self.alignment,
                on_stage=self.on_stage,
            )
        return Published(folder, manifest.checkpoint_id)

    def fused(self, networks: Published, references: Published) -> Published:
        """Fit what joins them on held-out rows and publish both as one."""
        parts = FusedParts(
            networks.folder, references.folder, self.settings.inference, matching_settings(self.settings)
        )
        with sole_trainer(self.work_folder):
            folder, manifest = publish_fused(
                self.table,
                StackReader(),
                parts,
                checkpoints_folder=self.checkpoints_folder,
                trained_on=self.trained_on,
                on_stage=self.on_stage,
            )
        return Published(folder, manifest.checkpoint_id)

    def on_stage(self, half: int, stage: str) -> None:
        """Tell that a half's next stage begins; TrainingStopped where a stop was asked for."""
        if self.should_stop():
            raise TrainingStopped(f"stopped before the {stage} of half {half}; the next start makes it")
        self.on_progress(Progress(half, 0, 0, 0.0, (None, None), stage))
