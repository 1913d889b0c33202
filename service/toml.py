"""Settings as TOML text: tables of strings, numbers, booleans and lists, as our settings are."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cesped_stream.errors import InvalidSettingsError


def read_toml(file: Path) -> dict[str, Any]:
    """Return a TOML file's tables; InvalidSettingsError names the file where it cannot be read."""
    try:
        with open(file, "rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise InvalidSettingsError(f"settings {file}: {error.strerror}; give the path of a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettingsError(f"settings {file}: not TOML: {error}") from None


def toml_text(tables: Mapping[str, Any]) -> str:
    """Return TOML text that `tomllib` reads back as `tables`; values of None are not representable."""
    return "".join(_lines(tables, ()))


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = [f"{key} = {_value(value)}\n" for key, value in table.items() if not isinstance(value, Mapping)]
    for key, value in table.items():
        if isinstance(value, Mapping):
            inner = (*path, key)
            lines += [f"\n[{'.'.join(inner)}]\n", *_lines(value, inner)]
    return lines


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            # JSON's escapes are TOML's, but for the delete character, which TOML wants escaped.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case Sequence():
            return "[" + ", ".join(_value(item) for item in value) + "]"
    raise TypeError(f"{value!r} has no place in settings")
