"""`replay` understands plain words, and what they say is the dotted setting."""

import hashlib
from pathlib import Path

import pytest
from support.scored import small_entry, turned

from cesped_stream.errors import InvalidSettingsError
from cesped_stream.particles.star import read_star, write_star
from cesped_stream_service.cli import build_parser, main, settings_from
from cesped_stream_service.stream_settings import ProtocolCommand, ReplayCommand
from cesped_stream_service.stream_words import particles_per_second


def said(*words: str) -> ReplayCommand:
    arguments = build_parser("replay").parse_args(["replay", "TEST", "--output", "o", *words])
    return settings_from(arguments, ReplayCommand)


def test_the_words_of_a_replay_are_its_settings() -> None:
    settings = said(
        *("--protocol", "cross_half", "--rate", "300/s", "--batch", "300"),
        *("--first-aligned", "10000", "--order", "recorded", "--seed", "4", "--report", "page.html"),
    )
    assert str(settings.entry) == "TEST"
    assert settings.half_mode == "cross_half"
    assert (settings.replay.rate, settings.replay.batch_rows, settings.replay.seed) == (300.0, 300, 4)
    assert (settings.replay.first_aligned, settings.replay.order) == (10000, "recorded")
    assert settings.reporting.write
    assert settings.reporting.file == Path("page.html")
    assert said("--first-aligned-micrographs", "200").replay.first_aligned_micrographs == 200
    assert said("--report").reporting.file is None
    assert not said("--no-report").reporting.write
    assert said("--beside", "a", "--beside", "b").reporting.beside == (Path("a"), Path("b"))


def test_words_and_dotted_settings_mix() -> None:
    settings = said("--replay.star_first", "--rate", "12.5", "--training.max_steps", "7")
    assert (settings.replay.star_first, settings.replay.rate, settings.training.max_steps) == (True, 12.5, 7)


@pytest.mark.parametrize(
    ("text", "rate"), [("300/s", 300.0), ("150000/h", 150000 / 3600), ("600/min", 10.0), ("12.5", 12.5), ("3 / s", 3.0)]
)
def test_a_rate_is_told_in_any_unit_of_time(text: str, rate: float) -> None:
    assert particles_per_second(text) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["fast", "300/day", "-1", "3//s", "nan", ""])
def test_what_is_no_rate_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(InvalidSettingsError, match="150000/h"):
        particles_per_second(text)


def test_a_word_and_its_dotted_setting_together_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "e", "--output", "o", "--rate", "3", "--replay.rate", "3"]) == 2
    assert "--rate and --replay.rate both say replay.rate" in capsys.readouterr().err
    assert main(["replay", "e", "--entry", "f", "--output", "o"]) == 2
    assert "ENTRY and --entry" in capsys.readouterr().err


def test_a_report_that_took_the_entry_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--report", "TEST", "--output", "o"]) == 2
    assert "put the entry first" in capsys.readouterr().err


def test_score_wants_a_replay_and_stars(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "out"]) == 2
    assert "--poses" in capsys.readouterr().err
    assert main([]) == 0
    assert "    score" in capsys.readouterr().out


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replay")
    landed(small_entry(folder / "root" / "toy"), folder / "out", 3)
    return folder


def score(replayed: Path, *words: str) -> int:
    return main(["score", str(replayed / "out"), "--no-maps", *words])


def test_stars_with_nothing_of_the_replay_are_refused_with_examples(
    replayed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    star = str(replayed / "root" / "toy" / "particles_0.star")
    assert score(replayed, "--poses", star, "--output", str(tmp_path / "o")) == 2
    text = capsys.readouterr().err
    assert "none of 60 rows is an image of this replay" in text
    assert "000001@particles_0.mrcs" in text and "000001@aligned_0001.mrcs" in text
    assert not (tmp_path / "o" / "report.html").exists()


@pytest.mark.parametrize("points", ["0", "101", "-1", "many"])
def test_points_have_bounds(points: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "out", "--poses", "p.star", f"--points={points}"]) == 2
    assert "it goes from 1 to 100" in capsys.readouterr().err


def test_rows_that_repeat_a_particle_are_called_rows(
    replayed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = read_star(replayed / "out" / "truth" / "truth.star")
    write_star(tmp_path / "p.star", turned(truth, 5.0).select([*range(len(truth)), 50, 51]))
    assert score(replayed, "--poses", f"{tmp_path}/p.star", "--output", f"{tmp_path}/o") == 0
    assert "2 more rows are of a particle that stands there already" in " ".join(capsys.readouterr().out.split())


def test_the_words_of_the_protocol_are_its_settings() -> None:
    words = ["protocol", "TEST", "--output", "o", "--preset", "paper", "--checkpoint", "c", "--allow-symmetry"]
    settings = settings_from(build_parser("protocol").parse_args(words), ProtocolCommand)
    assert (settings.training.preset, settings.checkpoint, settings.allow_symmetry) == ("paper", "c", True)
    assert settings.half_mode == "cross_half"


def landed(entry: Path, output: Path, seed: int) -> dict[str, str]:
    words = ["replay", entry.name, "--root", str(entry.parent), "--output", str(output), "--no-roles"]
    assert main([*words, "--batch", "16", "--first-aligned", "30", "--seed", str(seed)]) == 0
    files = [path for path in sorted(output.rglob("*")) if path.is_file() and path.name != "replay.jsonl"]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_replay_gives_the_same_files_any_number_of_times_and_another_seed_others(tmp_path: Path) -> None:
    entry = small_entry(tmp_path / "root" / "toy")
    first, again = (landed(entry, tmp_path / name, 3) for name in ("first", "again"))
    other = landed(entry, tmp_path / "other", 4)
    assert first == again
    assert len(first) > 8
    assert first["landing/batch_0001.mrcs"] != other["landing/batch_0001.mrcs"]
