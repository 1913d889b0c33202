"""Options of a benchmark from its settings' fields: names, bounds, defaults and descriptions are written once."""

import argparse
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from cesped_stream.errors import InvalidSettingsError
from cesped_stream.settings import Settings

S = TypeVar("S", bound=Settings)


def add_options(parser: argparse.ArgumentParser, kind: type[Settings]) -> None:
    """Give a benchmark's parser an option for each field of its settings, and `--json`."""
    for name, field in kind.model_fields.items():
        several = get_origin(field.annotation) is tuple
        parser.add_argument(
            _flag(name),
            dest=f"_{name}",
            action="append" if several else "store",
            metavar=_metavar(name, field),
            help=_help(field),
        )
    parser.add_argument("--json", dest="_json", action="store_true", help="one JSON object instead of the table")


def settings_of_bench(arguments: argparse.Namespace, kind: type[S]) -> S:
    """Return the settings that the options say; InvalidSettingsError names each value that is not allowed."""
    given = {name: getattr(arguments, f"_{name}") for name in kind.model_fields}
    values = {name: _several(value) for name, value in given.items() if value is not None}
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [
            f"{_flag(str(found['loc'][0]))}: got {found['input']!r}: {found['msg']}"
            for found in error.errors(include_url=False)
        ]
        raise InvalidSettingsError("; ".join(problems)) from None


def _several(value: str | Sequence[str]) -> str | list[str]:
    """An option that may be given again, or with commas, as the list of its values."""
    return value if isinstance(value, str) else [word for text in value for word in text.split(",")]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _metavar(name: str, field: FieldInfo) -> str:
    several = get_origin(field.annotation) is tuple
    item = get_args(field.annotation)[0] if several else field.annotation
    choices = get_args(item) if get_origin(item) is Literal else ()
    word = "|".join(choices) or name.rpartition("_")[2].upper()
    return f"{word}[,..]" if several else word


def _help(field: FieldInfo) -> str:
    assert field.description is not None, "the description is the documentation"
    default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    bounds = _bounds(field)
    text = f"{field.description} {bounds}Default: {default}."
    return text.replace("%", "%%")


def _bounds(field: FieldInfo) -> str:
    """In words, of a number or of each of several."""
    found = {
        name: value
        for data in _metadata(field)
        for name in ("ge", "le")
        if (value := getattr(data, name, None)) is not None
    }
    return f"{found['ge']:g} to {found['le']:g}. " if len(found) == 2 else ""


def _metadata(field: FieldInfo) -> list[Any]:
    metadata = list(field.metadata)
    for part in get_args(field.annotation):
        for inner in getattr(part, "__metadata__", ()):
            metadata += inner.metadata if isinstance(inner, FieldInfo) else [inner]
    return metadata
