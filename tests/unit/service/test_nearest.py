"""A word that is not known is told the known ones that it may mean."""

import pytest

from cesped_stream_service.nearest import did_you_mean, nearest

KNOWN = ["session", "landing.folder", "landing.aligned", "training.symmetry", "simulate.symmetry", "training.max_steps"]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("symmetry", ["training.symmetry", "simulate.symmetry"]),
        ("--training.symetry", ["training.symmetry"]),
        ("landing.foldr", ["landing.folder"]),
        ("Landing.Folder", ["landing.folder"]),
        ("max-steps", ["training.max_steps"]),
        ("max_step", ["training.max_steps"]),
        ("xyzzy", []),
    ],
)
def test_the_nearest_known_words_come_best_first(said: str, meant: list[str]) -> None:
    assert nearest(said, KNOWN)[: max(1, len(meant))] == meant


def test_words_of_the_question() -> None:
    assert did_you_mean("symmetry", KNOWN, "") == "did you mean training.symmetry or simulate.symmetry?"
    assert did_you_mean("xyzzy", KNOWN, "see --help") == "see --help"


def test_of_two_spellings_the_one_like_what_was_said_is_told() -> None:
    both = ["--allow_symmetry", "--allow-symmetry"]
    assert nearest("--allow-symmetri", both) == ["--allow-symmetry"]
    assert nearest("--allow_symmetri", both) == ["--allow_symmetry"]
