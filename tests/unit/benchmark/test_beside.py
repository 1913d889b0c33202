"""Runs stand side by side with the figures of their own metrics.json."""

import json
from pathlib import Path

import pytest

from cesped_stream.benchmark.beside import contained_words, read_run, side_by_side
from cesped_stream.errors import InvalidStarError, UnreachableFileError


def written(folder: Path, median_deg: float, words: str, **block: object) -> Path:
    folder.mkdir()
    content = {
        "meanAngularError": 99.0,
        "cesped_stream": {
            "stream": {"contained": [words], "counts": {"streamed": 1200, "lost": 0}},
            "poses": {"together": {"median_deg": median_deg, "share_within_5_deg": 0.25}},
            **block,
        },
    }
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def test_each_run_is_a_column_called_after_its_folder(tmp_path: Path) -> None:
    runs = [
        read_run(written(tmp_path / "clean", 8.04, "Preset clean.")),
        read_run(written(tmp_path / "session", 31.96, "Preset session.", confidence={"junk_auc": 0.912})),
    ]
    titles, rows = side_by_side(runs)
    figures = {row[0]: row[1:] for row in rows}
    assert titles == ("", "clean", "session")
    assert figures["median angular error"] == ("8.0°", "32.0°")
    assert figures["within 5°"] == ("25 %", "25 %")
    assert figures["streamed particles"] == ("1,200", "1,200")
    assert figures["lost"] == ("0", "0")
    assert figures["junk told by its confidence, AUC"] == ("–", "0.91")
    assert "latency, median" not in figures  # no run has one
    assert contained_words(runs) == ["clean: Preset clean.", "session: Preset session."]


@pytest.mark.parametrize(("at_nyquist", "words"), [(True, "<= 16.0 Å (Nyquist)"), (False, "16.0 Å")])
def test_a_resolution_at_nyquist_says_so(tmp_path: Path, at_nyquist: bool, words: str) -> None:
    region = {"pearson": 0.9, "resolution_05_angstrom": 16.0, "resolution_05_at_nyquist": at_nyquist}
    maps = {"unweighted": {"to_truth": {"unmasked": region}}}
    with_maps = read_run(written(tmp_path / "maps", 8.0, "x", maps=maps))
    without = read_run(written(tmp_path / "none", 8.0, "x"))
    unresolved = {"unweighted": {"to_truth": {"unmasked": region | {"resolution_05_angstrom": None}}}}
    figures = dict((row[0], row[1:]) for row in side_by_side([with_maps, without])[1])
    assert figures["map against truth, FSC 0.5"] == (words, "–")
    poor = read_run(written(tmp_path / "poor", 8.0, "x", maps=unresolved))
    assert "map against truth, FSC 0.5" not in [row[0] for row in side_by_side([poor])[1]]


def test_metrics_json_itself_may_be_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "clean", 8.0, "Preset clean.")
    assert read_run(folder / "metrics.json") == read_run(folder)


def test_what_is_no_run_of_ours_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnreachableFileError, match=r"metrics\.json"):
        read_run(tmp_path)
    (tmp_path / "metrics.json").write_text('{"meanAngularError": 3.0}')
    with pytest.raises(InvalidStarError, match="cesped"):
        read_run(tmp_path)
    (tmp_path / "metrics.json").write_text('{"cesped_stream"')
    with pytest.raises(InvalidStarError, match="cut"):
        read_run(tmp_path)
