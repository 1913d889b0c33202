"""The command line teaches, refuses with one line, and imports nothing heavy before it must."""

import subprocess
import sys
from pathlib import Path

import pytest

from cesped_stream_service.cli import SETTINGS_COMMANDS, build_parser, main

ROLES_AND_REQUESTS = "run coordinator worker trainer status reinfer requeue retrain stop export"
COMMANDS = f"{ROLES_AND_REQUESTS} demo replay protocol simulate train infer keys bench"


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1, err
    assert err.startswith("cesped-stream: error: ")
    assert "Traceback" not in out + err
    return err


def test_help_names_every_command_and_how_settings_rank(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS.split():
        assert f"    {command}" in text
    assert "TOML" in text
    assert "environment" in text


@pytest.mark.parametrize("command", SETTINGS_COMMANDS)
def test_help_of_a_command_describes_its_settings(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "--settings FILE" in text
    assert "default:" in text


def test_unknown_option_is_named_with_the_nearest_known_one(capsys: pytest.CaptureFixture[str]) -> None:
    text = refusal(capsys, "run", "--landing.foldr", "x")
    assert "--landing.foldr" in text
    assert "did you mean --landing.folder?" in text


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("replay e --output o --frist-aligned 3", "--first-aligned"),
        ("replay e --output o --replay.rat 3", "--replay.rate"),
        ("evaluate --target t --predictions p --poses-onyl", "--poses-only"),
        ("score out --poses p --beisde q", "--beside"),
        ("entries download TEST --serverr x", "--server"),
        ("entries preprocess TEST --output o --imagesize 3", "--image-size"),
        ("bench infer --particels 3", "--particles"),
        ("protocol e --output o --allow-symmetri", "--allow-symmetry"),
    ],
)
def test_any_commands_misspelt_option_is_told_the_nearest(
    words: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"did you mean {hint}?" in refusal(capsys, *words.split())


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("demo --realism session", "--realism.preset session"),
        ("replay e --output o --training small", "--training.preset small"),
        ("replay e --output o --replay 300", "--replay.seed 300"),
    ],
)
def test_a_group_given_a_word_is_told_the_setting(words: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = refusal(capsys, *words.split())
    assert "is a group of settings" in text and hint in text


def test_unknown_command_and_missing_argument_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "invalid choice: 'rnu'" in refusal(capsys, "rnu")
    assert "SESSION" in refusal(capsys, "status")
    assert "landing.folder: not set" in refusal(capsys, "run", "--session", "s")


def test_unknown_key_in_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "s.toml"
    file.write_text('session = "s"\nnonsense = 1\n[landing]\nfolder = "l"\n')
    assert "unknown setting nonsense" in refusal(capsys, "coordinator", "--settings", str(file))


def test_folder_that_is_no_session_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("status", "reinfer", "requeue", "retrain", "stop"):
        assert "no session folder" in refusal(capsys, command, str(tmp_path))


def test_landing_folder_that_does_not_exist_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refusal(capsys, "run", "--session", str(tmp_path / "s"), "--landing.folder", str(tmp_path / "none"))
    assert "landing.folder" in text
    assert not (tmp_path / "s").exists()


def test_keys_are_made_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", str(tmp_path / "k")]) == 0
    assert str(tmp_path / "k" / "coordinator.key_secret") in capsys.readouterr().out


def test_commands_all_exist() -> None:
    from cesped_stream_service import commands

    for name in COMMANDS.replace(" bench", "").split():
        parsed = {"export": "export_star"}.get(name, name)
        assert callable(getattr(commands, f"{parsed}_command")), name
    assert build_parser().parse_args(["export", "star", "s", "--output", "o"])._session == Path("s")


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["demo", "--help"]])
def test_help_imports_no_torch(words: list[str]) -> None:
    code = (
        "import sys\nfrom cesped_stream_service.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'e3nn', 'matplotlib', 'torchvision'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: cesped-stream" in done.stdout
