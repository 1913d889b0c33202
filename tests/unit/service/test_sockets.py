"""Sockets come from one maker; ipc is private; tcp wants keys and lets in only the allow-list."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from cesped_stream.errors import InvalidSettingsError
from cesped_stream_service import sockets
from cesped_stream_service.session import SessionFolder, SessionLock
from cesped_stream_service.settings import SessionSettings
from cesped_stream_service.sockets import (
    AllowList,
    Link,
    coordinator_at_role,
    create_keys,
    link_of,
    private_folder,
    roles_at_coordinator,
    runtime_folder,
)

DEADLINE_MS = 5000


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as made:
        yield made


def session(tmp_path: Path, **service: object) -> SessionSettings:
    return SessionSettings.model_validate(
        {"session": tmp_path / "s", "landing": {"folder": tmp_path}, "service": service}
    )


def free_tcp_endpoint() -> str:
    with socket.socket() as probe:  # not ZeroMQ's: those give their port back some time after they are closed
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def test_default_endpoint_is_ipc_in_a_folder_for_the_user_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    link = link_of(session(tmp_path), coordinator=True)
    path = Path(link.endpoint.removeprefix("ipc://"))
    assert link.endpoint.startswith("ipc://")
    assert path.parent == tmp_path / "cesped-stream"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert link_of(session(tmp_path), coordinator=False) == link
    assert link_of(session(tmp_path / "other"), coordinator=True) != link


def test_a_coordinator_with_another_runtime_folder_is_found_by_its_note_in_the_session(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = session(tmp_path)
    folder = SessionFolder.of(settings)
    folder.create()
    for name in ("units", "login"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "units"))
    link = link_of(settings, coordinator=True)
    lock = SessionLock(folder)
    lock.note(link.endpoint)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "login"))
    elsewhere = link_of(settings, coordinator=False)
    assert elsewhere != link, "nothing listens there"
    with roles_at_coordinator(context, link) as router:
        found = link_of(settings, coordinator=False)
        assert found == link
        with coordinator_at_role(context, found) as dealer:
            assert exchanges(router, dealer, deadline_ms=DEADLINE_MS)
        (tmp_path / "units" / "cesped-stream").chmod(0o755)
        assert link_of(settings, coordinator=False) == elsewhere, "others could have put it there"
    lock.release()


def test_runtime_folder_too_deep_for_an_ipc_path_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    link = link_of(session(tmp_path), coordinator=True)
    assert len(os.fsencode(link.endpoint.removeprefix("ipc://"))) <= sockets.MAX_IPC_PATH_BYTES
    assert not runtime_folder().is_relative_to(deep)


def test_ipc_path_over_the_limit_is_refused_with_its_length(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingsError, match=r"at most 107 bytes, got \d+"):
        link_of(session(tmp_path, endpoint=f"ipc://{tmp_path}/{'x' * 107}"), coordinator=True)


def test_socket_folder_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    with pytest.raises(InvalidSettingsError, match="mode 0755"):
        private_folder(folder)
    link = tmp_path / "link"
    (tmp_path / "mine").mkdir(mode=0o700)
    link.symlink_to(tmp_path / "mine")
    with pytest.raises(InvalidSettingsError, match="0700"):
        private_folder(link)


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1", "tcp://:5555x", "udp://1.2.3.4:5", "inproc://x", "nonsense"])
def test_endpoint_that_is_neither_ipc_nor_host_and_port_is_refused(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(InvalidSettingsError, match=r"service\.endpoint"):
        link_of(session(tmp_path, endpoint=endpoint), coordinator=True)


def test_tcp_without_keys_or_with_an_empty_allow_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingsError, match="CURVE keys and an allow-list"):
        link_of(session(tmp_path, endpoint="tcp://127.0.0.1:5555"), coordinator=True)
    keys = tmp_path / "keys"
    with pytest.raises(InvalidSettingsError, match="no CURVE key"):
        link_of(session(tmp_path, endpoint="tcp://127.0.0.1:5555", curve_folder=keys), coordinator=True)
    create_keys(keys)
    (keys / "allowed" / "client.key").unlink()
    with pytest.raises(InvalidSettingsError, match="allow-list is empty"):
        link_of(session(tmp_path, endpoint="tcp://127.0.0.1:5555", curve_folder=keys), coordinator=True)


def test_secret_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    create_keys(tmp_path / "keys")
    (tmp_path / "keys" / "coordinator.key_secret").chmod(0o644)
    with pytest.raises(InvalidSettingsError, match="chmod 600"):
        link_of(session(tmp_path, endpoint="tcp://127.0.0.1:5555", curve_folder=tmp_path / "keys"), coordinator=True)


def test_keys_are_made_once_and_secret_ones_are_private(tmp_path: Path) -> None:
    made = create_keys(tmp_path / "keys")
    secrets = [file for file in made if file.name.endswith("_secret")]
    assert len(secrets) == 2
    assert all(file.stat().st_mode & 0o077 == 0 for file in secrets)
    assert create_keys(tmp_path / "keys") == []


def test_every_socket_has_its_limits(context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path) -> None:
    link = Link(f"ipc://{tmp_path}/a")
    with roles_at_coordinator(context, link) as router, coordinator_at_role(context, link) as dealer:
        for socket in (router, dealer):
            assert socket.linger == sockets.LINGER_MS
            assert socket.sndhwm == socket.rcvhwm == sockets.HIGH_WATER_MARK
            assert socket.maxmsgsize == sockets.MAX_FRAME_BYTES
            assert socket.sndtimeo == sockets.SEND_TIMEOUT_MS
            assert socket.rcvtimeo == sockets.RECEIVE_TIMEOUT_MS


def test_a_send_to_an_absent_coordinator_fails_instead_of_queueing(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    with coordinator_at_role(context, Link(f"ipc://{tmp_path}/a")) as dealer:
        dealer.sndtimeo = 50
        with pytest.raises(zmq.Again):
            dealer.send(b"x")


def test_an_endpoint_in_use_is_a_clear_error(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    endpoint = free_tcp_endpoint()
    with roles_at_coordinator(context, Link(endpoint)), pytest.raises(InvalidSettingsError, match="cannot listen"):
        roles_at_coordinator(context, Link(endpoint))


def exchanges(router: zmq.Socket[bytes], dealer: zmq.Socket[bytes], *, deadline_ms: int) -> bool:
    """Return whether a message of the dealer arrives at the router within the deadline."""
    dealer.sndtimeo = deadline_ms
    try:
        dealer.send(b"hello")
    except zmq.Again:
        return False
    if not router.poll(deadline_ms):
        return False
    return router.recv_multipart()[1:] == [b"hello"]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_MS / 1000
    while not condition():
        assert time.monotonic() < deadline, "deadline"
        time.sleep(0.005)


def test_tcp_lets_in_a_key_of_the_allow_list_and_no_other(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    endpoint = free_tcp_endpoint()
    create_keys(tmp_path / "keys")
    create_keys(tmp_path / "stranger")
    mine = session(tmp_path, endpoint=endpoint, curve_folder=tmp_path / "keys")
    coordinator = link_of(mine, coordinator=True)
    client = link_of(mine, coordinator=False)
    stranger_keys = link_of(
        session(tmp_path, endpoint=endpoint, curve_folder=tmp_path / "stranger"), coordinator=False
    ).keys
    assert coordinator.keys is not None
    assert client.keys is not None
    assert stranger_keys is not None
    knows_server = type(stranger_keys)(stranger_keys.public, stranger_keys.secret, server=client.keys.server)
    with AllowList(context, coordinator.keys) as allow_list, roles_at_coordinator(context, coordinator) as router:
        with coordinator_at_role(context, client) as dealer:
            assert exchanges(router, dealer, deadline_ms=DEADLINE_MS)
        with coordinator_at_role(context, Link(endpoint, knows_server)) as dealer:
            wait_until(lambda: allow_list.denied > 0)
            assert not exchanges(router, dealer, deadline_ms=50)
        with coordinator_at_role(context, Link(endpoint, stranger_keys)) as dealer:
            assert not exchanges(router, dealer, deadline_ms=100)
        with coordinator_at_role(context, Link(endpoint)) as dealer:
            assert not exchanges(router, dealer, deadline_ms=100)
