"""SIGKILL of each role in the middle of its work: nothing lost, nothing doubled, the same canonical bytes."""

import signal
from pathlib import Path
from typing import Any

import pytest

from cesped_stream.particles.star import read_star

from .conftest import TINY_TRAINING, MakeSession, TinySession, land, wait_until
from .in_process import exported_bytes, undisturbed_export

STARS, ROWS = 6, 50
TOTAL = STARS * ROWS


@pytest.fixture
def landing(tmp_path: Path) -> Path:
    folder = tmp_path / "landing"
    for number in range(STARS):
        land(folder, f"batch_{number}", ROWS, aligned=False, seed=number)
    return folder


def answered(total: int) -> Any:
    return lambda status: status["posed"] + status["unposed"] == total


def kill(session: TinySession, role: str) -> None:
    process = next(p for p in session.processes if role in p.args and p.poll() is None)
    assert session.stop(process, signal.SIGKILL) == -signal.SIGKILL


def finish(session: TinySession, total: int, output: Path) -> bytes:
    """Wait for the last row, stop everything politely, and return the canonical export's bytes."""
    session.wait_for(f"{total} rows answered", answered(total))
    for process in session.processes[::-1]:
        if process.poll() is None:
            assert session.stop(process) == 0
    names = [
        name for file in (session.folder / "poses").glob("*.star") for name in read_star(file).column("rlnImageName")
    ]
    assert len(names) == len(set(names)) == total
    return exported_bytes(session.settings, output)


@pytest.mark.parametrize("role", ["coordinator", "worker"])
def test_kill_of_a_role_at_work_leaves_the_canonical_export_equal(
    role: str, make_session: MakeSession, tiny_checkpoint: Path, landing: Path, tmp_path: Path
) -> None:
    calm = make_session("calm", landing, checkpoint=str(tiny_checkpoint))
    expected = undisturbed_export(calm.settings, TOTAL, tmp_path / "calm.star")

    session = make_session("killed", landing, checkpoint=str(tiny_checkpoint))
    session.start("coordinator")
    session.start("worker", "--name", "worker-1")
    session.wait_for("some rows posed, some not", lambda status: 0 < status["posed"] < TOTAL - ROWS)
    kill(session, role)
    poses = session.folder / "poses"
    done = sum(len(read_star(file)) for file in poses.glob("*.star"))
    assert 0 < done < TOTAL
    session.start(role, *(["--name", "worker-1"] if role == "worker" else []))
    assert finish(session, TOTAL, tmp_path / "killed.star") == expected


def test_kill_of_the_trainer_at_work_leaves_the_canonical_export_equal(
    make_session: MakeSession, tmp_path: Path
) -> None:
    landing = tmp_path / "landing"
    land(landing, "aligned", 120, aligned=True, seed=100)
    land(landing, "later", 40, aligned=False, seed=101)
    training = TINY_TRAINING | {"max_steps": 60, "steps_per_epoch": 3}
    calm = make_session("calm", landing, training=training)
    expected = undisturbed_export(calm.settings, 160, tmp_path / "calm.star")

    session = make_session("killed", landing, training=training)
    session.start("coordinator")
    session.start("trainer", "--name", "trainer")
    checkpoints = session.folder / "checkpoints"
    wait_until(lambda: list(checkpoints.glob("*.work/resume_half_*.safetensors")), "a resume point")
    kill(session, "trainer")
    assert not list(checkpoints.glob("i2s-*")), "the trainer was killed too late to show anything"
    session.start("trainer", "--name", "trainer")
    session.start("worker")
    assert finish(session, 160, tmp_path / "killed.star") == expected
