"""The worker's loop around its core."""

from collections import deque
from typing import Any

from cesped_stream_service import worker as worker_module
from cesped_stream_service.messages import Idle, Lease
from cesped_stream_service.peer import Identity
from cesped_stream_service.process import Activity, StopRequest


def lease(lease_id: int) -> Lease:
    return Lease(
        lease_id=lease_id,
        batch_id=1,
        batch_star="b",
        first_row=0,
        num_rows=1,
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
