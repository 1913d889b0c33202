"""Learning rates over a run: the paper's halving on plateau, and cosine annealing for short runs."""

import math
from dataclasses import dataclass, field

from cesped_stream.settings import TrainingSettings


def cosine_rate(step: int, total_steps: int, warmup_steps: int) -> float:
    """Return the share of the peak rate at `step`: linear warm-up, then half a cosine down to 0 at `total_steps`."""
    warm = min(1.0, (step + 1) / max(1, warmup_steps))
    return warm * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / max(1, total_steps))))


@dataclass
class Plateau:
    """Halving on plateau and early stop (Appendix B), as numbers that a resume point can hold."""

    best_loss: float = math.inf
    epochs_since_best: int = 0
    epochs_since_halving: int = 0
    rate: float = field(default=1.0)

    def observe(self, loss: float, settings: TrainingSettings) -> bool:
        """Take one validation loss; halve the rate when it is due. Return whether this epoch is the best."""
        if loss < self.best_loss:
            self.best_loss, self.epochs_since_best, self.epochs_since_halving = loss, 0, 0
            return True
        self.epochs_since_best += 1
        self.epochs_since_halving += 1
        if self.epochs_since_halving >= settings.plateau_epochs:
            self.rate *= 0.5
            self.epochs_since_halving = 0
        return False

    def is_over(self, settings: TrainingSettings) -> bool:
        """Return whether validation has stagnated long enough to stop."""
        return self.epochs_since_best >= settings.stop_epochs
