"""Command line > environment > TOML > default, and every wrong or unknown setting is named."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cesped_stream.errors import InvalidSettingsError
from cesped_stream_service.process import save_settings
from cesped_stream_service.resolve import known_keys, resolve, with_absolute_paths
from cesped_stream_service.settings import SessionSettings
from cesped_stream_service.toml import read_toml, toml_text

BASE: dict[str, Any] = {"session": "s", "landing": {"folder": "l"}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text('session = "from_toml"\n[landing]\nfolder = "l"\nscan_seconds = 3.0\n[training]\nmax_steps = 7\n')
    return path


def test_command_line_beats_environment_beats_toml_beats_default(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = resolve(SessionSettings, {}, file)
    assert (settings.landing.scan_seconds, settings.landing.settle_seconds) == (3.0, 4.0)
    monkeypatch.setenv("CESPED_STREAM_LANDING__SCAN_SECONDS", "5")
    monkeypatch.setenv("CESPED_STREAM_TRAINING__MAX_STEPS", "8")
    assert resolve(SessionSettings, {}, file).landing.scan_seconds == 5.0
    settings = resolve(SessionSettings, {"landing": {"scan_seconds": "6"}}, file)
    assert settings.landing.scan_seconds == 6.0
    assert settings.training.max_steps == 8
    assert settings.session == Path("from_toml")


def refusal(arguments: dict[str, Any], file: Path | None = None) -> str:
    with pytest.raises(InvalidSettingsError) as caught:
        resolve(SessionSettings, arguments, file)
    return str(caught.value)


def test_unknown_key_in_the_file_is_named_with_the_nearest_known_one(file: Path) -> None:
    file.write_text(file.read_text().replace("scan_seconds", "scan_secs"))
    text = refusal({}, file)
    assert "unknown setting landing.scan_secs" in text
    assert "did you mean landing.scan_seconds?" in text
    assert str(file) in text


def test_unknown_top_level_table_is_named(file: Path) -> None:
    file.write_text(file.read_text() + "[trainer]\nx = 1\n")
    assert "unknown setting trainer" in refusal({}, file)


@pytest.mark.parametrize("variable", ["CESPED_STREAM_LANDING__FOLDR", "CESPED_STREAM_NONSENSE"])
def test_unknown_environment_variable_is_named(file: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "x")
    assert variable in refusal({}, file)


def test_the_tests_own_variable_is_no_setting_and_no_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = resolve(SessionSettings, {}, file)
    monkeypatch.setenv("CESPED_STREAM_TEST_DATA", "somewhere")
    assert resolve(SessionSettings, {}, file) == before


@pytest.mark.parametrize(
    ("group", "key", "value", "takes"),
    [
        ("training", "symmetry", "Q3", "is no point group; give C1 (none), Cn (n-fold about z: C4)"),
        ("training", "max_steps", 0, "greater than or equal to 1"),
        ("inference", "device", "tpu", "'auto', 'cuda' or 'cpu'"),
        ("service", "workers", "many", "integer"),
    ],
)
def test_wrong_value_is_refused_with_key_value_and_what_it_takes(
    group: str, key: str, value: object, takes: str
) -> None:
    text = refusal({**BASE, group: {key: value}})
    assert f"{group}.{key}: got {value!r}" in text
    assert takes in text


def test_missing_setting_says_how_to_give_it() -> None:
    text = refusal({"session": "s"})
    assert "landing.folder: not set; give --landing.folder" in text


@pytest.mark.parametrize("content", [b"x = ", b"\xff\xfe", None])
def test_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.toml"
    if content is not None:
        path.write_bytes(content)
    assert str(path) in refusal({}, path)


def test_saved_settings_read_back_equal(tmp_path: Path) -> None:
    settings = with_absolute_paths(
        resolve(
            SessionSettings,
            {
                "session": tmp_path / 'quote"d',
                "landing": {"folder": tmp_path / "land", "allowed_roots": ["/a", "/b"]},
                "training": {"preset": "small", "model": {"lmax": 3}, "augment": {"rotation_deg": 10.0}},
            },
        )
    )
    file = save_settings(settings)
    assert file == settings.session / "session.toml"
    assert resolve(SessionSettings, {}, file) == settings


def test_a_session_keeps_its_half_mode(tmp_path: Path) -> None:
    arguments = {"session": tmp_path / "s", "landing": {"folder": tmp_path}}
    save_settings(resolve(SessionSettings, arguments))
    save_settings(resolve(SessionSettings, arguments))
    with pytest.raises(InvalidSettingsError, match="a session keeps its half mode"):
        save_settings(resolve(SessionSettings, {**arguments, "half_mode": "cross_half"}))


def test_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = with_absolute_paths(resolve(SessionSettings, {**BASE, "checkpoint": "c"}))
    assert settings.session == tmp_path / "s"
    assert settings.landing.folder == tmp_path / "l"
    assert settings.checkpoint == str(tmp_path / "c")
    assert settings.ledger_folder is None


def test_every_setting_is_described() -> None:
    keys = known_keys(SessionSettings)
    assert "training.augment.zoom_fraction" in keys
    for key in keys:
        model: Any = SessionSettings
        *groups, name = key.split(".")
        for group in groups:
            annotation = model.model_fields[group].annotation
            model = next((a for a in getattr(annotation, "__args__", ()) if a is not type(None)), annotation)
        described = model.model_fields[name].description
        is_group = any(other.startswith(f"{key}.") for other in keys)
        assert described or is_group, key


VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
KEYS = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)


@given(st.dictionaries(KEYS, VALUES | st.dictionaries(KEYS, VALUES, max_size=3), max_size=4))
def test_toml_text_reads_back_equal(tables: dict[str, Any]) -> None:
    assert tomllib.loads(toml_text(tables)) == tables


def test_read_toml_returns_tables(file: Path) -> None:
    assert read_toml(file)["training"] == {"max_steps": 7}


@pytest.mark.parametrize("other", [{"landing": {"folder": "elsewhere"}}, {"training": {"symmetry": "D2"}}])
def test_a_session_keeps_its_landing_folder_and_symmetry_and_takes_other_changes(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    arguments = {**BASE, "session": str(tmp_path / "s")}
    save_settings(resolve(SessionSettings, arguments))
    with pytest.raises(InvalidSettingsError, match=r"(landing\.folder|training\.symmetry): .* start another session"):
        save_settings(resolve(SessionSettings, {**arguments, **other}))
    file = save_settings(resolve(SessionSettings, {**arguments, "min_aligned_per_half": 7}))
    assert read_toml(file)["min_aligned_per_half"] == 7
