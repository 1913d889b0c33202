"""How far a command is: seconds of its stages, bars of what landed, was trained and has poses."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cesped_stream.benchmark.plan import BatchRole, ReplayPlan

from .streaming import StreamProgress


@dataclass
class Stages:
    """Seconds that each named stage took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Take the time of what is done meanwhile, however it ends."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = time.monotonic() - start


class StreamBars:
    """Progress of a stream: landed, each half's training, poses on disk."""

    def __init__(self, bars: Progress, plan: ReplayPlan) -> None:
        self._bars = bars
        self._landed = bars.add_task("landed", total=plan.num_particles)
        self._training = [bars.add_task(f"training half {half}", total=None) for half in (0, 1)]
        self._inferred = bars.add_task("inferred", total=plan.count(BatchRole.STREAMED))

    def update(self, progress: StreamProgress) -> None:
        """Show what landed, was trained and has poses by now."""
        self._bars.update(self._landed, completed=progress.landed)
        if progress.status is None:
            return
        self._bars.update(self._inferred, completed=progress.status.predicted + progress.status.unposed)
        training = progress.status.training
        if training is None:
            return
        for task, step in zip(self._training, training.half_steps, strict=False):
            self._bars.update(task, total=training.max_steps // len(self._training), completed=step)
        if training.seconds is not None:
            for task in self._training:
                # Training may end before its last step: at its time budget.
                self._bars.update(task, total=self._bars.tasks[task].completed)


def progress_bars(console: Console) -> Progress:
    """Return bars for a command's stages."""
    return Progress(
        TextColumn("{task.description:<22}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
