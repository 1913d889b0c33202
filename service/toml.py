"""Settings as TOML: tables of strings, numbers, booleans and lists, as our settings are; and which were chosen."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

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


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one, with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def chosen(settings: BaseModel) -> dict[str, Any]:
    """Return the settings, by dotted key, that are not what they are unless someone says so.

    Those that have no default are among them; what a preset stands for is not, the preset is.
    """
    found: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            found |= {f"{name}.{key}": each for key, each in _chosen_of_group(value).items()}
        elif field.is_required() or value != field.get_default(call_default_factory=True):
            found |= flat(settings.model_dump(mode="json", include={name}, exclude_none=True))
    return found


def chosen_text(settings: BaseModel) -> str:
    """Return `chosen` as lines of TOML with dotted keys."""
    return "".join(f"{key} = {_value(value)}\n" for key, value in chosen(settings).items())


def _chosen_of_group(group: BaseModel) -> dict[str, Any]:
    kind = type(group)
    said = {name for name, field in kind.model_fields.items() if field.is_required() or name == "preset"}
    inner: dict[str, Any] = {name: {} for name in kind.model_fields if isinstance(getattr(group, name), BaseModel)}
    usual = kind.model_validate(inner | {name: getattr(group, name) for name in said})
    usually = flat(usual.model_dump(mode="json", exclude_none=True))
    required = {name for name in said if kind.model_fields[name].is_required()}
    if "preset" in said and group.preset != kind.model_fields["preset"].default:  # type: ignore[attr-defined]
        required.add("preset")
    values = flat(group.model_dump(mode="json", exclude_none=True))
    return {key: value for key, value in values.items() if key in required or usually.get(key) != value}


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
