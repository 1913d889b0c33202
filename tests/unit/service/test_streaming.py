"""A stream ends when every landed particle is answered, and fails early, with a reason, when it cannot."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cesped_stream.benchmark.entries import open_entry
from cesped_stream.benchmark.plan import ReplayPlan, plan_replay
from cesped_stream.benchmark.replay_settings import ReplaySettings
from cesped_stream.errors import InvalidSettingsError
from cesped_stream.particles.stacks import write_stack
from cesped_stream.particles.star import write_star
from cesped_stream.particles.table import OpticsGroup, ParticleTable
from cesped_stream_service import streaming
from cesped_stream_service.settings import LandingSettings, SessionSettings
from cesped_stream_service.streaming import (
    StreamFailedError,
    all_answered,
    check_training_can_start,
    read_status,
    roles_running,
    stream_entry,
)

OPTICS = OpticsGroup((("rlnOpticsGroupName", "a"), ("rlnImagePixelSize", "4.0")))


def session(folder: Path, **changes: object) -> SessionSettings:
    settings = SessionSettings(session=folder / "session", landing=LandingSettings(folder=folder / "landing"))
    return settings.model_copy(update=changes)


@pytest.fixture
def plan(tmp_path: Path) -> ReplayPlan:
    """Ten aligned rows, three of them in half-set 1, and one that streams."""
    entry = tmp_path / "entry"
    entry.mkdir()
    labels = ("rlnImageName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnRandomSubset")
    rows = [(f"{k + 1:06d}@a.mrcs", "0", f"{k}", "0", "2" if k < 3 else "1") for k in range(11)]
    write_star(entry / "a.star", ParticleTable(labels, rows, (OPTICS,), np.zeros(11, np.int64)))
    write_stack(entry / "a.mrcs", np.zeros((11, 16, 16), np.float32), 4.0)
    return plan_replay(open_entry(entry), ReplaySettings(first_aligned=10, order="recorded"))


@pytest.mark.parametrize(
    ("landed", "posed", "unposed", "quarantined", "answered"),
    [(9, 9, 0, 0, False), (10, 9, 0, 0, False), (10, 10, 0, 0, True), (10, 7, 2, 1, True)],
)
def test_a_stream_is_over_when_each_particle_is_posed_flagged_or_quarantined(
    landed: int, posed: int, unposed: int, quarantined: int, answered: bool
) -> None:
    status = SimpleNamespace(landed=landed, posed=posed, unposed=unposed, quarantined=quarantined)
    assert all_answered(status, 10) is answered  # type: ignore[arg-type]


def test_too_few_aligned_rows_in_a_half_are_refused_before_anything_starts(plan: ReplayPlan, tmp_path: Path) -> None:
    check_training_can_start(plan, session(tmp_path, min_aligned_per_half=3))
    with pytest.raises(InvalidSettingsError, match=r"7 and 3, training waits for 4"):
        stream_entry(plan, ReplaySettings(), session(tmp_path, min_aligned_per_half=4), tmp_path / "truth")
    assert not (tmp_path / "landing").exists()
    check_training_can_start(plan, session(tmp_path, min_aligned_per_half=4, checkpoint="somewhere"))


def test_a_status_that_is_not_there_yet_is_none_and_a_foreign_one_is_an_error(tmp_path: Path) -> None:
    settings = session(tmp_path)
    assert read_status(settings) is None
    (tmp_path / "session" / "state").mkdir(parents=True)
    (tmp_path / "session" / "state" / "status.json").write_text("{}")
    with pytest.raises(StreamFailedError, match=r"status\.json"):
        read_status(settings)


def test_roles_that_refuse_their_settings_end_the_stream_with_their_last_words(tmp_path: Path) -> None:
    with (
        pytest.raises(StreamFailedError, match=r"exit code 2.*landing\.folder"),
        roles_running(session(tmp_path)) as roles,
    ):
        roles.wait(30)


def test_any_failure_of_the_landing_ends_the_stream_with_it(
    plan: ReplayPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("in the replay's thread")

    @contextmanager
    def no_roles(_: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(poll=lambda: None)

    monkeypatch.setattr(streaming, "replay", broken)
    monkeypatch.setattr(streaming, "roles_running", no_roles)
    settings = session(tmp_path, min_aligned_per_half=3)
    with pytest.raises(ZeroDivisionError):
        stream_entry(plan, ReplaySettings(), settings, tmp_path / "truth", deadline_seconds=5.0)
