"""SIGKILL of each role in the middle of its work: nothing lost, nothing doubled, the same canonical bytes."""

import signal
from pathlib import Path

import pytest

from cesped_stream.particles.star import read_star

from .conftest import QUICK_SERVICE, TINY_TRAINING, MakeSession, TinySession, land, wait_until
from .in_process import exported_bytes, undisturbed_export

STARS, ROWS = 6, 50
TOTAL = STARS * ROWS


@pytest.fixture(scope="module")
def landing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("landing")
    for number in range(STARS):
        land(folder, f"batch_{number}", ROWS, aligned=False, seed=number)
    return folder


def end(session: TinySession, role: str, number: int) -> None:
    process = next(p for p in session.processes if role in p.args and p.poll() is None)
    assert session.stop(process, number) == (0 if number == signal.SIGTERM else -number)


def rows_on_disk(session: TinySession) -> list[str]:
    """Return the image name of every committed row."""
    files = (session.folder / "poses").glob("*.star")
    return [name for file in files for name in read_star(file).column("rlnImageName")]


def finish(session: TinySession, output: Path) -> bytes:
    """Wait for the last row, stop everything politely, and return the canonical export's bytes."""
    session.wait_for(f"{TOTAL} rows posed", lambda status: status["posed"] == TOTAL)
    for process in session.processes[::-1]:
        if process.poll() is None:
            assert session.stop(process) == 0
    names = rows_on_disk(session)
    assert len(names) == len(set(names)) == TOTAL
    return exported_bytes(session.settings, output)


@pytest.mark.parametrize(
    ("role", "signals"), [("coordinator", [signal.SIGKILL] * 3), ("worker", [signal.SIGKILL, signal.SIGTERM])]
)
def test_end_of_a_role_at_work_leaves_the_canonical_export_equal(
    role: str, signals: list[int], make_session: MakeSession, tiny_checkpoint: Path, landing: Path, tmp_path: Path
) -> None:
    # Leases of one inference batch, each committed before the next is asked for: there is a middle to end it in.
    settings = {"checkpoint": str(tiny_checkpoint), "service": QUICK_SERVICE | {"lease_seconds": 0.001}}
    calm = make_session("calm", landing, **settings)
    expected = undisturbed_export(calm.settings, TOTAL, tmp_path / "calm.star")

    session = make_session("killed", landing, **settings)
    session.start("coordinator")
    session.start("worker", "--name", "worker-1")
    done = 0
    for number in signals:
        wait_until(lambda before=done: len(rows_on_disk(session)) > before, "another commit")
        end(session, role, number)
        done = len(rows_on_disk(session))
        assert 0 < done < TOTAL, "too late to show anything"
        session.start(role, *(["--name", "worker-1"] if role == "worker" else []))
    assert finish(session, tmp_path / "killed.star") == expected


def test_kill_of_the_trainer_at_work_leaves_the_canonical_export_equal(
    make_session: MakeSession, tmp_path: Path
) -> None:
    landing = tmp_path / "landing"
    land(landing, "aligned", 60, aligned=True, seed=100)
    land(landing, "later", 30, aligned=False, seed=101)
    training = TINY_TRAINING | {"max_steps": 40, "steps_per_epoch": 2}
    calm = make_session("calm", landing, training=training)
    expected = undisturbed_export(calm.settings, 90, tmp_path / "calm.star")

    session = make_session("killed", landing, training=training)
    coordinator = session.start("coordinator")
    session.start("trainer", "--name", "trainer")
    checkpoints = session.folder / "checkpoints"
    wait_until(lambda: list(checkpoints.glob("*.work/resume_half_*.safetensors")), "a resume point")
    end(session, "trainer", signal.SIGKILL)
    assert not list(checkpoints.glob("i2s-*")), "too late to show anything"
    trainer = session.start("trainer", "--name", "trainer")
    session.wait_for("a checkpoint in use", lambda status: status["checkpoint"])
    assert session.stop(trainer) == 0
    assert session.stop(coordinator) == 0
    assert undisturbed_export(session.settings, 90, tmp_path / "killed.star") == expected
