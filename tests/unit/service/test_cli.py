"""The command line teaches, refuses with one line, and imports nothing heavy before it must."""

import subprocess
import sys
from pathlib import Path

import pytest

from cesped_stream_service.cli import SETTINGS_COMMANDS, build_parser, main
from cesped_stream_service.help_pages import PAGES, REQUESTS
from cesped_stream_service.resolve import required_keys

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
    assert "unknown command rnu; did you mean `cesped-stream run`?" in refusal(capsys, "rnu")
    assert "SESSION is missing: session folder; see `cesped-stream status --help`" in refusal(capsys, "status")
    assert "FORMAT is missing: star" in refusal(capsys, "export")
    assert "landing.folder: not set" in refusal(capsys, "run", "--session", "s")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("start", "did you mean `cesped-stream run`?"),
        ("quit", "did you mean `cesped-stream stop`?"),
        ("help", "`cesped-stream --help` lists them"),
        ("frobnicate", "`cesped-stream --help` lists them"),
        ("export staar", "did you mean `cesped-stream export star`?"),
        ("bench infr", "did you mean `cesped-stream bench infer`?"),
        ("entries verfy TEST", "did you mean `cesped-stream entries verify`?"),
        ("--session s run", "the command comes first, as in `cesped-stream run --session"),
        ("status s t", "t: more than the command takes"),
        ("run --symmetry C2", "did you mean --training.symmetry?"),
        ("run --workers 2", "did you mean --service.workers?"),
        ("run --min-aligned-per-half 2", "did you mean --min_aligned_per_half?"),
        ("run --zzzzzz 2", "--help-all lists the options"),
        ("replay e --output o --order shufled", "did you mean shuffled? it takes recorded or shuffled"),
        ("run --session s --landing.folder l --proposer galery", "got 'galery': did you mean gallery?"),
        ("coordinator --session s --landing.folder l --training.symmetry C4V", "did you mean C4?"),
        ("coordinator --session s --landing.folder l --training.symmetry X2", "'X2' is no point group; give C1"),
    ],
)
def test_a_wrong_word_is_told_what_may_be_meant(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in refusal(capsys, *words.split())


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", PAGES)
def test_a_commands_first_page_has_an_example_and_its_options_and_says_where_the_rest_is(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = shown(capsys, *command.split(), "--help")
    everything = shown(capsys, *command.split(), "--help-all")
    assert page.count("\n") <= 90 < everything.count("\n")
    assert f"example:\n  cesped-stream {command} " in page
    assert f"cesped-stream {command} --help-all lists every setting" in page
    assert 5 <= len(PAGES[command].options) <= 11
    assert "(default: None)" not in everything and "(default: )" not in everything
    for flag in PAGES[command].options:
        assert f"  {flag} " in page, flag
    words = command.split()
    arguments, _ = build_parser(words[0]).parse_known_args(words)
    example_has_all = "--settings" in PAGES[command].example
    for key in [] if example_has_all else required_keys(arguments._options.kind):
        assert f"  --{key} " in page or key == "entry", "a required option is not on the first page"


@pytest.mark.parametrize("command", PAGES)
def test_a_first_pages_example_is_a_command_line_that_is_understood(command: str) -> None:
    words = PAGES[command].example.split()[1:]
    _, unknown = build_parser(words[0]).parse_known_args(words)
    assert unknown == []


@pytest.mark.parametrize("name", REQUESTS)
def test_a_requests_help_has_an_example_that_is_understood(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    example, happens = REQUESTS[name]
    words = example.split()[1:]
    arguments, unknown = build_parser(words[0]).parse_known_args(words)
    assert unknown == [] and arguments._session == Path("~/s1")
    text = shown(capsys, *("export star" if name == "star" else name).split(), "--help")
    assert f"example:\n  {example}\n" in text and happens in text


def test_the_overview_groups_every_command_once(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "--help")
    names = [line.split()[0] for line in text.splitlines() if line.startswith("    ") and line[4] != " "]
    assert sorted(names) == sorted([*COMMANDS.split(), "doctor", "entries", "evaluate", "score"])
    assert main([]) == 0
    assert capsys.readouterr().out == text


def test_unknown_key_in_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "s.toml"
    file.write_text('session = "s"\nnonsense = 1\n[landing]\nfolder = "l"\n')
    assert "unknown setting nonsense" in refusal(capsys, "coordinator", "--settings", str(file))


def test_folder_that_is_no_session_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("status", "reinfer", "requeue", "retrain", "stop"):
        assert "no session folder" in refusal(capsys, command, str(tmp_path))


def test_a_folder_near_a_session_is_told_the_session(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session = tmp_path / "out" / "session"
    (session / "poses").mkdir(parents=True)
    (session / "session.toml").touch()
    assert f"did you mean {session}?" in refusal(capsys, "status", str(tmp_path / "out"))
    assert f"did you mean {session}?" in refusal(capsys, "stop", str(session / "poses"))
    assert f"it is a file; give the folder, {session}" in refusal(capsys, "status", str(session / "session.toml"))
    assert "there is nothing of this name" in refusal(capsys, "status", str(tmp_path / "none"))
    assert "which `run` writes at its first start" in refusal(capsys, "status", str(tmp_path))


def test_a_session_folder_around_the_landing_folder_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "landing").mkdir()
    words = ("run", "--session", str(tmp_path), "--landing.folder", str(tmp_path / "landing"))
    assert "lies in the session folder" in refusal(capsys, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["landing"]


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
