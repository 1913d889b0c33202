"""Settings that nothing reads are named when a command starts."""

from pathlib import Path
from typing import Any

import pytest

from cesped_stream.settings import TrainingSettings
from cesped_stream_service.cli import main
from cesped_stream_service.settings import LandingSettings, SessionSettings
from cesped_stream_service.without_effect import of_session

PAPER = TrainingSettings(preset="paper", symmetry="D2", seed=3)


def session(folder: Path, **changes: Any) -> SessionSettings:
    return SessionSettings(session=folder, landing=LandingSettings(folder=folder), **changes)


def test_what_only_a_network_is_trained_with_is_named_where_none_is(tmp_path: Path) -> None:
    (said,) = of_session(session(tmp_path, proposer="gallery", training=PAPER))
    assert said == "no effect of training.preset: proposer gallery trains no network; both or network do"
    (said,) = of_session(session(tmp_path, training=TrainingSettings(max_steps=7, init_from="other")))
    assert "training.max_steps, training.init_from" in said


@pytest.mark.parametrize("proposer", ["network", "both"])
def test_of_a_network_that_is_trained_nothing_is_said(tmp_path: Path, proposer: str) -> None:
    assert of_session(session(tmp_path, proposer=proposer, training=PAPER)) == ()


def test_what_references_are_made_with_has_an_effect(tmp_path: Path) -> None:
    training = TrainingSettings(symmetry="D2", seed=3, validation_fraction=0.2, alignment="independent")
    assert of_session(session(tmp_path, training=training)) == ()


def test_rows_for_the_noise_beside_a_map_need_a_map(tmp_path: Path) -> None:
    (said,) = of_session(session(tmp_path, noise_rows_per_half=50))
    assert said.startswith("no effect of noise_rows_per_half: only a given map (reference)")
    assert of_session(session(tmp_path, noise_rows_per_half=50, reference=tmp_path / "map.mrc")) == ()


def test_rebuilding_without_a_session_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--star", str(tmp_path / "aligned.star"), "--output", str(tmp_path / "out"), "--proposer", "gallery"]
    assert main(["train", *given, "--referencing.rebuild_rows", "500"]) == 2
    assert "poses accumulate in a session only; leave it out, or use run" in capsys.readouterr().err
