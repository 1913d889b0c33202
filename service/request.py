"""Requests of the command line to a session: over the link where a coordinator runs, else on the folder itself."""

import time
from pathlib import Path

import zmq
from pydantic import ValidationError

from cesped_stream.errors import InvalidSettingsError, TransientError

from .coordinator import Coordinator
from .messages import Control, ControlReply
from .nearest import MANY, listed
from .resolve import resolve
from .session import SessionFolder
from .settings import SessionSettings
from .sockets import coordinator_at_role, link_of
from .status import SessionStatus
from .wire import WireError, decode, encode

ANSWER_SECONDS = 15.0
CONNECT_SECONDS = 1.0


def settings_of(session: Path) -> SessionSettings:
    """Return the settings that a session was last started with; InvalidSettingsError where the folder is no session."""
    file = session / "session.toml"
    if not file.is_file():
        raise InvalidSettingsError(f"{session}: no session folder: {_why_none(session)}")
    return resolve(SessionSettings, {}, file)


def _why_none(session: Path) -> str:
    if not session.exists():
        return "there is nothing of this name; give the folder that `run --session` was given"
    if session.is_file():
        return f"it is a file; give the folder, {session.absolute().parent}"
    inside = [file.parent for file in sorted(session.glob("*/session.toml"))]
    around = [folder for folder in session.absolute().parents if (folder / "session.toml").is_file()]
    if near := [str(folder) for folder in [*inside, *around]][:MANY]:
        return f"it has no session.toml; did you mean {listed(near)}?"
    return (
        "it has no session.toml, which `run` writes at its first start; give the folder that `run --session` was given"
    )


def ask_running(settings: SessionSettings, message: Control) -> ControlReply | None:
    """Return the running coordinator's reply, or None where none runs. TransientError where one does not answer."""
    link = link_of(settings, coordinator=False)
    path = link.endpoint.removeprefix("ipc://")
    if path != link.endpoint and not Path(path).is_socket():
        return None
    with zmq.Context() as context, coordinator_at_role(context, link) as coordinator:
        coordinator.linger = 0
        coordinator.sndtimeo = int(CONNECT_SECONDS * 1000)
        try:
            coordinator.send_multipart(encode(message))
        except zmq.Again:
            return None
        deadline = time.monotonic() + ANSWER_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            if not coordinator.poll(int(left * 1000)):
                break
            try:
                reply, _ = decode(coordinator.recv_multipart())
            except WireError as error:
                raise TransientError(f"{link.endpoint}: {error}; do both sides run the same version?") from None
            if isinstance(reply, ControlReply) and reply.action == message.action:
                return reply
    raise TransientError(
        f"{settings.session}: its coordinator did not answer within {ANSWER_SECONDS:.0f} s; is it stopped or hung?"
    )


def request(settings: SessionSettings, message: Control) -> ControlReply:
    """Have a request done: by the running coordinator, else here on the folder, under the session's lock."""
    reply = ask_running(settings, message)
    if reply is not None:
        return reply
    core = Coordinator(settings, watch_events=False)
    try:
        return core.control(message)
    finally:
        core.close()


def current_status(settings: SessionSettings) -> tuple[SessionStatus | None, bool]:
    """Return (status, whether a coordinator runs); without one it is the last status written, None where none was."""
    reply = ask_running(settings, Control(action="status"))
    if reply is not None:
        return SessionStatus.model_validate_json(reply.status), True
    return last_status(settings), False


def last_status(settings: SessionSettings) -> SessionStatus | None:
    """Return the status that a coordinator wrote last, None where none has."""
    file = SessionFolder.of(settings).status
    try:
        return SessionStatus.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise InvalidSettingsError(f"{file}: not a status of this version ({error.error_count()} faults)") from None
