"""Settings from where they are said: command line > environment > TOML file > default. An unknown key is an error."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource

from cesped_stream.errors import InvalidSettingsError

from .nearest import did_you_mean
from .settings import BenchmarkSettings, SessionSettings
from .toml import read_toml

ENV_PREFIX = "CESPED_STREAM_"
ENV_DELIMITER = "__"
NOT_SETTINGS = frozenset({"CESPED_STREAM_TEST_DATA"})
"""Variables with our prefix that are no settings: where the tests find their data."""

S = TypeVar("S", bound=BaseSettings)


def resolve(kind: type[S], arguments: Mapping[str, Any], file: Path | None = None) -> S:
    """Return settings of `kind` from command line `arguments` (nested), the environment and a TOML file.

    A TOML file or an environment made for a session also serves a command that needs only part of it: what the
    session knows and the command does not is passed over. InvalidSettingsError names every other unknown key, and
    each value that is not allowed with what it may be.
    """
    said = read_toml(file) if file is not None else {}
    for key in [key for key in said if key not in kind.model_fields and key in SessionSettings.model_fields]:
        del said[key]
    _refuse_unknown_variables(kind)
    merged = _merged(_merged(said, EnvSettingsSource(kind)()), arguments)
    try:
        return kind(**merged)
    except ValidationError as error:
        raise InvalidSettingsError(_in_words(kind, error, file)) from None


def with_absolute_paths(settings: SessionSettings) -> SessionSettings:
    """Return the settings with every path absolute, so that they mean the same in any folder."""
    landing, service, training = settings.landing, settings.service, settings.training
    return settings.model_copy(
        update={
            "session": _absolute(settings.session),
            "ledger_folder": _absolute(settings.ledger_folder),
            "checkpoint": str(_absolute(Path(settings.checkpoint))) if settings.checkpoint else "",
            "reference": _absolute(settings.reference),
            "landing": landing.model_copy(
                update={
                    "folder": _absolute(landing.folder),
                    "image_root": _absolute(landing.image_root),
                    "allowed_roots": tuple(_absolute(root) for root in landing.allowed_roots),
                }
            ),
            "service": service.model_copy(update={"curve_folder": _absolute(service.curve_folder)}),
            "training": training.model_copy(
                update={"init_from": str(_absolute(Path(training.init_from))) if training.init_from else ""}
            ),
        }
    )


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else Path(os.path.abspath(path.expanduser()))


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        nested = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(below, value) if nested else value  # type: ignore[arg-type]
    return merged


def known_keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """Return every dotted key of a settings class, groups included."""
    keys = []
    for name, field in kind.model_fields.items():
        keys.append(prefix + name)
        group = _group(field.annotation)
        if group is not None:
            keys += known_keys(group, f"{prefix}{name}.")
    return keys


def required_keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """Return every dotted key that has no default."""
    keys = []
    for name, field in kind.model_fields.items():
        group = _group(field.annotation)
        if group is None and field.is_required():
            keys.append(prefix + name)
        elif group is not None and field.is_required():
            keys += required_keys(group, f"{prefix}{name}.")
    return keys


def _group(annotation: Any) -> type[BaseModel] | None:
    candidates = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _refuse_unknown_variables(kind: type[BaseModel]) -> None:
    known = {*known_keys(kind), *known_keys(SessionSettings), *known_keys(BenchmarkSettings)}
    for variable in os.environ:
        if not variable.upper().startswith(ENV_PREFIX) or variable in NOT_SETTINGS:
            continue
        key = variable[len(ENV_PREFIX) :].lower().replace(ENV_DELIMITER, ".")
        if key not in known:
            raise InvalidSettingsError(f"environment variable {variable}: {_unknown(key, sorted(known))}")


def _unknown(key: str, known: list[str]) -> str:
    return f"unknown setting {key}; {did_you_mean(key, known, '`cesped-stream run --help-all` lists the settings')}"


def _in_words(kind: type[BaseModel], error: ValidationError, file: Path | None) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"] if not (isinstance(part, str) and part[:1].isupper()))
        match problem["type"]:
            case "extra_forbidden":
                lines.append(_unknown(key, known_keys(kind)))
            case "missing":
                wanted = next((k for k in required_keys(kind) if k == key or k.startswith(f"{key}.")), key)
                lines.append(f"{wanted}: not set; give --{wanted} on the command line, or in the settings file")
            case "literal_error":
                takes = re.findall("'([^']*)'", problem["ctx"]["expected"])
                hint = did_you_mean(str(problem["input"]), takes, "no such choice;")
                lines.append(f"{key}: got {problem['input']!r}: {hint} it takes {problem['ctx']['expected']}")
            case _:
                lines.append(
                    f"{key or 'settings'}: got {problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}"
                )
    where = f" (with settings file {file})" if file is not None else ""
    return "; ".join(lines) + where
