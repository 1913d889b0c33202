"""What a command started ends with the command, whichever way that one ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.scored import small_entry

from cesped_stream_service.toml import toml_text

from .conftest import QUICK_SERVICE, TINY_TRAINING, wait_until

PARENT = """
import sys, tempfile
from pathlib import Path
from cesped_stream.reconstruction.program import run_program
from cesped_stream.termination import ended_by_signals
with ended_by_signals(), tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
    pid = sys.argv[1] + "/pid"
    script = f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 60"
    run_program(["sh", "-c", script], Path(folder))
"""


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_program_ends_with_its_parent_and_a_terminated_parent_leaves_no_folder(
    tmp_path: Path, number: signal.Signals
) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stderr=subprocess.DEVNULL)
    try:
        wait_until((tmp_path / "pid").exists, "the program starts")
        child = int((tmp_path / "pid").read_text())
        assert alive(child)
        parent.send_signal(number)
        code = parent.wait(30)
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not alive(child), "the program ends", 20)
    if number != signal.SIGKILL:
        assert code == 128 + number
        assert [path.name for path in tmp_path.iterdir()] == ["pid"]


def processes_naming(words: str) -> list[int]:
    """Return the processes whose command line has these words."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if words.encode() in (folder / "cmdline").read_bytes() and alive(int(folder.name)):
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_roles_of_a_replay_end_with_it(tmp_path: Path, number: signal.Signals) -> None:
    small_entry(tmp_path / "toy", num_particles=96)
    settings = tmp_path / "tiny.toml"
    settings.write_text(
        toml_text(
            {
                "proposer": "network",
                "training": TINY_TRAINING | {"max_steps": 1_000_000},
                "inference": {"batch_size": 16, "device": "cpu", "threads": 1},
                "service": QUICK_SERVICE,
                "min_aligned_per_half": 5,
                "replay": {"first_aligned": 48},
            }
        )
    )
    output = tmp_path / "out"
    with (tmp_path / "said").open("wb") as said:
        replay = subprocess.Popen(
            [sys.executable, "-m", "cesped_stream_service", "replay", str(tmp_path / "toy"),
             "--output", str(output), "--settings", str(settings)],
            stdout=said, stderr=said, stdin=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    session = str(output / "session")
    try:
        # run, coordinator, trainer and a worker
        wait_until(lambda: len(processes_naming(session)) >= 4, f"roles start: {(tmp_path / 'said').read_text()}")
        wait_until((output / "session" / "state" / "status.json").exists, "a status")
        replay.send_signal(number)
        code = replay.wait(60)
    finally:
        replay.kill()
        replay.wait()
    wait_until(lambda: not processes_naming(session), "every role ends", 60)
    if number == signal.SIGTERM:
        assert code == 128 + number
