"""What each command does. torch is imported only by the commands that compute."""

import argparse
import json
import os
import socket
import sys
from typing import Any

from rich.console import Console

from cesped_stream.errors import CespedStreamError, InvalidSettingsError

from .cli import session_settings, settings_from
from .messages import MAX_NAME, Control, ControlAction
from .process import StopRequest, changed_settings, save_settings, start_logging
from .request import ask_running, current_status, last_status, request, settings_of
from .session import SessionFolder, SessionLock, refuse_landing_inside
from .settings import InferCommand, SessionSettings, TrainCommand
from .sockets import create_keys
from .toml import chosen_text, flat

PLAIN: dict[str, Any] = {"highlight": False, "markup": False}


def run_command(arguments: argparse.Namespace) -> int:
    from .live import view_of, with_time
    from .run import Supervisor, children_of, start_child, supervise
    from .show import counts_line
    from .without_effect import of_session

    settings = session_settings(arguments)
    _check_can_start(settings)
    _check_free(settings)
    begins = _settings_words(settings)
    file = save_settings(settings)
    start_logging(settings.session, "run", to_stderr=False)
    console = Console()
    console.print(begins, soft_wrap=True, **PLAIN)
    for said in of_session(settings):
        console.print(said, soft_wrap=True, **PLAIN)
    supervisor = Supervisor(children_of(settings, file), lambda child: start_child(settings, child))
    stop = StopRequest().install()
    with view_of(settings, console, plain=arguments._plain) as view:
        code = supervise(supervisor, stop, view.update, parent_pid=arguments._parent_pid)
    status = last_status(settings)
    if status is not None:
        console.print(with_time(f"ended: {counts_line(status)}"), soft_wrap=True, **PLAIN)
        console.print(f"`cesped-stream run --settings {file}` goes on from here", soft_wrap=True, **PLAIN)
    if code:
        _show_last_words(settings, Console(stderr=True))
    return code


def coordinator_command(arguments: argparse.Namespace) -> int:
    from .coordinator_process import run_coordinator

    settings = session_settings(arguments)
    _check_can_start(settings)
    stop = StopRequest().install()
    start_logging(settings.session, "coordinator", to_stderr=arguments._parent_pid == 0)

    def on_open() -> None:
        if arguments._parent_pid == 0:
            begins = _settings_words(settings)
            save_settings(settings)
            print(begins, flush=True)

    return run_coordinator(settings, stop, parent_pid=arguments._parent_pid, on_open=on_open)


def worker_command(arguments: argparse.Namespace) -> int:
    settings = session_settings(arguments)
    name = _name(arguments, "worker")
    stop = StopRequest().install()
    start_logging(settings.session, name, to_stderr=arguments._parent_pid == 0)
    from .worker import run_worker

    return run_worker(settings, stop, name=name, parent_pid=arguments._parent_pid)


def trainer_command(arguments: argparse.Namespace) -> int:
    settings = session_settings(arguments)
    name = _name(arguments, "trainer")
    stop = StopRequest().install()
    start_logging(settings.session, name, to_stderr=arguments._parent_pid == 0)
    from .trainer import run_trainer

    return run_trainer(settings, stop, name=name, parent_pid=arguments._parent_pid)


def status_command(arguments: argparse.Namespace) -> int:
    from .show import status_view

    settings = settings_of(arguments._session)
    status, running = current_status(settings)
    if status is None:
        raise CespedStreamError(f"{settings.session}: no coordinator runs and none has written a status; start `run`")
    if arguments._json:
        print(json.dumps({"running": running, **status.model_dump(mode="json")}, indent=1))
    else:
        Console().print(status_view(status, running=running))
    return 0


def reinfer_command(arguments: argparse.Namespace) -> int:
    return _request("reinfer", arguments)


def requeue_command(arguments: argparse.Namespace) -> int:
    return _request("requeue", arguments)


def retrain_command(arguments: argparse.Namespace) -> int:
    return _request("train", arguments)


def stop_command(arguments: argparse.Namespace) -> int:
    from .stopping import wait_for_end

    settings = settings_of(arguments._session)
    reply = ask_running(settings, Control(action="stop" if arguments._now else "drain"))
    if reply is None:
        raise CespedStreamError(f"{settings.session}: nothing to stop, no coordinator runs on it")
    print(reply.text, flush=True)
    try:
        wait_for_end(settings, lambda words: print(words, flush=True))
    except KeyboardInterrupt:
        print(f"it still stops; `cesped-stream stop --now {arguments._session}` ends it at once", file=sys.stderr)
        raise
    return 0


def train_command(arguments: argparse.Namespace) -> int:
    settings = settings_from(arguments, TrainCommand)
    stop = StopRequest().install()
    from .tools import train

    train(settings, stop, Console())
    return 0


def infer_command(arguments: argparse.Namespace) -> int:
    settings = settings_from(arguments, InferCommand)
    from .tools import infer

    infer(settings, Console())
    return 0


def simulate_command(arguments: argparse.Namespace) -> int:
    from .stream_settings import SimulateCommand

    settings = settings_from(arguments, SimulateCommand)
    from . import demo

    return demo.simulate_command(settings, Console())


def replay_command(arguments: argparse.Namespace) -> int:
    from .stream_settings import ReplayCommand

    settings = settings_from(arguments, ReplayCommand)
    from . import replay_command

    return replay_command.replay_command(settings, Console())


def protocol_command(arguments: argparse.Namespace) -> int:
    from .stream_settings import ProtocolCommand

    settings = settings_from(arguments, ProtocolCommand)
    stop = StopRequest().install()
    from . import protocol_command

    return protocol_command.protocol_command(settings, stop, Console())


def demo_command(arguments: argparse.Namespace) -> int:
    from .stream_settings import DemoCommand

    settings = settings_from(arguments, DemoCommand)
    from . import demo

    return demo.demo_command(settings, Console())


def keys_command(arguments: argparse.Namespace) -> int:
    for file in create_keys(arguments._folder):
        print(file)
    return 0


def export_star_command(arguments: argparse.Namespace) -> int:
    from cesped_stream.export.star import export_star
    from cesped_stream.particles.star import iter_star

    from .finished import left_out_words
    from .independence import rows_by_checkpoint, shared_note
    from .output_paths import check_export_path

    settings = settings_of(arguments._session)
    check_export_path(arguments._output, settings, force=arguments._force)
    with Console(stderr=True).status("reading shards") as shown:
        files = export_star(
            SessionFolder.of(settings).poses,
            arguments._output,
            on_progress=lambda phase, rows: shown.update(f"{phase}: {rows:,} particles"),
            on_left_out=lambda path, labels: print(left_out_words(path.name, labels), file=sys.stderr),
        )
    for file in files:
        print(file)
    if arguments._output in files and (note := shared_note(rows_by_checkpoint(iter_star(arguments._output)), settings)):
        print(note, file=sys.stderr)
    return 0


def _request(action: ControlAction, arguments: argparse.Namespace) -> int:
    reply = request(settings_of(arguments._session), Control(action=action, argument=arguments._argument))
    if not reply.ok:
        raise CespedStreamError(reply.text)
    print(reply.text)
    return 0


def _check_can_start(settings: SessionSettings) -> None:
    """Make what a session needs and refuse early what can be seen to be wrong, before any process is started."""
    from .given_map import check_before_start
    from .sockets import link_of

    if not settings.landing.folder.is_dir():
        raise CespedStreamError(f"landing.folder: {settings.landing.folder} is no folder; make it, or mount it")
    refuse_landing_inside(settings)
    link_of(settings, coordinator=True)
    check_before_start(settings)
    settings.session.mkdir(parents=True, exist_ok=True)


def _check_free(settings: SessionSettings) -> None:
    """Raise SessionBusyError where a coordinator runs on the session already."""
    folder = SessionFolder.of(settings)
    folder.create()
    SessionLock(folder).release()


def _settings_words(settings: SessionSettings) -> str:
    """Return what a session starts with: what was chosen, what was changed since its last start, where all of it is."""
    changed = changed_settings(settings)
    lines = [f"  {line}" for line in chosen_text(settings).splitlines()]
    for key, (was, now) in changed.items():
        lines.append(f"  changed since the last start: {key} from {_said(was)} to {_said(now)}")
    where = f"{settings.session / 'session.toml'} has all {len(flat(settings.model_dump(mode='json')))}"
    return "\n".join([f"settings that differ from the defaults ({where}):", *lines])


def _said(value: object) -> str:
    return "not set" if value is None else str(value)


def _name(arguments: argparse.Namespace, role: str) -> str:
    name = str(arguments._name or f"{role}-{socket.gethostname()}-{os.getpid()}")
    if len(name) > MAX_NAME:
        raise InvalidSettingsError(f"--name: {len(name)} characters, it takes {MAX_NAME} at most; choose a shorter one")
    return name


def _show_last_words(settings: SessionSettings, console: Console) -> None:
    """Print the last line that each child left on its standard error."""
    for file in sorted((settings.session / "logs").glob("*.stderr")):
        lines = file.read_text(errors="replace").strip().splitlines()
        if lines:
            console.print(f"{file.stem}: {lines[-1]}", soft_wrap=True, **PLAIN)
