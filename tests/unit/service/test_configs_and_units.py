"""Every file in configs/ loads, and every systemd unit is one that systemd takes."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from cesped_stream_service.cli import build_parser
from cesped_stream_service.resolve import resolve
from cesped_stream_service.settings import SessionSettings
from cesped_stream_service.stream_settings import DemoCommand
from cesped_stream_service.toml import read_toml

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
UNITS = sorted((ROOT / "systemd").glob("*.service"))
INSTALLED = "/opt/cesped-stream/bin/cesped-stream"


def test_there_are_configs_and_a_unit_for_each_role() -> None:
    assert {file.name for file in CONFIGS} >= {"demo.toml", "microscope.toml", "paper.toml"}
    assert [file.name for file in UNITS] == [
        f"cesped-stream-{r}@.service" for r in ("coordinator", "trainer", "worker")
    ]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_config_loads_and_says_what_it_sets(file: Path) -> None:
    kind = DemoCommand if "simulate" in read_toml(file) else SessionSettings
    settings = resolve(kind, {}, file)
    said = read_toml(file)
    assert settings.training.preset == said["training"]["preset"]
    for key, value in said.items():
        if not isinstance(value, dict):
            assert str(getattr(settings, key)) == str(type(getattr(settings, key))(value))


@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.name)
def test_unit_runs_a_command_that_the_command_line_knows(file: Path) -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(file)
    service = unit["Service"]
    program, role, *options = service["ExecStart"].split()
    assert program == INSTALLED
    assert role == file.name.removeprefix("cesped-stream-").removesuffix("@.service")
    arguments = build_parser(role).parse_args([role, *options])
    assert str(arguments._settings) == "/etc/cesped-stream/%i.toml"
    assert service["Type"] == "notify"
    assert service["KillSignal"] == "SIGTERM"
    assert service["RestartPreventExitStatus"] == "2"
    assert int(service["WatchdogSec"]) >= 60


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    copies = []
    for file in UNITS:
        copies.append(tmp_path / file.name)
        # The program is not installed where tests run; everything else is verified as it is.
        copies[-1].write_text(file.read_text().replace(INSTALLED, shutil.which("true") or "/bin/true"))
    found = subprocess.run(
        ["systemd-analyze", "verify", *map(str, copies)], capture_output=True, text=True, timeout=60, check=False
    )
    about_ours = [line for line in found.stderr.splitlines() if "cesped-stream" in line]
    assert (found.returncode, about_ours) == (0, [])
