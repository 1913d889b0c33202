"""What is wrong in a session, in the order of what it costs: one list for `status`, the log and status.json."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

MOST_OF_A_KIND: Final = 3
MOST_LINES: Final = 20


class Cost(IntEnum):
    """What a problem costs while it lasts; smaller is worse."""

    ROWS = 0
    """Rows have no pose and get none."""
    TRAINING = 1
    """References or a network cannot be made."""
    REST = 2


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong; those of one `kind` are listed together."""

    kind: str
    cost: Cost
    text: str
    rows: int = 0
    """How many rows it concerns, 0 where that is not known."""


class ProblemList:
    """Remembers which kinds of problems there were before, so that new ones stand first among those of equal cost."""

    def __init__(self) -> None:
        self._since: dict[str, int] = {}
        self._round = 0

    def listed(self, problems: Iterable[Problem]) -> tuple[list[Problem], list[str]]:
        """Return the problems as they are told, capped, and the kinds of them that are new since the last call."""
        by_kind: dict[str, list[Problem]] = {}
        for problem in problems:
            if problem.text:
                by_kind.setdefault(problem.kind, []).append(problem)
        self._round += 1
        new = [kind for kind in by_kind if kind not in self._since]
        self._since = {kind: self._since.get(kind, self._round) for kind in by_kind}
        kinds = sorted(by_kind, key=lambda kind: (min(p.cost for p in by_kind[kind]), -self._since[kind]))
        listed = [problem for kind in kinds for problem in _capped(by_kind[kind])]
        if len(listed) > MOST_LINES:
            more = len(listed) - MOST_LINES + 1
            rest = Problem("more", Cost.REST, f"{more} more problems; the logs have them, and quarantine/ has reasons")
            listed = [*listed[: MOST_LINES - 1], rest]
        return listed, new


def _capped(problems: Sequence[Problem]) -> list[Problem]:
    """Return the first of a kind, those of most rows first, and how many more there are."""
    ordered = sorted(problems, key=lambda problem: (problem.cost, -problem.rows))
    told, more = ordered[:MOST_OF_A_KIND], ordered[MOST_OF_A_KIND:]
    if not more:
        return told
    rows = sum(problem.rows for problem in more)
    of_rows = f", of {rows:,} rows" if rows else ""
    return [*told, Problem(told[0].kind, told[0].cost, f"and {len(more)} more like the last{of_rows}", rows)]


_TRAINING_NAMES: Final = ("training", "checkpoint", "half-set", "reference")
_POSE_NAMES: Final = ("batch", "pose file", "rows")


def named_problem(name: str, text: str) -> Problem:
    """Return a problem of `Work.problems`; its kind is its name without numbers, its cost what that name is about."""
    kind = " ".join(word for word in name.split() if not any(map(str.isdigit, word)))
    if kind.startswith(_POSE_NAMES):
        return Problem(kind, Cost.ROWS, text)
    return Problem(kind, Cost.TRAINING if kind.startswith(_TRAINING_NAMES) else Cost.REST, text)
