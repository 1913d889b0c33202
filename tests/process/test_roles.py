"""Real coordinator and worker processes over ipc, on a tiny session with a ready checkpoint."""

from pathlib import Path

from .conftest import MakeSession, land


def test_rows_land_and_get_poses_and_sigterm_exits_0(
    make_session: MakeSession, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    landing = tmp_path / "landing"
    land(landing, "batch_1", 100, aligned=False, seed=1)
    session = make_session("s", landing, checkpoint=str(tiny_checkpoint))
    coordinator = session.start("coordinator")
    worker = session.start("worker")
    session.wait_for("100 posed", lambda status: status["posed"] == 100)
    assert session.stop(worker) == 0
    assert session.stop(coordinator) == 0
