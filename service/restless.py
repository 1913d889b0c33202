"""Stars that do not stand still: for how long already, and what keeps changing them."""

from dataclasses import dataclass
from typing import Final

Signature = tuple[int, int, int]
"""(inode, size, mtime_ns): equal twice means unchanged. Never compared with a clock."""

LONG_SETTLE_TIMES: Final = 10
"""A star that has not settled for so many settle times is told."""


@dataclass
class _Restless:
    since: float
    changes: int = 0
    replaced: int = 0
    grew: int = 0


@dataclass(frozen=True)
class RestlessStar:
    """A star that has not settled for long, and the reason in words."""

    path: str
    seconds: float
    why: str


class RestlessStars:
    """Counts how unsettled stars change, from scan to scan."""

    def __init__(self) -> None:
        self._stars: dict[str, _Restless] = {}

    def saw(self, path: str, before: Signature | None, now: Signature, when: float) -> None:
        """Note one look at an unsettled star; `before` is how it looked at the last one."""
        star = self._stars.setdefault(path, _Restless(when))
        if before is None or before == now:
            return
        star.changes += 1
        star.replaced += before[0] != now[0]
        star.grew += before[0] == now[0] and now[1] > before[1]

    def forget(self, path: str) -> None:
        """Note that a star is settled, or gone."""
        self._stars.pop(path, None)

    def keep(self, paths: set[str]) -> None:
        """Forget all other stars."""
        for path in self._stars.keys() - paths:
            del self._stars[path]

    def seconds(self, path: str, now: float) -> float:
        """Return for how long a star has not settled; 0 for one that has."""
        star = self._stars.get(path)
        return now - star.since if star is not None else 0.0

    def older_than(self, seconds: float, now: float) -> list[RestlessStar]:
        """Return the stars that have not settled for so long, the longest first."""
        stars = [
            RestlessStar(path, now - star.since, _why(star, now - star.since))
            for path, star in self._stars.items()
            if now - star.since >= seconds
        ]
        return sorted(stars, key=lambda star: (-star.seconds, star.path))


def _why(star: _Restless, seconds: float) -> str:
    if not star.changes:
        return "it was seen once only"
    every = f"every {seconds / star.changes:.1f} s"
    if 2 * star.replaced >= star.changes:
        return f"replaced by another file {every}"
    if 2 * star.grew >= star.changes:
        return f"growing in place, {every} it is longer"
    return f"rewritten in place {every}"
