"""The one maker of sockets: every socket has LINGER, high-water marks, MAXMSGSIZE and timeouts.

A socket belongs to the thread that made it. `ipc://` lies in a folder that only the user can enter; `tcp://` is
refused without CURVE keys and an allow-list.
"""

import hashlib
import logging
import os
import stat
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import zmq
import zmq.auth
import zmq.utils.z85

from cesped_stream.errors import InvalidSettingsError

from .session import SessionFolder, noted_endpoint
from .settings import SessionSettings
from .wire import MAX_FRAME_BYTES

logger = logging.getLogger(__name__)

MAX_IPC_PATH_BYTES = 107
"""sockaddr_un.sun_path has 108 bytes with its closing zero."""

HIGH_WATER_MARK = 1000
LINGER_MS = 1000
SEND_TIMEOUT_MS = 1000
RECEIVE_TIMEOUT_MS = 1000
RECONNECT_MS = 100
RECONNECT_MAX_MS = 1000
TCP_PING_MS = 2000
TCP_TIMEOUT_MS = 6000

_ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_ZAP_VERSION = b"1.0"
COORDINATOR, CLIENT, ALLOWED = "coordinator", "client", "allowed"


@dataclass(frozen=True)
class CurveKeys:
    """Keys of one side of a tcp link, Z85 text as bytes."""

    public: bytes
    secret: bytes
    server: bytes = b""
    """The coordinator's public key (a client's side)."""
    allowed: frozenset[bytes] = frozenset()
    """Public keys that may connect (the coordinator's side)."""


@dataclass(frozen=True)
class Link:
    """Where the coordinator is and how to talk to it."""

    endpoint: str
    keys: CurveKeys | None = None


def runtime_folder() -> Path:
    """Return the user's folder for sockets, made with mode 0700; InvalidSettingsError where others can enter it."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    folder = Path(base) / "cesped-stream" if base and Path(base).is_dir() else _temporary_folder()
    if len(os.fsencode(folder)) + len("/0123456789abcdef.ipc") > MAX_IPC_PATH_BYTES:
        folder = _temporary_folder()
    return private_folder(folder)


def _temporary_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"cesped-stream-{os.getuid()}"
    return folder if len(os.fsencode(folder)) < 80 else Path("/tmp") / folder.name


def private_folder(folder: Path) -> Path:
    """Make `folder` with mode 0700 where it is missing; InvalidSettingsError unless it is ours and only ours."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise InvalidSettingsError(
            f"{folder}: sockets need a folder of user {os.getuid()} with mode 0700, got owner {found.st_uid} and "
            f"mode {stat.S_IMODE(found.st_mode):04o}; correct it or set service.endpoint"
        )
    return folder


def link_of(settings: SessionSettings, *, coordinator: bool) -> Link:
    """Return the session's endpoint with what this side needs to use it.

    By default it is an ipc socket in the runtime folder, named by a hash of the session's path. InvalidSettingsError
    for an ipc path that is too long or lies where others may enter, for tcp without keys, and for other transports.
    """
    endpoint = settings.service.endpoint
    if not endpoint:
        noted = "" if coordinator else noted_endpoint(SessionFolder.of(settings))
        if noted.startswith("ipc://") and _is_our_socket(Path(noted.removeprefix("ipc://"))):
            # The coordinator may have another XDG_RUNTIME_DIR: that of its systemd unit, of another login.
            return Link(noted)
        name = hashlib.sha256(os.fsencode(os.path.abspath(settings.session))).hexdigest()[:16]
        return Link(f"ipc://{runtime_folder() / name}.ipc")
    transport, _, address = endpoint.partition("://")
    if transport == "ipc":
        path = Path(os.path.abspath(address))
        if len(os.fsencode(path)) > MAX_IPC_PATH_BYTES:
            raise InvalidSettingsError(
                f"service.endpoint {endpoint}: an ipc path has at most {MAX_IPC_PATH_BYTES} bytes, got "
                f"{len(os.fsencode(path))}; choose a shorter one or leave it empty"
            )
        private_folder(path.parent)
        return Link(f"ipc://{path}")
    if transport == "tcp":
        _check_tcp_address(endpoint)
        return Link(endpoint, _curve_keys(settings, coordinator=coordinator))
    raise InvalidSettingsError(f"service.endpoint {endpoint!r}: it begins with ipc:// or tcp://")


def _is_our_socket(path: Path) -> bool:
    try:
        folder = path.parent.lstat()
        return path.is_socket() and folder.st_uid == os.getuid() and not folder.st_mode & 0o077
    except OSError:
        return False


def _check_tcp_address(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        good = bool(parts.hostname) and parts.port is not None
    except ValueError:
        good = False
    if not good:
        raise InvalidSettingsError(f"service.endpoint {endpoint!r}: tcp takes tcp://host:port")


def _curve_keys(settings: SessionSettings, *, coordinator: bool) -> CurveKeys:
    folder = settings.service.curve_folder
    if folder is None:
        raise InvalidSettingsError(
            f"service.endpoint {settings.service.endpoint}: tcp needs CURVE keys and an allow-list; make them with "
            "`cesped-stream keys FOLDER` and set service.curve_folder"
        )
    if not coordinator:
        public, secret = _load_secret(folder / f"{CLIENT}.key_secret")
        return CurveKeys(public, secret, server=_load_public(folder / f"{COORDINATOR}.key"))
    public, secret = _load_secret(folder / f"{COORDINATOR}.key_secret")
    allowed = frozenset(_load_public(file) for file in sorted((folder / ALLOWED).glob("*.key")))
    if not allowed:
        raise InvalidSettingsError(
            f"{folder / ALLOWED}: the allow-list is empty; copy each worker's client.key into it"
        )
    return CurveKeys(public, secret, allowed=allowed)


def _load_public(file: Path) -> bytes:
    return _load(file)[0]


def _load_secret(file: Path) -> tuple[bytes, bytes]:
    public, secret = _load(file)
    mode = stat.S_IMODE(file.stat().st_mode)
    if secret is None:
        raise InvalidSettingsError(f"{file}: holds no secret key; make one with `cesped-stream keys`")
    if mode & 0o077:
        raise InvalidSettingsError(f"{file}: others may read it (mode {mode:04o}); chmod 600 it")
    return public, secret


def _load(file: Path) -> tuple[bytes, bytes | None]:
    try:
        return zmq.auth.load_certificate(file)
    except (OSError, ValueError) as error:
        raise InvalidSettingsError(f"{file}: no CURVE key ({error}); make keys with `cesped-stream keys`") from None


def create_keys(folder: Path) -> list[Path]:
    """Make the keys of a coordinator and of one client that it allows, keep existing ones; return the new files."""
    private_folder(folder)
    (folder / ALLOWED).mkdir(mode=0o700, exist_ok=True)
    made: list[Path] = []
    for name in (COORDINATOR, CLIENT):
        if not (folder / f"{name}.key_secret").exists():
            with _umask(0o077):
                made += map(Path, zmq.auth.create_certificates(folder, name))
    allowed = folder / ALLOWED / f"{CLIENT}.key"
    if not allowed.exists():
        allowed.write_bytes((folder / f"{CLIENT}.key").read_bytes())
        made.append(allowed)
    return made


class _umask:
    def __init__(self, mask: int) -> None:
        self._mask = mask

    def __enter__(self) -> None:
        self._before = os.umask(self._mask)

    def __exit__(self, *exc: object) -> None:
        os.umask(self._before)


def roles_at_coordinator(context: zmq.Context[zmq.Socket[bytes]], link: Link) -> zmq.Socket[bytes]:
    """Return the coordinator's ROUTER, bound. An ipc file that a killed coordinator left is taken over."""
    socket = _socket(context, zmq.ROUTER)
    # A reply to a peer that went away is an error to count, not a silent loss.
    socket.router_mandatory = 1
    if link.keys is not None:
        socket.curve_server = 1
        socket.curve_secretkey = link.keys.secret
        socket.curve_publickey = link.keys.public
        socket.zap_domain = b"cesped-stream"
        _keep_alive(socket)
    try:
        socket.bind(link.endpoint)
    except zmq.ZMQError as error:
        socket.close(0)
        raise InvalidSettingsError(f"service.endpoint {link.endpoint}: cannot listen there: {error}") from None
    return socket


def coordinator_at_role(context: zmq.Context[zmq.Socket[bytes]], link: Link) -> zmq.Socket[bytes]:
    """Return a DEALER that connects (again and again) to the coordinator."""
    socket = _socket(context, zmq.DEALER)
    # Nothing is queued for a coordinator that is away: a send waits and then fails, and the role knows.
    socket.immediate = 1
    socket.reconnect_ivl = RECONNECT_MS
    socket.reconnect_ivl_max = RECONNECT_MAX_MS
    if link.keys is not None:
        socket.curve_serverkey = link.keys.server
        socket.curve_secretkey = link.keys.secret
        socket.curve_publickey = link.keys.public
        _keep_alive(socket)
    socket.connect(link.endpoint)
    return socket


def _socket(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.linger = LINGER_MS
    socket.sndhwm = HIGH_WATER_MARK
    socket.rcvhwm = HIGH_WATER_MARK
    socket.maxmsgsize = MAX_FRAME_BYTES
    socket.sndtimeo = SEND_TIMEOUT_MS
    socket.rcvtimeo = RECEIVE_TIMEOUT_MS
    return socket


def _keep_alive(socket: zmq.Socket[bytes]) -> None:
    socket.heartbeat_ivl = TCP_PING_MS
    socket.heartbeat_timeout = TCP_TIMEOUT_MS
    socket.handshake_ivl = TCP_TIMEOUT_MS


class AllowList:
    """The ZAP authenticator: a thread that lets in the CURVE keys of the allow-list and nobody else.

    It must run before the socket that it guards is bound. `denied` counts those turned away.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: CurveKeys) -> None:
        self._context = context
        self._allowed = {zmq.utils.z85.decode(key) for key in keys.allowed}
        self._bound = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="allow-list", daemon=True)
        self.denied = 0

    def __enter__(self) -> "AllowList":
        self._thread.start()
        if not self._bound.wait(timeout=10):
            raise InvalidSettingsError(f"{_ZAP_ENDPOINT}: another authenticator runs in this process")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with _socket(self._context, zmq.ROUTER) as requests:
            requests.linger = 0
            requests.bind(_ZAP_ENDPOINT)
            self._bound.set()
            while not self._stop.is_set():
                if requests.poll(100):
                    self._answer(requests, requests.recv_multipart())

    def _answer(self, requests: zmq.Socket[bytes], parts: list[bytes]) -> None:
        """Answer one request, RFC 27: [peer, "", version, id, domain, address, identity, mechanism, key]."""
        if len(parts) < 8 or parts[2] != _ZAP_VERSION:
            return
        allowed = len(parts) == 9 and parts[7] == b"CURVE" and parts[8] in self._allowed
        if not allowed:
            self.denied += 1
            logger.warning("peer denied", extra={"address": parts[5].decode("ascii", "replace")})
        status = (b"200", b"OK") if allowed else (b"400", b"key not in the allow-list")
        requests.send_multipart([parts[0], b"", _ZAP_VERSION, parts[3], *status, b"", b""])
