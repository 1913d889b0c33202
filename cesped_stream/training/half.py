"""Training of one half-set's model, epoch by epoch, with a resume point after each."""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes

from cesped_stream.durable import write_whole
from cesped_stream.imaging.augment import Augmenter
from cesped_stream.model.image2sphere import Image2Sphere
from cesped_stream.particles.own_rows import consensus_confidences
from cesped_stream.particles.table import Int64, ParticleTable
from cesped_stream.settings import TrainingSettings
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.grids import pose_grid
from cesped_stream.so3.symmetry import group_rotations
from cesped_stream.so3.targets import symmetric_targets
from cesped_stream.training.loss import pose_loss
from cesped_stream.training.rows import AlignedImages, Split
from cesped_stream.training.schedule import Plateau, cosine_rate

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """Where a run stands: all that is not a tensor in its resume point."""

    step: int = 0
    epoch: int = 0
    seconds: float = 0.0
    over: str = ""
    """"" while it goes on, else why it ended: "steps", "epochs", "plateau" or "minutes"."""
    plateau: Plateau = field(default_factory=Plateau)
    history: list[dict[str, float]] = field(default_factory=list)
    """One entry an epoch: step, training_loss, and validation_loss, mean_error_deg, median_error_deg where rows
    are held out."""


class HalfTraining:
    """One model and the rows it may see. `run_epoch` advances it; the resume point makes a killed run bit-equal."""

    def __init__(
        self,
        half_set: int,
        model: Image2Sphere,
        table: ParticleTable,
        images: AlignedImages,
        split: Split,
        settings: TrainingSettings,
        *,
        device: torch.device,
        resume_file: Path,
        fingerprint: str,
    ) -> None:
        self.half_set = half_set
        self.model = model.to(device)
        self.split = split
        self.run = Run()
        self._images = images
        self._settings = settings
        self._device = device
        self._resume_file = resume_file
        self._fingerprint = fingerprint
        self._rotations = torch.from_numpy(table.rotations())
        self._confidence = torch.from_numpy(consensus_confidences(table)).float()
        self._group = group_rotations(settings.symmetry)
        self._augment = Augmenter(settings.augment)
        self._optimizer = _optimizer(self.model, settings)
        self._best: dict[str, torch.Tensor] = {}
        rows = len(split.training)
        self.steps_per_epoch = settings.steps_per_epoch or max(1, rows // settings.batch_size)
        self.max_steps = min(settings.max_steps, settings.max_epochs * self.steps_per_epoch)
        if resume_file.exists():
            self._resume()

    def run_epoch(self, on_step: Callable[[int, float], None], should_stop: Callable[[], bool]) -> bool:
        """Train one epoch, validate, write the resume point. Return False where `should_stop` ended it half-way;
        that epoch is then done again at the next start, with the same batches."""
        started = time.monotonic()
        steps = min(self.steps_per_epoch, self.max_steps - self.run.step)
        generator = torch.Generator().manual_seed(self._seed_of_epoch())
        self.model.train()
        total = self._total_steps()
        losses = 0.0
        for step, rows in enumerate(self._batches(steps, generator)):
            if should_stop():
                return False
            rate = self._settings.learning_rate * self._rate(self.run.step + step, total)
            loss = self._step(rows, rate, generator)
            losses += loss
            on_step(self.run.step + step + 1, loss)
        self.run.step += steps
        self.run.epoch += 1
        self.run.history.append({"step": self.run.step, "training_loss": losses / max(1, steps), **self._validate()})
        self.run.seconds += time.monotonic() - started
        self._close_epoch()
        self._write_resume_point()
        return True

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the weights to publish, on the CPU: the best epoch's under `plateau`, the last under `cosine`."""
        state = self._best or self.model.state_dict()
        return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}

    def _step(self, rows: Int64, rate: float, generator: torch.Generator) -> float:
        picked = torch.from_numpy(rows)
        images, rotations, _ = self._augment(self._images.take(rows), self._rotations[picked], generator)
        index, mass = symmetric_targets(rotations, self._group, self.model.settings.grid_order)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        logits = self.model(images.to(self._device), generator=generator)
        loss = pose_loss(
            logits,
            index.to(self._device),
            mass.to(self._device),
            self._confidence[picked].to(self._device),
        )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return float(loss.detach())

    def _batches(self, steps: int, generator: torch.Generator) -> list[Int64]:
        """Return `steps` batches of row indices: passes over the rows in random order, a short tail dropped."""
        rows = self.split.training
        size = min(self._settings.batch_size, len(rows))
        batches: list[Int64] = []
        while len(batches) < steps:
            order = rows[torch.randperm(len(rows), generator=generator).numpy()]
            batches.extend(order[i : i + size] for i in range(0, len(rows) - size + 1, size))
        return batches[:steps]

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        rows = self.split.validation
        if len(rows) == 0:
            return {}
        self.model.eval()
        grid = pose_grid(self.model.settings.grid_order)
        losses, errors = [], []
        for start in range(0, len(rows), self._settings.batch_size):
            batch = rows[start : start + self._settings.batch_size]
            rotations = self._rotations[torch.from_numpy(batch)]
            index, mass = symmetric_targets(rotations, self._group, self.model.settings.grid_order)
            logits = self.model(self._images.take(batch).to(self._device)).float().cpu()
            confidence = self._confidence[torch.from_numpy(batch)]
            losses.append(float(pose_loss(logits, index, mass, confidence)) * len(batch))
            predicted = grid[logits.argmax(1).numpy()]
            errors.append(angular_error_deg(rotations.numpy(), predicted, self._group))
        error = np.concatenate(errors)
        return {
            "validation_loss": sum(losses) / len(rows),
            "mean_error_deg": float(error.mean()),
            "median_error_deg": float(np.median(error)),
        }

    def _close_epoch(self) -> None:
        settings, run = self._settings, self.run
        last = run.history[-1]
        if settings.schedule == "plateau":
            if run.plateau.observe(last.get("validation_loss", last["training_loss"]), settings):
                self._best = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
            if run.plateau.is_over(settings):
                run.over = "plateau"
        if settings.max_minutes and run.seconds >= settings.max_minutes * 60:
            run.over = "minutes"
        if run.step >= self.max_steps:
            run.over = "steps" if run.step >= settings.max_steps else "epochs"

    def _rate(self, step: int, total: int) -> float:
        if self._settings.schedule == "plateau":
            return self.run.plateau.rate
        return cosine_rate(step, total, self._settings.warmup_steps)

    def _total_steps(self) -> int:
        """Steps that the cosine ends at: max_steps, or fewer where the time budget will not hold that many."""
        run, settings = self.run, self._settings
        if not settings.max_minutes or not run.step:
            return self.max_steps
        left = max(0.0, settings.max_minutes * 60 - run.seconds)
        affordable = run.step + int(left / (run.seconds / run.step))
        whole_epochs = -(-affordable // self.steps_per_epoch) * self.steps_per_epoch
        return min(self.max_steps, max(whole_epochs, run.step + 1))

    def _seed_of_epoch(self) -> int:
        text = f"{self._settings.seed}/{self.half_set}/{self.run.epoch}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

    def _write_resume_point(self) -> None:
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self._best.items()}
        for k, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{k}/{name}": torch.as_tensor(value) for name, value in state.items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        text = json.dumps(asdict(self.run))
        metadata = {"run": text, "fingerprint": self._fingerprint}
        write_whole(self._resume_file, safetensors_bytes(tensors, metadata=metadata))

    def _resume(self) -> None:
        try:
            with safe_open(self._resume_file, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            logger.warning("resume point unreadable, training starts anew: %s: %s", self._resume_file, error)
            return
        if metadata.get("fingerprint") != self._fingerprint:
            return
        saved = json.loads(metadata["run"])
        self.run = Run(**{**saved, "plateau": Plateau(**saved["plateau"])})
        self.model.load_state_dict(_below(tensors, "model/"))
        self._best = {name: tensor.to(self._device) for name, tensor in _below(tensors, "best/").items()}
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in _below(tensors, "optimizer/").items():
            number, _, key = name.partition("/")
            state.setdefault(int(number), {})[key] = tensor
        self._optimizer.load_state_dict({"state": state, "param_groups": self._optimizer.state_dict()["param_groups"]})


def trained_seconds(resume_file: Path) -> float:
    """Return the seconds that a half's epochs took up to its last resume point. OSError where there is none."""
    with safe_open(resume_file, "pt") as file:
        return float(json.loads(file.metadata()["run"])["seconds"])


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _optimizer(model: torch.nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "radam":
        return torch.optim.RAdam(model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(
        model.parameters(), settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
