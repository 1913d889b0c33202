"""The worker's loop around its core."""

from collections import deque
from typing import Any

import pytest
import torch

from cesped_stream.errors import InvalidCheckpointError, InvalidStarError, UnreachableFileError
from cesped_stream_service import worker as worker_module
from cesped_stream_service.messages import Ack, Failure, Idle, Lease
from cesped_stream_service.peer import Identity
from cesped_stream_service.process import Activity, StopRequest
from cesped_stream_service.worker import failure_of


def lease(lease_id: int) -> Lease:
    return Lease(
        lease_id=lease_id,
        batch_id=1,
        batch_star="b",
        first_row=0,
        num_rows=1,
        half_sets="0",
        checkpoint="c",
        checkpoint_id="i",
        expires_seconds=1.0,
    )


class ScriptedTalk:
    """Answers each question with the next of the script; what came unasked comes with the first answer."""

    def __init__(self, script: list[Lease | Idle], unasked: list[Lease], stop: StopRequest) -> None:
        self.unasked = deque(unasked)
        self._script, self._stop = script, stop

    def ask(self, *question: Any, **more: Any) -> Lease | Idle | None:
        if not self._script:
            self._stop.ask()
            return None
        return self._script.pop(0)


def test_a_lease_that_comes_twice_is_done_once(monkeypatch: Any) -> None:
    done: list[int] = []
    monkeypatch.setattr(worker_module, "_answer", lambda worker, lease, *more: not done.append(lease.lease_id))
    stop = StopRequest()
    talk: Any = ScriptedTalk([lease(1), lease(1), lease(2)], [lease(1), lease(3)], stop)
    core: Any = type("Core", (), {"particles_per_second": 0.0})()
    code = worker_module._work_until_stopped(core, talk, Identity("worker", "w", "cpu"), Activity("x"), stop)
    assert (code, done) == (0, [1, 3, 2])


@pytest.mark.parametrize(
    ("error", "retry_can_help", "worker_at_fault"),
    [
        (torch.linalg.LinAlgError("linalg.eigh: (Batch element 3): failed to converge"), False, False),
        (InvalidStarError("s.star: row 3"), False, False),
        (IndexError("index 7"), False, False),
        (UnreachableFileError("s.mrcs: away"), True, False),
        (OSError(5, "Input/output error"), True, False),
        (MemoryError(), True, True),
        (InvalidCheckpointError("half_0: sha256"), False, True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), True, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True, True),
    ],
)
def test_an_error_blames_the_rows_the_files_or_the_worker(
    error: Exception, retry_can_help: bool, worker_at_fault: bool
) -> None:
    failure = failure_of(error, 7, "w1")
    assert (failure.retry_can_help, failure.worker_at_fault) == (retry_can_help, worker_at_fault)


class _FailingCore:
    """A worker's core that fails each lease, and what it was told to forget."""

    def __init__(self, error: Exception) -> None:
        self.error, self.forgot = error, 0

    def work(self, *lease: Any, **more: Any) -> Any:
        raise self.error

    def forget(self) -> None:
        self.forgot += 1


@pytest.mark.parametrize(
    ("error", "goes_on"),
    [(torch.linalg.LinAlgError("linalg.eigh"), True), (RuntimeError("CUDA error: unspecified launch failure"), False)],
)
def test_a_worker_goes_on_after_an_unforeseen_error_but_not_with_a_lost_device(error: Exception, goes_on: bool) -> None:
    class Talk:
        told: Any = None

        def ask(self, answer: Any, *kinds: Any, **more: Any) -> Ack:
            self.told = answer
            return Ack(lease_id=1, accepted=True)

    core, talk = _FailingCore(error), Talk()
    arguments: Any = (core, lease(1), talk, Identity("worker", "w", "cpu"), Activity("x"), StopRequest())
    assert worker_module._answer(*arguments) is goes_on
    assert isinstance(talk.told, Failure) and core.forgot == 1
