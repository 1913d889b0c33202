"""A worker's or trainer's side of the link: the conversation with the coordinator, and the heartbeat beside it."""

import logging
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import zmq

from cesped_stream.errors import InvalidSettingsError

from .messages import AnyMessage, Goodbye, Heartbeat, Hello, HelloAgain, Refused, Welcome
from .process import Activity, ParentWatch, StopRequest, Systemd
from .settings import SessionSettings, inference_sha256
from .sockets import Link, coordinator_at_role, link_of
from .wire import Frames, RefusalCount, WireError, decode, encode

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
REPLY_SECONDS = 5.0
LAST_WORDS_SECONDS = 5.0
"""How long a role that was asked to stop waits for the coordinator to acknowledge its last result."""


@dataclass(frozen=True)
class Identity:
    """One run of one role: the incarnation is new at every process start."""

    role: Literal["worker", "trainer"]
    name: str
    device: str
    incarnation: str = field(default_factory=lambda: uuid.uuid4().hex[:16])

    def hello(self) -> Hello:
        return Hello(role=self.role, name=self.name, incarnation=self.incarnation, pid=os.getpid(), device=self.device)


class Conversation:
    """Messages to and from the coordinator over one DEALER; a coordinator that restarts is greeted again.

    The socket belongs to the thread that made the conversation. What arrives and was not asked for waits in
    `unasked`. Nothing here decides what is lost: an unanswered message is sent again, and the coordinator's ledger
    makes repeats harmless.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        link: Link,
        identity: Identity,
        *,
        stop: StopRequest,
        activity: Activity,
        again: threading.Event,
        check: Callable[[Welcome], None] = lambda welcome: None,
    ) -> None:
        """`check` raises InvalidSettingsError where the session is not the one that this role is set up for."""
        self._socket = coordinator_at_role(context, link)
        self._identity = identity
        self._stop = stop
        self._activity = activity
        self._again = again
        self._check = check
        self._welcomed = False
        self.heartbeat_seconds = 1.0
        self.unasked: deque[AnyMessage] = deque()
        self.refused = RefusalCount()

    def close(self) -> None:
        """Say goodbye, so that what this role held goes back at once, and close the socket."""
        if self._welcomed:
            self.tell(Goodbye(incarnation=self._identity.incarnation))
        self._socket.close()

    @contextmanager
    def beside_work(self) -> Iterator[None]:
        """Within the block talking is no sign of life: another thread works, and its progress alone is."""
        activity, self._activity = self._activity, Activity("talking")
        try:
            yield
        finally:
            self._activity = activity

    def ask(
        self, message: AnyMessage, *replies: type[AnyMessage], frames: Frames | None = None, lease_id: int | None = None
    ) -> AnyMessage | None:
        """Send `message` until one of `replies` (about `lease_id`, where given) arrives; None where a stop ended it.

        A stop ends the asking at once, but a message that carries a result or a failure is given a few seconds more.
        """
        last_words = LAST_WORDS_SECONDS if lease_id is not None else 0.0
        given_up = _Deadline(last_words)
        while not (self._stop.asked() and given_up.passed()):
            if not (self.greet() and self._send(message, frames)):
                continue
            deadline = time.monotonic() + REPLY_SECONDS
            while time.monotonic() < deadline and not (self._stop.asked() and given_up.passed()):
                reply = self.receive(POLL_SECONDS)
                if isinstance(reply, HelloAgain):
                    break
                if isinstance(reply, replies) and lease_id in (None, getattr(reply, "lease_id", None)):
                    return reply
                if reply is not None:
                    self.unasked.append(reply)
        return None

    def tell(self, message: AnyMessage) -> bool:
        """Send a message that needs no reply; return whether it left. One that did not is not sent again."""
        return self._send(message, None)

    def receive(self, seconds: float) -> AnyMessage | None:
        """Return the next valid message, or None after so long; an invalid one is counted and dropped.

        Raises InvalidSettingsError where the coordinator does not work with this role.
        """
        self._activity.turned()
        if not self._socket.poll(int(seconds * 1000)):
            return None
        try:
            message, _ = decode(self._socket.recv_multipart())
        except WireError as error:
            self.refused.add(error)
            logger.warning("message refused", extra={"reason": str(error)})
            return None
        if isinstance(message, HelloAgain):
            self._welcomed = False
        if isinstance(message, Refused):
            self._welcomed = False
            raise InvalidSettingsError(f"{self._identity.role} {self._identity.name}: refused: {message.reason}")
        return message

    def greet(self) -> bool:
        """Say hello where the coordinator does not know this role (yet, or any more); return whether it does now."""
        if self._again.is_set():
            self._again.clear()
            self._welcomed = False
        if self._welcomed:
            return True
        if not self._send(self._identity.hello(), None):
            return False
        deadline = time.monotonic() + REPLY_SECONDS
        while time.monotonic() < deadline and not self._stop.at_once():
            reply = self.receive(POLL_SECONDS)
            if isinstance(reply, Welcome):
                self._check(reply)
                self._welcomed = True
                self.heartbeat_seconds = reply.heartbeat_seconds
                return True
            if reply is not None and not isinstance(reply, HelloAgain):
                self.unasked.append(reply)
            if self._stop.asked():
                break
        return False

    def _send(self, message: AnyMessage, frames: Frames | None) -> bool:
        self._activity.turned()
        try:
            self._socket.send_multipart(encode(message, frames))
        except zmq.Again:
            return False
        return True


class _Deadline:
    """Passed so many seconds after it was first looked at."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end: float | None = None

    def passed(self) -> bool:
        if self._end is None:
            self._end = time.monotonic() + self._seconds
        return time.monotonic() >= self._end


class HeartbeatThread(threading.Thread):
    """Beats on a socket of its own, also while a long native call holds the main thread; pings systemd's watchdog.

    `again` is set when the coordinator answers that it does not know this incarnation.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        link: Link,
        identity: Identity,
        activity: Activity,
        *,
        seconds: float,
        parent: ParentWatch,
        systemd: Systemd,
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._context, self._link, self._identity, self._activity = context, link, identity, activity
        self._seconds, self._parent, self._systemd = seconds, parent, systemd
        self._over = threading.Event()
        self.again = threading.Event()

    def end(self) -> None:
        """End the thread; returns when its socket is closed."""
        self._over.set()
        self.join()

    def run(self) -> None:
        with coordinator_at_role(self._context, self._link) as socket:
            socket.linger = 0
            socket.sndtimeo = 0
            while not self._over.wait(self._seconds):
                self._parent.check()
                self._systemd.ping_if_alive()
                self._beat(socket)

    def _beat(self, socket: zmq.Socket[bytes]) -> None:
        beat = Heartbeat(
            incarnation=self._identity.incarnation,
            role=self._identity.role,
            name=self._identity.name,
            state=self._activity.state,
            progress=self._activity.progress,
        )
        try:
            socket.send_multipart(encode(beat))
            while socket.poll(0):
                message, _ = decode(socket.recv_multipart())
                if isinstance(message, HelloAgain):
                    self.again.set()
        except zmq.Again:
            return
        except WireError as error:
            logger.warning("message refused", extra={"reason": str(error)})


def check_agreement(settings: SessionSettings, welcome: Welcome) -> None:
    """Raise InvalidSettingsError where a role's settings would make other poses than its session's."""
    pairs = {
        "session": (os.path.realpath(settings.session), os.path.realpath(welcome.session)),
        "half_mode": (settings.half_mode, welcome.half_mode),
        "inference settings (their sha256)": (inference_sha256(settings), welcome.inference_sha256),
    }
    for key, (own, theirs) in pairs.items():
        if own != theirs:
            raise InvalidSettingsError(
                f"{key}: the coordinator has {theirs}, this role has {own}; "
                f"start it with {welcome.session}/session.toml"
            )


@contextmanager
def connected(
    settings: SessionSettings, identity: Identity, activity: Activity, stop: StopRequest, *, parent_pid: int
) -> Iterator[Conversation]:
    """Run the block in conversation with the coordinator, with heartbeats beside it; say goodbye at its end."""
    link = link_of(settings, coordinator=False)
    systemd = Systemd(activity)
    seconds = settings.service.heartbeat_seconds
    with zmq.Context() as context:
        heartbeat = HeartbeatThread(
            context, link, identity, activity, seconds=seconds, parent=ParentWatch(parent_pid), systemd=systemd
        )
        talk = Conversation(
            context,
            link,
            identity,
            stop=stop,
            activity=activity,
            again=heartbeat.again,
            check=partial(check_agreement, settings),
        )
        heartbeat.start()
        systemd.ready()
        try:
            yield talk
        finally:
            systemd.stopping()
            heartbeat.end()
            talk.close()
