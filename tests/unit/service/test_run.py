"""The supervisor restarts what crashed, stops in the order that loses no work, and does not repeat a refusal."""

from dataclasses import dataclass, field

import pytest

from cesped_stream_service.run import (
    HEALTHY_SECONDS,
    LAST_BACKOFF_SECONDS,
    STOP_SECONDS,
    Child,
    Supervisor,
    children_of,
    gpu_of,
)
from cesped_stream_service.settings import SessionSettings


@dataclass
class FakeProcess:
    pid: int
    code: int | None = None
    told: list[str] = field(default_factory=list)
    stubborn: bool = False

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        self.told.append("terminate")
        if not self.stubborn:
            self.code = 0

    def kill(self) -> None:
        self.told.append("kill")
        self.code = -9


class Scene:
    """A supervisor of three fake roles and a clock."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.started: list[str] = []
        self.children = [Child("coordinator", []), Child("trainer", []), Child("worker-1", [])]
        self.supervisor = Supervisor(self.children, self._start, now=lambda: self.clock)
        self.supervisor.turn()

    def _start(self, child: Child) -> FakeProcess:
        self.started.append(child.name)
        return FakeProcess(len(self.started))

    def process(self, place: int) -> FakeProcess:
        process = self.children[place].process
        assert isinstance(process, FakeProcess)
        return process

    def turn(self, seconds: float = 0.0) -> None:
        self.clock += seconds
        self.supervisor.turn()


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_all_roles_start_at_once(scene: Scene) -> None:
    assert scene.started == ["coordinator", "trainer", "worker-1"]
    assert scene.supervisor.coordinator_pid == 1


def test_crashed_role_starts_again_after_a_growing_pause(scene: Scene) -> None:
    pauses = []
    for _ in range(8):
        scene.process(2).code = 1
        before = scene.clock
        scene.turn()
        while scene.children[2].process is None:
            scene.turn(0.5)
        pauses.append(scene.clock - before)
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert max(pauses) == LAST_BACKOFF_SECONDS
    assert scene.started.count("worker-1") == 9
    assert scene.started.count("coordinator") == 1


def test_pause_is_short_again_after_a_healthy_time(scene: Scene) -> None:
    for _ in range(4):
        scene.process(2).code = 1
        scene.turn()
        scene.turn(LAST_BACKOFF_SECONDS)
    scene.turn(HEALTHY_SECONDS)
    scene.process(2).code = -9
    scene.turn()
    assert scene.children[2].start_at == scene.clock + 1.0


def test_stop_ends_workers_first_and_the_coordinator_last(scene: Scene) -> None:
    scene.process(2).stubborn = True
    coordinator, worker = scene.process(0), scene.process(2)
    scene.supervisor.stop()
    scene.turn()
    assert worker.told == ["terminate"]
    assert coordinator.told == []
    worker.code = 0
    scene.turn()
    assert coordinator.told == ["terminate"]
    scene.turn()
    assert scene.supervisor.over
    assert scene.supervisor.exit_code == 0


def test_role_that_does_not_stop_is_killed_and_told_by_the_exit_code(scene: Scene) -> None:
    worker = scene.process(2)
    worker.stubborn = True
    scene.supervisor.stop()
    scene.turn(STOP_SECONDS + 1)
    assert "kill" in worker.told
    scene.turn()
    assert scene.supervisor.over
    assert scene.supervisor.exit_code == 1


def test_refusal_is_not_repeated_and_ends_everything(scene: Scene) -> None:
    scene.process(0).code = 2
    trainer = scene.process(1)
    scene.turn()
    assert trainer.told == ["terminate"]
    scene.turn()
    scene.turn()
    assert scene.supervisor.over
    assert scene.supervisor.exit_code == 2
    assert len(scene.started) == 3


def test_coordinator_that_was_asked_to_stop_ends_the_run(scene: Scene) -> None:
    scene.process(0).code = 0
    scene.turn()
    scene.turn()
    assert scene.supervisor.over
    assert scene.supervisor.exit_code == 0


def test_roles_whose_coordinator_is_gone_are_told_once_more_to_end_and_not_again(scene: Scene) -> None:
    scene.process(1).stubborn = scene.process(2).stubborn = True
    scene.process(0).code = 0
    scene.turn()
    for _ in range(20):
        scene.turn(0.2)
    assert scene.process(1).told == scene.process(2).told == ["terminate", "terminate"]


def test_roles_that_the_coordinator_waits_for_are_not_hurried(scene: Scene) -> None:
    scene.process(2).stubborn = True
    scene.supervisor.stop()
    for _ in range(20):
        scene.turn(0.2)
    assert scene.process(2).told == ["terminate"]
    assert scene.supervisor.running == ["coordinator", "worker-1"] and not scene.supervisor.over


def test_no_role_starts_while_stopping(scene: Scene) -> None:
    scene.process(1).code = 1
    scene.turn()
    scene.supervisor.stop()
    scene.turn(LAST_BACKOFF_SECONDS)
    assert scene.started.count("trainer") == 1


def test_settings_decide_which_roles_run() -> None:
    settings = SessionSettings.model_validate(
        {"session": "s", "landing": {"folder": "l"}, "service": {"workers": 3, "trainers": 0}}
    )
    children = children_of(settings, settings.session / "session.toml")
    assert [child.name for child in children] == ["coordinator", "worker-1", "worker-2", "worker-3"]
    assert all("--parent-pid" in child.arguments for child in children)


def test_workers_share_several_gpus_round_robin_and_leave_one_to_torch() -> None:
    workers = [Child(f"w{k}", [], place=k) for k in range(3)]
    assert [gpu_of(worker, ["0", "1"]) for worker in workers] == ["0", "1", "0"]
    assert gpu_of(workers[1], ["0"]) is None
    assert gpu_of(Child("trainer", []), ["0", "1"]) is None
