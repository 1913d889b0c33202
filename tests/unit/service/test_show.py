"""What `status` shows holds the numbers of the status."""

from pathlib import Path

import pytest
from rich.console import Console

from cesped_stream_service.coordinator import Coordinator
from cesped_stream_service.messages import Hello
from cesped_stream_service.settings import SessionSettings
from cesped_stream_service.show import status_line, status_view
from cesped_stream_service.status import (
    CheckpointStatus,
    ConfidenceStatus,
    LatencyStatus,
    PosesStatus,
    SessionState,
    SessionStatus,
    TrainingStatus,
)


@pytest.fixture
def status(tmp_path: Path) -> SessionStatus:
    settings = SessionSettings.model_validate({"session": tmp_path / "s", "landing": {"folder": tmp_path}})
    core = Coordinator(settings, watch_events=False)
    try:
        core.handle(b"w", Hello(role="worker", name="worker-7", incarnation="i", pid=4711, device="cpu"), {})
        plain = core.status()
    finally:
        core.close()
    return plain.model_copy(
        update={
            "state": SessionState.TRAINING,
            "landed": 12345,
            "posed": 678,
            "pending": 9012,
            "latency": LatencyStatus(num_rows=10, p50_seconds=3.25, p95_seconds=8.5),
            "checkpoint": CheckpointStatus(checkpoint_id="i2s-abc", folder="/c", rows=678, calibration="none"),
            "training": TrainingStatus(
                training_id=1,
                state="ordered",
                num_rows=2000,
                step=40,
                max_steps=200,
                half_steps=(20, 20),
                stage="",
                validation_error_deg=(21.5, 22.5),
                seconds=None,
                checkpoint_id="",
            ),
            "problems": ("batch 3: stack is gone; tried again",),
        }
    )


def shown(status: SessionStatus, *, running: bool) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(status_view(status, running=running))
    return capture.get()


def test_view_shows_backlog_latency_checkpoint_roles_and_problems(status: SessionStatus) -> None:
    text = shown(status, running=True)
    for part in ("12,345", "9,012", "p50 3.2 s, p95 8.5 s", "i2s-abc", "worker-7", "4711", "21.5 / 22.5 deg"):
        assert part in text, part
    assert "! batch 3: stack is gone" in text
    assert "last status written" not in text


def test_view_says_when_no_coordinator_runs(status: SessionStatus) -> None:
    text = shown(status, running=False)
    assert "no coordinator runs; this is the last status written" in text
    assert f"cesped-stream run --settings {status.session}/session.toml" in " ".join(text.split())
    assert "4711" not in text, "a role of a dead session looks alive"


def test_rows_that_wait_are_said_beside_the_state(status: SessionStatus) -> None:
    waits = ("the stacks of 150 rows", "12 s without a new aligned row")
    waiting = status.model_copy(update={"state": "up to date", "waits_for": waits, "quarantined_stars": 2})
    text = " ".join(shown(waiting, running=True).split())
    assert "up to date, 2 stars set aside" in text
    assert "waits for the stacks of 150 rows, 12 s without a new aligned row" in text
    assert status_line(waiting).endswith(
        "2 stars set aside; waits for the stacks of 150 rows, 12 s without a new aligned row"
    )
    assert "waits for" not in shown(waiting, running=False), "nothing runs that could wait"


@pytest.mark.parametrize(
    ("independence", "words"),
    [("independent", "half-sets independent"), ("shared_reference", "share one map"), ("unknown", "of unknown indep")],
)
def test_a_checkpoint_tells_how_good_it_is(status: SessionStatus, independence: str, words: str) -> None:
    assert status.checkpoint is not None
    update = {"resolution_angstrom": (12.34, 13.0), "median_error_deg": (3.14, 2.0), "independence": independence}
    known = status.model_copy(update={"checkpoint": status.checkpoint.model_copy(update=update)})
    text = " ".join(shown(known, running=True).split())
    assert words in text
    assert "references at 12.3 / 13.0 A, median error 3.1 / 2.0 deg on aligned rows held out of it" in text
    assert "quality" not in shown(status, running=True)


def test_references_in_the_making_and_a_stale_calibration_are_said(status: SessionStatus) -> None:
    assert status.training is not None and status.checkpoint is not None
    made = status.training.model_copy(update={"stage": "confidence of half 0", "max_steps": 0})
    stale = status.checkpoint.model_copy(update={"calibration": "stale"})
    now = status.model_copy(update={"training": made, "checkpoint": stale})
    text = " ".join(shown(now, running=True).split())
    assert "ordered, confidence of half 0, 2,000 rows" in text
    assert (
        "i2s-abc, 678 rows, half-sets of unknown independence (training.alignment tells it), calibration stale" in text
    )


def test_view_tells_what_to_think_of_the_poses_so_far(status: SessionStatus) -> None:
    poses = PosesStatus(
        by_proposer={"network+gallery+refinement": 678},
        confidence=(ConfidenceStatus(kind="calibrated", num_rows=678, median=0.875, share_at_least_half=0.91),),
        num_refined=678,
        num_clipped_angle=7,
        num_clipped_shift=68,
        num_against_noise=678,
        num_like_noise=203,
    )
    text = " ".join(shown(status.model_copy(update={"poses": poses}), running=True).split())
    assert "made by network+gallery+refinement 678" in text
    assert "confidence median 0.88, 91 % at least 0.5 of 678" in text
    assert "search edge shift 68 (10 %), angle 7 (1 %) of 678 refined" in text
    assert (
        "like noise 203 (30 %) of 678 fit less than 3 standard deviations above noise: junk, or too little signal"
        in text
    )
    assert "made by" not in shown(status, running=True)


def test_line_tells_state_counts_and_training(status: SessionStatus) -> None:
    line = status_line(status)
    assert line.startswith("training: 12345 landed, 678 posed, 9012 pending")
    assert "step 40 of 200" in line
    assert "\n" not in line
