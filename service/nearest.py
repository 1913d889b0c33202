"""Which known word is meant by one that is not known: of commands, options and settings."""

import difflib
from collections.abc import Iterable

MANY = 3


def nearest(said: str, known: Iterable[str]) -> list[str]:
    """Return the known words that `said` may mean, best first, at most three; none where nothing is near.

    A dotted name's last part is enough (`symmetry` means training.symmetry), and `-`, `_` and capitals are alike.
    """
    by_plain: dict[str, list[str]] = {}
    for word in dict.fromkeys(known):
        by_plain.setdefault(_plain(word), []).append(word)
    wanted = _plain(said)
    if wanted in by_plain:
        return [_spelt_like(said, by_plain[wanted])]
    last = wanted.rpartition(".")[2]
    same_part = [plain for plain in by_plain if plain.rpartition(".")[2] == last]
    close = difflib.get_close_matches(wanted, by_plain, n=1)
    found = [*same_part, *close] if "." not in wanted else [*close, *same_part]
    if not found:
        parts = {plain.rpartition(".")[2] for plain in by_plain}
        near = difflib.get_close_matches(last, parts, n=1, cutoff=0.75)
        found = [plain for plain in by_plain if plain.rpartition(".")[2] in near]
    return [_spelt_like(said, by_plain[plain]) for plain in dict.fromkeys(found)][:MANY]


def _spelt_like(said: str, spellings: list[str]) -> str:
    return max(spellings, key=lambda word: difflib.SequenceMatcher(None, word, said).ratio())


def did_you_mean(said: str, known: Iterable[str], otherwise: str) -> str:
    """Return `did you mean a, b or c?`, or what is to be said where nothing is near."""
    found = nearest(said, known)
    if not found:
        return otherwise
    return f"did you mean {listed(found)}?"


def listed(words: Iterable[str]) -> str:
    """Return `a`, `a or b`, `a, b or c`."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def _plain(word: str) -> str:
    return word.lower().lstrip("-").replace("-", "_")
