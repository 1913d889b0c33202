"""The undisturbed run that others are compared with: the same cores, driven in this process without a socket."""

import itertools
from pathlib import Path

import torch

from cesped_stream.export.star import export_star
from cesped_stream_service.coordinator import Coordinator
from cesped_stream_service.messages import Ack, AnyMessage, Hello, Lease, Ready, TrainingOrder
from cesped_stream_service.settings import SessionSettings
from cesped_stream_service.trainer import Trainer
from cesped_stream_service.wire import Frames
from cesped_stream_service.worker import Worker

from .conftest import wait_until


def exported_bytes(settings: SessionSettings, output: Path) -> bytes:
    """Return the bytes of a session's canonical export."""
    files = export_star(settings.session / "poses", output)
    return b"".join(file.read_bytes() for file in files)


def undisturbed_export(settings: SessionSettings, total: int, output: Path) -> bytes:
    """Do all of a session's work here and return its canonical export's bytes."""
    torch.set_num_threads(1)
    core = Coordinator(settings, watch_events=False)
    try:
        worker, trainer = Worker(settings), Trainer(settings)
        for role in ("worker", "trainer"):
            core.handle(role.encode(), Hello(role=role, name=role, incarnation=role, pid=1, device="cpu"), {})

        def said(message: AnyMessage, frames: Frames | None = None) -> AnyMessage:
            """Return the core's answer, which may come with a later tick."""
            out = core.handle(b"peer", message, dict(frames or {}))
            for _ in itertools.count():
                if out:
                    return out[-1].message
                out = core.tick()
            raise AssertionError

        def turn() -> bool:
            core.tick()
            order = said(Ready(incarnation="trainer"))
            if isinstance(order, TrainingOrder):
                done = trainer.train(order, "trainer", on_published=said)
                assert isinstance(said(done), Ack)
            lease = said(Ready(incarnation="worker"))
            if isinstance(lease, Lease):
                assert isinstance(said(*worker.work(lease, "worker")), Ack)
            status = core.status()
            return status.posed + status.unposed == total

        wait_until(turn, "every row answered in process")
    finally:
        core.close()
    return exported_bytes(settings, output)
