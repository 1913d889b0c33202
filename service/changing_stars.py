"""Looks at stars that never settle: what two of them, a settle time apart, agree on are rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from cesped_stream.particles.star import StarPrefix
from cesped_stream.particles.star_agreed import StarLook, look_again

from .watcher import LandedStar

MOST_STARS = 1000
"""Changing stars that are looked at; each costs some bytes a row. More of them wait for their turn."""


@dataclass
class _Looked:
    look: StarLook
    at: float


class ChangingStars:
    """Keeps the last look at each star that the watcher calls changing."""

    def __init__(self, settle_seconds: float) -> None:
        self._settle_seconds = settle_seconds
        self._stars: dict[str, LandedStar] = {}
        self._looked: dict[str, _Looked] = {}

    def keep(self, stars: Sequence[LandedStar]) -> None:
        """Take note of the stars that are changing now; forget all others."""
        self._stars = {str(star.path): star for star in stars[:MOST_STARS]}
        for path in self._looked.keys() - self._stars.keys():
            del self._looked[path]

    def due(self, now: float) -> LandedStar | None:
        """Return the star to look at, or None: each once a scan, the first look at once, the next a settle time
        later."""
        for path, star in self._stars.items():
            looked = self._looked.get(path)
            if looked is None or now - looked.at >= self._settle_seconds:
                del self._stars[path]
                return star
        return None

    def look(self, star: LandedStar, prefix: StarPrefix | None, now: float) -> bytes:
        """Look at a star; return the lines behind its accepted rows that the look before saw too. Raises as
        `look_again`."""
        path = str(star.path)
        before = self._looked.get(path)
        look, agreed = look_again(star.path, prefix, before.look if before is not None else None)
        self._looked[path] = _Looked(look, now)
        return agreed
