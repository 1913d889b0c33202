"""`cesped-stream entries`: what it prints, where it looks, and its exit codes."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from samples.record_server import Archive, half_files, serving

from cesped_stream_service.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    source = tmp_path / "source"
    source.mkdir()
    with serving(Archive({"10998049": half_files(source, 0), "10998591": half_files(source, 1)})) as archive:
        archive.records["11092291"] = {"11120_mask.mrc": b"a mask"}
        yield archive


def run(*words: str) -> int:
    return main(["entries", *words])


def test_test_is_downloaded_checked_and_python_goes_on(archive: Archive, tmp_path: Path, capsys: Capture) -> None:
    root = ["--root", str(tmp_path / "root")]
    assert run("download", "TEST", *root, "--server", archive.base_url, "--mask") == 0
    out = capsys.readouterr().out
    assert "half-set 0: 6 particles, checked" in out
    assert "from cesped_stream import ParticlesDataset" in out
    assert f"dataset = ParticlesDataset('TEST', halfset=0, benchmarkDir='{tmp_path / 'root'}')" in out
    assert (tmp_path / "root" / "TEST" / "TEST_mask.mrc").read_bytes() == b"a mask"
    assert run("download", "TEST", *root, "--server", archive.base_url) == 0
    assert "nothing to download" in capsys.readouterr().out
    assert run("verify", "TEST", *root, "--server", archive.base_url, "--checksums", "--images") == 0
    assert "6 files have the record's md5" in capsys.readouterr().out
    assert run("merge", "TEST", *root) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "root" / "TEST" / "particles_merged.star")


def test_damage_is_reported_with_exit_code_2(archive: Archive, tmp_path: Path, capsys: Capture) -> None:
    root = ["--root", str(tmp_path / "root")]
    run("download", "TEST", *root, "--server", archive.base_url)
    stack = tmp_path / "root" / "TEST" / "particles_1.mrcs"
    stack.write_bytes(stack.read_bytes()[:-4])
    capsys.readouterr()
    assert run("verify", "TEST", *root) == 2
    assert "NOT usable" in capsys.readouterr().out
    assert run("verify", "TEST", *root, "--json") == 2
    assert json.loads(capsys.readouterr().out)["ok"] is False
    (tmp_path / "root" / "TEST" / "SUCCESSFUL_DOWNLOAD_10998049.txt").unlink()
    run("verify", "TEST", *root)
    assert "no marker of a finished download" in capsys.readouterr().out


def test_the_root_comes_from_the_environment_and_the_option_is_stronger(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        folder = tmp_path / name / f"mine_{name}"
        folder.mkdir(parents=True)
        for half in (0, 1):
            half_files(folder, half, piece=None)
    monkeypatch.setenv("CESPED_STREAM_ROOT", str(tmp_path / "a"))
    assert run("list", "--json") == 0
    assert json.loads(capsys.readouterr().out)[-1]["name"] == "mine_a"
    assert run("list", "--json", "--root", str(tmp_path / "b")) == 0
    names = {line["name"]: line["in_paper"] for line in json.loads(capsys.readouterr().out)}
    assert "mine_b" in names and "mine_a" not in names
    assert (names["10166"], names["10648"], names["10399"]) == ("yes", "as 10647", "no")


def test_the_variable_of_the_root_disturbs_no_other_command(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CESPED_STREAM_ROOT", str(tmp_path))
    main(["infer", "--checkpoint", "c", "--output", "o"])
    assert "star: not set" in capsys.readouterr().err
    monkeypatch.setenv("CESPED_STREAM_ROOTS", str(tmp_path))
    assert run("list") == 2
    assert "did you mean root?" in capsys.readouterr().err


def test_a_list_fits_80_columns_with_every_name_whole(tmp_path: Path, capsys: Capture) -> None:
    assert run("list", "--root", str(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[1:]][-3:] == ["consensus_10648", "simulated_10648", "DEMO"]
    assert any("284" in line and "238,631" in line for line in lines)


def test_add_needs_one_star_or_two_and_says_what_it_did(archive: Archive, tmp_path: Path, capsys: Capture) -> None:
    source, root = tmp_path / "source", ["--root", str(tmp_path / "root"), "--symmetry", "C1"]
    stars = ["--half0", str(source / "particles_0.star"), "--half1", str(source / "particles_1.star")]
    assert run("add", "mine", *root, *stars[:2]) == 2
    assert "either --star, or both --half0 and --half1" in capsys.readouterr().err
    assert run("add", "mine", *root, *stars) == 0
    assert "added by links" in capsys.readouterr().out
    assert run("add", "copied", *root, *stars, "--copy") == 0
    assert "added by copy" in capsys.readouterr().out
    assert run("info", "copied", "--root", str(tmp_path / "root")) == 0
    assert "box 16; 1.5 A/px; 300 kV; optics groups: 1" in capsys.readouterr().out
    assert run("add", "TEST", *root, *stars) == 2
    assert "name of a published entry" in capsys.readouterr().err


def test_the_embedded_entry_needs_no_server(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from cesped_stream.benchmark import demo_entry

    few = demo_entry.DEMO_SETTINGS.model_copy(update={"num_particles": 20})
    monkeypatch.setitem(demo_entry.make_demo_entry.__kwdefaults__, "settings", few)
    assert run("download", "DEMO", "--root", str(tmp_path)) == 0
    assert "simulated here, nothing to download" in capsys.readouterr().out
    assert run("verify", "DEMO", "--images", "--root", str(tmp_path)) == 0


def test_help_names_each_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom cesped_stream_service.cli import main\n"
        "try:\n    main(['entries', '--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(str({'torch', 'requests', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip() == "set()"
    for command in ("list", "download", "add", "verify", "merge", "info"):
        assert f"    {command} " in done.stdout
