"""A role's conversation outlives its coordinator, and its heartbeat goes on while the main thread is busy."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import zmq
from support.session_bench import Bench

from cesped_stream.errors import InvalidSettingsError
from cesped_stream_service.messages import (
    Ack,
    AnyMessage,
    Heartbeat,
    Hello,
    HelloAgain,
    Idle,
    Lease,
    Ready,
    Refused,
    Welcome,
)
from cesped_stream_service.peer import Conversation, HeartbeatThread, Identity, check_agreement
from cesped_stream_service.process import Activity, ParentWatch, StopRequest, Systemd
from cesped_stream_service.settings import SessionSettings
from cesped_stream_service.sockets import Link, roles_at_coordinator
from cesped_stream_service.wire import decode, encode

WELCOME = Welcome(session="s", heartbeat_seconds=0.25, half_mode="gold_standard", inference_sha256="00")
IDENTITY = Identity("worker", "w", "cpu", "i1")
READY = Ready(incarnation="i1")


class FakeCoordinator(threading.Thread):
    """Answers from a script, in a thread with its own socket; keeps what it was told."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], link: Link, answer: Callable[..., list[AnyMessage]]):
        super().__init__(daemon=True)
        self._context, self._link, self._answer = context, link, answer
        self.heard: list[AnyMessage] = []
        self.bound, self.over = threading.Event(), threading.Event()

    def run(self) -> None:
        with roles_at_coordinator(self._context, self._link) as socket:
            self.bound.set()
            while not self.over.is_set():
                if not socket.poll(20):
                    continue
                peer, *parts = socket.recv_multipart()
                message, _ = decode(parts)
                self.heard.append(message)
                for reply in self._answer(message, self.heard):
                    with suppress(zmq.ZMQError):  # the peer is gone: the scene is over
                        socket.send_multipart([peer, *encode(reply)])

    def kinds(self) -> list[str]:
        return [message.kind for message in self.heard]


Scene = Callable[[Callable[..., list[AnyMessage]]], tuple[FakeCoordinator, Conversation, StopRequest]]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with zmq.Context() as context:
        made: list[tuple[FakeCoordinator, Conversation]] = []

        def make(answer: Callable[..., list[AnyMessage]]) -> tuple[FakeCoordinator, Conversation, StopRequest]:
            link = Link(f"ipc://{tmp_path}/e")
            coordinator, stop = FakeCoordinator(context, link, answer), StopRequest()
            coordinator.start()
            assert coordinator.bound.wait(5)
            talk = Conversation(context, link, IDENTITY, stop=stop, activity=Activity("x"), again=threading.Event())
            made.append((coordinator, talk))
            return coordinator, talk, stop

        yield make
        for coordinator, talk in made:
            talk.close()
            coordinator.over.set()
            coordinator.join(5)


def test_role_says_hello_before_it_asks(scene: Scene) -> None:
    idle = Idle(retry_seconds=1.0)
    coordinator, talk, _ = scene(lambda message, heard: [WELCOME if isinstance(message, Hello) else idle])
    assert talk.ask(READY, Idle) == idle
    assert coordinator.kinds() == ["hello", "ready"]
    assert talk.heartbeat_seconds == 0.25
    assert talk.ask(READY, Idle) == idle
    assert coordinator.kinds() == ["hello", "ready", "ready"]


def test_restarted_coordinator_is_greeted_again_and_the_message_sent_again(scene: Scene) -> None:
    def answer(message: AnyMessage, heard: list[AnyMessage]) -> list[AnyMessage]:
        if isinstance(message, Hello):
            return [WELCOME]
        forgot = sum(isinstance(m, Ready) for m in heard) == 1
        return [HelloAgain()] if forgot else [Idle(retry_seconds=0.5)]

    coordinator, talk, _ = scene(answer)
    assert talk.ask(READY, Idle) == Idle(retry_seconds=0.5)
    assert coordinator.kinds() == ["hello", "ready", "hello", "ready"]


def test_reply_about_another_lease_is_kept_and_not_taken_for_the_answer(scene: Scene) -> None:
    lease = Lease(
        lease_id=9,
        batch_id=1,
        batch_star="b",
        first_row=0,
        num_rows=1,
        half_sets="0",
        checkpoint="c",
        checkpoint_id="i",
        expires_seconds=1.0,
    )
    late, right = Ack(lease_id=1, accepted=True), Ack(lease_id=2, accepted=False, reason="late")
    _, talk, _ = scene(lambda message, heard: [WELCOME] if isinstance(message, Hello) else [late, lease, right])
    assert talk.ask(READY, Ack, lease_id=2) == right
    assert list(talk.unasked) == [late, lease]


def test_role_that_is_refused_ends_and_says_why(scene: Scene) -> None:
    coordinator, talk, _ = scene(lambda message, heard: [Refused(reason="another worker has the name")])
    with pytest.raises(InvalidSettingsError, match="worker w: refused: another worker has the name"):
        talk.ask(READY, Idle)
    assert coordinator.kinds() == ["hello"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"session": Path("/elsewhere")}, "session"),
        ({"half_mode": "cross_half"}, "half_mode"),
        ({"inference": {"top_k": 7}}, "inference settings"),
        ({"inference": {"precision": "bfloat16"}}, "inference settings"),
    ],
)
def test_role_whose_settings_differ_from_the_sessions_refuses_to_work(
    tmp_path: Path, change: dict[str, Any], key: str
) -> None:
    bench = Bench(tmp_path)
    core = bench.open()
    (out,) = core.handle(b"w", IDENTITY.hello(), {})
    core.close()
    assert isinstance(out.message, Welcome)
    check_agreement(bench.settings, out.message)
    elsewhere = bench.settings.inference.model_copy(update={"device": "cuda", "threads": 3})
    check_agreement(bench.settings.model_copy(update={"inference": elsewhere}), out.message)
    other = SessionSettings(**(bench.settings.model_dump() | change))
    with pytest.raises(InvalidSettingsError, match=f"^{key}.*this role has .*session.toml"):
        check_agreement(other, out.message)


def test_role_that_is_set_up_for_another_session_never_asks_for_its_work(tmp_path: Path, scene: Scene) -> None:
    def refuse(welcome: Welcome) -> None:
        raise InvalidSettingsError(f"half_mode {welcome.half_mode}")

    coordinator, talk, _ = scene(lambda message, heard: [WELCOME])
    talk._check = refuse
    with pytest.raises(InvalidSettingsError, match="half_mode gold_standard"):
        talk.ask(READY, Idle)
    assert coordinator.kinds() == ["hello"]


def test_stop_ends_the_asking_where_nobody_answers(scene: Scene) -> None:
    _, talk, stop = scene(lambda message, heard: [WELCOME] if isinstance(message, Hello) else [])
    assert talk.greet()
    stop.ask()
    assert talk.ask(READY, Idle) is None


def test_heartbeat_goes_on_beside_a_busy_thread_and_notices_that_it_is_unknown(tmp_path: Path) -> None:
    activity = Activity("half 0: step 3 of 9")
    with zmq.Context() as context:
        link = Link(f"ipc://{tmp_path}/e")
        coordinator = FakeCoordinator(context, link, lambda message, heard: [HelloAgain()])
        coordinator.start()
        assert coordinator.bound.wait(5)
        heartbeat = HeartbeatThread(
            context, link, IDENTITY, activity, seconds=0.02, parent=ParentWatch(0), systemd=Systemd(activity, "")
        )
        heartbeat.start()
        # This thread only waits, as one in a long native call does: nothing but the heartbeat's own socket speaks.
        assert heartbeat.again.wait(5)
        heartbeat.end()
        coordinator.over.set()
        coordinator.join(5)
    beat = coordinator.heard[0]
    assert isinstance(beat, Heartbeat)
    assert (beat.state, beat.progress, beat.incarnation) == ("half 0: step 3 of 9", 0, "i1")


def test_talking_beside_a_training_that_hangs_feeds_no_watchdog(scene: Scene) -> None:
    _, talk, _ = scene(lambda message, heard: [WELCOME] if isinstance(message, Hello) else [])
    watchdog = Systemd(talk._activity, "")
    assert talk.greet() and watchdog.ping_if_alive()
    with talk.beside_work():
        for _ in range(3):
            talk.tell(READY)
            talk.receive(0.01)
        assert not watchdog.ping_if_alive()
    talk.receive(0.0)
    assert watchdog.ping_if_alive()
