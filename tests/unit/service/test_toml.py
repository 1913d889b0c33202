"""What a session starts with is told by what was chosen, not by all that could be."""

from pathlib import Path
from typing import Any

import pytest

from cesped_stream.settings import TrainingSettings
from cesped_stream_service.settings import SessionSettings
from cesped_stream_service.toml import chosen, chosen_text, flat, toml_text

BASE: dict[str, Any] = {"session": Path("/s"), "landing": {"folder": Path("/l")}}


def test_of_the_defaults_only_what_has_none_is_told() -> None:
    assert chosen(SessionSettings(**BASE)) == {"session": "/s", "landing.folder": "/l"}


def test_every_setting_that_was_chosen_is_told_at_any_depth() -> None:
    changes = {
        "min_aligned_per_half": 7,
        "landing": {"folder": Path("/l"), "scan_seconds": 5.0},
        "training": {"symmetry": "d2", "model": {"lmax": 3}},
    }
    assert chosen(SessionSettings(**BASE | changes)) == {
        "session": "/s",
        "min_aligned_per_half": 7,
        "landing.folder": "/l",
        "landing.scan_seconds": 5.0,
        "training.symmetry": "D2",
        "training.model.lmax": 3,
    }


@pytest.mark.parametrize("preset", ["paper", "small"])
def test_a_preset_is_told_and_not_what_it_stands_for(preset: str) -> None:
    found = chosen(SessionSettings(**BASE | {"training": {"preset": preset, "max_steps": 12}}))
    usual = TrainingSettings().preset
    assert found.get("training.preset", usual) == preset
    assert ("training.preset" in found) is (preset != usual)
    assert {key for key in found if key.startswith("training.")} - {"training.preset"} == {"training.max_steps"}


def test_what_the_environment_says_is_chosen_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CESPED_STREAM_LANDING__SCAN_SECONDS", "5")
    monkeypatch.setenv("CESPED_STREAM_MIN_ALIGNED_PER_HALF", "7")
    found = chosen(SessionSettings(**BASE))
    assert (found["landing.scan_seconds"], found["min_aligned_per_half"]) == (5.0, 7)


def test_the_lines_are_toml_that_gives_the_same_settings() -> None:
    import tomllib

    settings = SessionSettings(**BASE | {"training": {"preset": "small", "symmetry": "O"}, "checkpoint": 'a"b'})
    assert SessionSettings(**tomllib.loads(chosen_text(settings))) == settings
    assert (
        chosen_text(settings).count("\n")
        < 10
        < toml_text(settings.model_dump(mode="json", exclude_none=True)).count("\n")
    )


def test_nested_tables_become_dotted_keys() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": [2]}, "e": 3}) == {"a.b.c": 1, "a.d": [2], "e": 3}
