"""Counts of what predicted rows say of themselves: how sure, made by what, at an edge, like noise. They add up."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from cesped_stream.particles.flags import Clipped
from cesped_stream.particles.own_columns import (
    ABOVE_NOISE,
    CLIPPED,
    CONFIDENCE,
    CONFIDENCE_KIND,
    PREDICTED,
    PROPOSER,
    STATUS,
    is_refined,
    numbers_of,
)
from cesped_stream.particles.table import ParticleTable

NOISE_REACHES: Final = 3.0
"""Standard deviations above its mean that noise itself may reach (0.1 %): below, the fit tells no row from noise."""
MANY_AT_EDGE: Final = 0.05
"""Share of refined poses at the edge of the search of shifts, or of angles, above which it is said what to do."""
CONFIDENCE_BINS: Final = 100
_MADE_BY, _REFINED, _MEASURED, _LIKE_NOISE = "made by", "refined", "against noise", "like noise"


@dataclass(frozen=True)
class PoseTally:
    """Numbers of predicted rows; those of two sets of rows add up to those of both."""

    counts: Mapping[str, int] = field(default_factory=dict)
    """By what is counted; no zeros. Confidences are counted by kind in `CONFIDENCE_BINS` equal bins."""

    @classmethod
    def of(cls, table: ParticleTable) -> "PoseTally":
        """Count the rows with a predicted pose; given ones say nothing of ours. Nothing where the table's rows are not
        a session's."""
        columns = (STATUS, PROPOSER, CONFIDENCE_KIND, CONFIDENCE, CLIPPED)
        found: Counter[str] = Counter()
        if any(label not in table for label in (*columns, ABOVE_NOISE)):
            return cls()
        cells = zip(*map(table.column, columns), numbers_of(table.column(ABOVE_NOISE)).tolist(), strict=True)
        for status, proposer, kind, confidence, clipped, above in cells:
            if status != PREDICTED:
                continue
            found[f"{_MADE_BY} {proposer}"] += 1
            found[_confidence_key(kind, confidence)] += 1
            if is_refined(proposer):
                found[_REFINED] += 1
                found[_clipped_key(clipped)] += clipped != Clipped.NO.text
            if np.isfinite(above):
                found[_MEASURED] += 1
                found[_LIKE_NOISE] += int(above < NOISE_REACHES)
        return cls(dict(+found))

    @classmethod
    def together(cls, parts: Iterable["PoseTally"]) -> "PoseTally":
        """Return the tally of all the parts' rows."""
        found: Counter[str] = Counter()
        for part in parts:
            found.update(part.counts)
        return cls(dict(found))

    @property
    def by_proposer(self) -> dict[str, int]:
        """Rows by what made their pose."""
        return self._under(_MADE_BY)

    @property
    def num_refined(self) -> int:
        """Rows whose pose was refined: those that can end at a search's edge."""
        return self.counts.get(_REFINED, 0)

    def clipped(self, edge: Clipped) -> int:
        """Return the refined rows that ended at this edge, or at both for `Clipped.BOTH` alone."""
        return self.counts.get(_clipped_key(edge.text), 0)

    @property
    def num_clipped_shift(self) -> int:
        """Refined rows that ended at the edge of the shift search, whatever the angle did."""
        return self.clipped(Clipped.SHIFT) + self.clipped(Clipped.BOTH)

    @property
    def num_against_noise(self) -> int:
        """Rows that tell how far above noise they fit a reference."""
        return self.counts.get(_MEASURED, 0)

    @property
    def num_like_noise(self) -> int:
        """Those of them that are less than `NOISE_REACHES` above it."""
        return self.counts.get(_LIKE_NOISE, 0)

    def num_with_confidence(self, kind: str) -> int:
        """Return the rows whose confidence is of this kind."""
        return sum(self._under(_kind_prefix(kind)).values())

    def median_confidence(self, kind: str) -> float | None:
        """Return the median of the confidences of a kind, to half a bin; None where there is none."""
        bins = sorted((int(name), number) for name, number in self._under(_kind_prefix(kind)).items())
        left = (sum(number for _, number in bins) + 1) // 2
        for name, number in bins:
            left -= number
            if left <= 0:
                return (name + 0.5) / CONFIDENCE_BINS
        return None

    def num_at_least(self, kind: str, confidence: float) -> int:
        """Return the rows whose confidence of a kind is at least `confidence`, a bin's lower end."""
        least = round(confidence * CONFIDENCE_BINS)
        return sum(number for name, number in self._under(_kind_prefix(kind)).items() if int(name) >= least)

    def _under(self, prefix: str) -> dict[str, int]:
        start = f"{prefix} "
        return {key.removeprefix(start): n for key, n in self.counts.items() if key.startswith(start)}


def _confidence_key(kind: str, cell: str) -> str:
    """The bin by the cell's own decimals: 0.29 is in that of 0.29."""
    millionths = round(float(cell) * 1_000_000)
    return f"{_kind_prefix(kind)} {min(millionths * CONFIDENCE_BINS // 1_000_000, CONFIDENCE_BINS - 1)}"


def _kind_prefix(kind: str) -> str:
    return f"confidence {kind}"


def _clipped_key(text: str) -> str:
    return f"clipped {text}"
