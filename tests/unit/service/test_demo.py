"""What the demo and the replay say of symmetry and half-sets."""

import io
import json
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from cesped_stream.benchmark.entries import Entry
from cesped_stream.benchmark.report import half_words
from cesped_stream.errors import InvalidSettingsError
from cesped_stream.particles.star import read_star
from cesped_stream.settings import TrainingSettings
from cesped_stream_service.demo import simulate_command
from cesped_stream_service.replay_command import replay_command, symmetry_of
from cesped_stream_service.settings import InferCommand
from cesped_stream_service.stream_settings import ReplayCommand, SimulateCommand
from cesped_stream_service.tools import infer


def command(**training: str) -> ReplayCommand:
    return ReplayCommand(output=Path("o"), entry=Path("e"), training=TrainingSettings.model_validate(training))


def test_the_users_symmetry_holds_where_the_entry_states_none() -> None:
    assert symmetry_of(Entry("e", Path("e"), ()), command(symmetry="D2")) == "D2"


def test_the_entrys_symmetry_holds_where_the_user_gives_none_and_another_one_is_refused() -> None:
    entry = Entry("e", Path("e"), (), "C2")
    assert symmetry_of(entry, command()) == "C2"
    with pytest.raises(InvalidSettingsError, match=r"training\.symmetry C1: e states C2"):
        symmetry_of(entry, command(symmetry="C1"))


@pytest.mark.parametrize("mode", ["gold_standard", "cross_half"])
@pytest.mark.parametrize("independence", ["independent", "shared_reference", "unknown"])
def test_only_independent_halves_are_called_gold_standard(mode: str, independence: str) -> None:
    words = half_words({"half_mode": mode, "half_independence": independence})
    is_gold = mode == "gold_standard" and independence == "independent"
    assert words.startswith("gold standard") == is_gold
    assert ("not gold standard" in words) != is_gold


def test_simulate_does_not_write_over_an_entry_that_it_did_not_make(tmp_path: Path) -> None:
    (tmp_path / "particles_0.mrcs").write_bytes(b"someone's only copy")
    with pytest.raises(InvalidSettingsError, match="not simulated; give another folder"):
        simulate_command(SimulateCommand(output=tmp_path), Console(quiet=True))
    assert (tmp_path / "particles_0.mrcs").read_bytes() == b"someone's only copy"


def test_infer_does_not_write_over_its_input(tmp_path: Path) -> None:
    star = tmp_path / "a.star"
    star.write_text("refined angles")
    with pytest.raises(InvalidSettingsError, match="would replace the input star"):
        infer(InferCommand(checkpoint=tmp_path, star=star, output=tmp_path / "." / "a.star"), Console(quiet=True))
    assert star.read_text() == "refined angles"


def test_a_session_preset_is_applied_once_in_the_images_and_once_in_the_labels(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    entry = SimulateCommand.model_validate(
        {"output": tmp_path / "entry", "simulate": {"num_particles": 120}, "realism": {"preset": "session"}}
    )
    assert simulate_command(entry, console) == 0
    assert (tmp_path / "entry" / "examples.png").stat().st_size > 10_000
    assert "session preset" in json.loads((tmp_path / "entry" / "simulated.json").read_text())["stated"]
    stream = ReplayCommand.model_validate(
        {
            **{"entry": tmp_path / "entry", "output": tmp_path / "out", "roles": False},
            **{"replay": {"first_aligned": 60}, "realism": {"preset": "session"}},
        }
    )
    assert replay_command(stream, console) == 0
    truth = read_star(tmp_path / "out" / "truth" / "truth.star")
    kinds = Counter(truth.column("cestreamKind"))
    assert (len(truth), kinds["particle"]) == (120, 84)
    assert {"random", "true"} <= set(truth.column("cestreamLabel"))
    # The entry drifts along its session, so it lands in the order of its session.
    assert json.loads((tmp_path / "out" / "truth" / "stream.json").read_text())["replay"]["order"] == "recorded"
