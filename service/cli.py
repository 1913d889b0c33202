"""The command line. `--help` teaches; nothing heavy is imported before a command needs it."""

import argparse
import errno
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic_settings import BaseSettings, CliSettingsSource, SettingsError

from cesped_stream.errors import CespedStreamError, InvalidSettingsError, TransientError
from cesped_stream.termination import ended_by_signals

from .bench_commands import add_benches
from .bench_proposers_command import add_bench_proposers
from .doctor_command import add_doctor
from .entries_commands import entries_parser
from .evaluate_command import add_evaluate
from .help_pages import Help, add_help, drop_empty_defaults, overview_text, request_text
from .nearest import did_you_mean, listed, nearest
from .prepare_command import add_preprocess
from .resolve import known_keys, resolve, with_absolute_paths
from .score_command import add_score
from .session import SessionBusyError
from .settings import InferCommand, SessionSettings, TrainCommand
from .stream_words import PROTOCOL_WORDS, REPLAY_WORDS, add_words, with_words

ERROR_EXIT_CODE = 2
RETRY_EXIT_CODE = 75
"""sysexits' EX_TEMPFAIL: a mount that is away, a full disk. `run` and systemd start the role again."""

DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE})
"""What a file system says that no command could have known before: told in a line, not as a traceback."""

OVERVIEW = """\
Poses for cryo-EM particles while the microscope is still collecting.

Particle stars and stacks land in a folder; references are made of the first aligned ones, or a network is trained
on them; all later ones get poses:

  cesped-stream demo                                    see it work on simulated ribosomes, no data needed
  cesped-stream run --session S --landing.folder L      watch folder L, keep everything in folder S
  cesped-stream status S                                what is it doing, and what does it wait for?
  cesped-stream export star S --output all.star         every particle once, sorted: input for RELION
  cesped-stream stop S                                  finish the batch in hand and end; `run` goes on from there

Settings come from, strongest first: the command line (--training.max_steps 500), the environment
(CESPED_STREAM_TRAINING__MAX_STEPS=500), a TOML file (--settings my.toml), the defaults. An unknown key is an error.
What differs from the defaults is printed at a session's start; <session>/session.toml has all of it.
"""

SETTINGS_COMMANDS = {
    "demo": "see it work: simulate an entry, stream it, compare with the truth; needs no data",
    "run": "start coordinator, trainer and workers on this machine, in the foreground, with a live view",
    "coordinator": "the one process that watches the landing folder, keeps the ledger and writes poses",
    "worker": "predicts poses; any number of them, on any machine that sees the files",
    "trainer": "makes references of the first aligned batch, trains a network on it, or both",
    "replay": "let an entry land as a stream and have it answered, as at a microscope",
    "protocol": "the paper's 2-fold protocol on an entry: train on each half, infer the other, reconstruct, evaluate",
    "simulate": "write an entry of simulated particles in CESPED's layout",
    "train": "train a network on an aligned star, or make references of it, without a session; publishes a checkpoint",
    "infer": "predict the poses of a star with a checkpoint, without a session",
}

OTHER_NAMES = {
    "start": "run",
    "watch": "run",
    "serve": "run",
    "quit": "stop",
    "kill": "stop",
    "cancel": "stop",
    "drain": "stop",
    "info": "status",
    "state": "status",
    "retry": "requeue",
    "redo": "reinfer",
    "predict": "infer",
    "test": "demo",
    "benchmark": "bench",
    "download": "entries",
}
"""What other programs call a command of ours."""

_WORDS = {"replay": REPLAY_WORDS, "protocol": PROTOCOL_WORDS}

Command = Callable[[argparse.Namespace], int]
S = TypeVar("S", bound=BaseSettings)


class Usage(InvalidSettingsError):
    """The command line itself is wrong."""


class _Parser(argparse.ArgumentParser):
    def __init__(self, **kwargs: Any) -> None:
        kwargs = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **kwargs}
        super().__init__(**kwargs)

    def error(self, message: str) -> NoReturn:
        _, is_missing, names = message.partition("arguments are required: ")
        missing = [action for action in self._actions if is_missing and _name_of(action) in names.split(", ")]
        if missing:
            message = "; ".join(map(_missing_words, missing))
        raise Usage(f"{message}; see `{self.prog} --help`")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        if isinstance(action, argparse._SubParsersAction):
            raise Usage(f"unknown {str(action.metavar).lower()} {value}; {self._meant(value, list(action.choices))}")
        takes = [str(choice) for choice in action.choices]
        hint = did_you_mean(str(value), takes, "no such choice;")
        raise Usage(f"{_name_of(action)} {value}: {hint} it takes {listed(takes)}")

    def _meant(self, said: str, known: Sequence[str]) -> str:
        if said == "help":
            return f"`{self.prog} --help` lists them, `{self.prog} {known[0]} --help` tells of one"
        elsewhere = [name for name in (OTHER_NAMES.get(said.lower(), ""),) if name in known]
        meant = elsewhere or nearest(said, known)
        if meant:
            return f"did you mean `{self.prog} {listed(meant)}`?"
        return f"there are {', '.join(known)}" if len(known) < 8 else f"`{self.prog} --help` lists them"

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        if "_command" in found and not hasattr(found, "_flags"):
            flags = tuple(flag for action in self._actions for flag in action.option_strings if flag.startswith("--"))
            found._flags = flags
        return found, unknown


def _name_of(action: argparse.Action) -> str:
    return "/".join(action.option_strings) or str(action.metavar)


def _missing_words(action: argparse.Action) -> str:
    if isinstance(action, argparse._SubParsersAction):
        return f"{action.metavar} is missing: {listed(action.choices)}"
    return f"{_name_of(action)} is missing: {action.help}"


class SettingsArguments:
    """A settings class as command-line options with dotted names, described by its fields."""

    def __init__(self, parser: argparse.ArgumentParser, kind: type[BaseSettings]) -> None:
        self.kind = kind
        self._source: Any = CliSettingsSource(
            kind,
            root_parser=parser,
            cli_hide_none_type=True,
            cli_avoid_json=True,
            cli_enforce_required=False,
            cli_implicit_flags=True,
            cli_use_class_docs_for_groups=True,
        )
        drop_empty_defaults(parser)

    def given(self, arguments: argparse.Namespace) -> Mapping[str, Any]:
        """Return the options that were given, nested."""
        known = {key: value for key, value in vars(arguments).items() if not key.startswith("_")}
        self._refuse_groups_as_settings(known)
        try:
            values: Mapping[str, Any] = self._source(parsed_args=known)()
        except SettingsError as error:
            raise Usage(f"settings: {error}") from None
        return values

    def _refuse_groups_as_settings(self, known: Mapping[str, Any]) -> None:
        """Raise Usage where a group of settings was given a word; JSON is the source's."""
        keys = known_keys(self.kind)
        for name, value in known.items():
            settings = [key for key in keys if key.startswith(f"{name}.")]
            if settings and isinstance(value, str) and not value.lstrip().startswith("{"):
                key = f"{name}.preset" if f"{name}.preset" in settings else settings[0]
                raise Usage(f"--{name} {value}: is a group of settings; say which one, --{key} {value}")


def build_parser(wanted: str = "") -> argparse.ArgumentParser:
    """Return the parser of all commands; each sets `_command`, a function of the parsed arguments.

    Only the command `wanted` gets its settings as options: each of them costs time to build.
    """
    parser = _Parser(
        prog="cesped-stream", description=OVERVIEW, usage="cesped-stream COMMAND [--OPTION VALUE ...]", add_help=False
    )
    parser.add_argument("-h", "--help", action=Help, text=overview_of, help="this page")
    parser.add_argument("--version", action="store_true", dest="_version", help="print the version and exit")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=False, parser_class=_Parser, prog=parser.prog
    )
    for name, text in SETTINGS_COMMANDS.items():
        _add_settings_command(commands, name, text, with_options=name == wanted)
    add_score(commands)
    add_doctor(commands)
    _add_requests(commands)
    keys = commands.add_parser("keys", help="make CURVE keys for a tcp endpoint")
    keys.add_argument("_folder", type=Path, metavar="FOLDER", help="where; mode 0700")
    keys.set_defaults(_command=_later("keys_command"))
    bench = commands.add_parser("bench", help="measure this machine").add_subparsers(
        title="benchmarks", metavar="BENCHMARK", required=True, parser_class=_Parser
    )
    add_benches(bench)
    add_bench_proposers(bench, with_options=wanted == "bench")
    add_preprocess(entries_parser(commands))
    add_evaluate(commands)
    return parser


def overview_of(parser: argparse.ArgumentParser) -> str:
    """Return the page of all commands."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return overview_text(parser, {choice.dest: choice.help or "" for choice in commands._choices_actions})


def _add_settings_command(commands: Any, name: str, text: str, *, with_options: bool) -> None:
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.\n\nEvery option below is a setting: KEY = VALUE in a TOML file, "
        "CESPED_STREAM_KEY in the environment\n(a dot becomes two underscores).",
        usage=f"cesped-stream {name} [--settings FILE] [--KEY VALUE ...]",
        add_help=False,
    )
    add_help(parser, name)
    parser.set_defaults(_command=_later(f"{name}_command"))
    if not with_options:
        return
    parser.add_argument("--settings", dest="_settings", type=Path, metavar="FILE", help="TOML file of settings")
    if name in ("run", "coordinator", "worker", "trainer"):
        _add_role_arguments(parser, name)
    parser.set_defaults(_options=SettingsArguments(parser, _settings_class(name)))
    if name in _WORDS:
        add_words(parser, _WORDS[name])


def _add_role_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    if name == "run":
        parser.add_argument("--plain", dest="_plain", action="store_true", help="no live view: one line a change")
    parser.add_argument("--parent-pid", dest="_parent_pid", type=int, default=0, help=argparse.SUPPRESS)
    if name in ("worker", "trainer"):
        parser.add_argument("--name", dest="_name", default="", help="this process's name in status and logs")


def _settings_class(name: str) -> type[BaseSettings]:
    match name:
        case "train":
            return TrainCommand
        case "infer":
            return InferCommand
        case "simulate" | "replay" | "demo" | "protocol":
            from . import stream_settings

            kinds: dict[str, type[BaseSettings]] = {
                "simulate": stream_settings.SimulateCommand,
                "replay": stream_settings.ReplayCommand,
                "demo": stream_settings.DemoCommand,
                "protocol": stream_settings.ProtocolCommand,
            }
            return kinds[name]
    return SessionSettings


def _add_requests(commands: Any) -> None:
    status = _request(
        commands, "status", "what it does and waits for: roles, backlog, rates, latency, checkpoint in use"
    )
    status.add_argument("--json", dest="_json", action="store_true", help="the whole status as JSON")
    reinfer = _request(commands, "reinfer", "redo committed poses with a later checkpoint, each row still exactly once")
    reinfer.add_argument(
        "--checkpoint", dest="_argument", metavar="ID", default="", help="its id or folder; default: the one in use"
    )
    requeue = _request(commands, "requeue", "bring back what was quarantined")
    requeue.add_argument(
        "--batch", dest="_argument", metavar="BATCH", default="", help="batch number or star path; default: everything"
    )
    _request(commands, "retrain", "train again, on all aligned rows that have landed")
    stop = _request(commands, "stop", "finish the batch in hand, write its poses and end; waits for that")
    stop.add_argument(
        "--now", dest="_now", action="store_true", help="end at once: the batch in hand is done again at the next start"
    )
    export = commands.add_parser("export", help="write the session's particles for other programs").add_subparsers(
        title="formats", metavar="FORMAT", required=True, parser_class=_Parser
    )
    star = _request(
        export, "star", "one RELION 3.1 star, every particle once, sorted by particle: the canonical result"
    )
    star.add_argument("--output", dest="_output", type=Path, required=True, help="the star file to write")
    star.add_argument(
        "--force",
        dest="_force",
        action="store_true",
        help="write also where the session would read it as a star that landed",
    )
    star.set_defaults(_command=_later("export_star_command"))


def _request(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=request_text(name, f"{text[0].upper()}{text[1:]}.")
    )
    parser.add_argument("_session", type=Path, metavar="SESSION", help="session folder")
    parser.set_defaults(_command=_later(f"{name}_command"), _argument="")
    return parser


def _later(name: str) -> Command:
    """Return the command of that name in `commands`, which is imported only when it is called."""

    def command(arguments: argparse.Namespace) -> int:
        from . import commands

        return int(getattr(commands, name)(arguments))

    return command


def settings_from(arguments: argparse.Namespace, kind: type[S]) -> S:
    """Return the resolved settings of a command."""
    return resolve(kind, with_words(arguments, arguments._options.given(arguments)), arguments._settings)


def session_settings(arguments: argparse.Namespace) -> SessionSettings:
    """Return the resolved settings of a command that takes all of a session's options."""
    return with_absolute_paths(settings_from(arguments, SessionSettings))


def _unknown_option(unknown: Sequence[str], arguments: argparse.Namespace) -> Usage:
    if not unknown[0].startswith("-"):
        return Usage(f"{' '.join(unknown)}: more than the command takes; an option's name comes before its value")
    options = getattr(arguments, "_options", None)
    keys = [f"--{key}" for key in known_keys(options.kind)] if options is not None else []
    keys += getattr(arguments, "_flags", ())
    everything = "--help-all lists the options" if options is not None else "--help lists the options"
    hint = did_you_mean(unknown[0].partition("=")[0], keys, everything)
    return Usage(f"unknown option {' '.join(unknown)}; {hint}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 0 done, 2 for an error that the user can act on, 75 for one that a later
    start may not meet; either says so in one line on stderr."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except CespedStreamError as error:
        print(f"cesped-stream: error: {error}", file=sys.stderr)
        # Another coordinator runs on the session: starting again and again would not end it.
        later = isinstance(error, TransientError) and not isinstance(error, SessionBusyError)
        return RETRY_EXIT_CODE if later else ERROR_EXIT_CODE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of a pipe (head, less) left: nothing more to say, and no traceback at exit.
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(f"cesped-stream: error: {_disk_words(error)}", file=sys.stderr)
        return RETRY_EXIT_CODE


def _run(words: list[str]) -> int:
    parser = build_parser(next((word for word in words if not word.startswith("-")), ""))
    if words and words[0].startswith("-") and words[0] not in ("-h", "--help", "--version"):
        raise Usage(f"{words[0]}: the command comes first, as in `cesped-stream run {words[0]} ...`; see --help")
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        raise _unknown_option(unknown, arguments)
    if arguments._version:
        from cesped_stream import __version__

        print(__version__)
        return 0
    if not hasattr(arguments, "_command"):
        print(overview_of(parser), end="")
        return 0
    with ended_by_signals():
        return int(arguments._command(arguments))


def _disk_words(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "make room and start again" if full else "may this user write there, is its mount there?"
    return f"{where}{error.strerror}; {remedy}"


if __name__ == "__main__":
    sys.exit(main())
