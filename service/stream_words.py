"""Plain words of `replay` and `protocol` beside the dotted settings: `--rate 300/s` says replay.rate. No torch."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cesped_stream.errors import InvalidSettingsError

_SECONDS_OF = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0}
_RATE = re.compile(r"(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*(?:/\s*(s|min|h))?")
_NAME = "_word_{}"


@dataclass(frozen=True)
class Word:
    """One option that says a setting in plain words."""

    flag: str
    key: str
    """The setting, dotted."""
    text: str
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    read: Callable[[str], Any] = str
    repeats: bool = False
    """May be given several times; the setting is the list."""
    constant: Any = None
    """Given: the option takes no value and says this."""


def particles_per_second(text: str) -> float:
    """Return particles per second of `300/s`, `600/min`, `150000/h` or a bare number; InvalidSettingsError else."""
    found = _RATE.fullmatch(text.strip())
    if found is None:
        raise InvalidSettingsError(
            f"--rate {text}: no rate; give particles as 300/s, 600/min, 150000/h or 12.5 (a second)"
        )
    return float(found[1]) / _SECONDS_OF[found[2] or ""]


def report_file(text: str) -> str:
    """Return the path of a report; InvalidSettingsError where it is no .html: `--report` took the entry."""
    if text and not text.endswith((".html", ".htm")):
        raise InvalidSettingsError(f"--report {text}: the report is a .html file; name one, or put the entry first")
    return text


PROTOCOL = Word(
    "--protocol",
    "half_mode",
    "whose half's model poses a particle: its own (gold_standard) or the other's (cross_half, CESPED's)",
    choices=("cross_half", "gold_standard"),
)
REPORT = Word(
    "--report", "reporting.file", "the page's file (default: report.html in the output)", "FILE.html", read=report_file
)
BESIDE = Word(
    "--beside",
    "reporting.beside",
    "output of another replay or score that the page shows beside this one; repeatable",
    "FOLDER",
    repeats=True,
)
NO_REPORT = Word("--no-report", "reporting.write", "write neither report.html nor metrics.json", constant=False)

REPLAY_WORDS = (
    PROTOCOL,
    Word("--rate", "replay.rate", "particles that stream: 300/s, 150000/h, 12.5", "RATE", read=particles_per_second),
    Word("--batch", "replay.batch_rows", "particles of one streamed star", "N"),
    Word("--first-aligned", "replay.first_aligned", "at least so many particles land first, with poses", "N"),
    Word("--first-aligned-micrographs", "replay.first_aligned_micrographs", "so many micrographs land first", "N"),
    Word("--order", "replay.order", "order of micrographs", choices=("recorded", "shuffled")),
    Word("--seed", "replay.seed", "seed of a shuffled order", "N"),
    REPORT,
    BESIDE,
    NO_REPORT,
)
PROTOCOL_WORDS = (
    PROTOCOL,
    Word("--preset", "training.preset", "what is trained", choices=("paper", "small")),
    Word(
        "--allow-symmetry",
        "allow_symmetry",
        "infer with a checkpoint that was trained for another point group than the entry's",
        constant=True,
    ),
    REPORT,
    NO_REPORT,
)


def add_words(parser: argparse.ArgumentParser, words: Sequence[Word]) -> None:
    """Add the words, and ENTRY as the first argument, to a command that has its settings as options already."""
    parser.add_argument("_word_entry", nargs="?", metavar="ENTRY", help="a benchmark entry's name, or a path")
    group = parser.add_argument_group("in plain words", "the same settings as the dotted ones below; give one of each")
    for word in words:
        _add_word(group, word)
    parser.set_defaults(_words=(Word("ENTRY", "entry", ""), *words))
    parser.usage = f"{parser.prog} ENTRY [--settings FILE] [--KEY VALUE ...]"


def with_words(arguments: argparse.Namespace, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options given, nested, and what the words said; InvalidSettingsError where both say one setting."""
    merged: dict[str, Any] = {key: dict(value) if isinstance(value, Mapping) else value for key, value in given.items()}
    for word in getattr(arguments, "_words", ()):
        said = getattr(arguments, _dest(word))
        if said is None:
            continue
        *groups, name = word.key.split(".")
        place = merged
        for group in groups:
            place = place.setdefault(group, {})
        if name in place:
            raise InvalidSettingsError(f"{word.flag} and --{word.key} both say {word.key}; give one of them")
        value = _value(word, said)
        if value != "":  # `--report` alone: the default file
            place[name] = value
    return merged


def _value(word: Word, said: Any) -> Any:
    if word.constant is not None:
        return said
    return [word.read(text) for text in said] if word.repeats else word.read(said)


def _add_word(group: Any, word: Word) -> None:
    if word.constant is not None:
        group.add_argument(word.flag, dest=_dest(word), action="store_const", const=word.constant, help=word.text)
        return
    optional: dict[str, Any] = {"nargs": "?", "const": ""} if word is REPORT else {}
    if word.repeats:
        optional = {"action": "append"}
    group.add_argument(
        word.flag, dest=_dest(word), metavar=word.metavar, choices=word.choices, help=word.text, **optional
    )


def _dest(word: Word) -> str:
    return _NAME.format(word.flag.strip("-").replace("-", "_").lower())
