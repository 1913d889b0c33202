"""The coordinator's process: one ROUTER around the core, which decides everything. No torch, no arithmetic."""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack

import zmq

from .coordinator import Coordinator, Outgoing
from .process import Activity, ParentWatch, StopRequest, Systemd
from .settings import SessionSettings
from .sockets import AllowList, Link, link_of, roles_at_coordinator
from .wire import RefusalCount, WireError, decode, encode

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
MESSAGES_PER_TURN = 200
WATCH_SECONDS = 1.0


class Roles:
    """The ROUTER and what the core needs of it: valid messages in, replies out, everything else counted."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self.refused = RefusalCount()
        self.undelivered = 0

    def serve(self, core: Coordinator, seconds: float) -> None:
        """Wait at most `seconds` for messages and pass those that came (a bounded number) to the core."""
        if not self._socket.poll(int(seconds * 1000)):
            return
        for _ in range(MESSAGES_PER_TURN):
            if not self._socket.poll(0):
                return
            peer, *parts = self._socket.recv_multipart()
            try:
                message, frames = decode(parts)
            except WireError as error:
                self.refused.add(error)
                logger.warning("message refused", extra={"reason": str(error), "total": self.refused.by_reason()})
                continue
            self.send(core.handle(peer, message, frames))

    def send(self, outgoing: list[Outgoing]) -> None:
        """Send each message to its peer; one to a peer that went away or does not read is dropped and counted."""
        for out in outgoing:
            try:
                self._socket.send_multipart([out.peer, *encode(out.message)], zmq.DONTWAIT)
            except zmq.ZMQError as error:
                self.undelivered += 1
                logger.info("peer is away", extra={"message_kind": out.message.kind, "error": str(error)})


def run_coordinator(
    settings: SessionSettings,
    stop: StopRequest,
    *,
    parent_pid: int = 0,
    on_open: Callable[[], object] = lambda: None,
) -> int:
    """Run the coordinator until it is asked to stop; return the exit code. `on_open` is called under the lock.

    Raises SessionBusyError where another coordinator runs on the session, InvalidSettingsError for the endpoint.
    """
    link = link_of(settings, coordinator=True)
    activity = Activity("starting")
    systemd, parent = Systemd(activity), ParentWatch(parent_pid)
    with ExitStack() as held:
        # The session's lock comes before the socket: a second coordinator must not take over the first one's ipc file.
        core = Coordinator(settings)
        held.callback(core.close)
        on_open()
        context: zmq.Context[zmq.Socket[bytes]] = held.enter_context(zmq.Context())
        roles = Roles(held.enter_context(_listening(context, link, held)))
        core.listens_at(link.endpoint)
        logger.info("coordinator ready", extra={"endpoint": link.endpoint})
        systemd.ready()
        _serve_until_stopped(core, roles, stop, activity, systemd, parent)
        systemd.stopping()
        logger.info("coordinator stops", extra={"refused": roles.refused.by_reason(), "undelivered": roles.undelivered})
    return 0


def _listening(context: zmq.Context[zmq.Socket[bytes]], link: Link, held: ExitStack) -> zmq.Socket[bytes]:
    if link.keys is not None:
        held.enter_context(AllowList(context, link.keys))
    return roles_at_coordinator(context, link)


def _serve_until_stopped(
    core: Coordinator, roles: Roles, stop: StopRequest, activity: Activity, systemd: Systemd, parent: ParentWatch
) -> None:
    activity.state = "serving"
    next_watch = 0.0
    while not (stop.asked() or core.stop_requested):
        roles.serve(core, POLL_SECONDS)
        roles.send(core.tick())
        activity.turned()
        if (now := time.monotonic()) >= next_watch:
            next_watch = now + WATCH_SECONDS
            systemd.ping_if_alive()
            parent.check()
