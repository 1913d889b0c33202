"""What `--help` of a command with many settings shows: an example, what happens, and the options that most people need.

`--help-all` lists the rest. The texts of options are those of their settings.
"""

import argparse
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

NO_DEFAULT = re.compile(r"\s*\(default: (None)?\)$")
"""What the settings source appends where a setting is not given unless someone gives it."""


@dataclass(frozen=True)
class HelpPage:
    """A command's first page."""

    example: str
    happens: str
    options: tuple[str, ...]
    """Of the options, in this order, those that matter first; the required ones among them."""


_MATCHING: Final = ("--proposer", "--training.symmetry", "--min_aligned_per_half")

PAGES: Final[Mapping[str, HelpPage]] = {
    "run": HelpPage(
        "cesped-stream run --session ~/s1 --landing.folder /data/s1/Extract --training.symmetry D2",
        """\
Stars and stacks in the landing folder are read as they settle. The rows that a refinement gave poses to (2,000 with
the defaults) become one reference for each half-set, in seconds to minutes; from then on every row that lands gets a
pose, written to SESSION/poses/*.star. Nothing in the landing folder is changed. `cesped-stream status SESSION` says
what is done and what is waited for; Ctrl-C finishes the batch in hand, a second one ends at once, and the same command
goes on where it stopped. Whatever is killed, no pose is lost or written twice.""",
        (
            "--session",
            "--landing.folder",
            "--training.symmetry",
            "--training.alignment",
            "--landing.aligned",
            "--min_aligned_per_half",
            "--reference",
            "--service.workers",
            "--settings",
            "--plain",
        ),
    ),
    "coordinator": HelpPage(
        "cesped-stream coordinator --session ~/s1 --landing.folder /data/s1/Extract",
        """\
It reads what lands, keeps the ledger and writes the poses; it computes none. Workers and a trainer, started here or on
other machines that see the same files, do. `cesped-stream run` starts all three on this machine.""",
        (
            "--session",
            "--landing.folder",
            "--training.symmetry",
            "--training.alignment",
            "--min_aligned_per_half",
            "--service.endpoint",
            "--service.curve_folder",
            "--settings",
        ),
    ),
    "worker": HelpPage(
        "cesped-stream worker --settings ~/s1/session.toml --inference.device cuda",
        """\
It asks the session's coordinator for rows, reads their images itself, computes poses and sends them back. Give it the
session's own settings, which lie in SESSION/session.toml. It may be stopped or killed at any time: rows that it did
not answer are done again by another one.""",
        (
            "--settings",
            "--session",
            "--name",
            "--inference.device",
            "--inference.threads",
            "--inference.batch_size",
            "--service.endpoint",
            "--service.curve_folder",
        ),
    ),
    "trainer": HelpPage(
        "cesped-stream trainer --settings ~/s1/session.toml",
        """\
It waits until the coordinator has enough rows with poses, makes a reference of each half-set, trains networks where
`proposer` asks for them, and publishes the result in SESSION/checkpoints. Killed in a training it goes on from the
last resume point.""",
        (
            "--settings",
            "--session",
            "--name",
            "--proposer",
            "--training.preset",
            "--training.max_steps",
            "--training.max_minutes",
            "--inference.device",
            "--service.endpoint",
        ),
    ),
    "demo": HelpPage(
        "cesped-stream demo --output demo-output",
        """\
Ribosome particles are simulated and land as at a microscope: the first ones with poses, the rest without. A session
answers them, and its poses are compared with the truth in demo-output/report.html. Minutes on two cores.""",
        (
            "--output",
            "--simulate.num_particles",
            "--simulate.snr",
            "--simulate.map",
            "--realism.preset",
            "--replay.rate",
            "--replay.first_aligned",
            "--proposer",
            "--min_aligned_per_half",
            "--settings",
        ),
    ),
    "replay": HelpPage(
        "cesped-stream replay TEST --output out --rate 300/s --first-aligned 2000",
        """\
The entry's particles land in OUTPUT/landing as a stream: the first micrographs with their poses, the rest without, in
small stars. A session answers them; report.html and metrics.json compare its poses with the entry's. The entry itself
is only read; its stacks are linked.""",
        (
            "--output",
            "--rate",
            "--first-aligned",
            "--batch",
            "--protocol",
            "--realism.preset",
            *_MATCHING,
            "--settings",
        ),
    ),
    "protocol": HelpPage(
        "cesped-stream protocol 10280 --output out --preset small",
        """\
Each half-set of the entry is trained on, the other one's poses are inferred with it, and both are reconstructed.
OUTPUT/report.html and metrics.json have the paper's figures. Started again with the same output it goes on where it
stopped.""",
        (
            "--output",
            "--preset",
            "--protocol",
            "--proposer",
            "--training.max_steps",
            "--inference.device",
            "--allow-symmetry",
            "--report",
            "--settings",
        ),
    ),
    "bench proposers": HelpPage(
        "cesped-stream bench proposers --output ways --snr 0.15 --aligned 4000 --steps 600",
        """\
Micrographs with so many particles are aligned, so many more are streamed. Networks and references are made of the
aligned ones, once: they stay in the output folder, and a start that was cut goes on. Each way of making poses then
answers the same streamed particles. Without ENTRY one is simulated.""",
        (
            "--output",
            "--aligned",
            "--streamed",
            "--snr",
            "--symmetry",
            "--steps",
            "--minutes",
            "--threads",
            "--realism.preset",
            "--json",
            "--settings",
        ),
    ),
    "simulate": HelpPage(
        "cesped-stream simulate --output ribosome --simulate.num_particles 2000 --simulate.snr 0.15",
        """\
Projections of a map, with CTF, noise and centring errors, are written as a benchmark entry: two stars with the true
poses and their stacks. Equal settings give equal bytes.""",
        (
            "--output",
            "--simulate.num_particles",
            "--simulate.map",
            "--simulate.box_size",
            "--simulate.snr",
            "--simulate.symmetry",
            "--simulate.seed",
            "--realism.preset",
            "--settings",
        ),
    ),
    "train": HelpPage(
        "cesped-stream train --star run_data.star --output checkpoints --training.symmetry D2",
        """\
Both half-sets of the star are trained on apart and published as one folder in OUTPUT, which `infer` and `run
--checkpoint` take. Networks take hours without a GPU; `--proposer gallery` makes references instead, in minutes.""",
        (
            "--star",
            "--output",
            "--proposer",
            "--training.symmetry",
            "--training.alignment",
            "--training.preset",
            "--training.max_steps",
            "--training.max_minutes",
            "--image_root",
            "--settings",
        ),
    ),
    "infer": HelpPage(
        "cesped-stream infer --checkpoint checkpoints/ref-0123456789ab --star new.star --output new_poses.star",
        """\
Every row whose image can be read is written to OUTPUT with its input columns, a pose and a confidence; the others go
to OUTPUT_unposed.star with the reason. RELION reads the result.""",
        (
            "--checkpoint",
            "--star",
            "--output",
            "--image_root",
            "--half_mode",
            "--inference.device",
            "--inference.batch_size",
            "--settings",
        ),
    ),
}

REQUESTS: Final[Mapping[str, tuple[str, str]]] = {
    "status": (
        "cesped-stream status ~/s1",
        "Problems stand in red with their remedy. Where the session does not run, it is the last status written.",
    ),
    "stop": (
        "cesped-stream stop ~/s1",
        "No new rows are given out; what workers have in hand is finished and written, which takes seconds.\n"
        "`cesped-stream run --settings ~/s1/session.toml` goes on from there.",
    ),
    "reinfer": (
        "cesped-stream reinfer ~/s1",
        "Poses by former references or networks are computed again; rows that land come first. Each row stays in the\n"
        "output exactly once, with its old pose until the new one is there. On a session that does not run it is\n"
        "done at the next start.",
    ),
    "requeue": (
        "cesped-stream requeue ~/s1 --batch 12",
        "`status` names what was set aside and why, SESSION/quarantine has every row. Correct the file, then bring it\n"
        "back. Works also on a session that does not run.",
    ),
    "retrain": (
        "cesped-stream retrain ~/s1",
        "References are made, or networks trained, on all aligned rows so far; what lands from then on gets poses by\n"
        "them, `reinfer` redoes the rest. On a session that does not run it is done at the next start.",
    ),
    "star": (
        "cesped-stream export star ~/s1 --output ~/s1_all.star",
        "The input's columns and the pose of every particle that has one; the session may run meanwhile.",
    ),
}
"""Of the commands that ask a session for something: an example, and what happens."""

GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "try it": ("demo", "simulate", "replay"),
    "a session": ("doctor", "run", "status", "stop", "export", "retrain", "reinfer", "requeue"),
    "its parts, on several machines": ("coordinator", "trainer", "worker", "keys"),
    "without a session": ("train", "infer"),
    "benchmarks": ("entries", "protocol", "evaluate", "score", "bench"),
}


class Help(argparse.Action):
    """`--help` that prints what a function makes of the parser, and ends."""

    def __init__(self, option_strings: Sequence[str], text: Callable[[argparse.ArgumentParser], str], **kw: Any):
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, help=kw["help"])
        self._text = text

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(self._text(parser), end="")
        parser.exit()


def add_help(parser: argparse.ArgumentParser, name: str) -> None:
    """Give a command `--help`, its page, and `--help-all`, everything."""
    page = PAGES[name]
    parser.add_argument("-h", "--help", action=Help, text=lambda parser: page_text(parser, page), help="the first page")
    parser.add_argument("--help-all", action="help", help="every setting")


def page_text(parser: argparse.ArgumentParser, page: HelpPage) -> str:
    """Return a command's first page."""
    by_flag = {flag: action for action in parser._actions for flag in action.option_strings}
    positionals = [action for action in parser._actions if not action.option_strings]
    shown = [*positionals, *(by_flag[flag] for flag in page.options)]
    formatter = parser._get_formatter()
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    formatter.add_text((parser.description or "").partition("\n")[0])
    formatter.add_text(f"example:\n  {page.example}")
    formatter.add_text(page.happens)
    formatter.start_section("what most people set")
    formatter.add_arguments(shown)
    formatter.end_section()
    others = len({id(action) for action in parser._actions} - {id(action) for action in shown}) - 2
    formatter.add_text(
        f"{parser.prog} --help-all lists every setting, {others} more. Each may also be KEY = VALUE in a TOML file\n"
        "(--settings FILE), or CESPED_STREAM_KEY in the environment (a dot becomes two underscores)."
    )
    return formatter.format_help()


def request_text(name: str, description: str) -> str:
    """Return what `--help` says of a command that asks a session for something."""
    if name not in REQUESTS:
        return description
    example, happens = REQUESTS[name]
    return f"{description}\n\nexample:\n  {example}\n\n{happens}"


def overview_text(parser: argparse.ArgumentParser, helps: Mapping[str, str]) -> str:
    """Return the page of all commands (name: help), in groups; one that no group names comes last."""
    grouped = {name for names in GROUPS.values() for name in names}
    groups = {**GROUPS, "more": tuple(name for name in helps if name not in grouped)}
    formatter = parser._get_formatter()
    formatter.add_usage(parser.usage, [], [])
    formatter.add_text(parser.description)
    for title, names in groups.items():
        formatter.start_section(title)
        formatter.add_arguments(_as_arguments(names, helps))
        formatter.end_section()
    formatter.add_text(
        "`cesped-stream COMMAND --help` shows an example and the options that matter; --version the version."
    )
    return formatter.format_help()


def _as_arguments(names: Iterable[str], helps: Mapping[str, str]) -> list[argparse.Action]:
    return [argparse.Action([], dest=name, metavar=f"  {name}", help=helps[name]) for name in names if name in helps]


def drop_empty_defaults(parser: argparse.ArgumentParser) -> None:
    """Take `(default: None)` out of the texts of options: not given is what it says already."""
    for action in parser._actions:
        if action.help:
            action.help = NO_DEFAULT.sub("", action.help)
