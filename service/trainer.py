"""The trainer: takes an order, fine-tunes both half-models, publishes the pair. The core knows no socket."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import torch

from cesped_stream.errors import CespedStreamError
from cesped_stream.particles.aligned_rows import alignment_of
from cesped_stream.particles.star import read_star
from cesped_stream.training.fit import Progress, TrainingStopped

from .messages import ALIGNED, Ack, Failure, Idle, Ready, TrainingDone, TrainingOrder, TrainingProgress
from .peer import POLL_SECONDS, Conversation, Identity, connected
from .process import Activity, StopRequest, trainer_threads, usable_cores
from .publishing import Published, Publisher
from .referencing import published_of
from .settings import SessionSettings
from .worker import device_name, failure_of

logger = logging.getLogger(__name__)

CHECKPOINT_MANIFEST = "manifest.json"


class Trainer:
    """From an order to a published checkpoint; an order begun by a former process goes on from its resume points."""

    def __init__(self, settings: SessionSettings, *, now: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._now = now

    def train(
        self,
        order: TrainingOrder,
        incarnation: str,
        *,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        on_published: Callable[[TrainingDone], None] = lambda done: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> TrainingDone:
        """Train and publish. Raises TrainingStopped once asked to stop, CespedStreamError where rows cannot train.

        `on_published` is told of a checkpoint that can give poses until the order's last one is there.
        """
        start = self._now()
        work_folder = Path(order.work_folder)

        def done(published: Published, *, complete: bool) -> TrainingDone:
            return TrainingDone(
                incarnation=incarnation,
                training_id=order.training_id,
                checkpoint_id=published.checkpoint_id,
                checkpoint=str(published.folder),
                seconds=self._now() - start,
                complete=complete,
            )

        publisher = Publisher(
            self._settings,
            read_star(Path(order.aligned_star)),
            work_folder,
            work_folder.parent,
            alignment=alignment_of(
                self._settings.training.alignment,
                order.num_aligned,
                own=0,
                refined=order.num_refined,
                halves_given=order.halves_given,
            ),
            on_progress=on_progress,
            should_stop=should_stop,
        )
        if order.source != ALIGNED:
            return done(published_of(order, publisher), complete=True)
        return done(publisher.publish(lambda first: on_published(done(first, complete=False))), complete=True)


class LatestProgress:
    """The newest step of each half, written by the training threads, read by the process's main thread."""

    def __init__(self, activity: Activity) -> None:
        self._activity = activity
        self._lock = threading.Lock()
        self._halves: dict[int, Progress] = {}

    def put(self, progress: Progress) -> None:
        with self._lock:
            if any(bool(other.stage) != bool(progress.stage) for other in self._halves.values()):
                self._halves.clear()  # what is counted in steps follows what is not, or the reverse
            self._halves[progress.half_set] = progress
        self._activity.worked()
        self._activity.state = _stage_words(progress) or (
            f"half {progress.half_set}: step {progress.step} of {progress.max_steps}"
        )

    def message(self, incarnation: str, training_id: int) -> TrainingProgress | None:
        """Return both halves' steps together, or None before the first."""
        with self._lock:
            halves = [self._halves[half] for half in sorted(self._halves)]
        if not halves:
            return None
        if halves[0].stage:
            stage = ", ".join(map(_stage_words, halves))
            return TrainingProgress(incarnation=incarnation, training_id=training_id, step=0, max_steps=0, stage=stage)
        errors = halves[-1].validation_error_deg
        steps = {half.half_set: half.step for half in halves}
        return TrainingProgress(
            incarnation=incarnation,
            training_id=training_id,
            step=sum(half.step for half in halves),
            max_steps=2 * halves[0].max_steps,
            half_steps=tuple(steps.get(half, 0) for half in (0, 1)),
            validation_error_deg=tuple(error for error in errors if error is not None),
        )


def _stage_words(progress: Progress) -> str:
    return f"{progress.stage} of half {progress.half_set}" if progress.stage else ""


def run_trainer(settings: SessionSettings, stop: StopRequest, *, name: str, parent_pid: int = 0) -> int:
    """Run the trainer until it is asked to stop; return the exit code, 1 where it met an error it cannot answer."""
    identity = Identity("trainer", name, device_name(settings))
    activity = Activity("starting")
    with connected(settings, identity, activity, stop, parent_pid=parent_pid) as talk:
        return _train_until_stopped(settings, talk, identity, activity, stop)


def _train_until_stopped(
    settings: SessionSettings, talk: Conversation, identity: Identity, activity: Activity, stop: StopRequest
) -> int:
    trainer = Trainer(settings)
    while not stop.asked():
        activity.state = "asking for work"
        reply = talk.ask(Ready(incarnation=identity.incarnation), TrainingOrder, Idle)
        talk.unasked.clear()
        if isinstance(reply, Idle):
            activity.state = "idle"
            activity.turned()
            stop.wait(reply.retry_seconds)
        elif isinstance(reply, TrainingOrder) and not _carry_out(
            trainer, settings, reply, talk, identity, activity, stop
        ):
            return 1
    return 0


def _carry_out(
    trainer: Trainer,
    settings: SessionSettings,
    order: TrainingOrder,
    talk: Conversation,
    identity: Identity,
    activity: Activity,
    stop: StopRequest,
) -> bool:
    """Train in a thread while this one talks; tell the outcome; return whether the trainer can go on."""
    busy = any(Path(order.work_folder).parent.glob(f"*/{CHECKPOINT_MANIFEST}")) or bool(settings.checkpoint)
    threads = trainer_threads(settings, usable_cores(), workers_busy=busy)
    latest = LatestProgress(activity)
    published: SimpleQueue[TrainingDone] = SimpleQueue()

    def train() -> TrainingDone:
        torch.set_num_threads(threads)

        def on_published(done: TrainingDone) -> None:
            published.put(done)
            torch.set_num_threads(trainer_threads(settings, usable_cores(), workers_busy=True))

        return trainer.train(
            order, identity.incarnation, on_progress=latest.put, on_published=on_published, should_stop=stop.asked
        )

    logger.info("training begins", extra={"training_id": order.training_id, "threads": threads})
    with ThreadPoolExecutor(1, "training") as pool:
        running = pool.submit(train)
        try:
            with talk.beside_work():
                _talk_while(running, latest, published, order, talk, identity)
        except BaseException:
            stop.ask()  # or the pool waits for the training's end
            raise
    return _tell_outcome(running, order, talk, identity)


def _talk_while(
    running: "Future[TrainingDone]",
    latest: LatestProgress,
    published: "SimpleQueue[TrainingDone]",
    order: TrainingOrder,
    talk: Conversation,
    identity: Identity,
) -> None:
    """Tell the progress once a heartbeat, and what is published on the way, until the training is over.

    Greets a coordinator that was restarted.
    """
    next_report = 0.0
    while not running.done():
        talk.receive(POLL_SECONDS)
        if not published.empty():
            _tell_first(published.get(), talk)
        if time.monotonic() >= next_report and talk.greet():
            next_report = time.monotonic() + talk.heartbeat_seconds
            progress = latest.message(identity.incarnation, order.training_id)
            if progress is not None:
                talk.tell(progress)


def _tell_first(done: TrainingDone, talk: Conversation) -> None:
    """Tell of a checkpoint that gives poses until the order's last one; training goes on whatever the answer."""
    ack = talk.ask(done, Ack, lease_id=done.training_id)
    if isinstance(ack, Ack) and not ack.accepted:
        logger.warning("checkpoint refused", extra={"checkpoint_id": done.checkpoint_id, "reason": ack.reason})


def _tell_outcome(
    running: "Future[TrainingDone]", order: TrainingOrder, talk: Conversation, identity: Identity
) -> bool:
    can_go_on = True
    answer: TrainingDone | Failure
    try:
        answer = running.result()
    except TrainingStopped:
        logger.info("training stopped on request", extra={"training_id": order.training_id})
        return True
    except Exception as error:
        logger.exception("training failed", extra={"training_id": order.training_id})
        answer = failure_of(error, order.training_id, identity.incarnation)
        can_go_on = isinstance(error, CespedStreamError)
    talk.ask(answer, Ack, lease_id=order.training_id)
    return can_go_on
