"""Why training, or a reference, may never start: what a user would wait for in vain is said at once."""

import json
from pathlib import Path

from cesped_stream.conventions import SUBSET_LABEL
from cesped_stream.errors import CespedStreamError
from cesped_stream.particles.half_sets import OneHalf
from cesped_stream.particles.landing import DONE_SUFFIX
from cesped_stream.particles.star import iter_star

from .finished import BatchTables
from .ledger import ALIGNED_KINDS, PREDICT, Ledger
from .messages import ALIGNED
from .reference_orders import MapOrders
from .session import SessionFolder
from .settings import SessionSettings

BATCHES_LOOKED_AT = 20
"""Batches whose micrographs are looked up."""
ROWS_LOOKED_AT = 20_000
"""Rows of a star in which the other half-set is looked for."""
CORRECTED_COUNTS = "; a corrected star counts when it lands, if it gives rlnRandomSubset 1 and 2"


class TrainingWaits:
    """Looks at what has landed of aligned rows, as far as it was read to its end."""

    def __init__(
        self,
        settings: SessionSettings,
        folder: SessionFolder,
        ledger: Ledger,
        tables: BatchTables,
        map_orders: MapOrders,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._ledger = ledger
        self._tables = tables
        self._map_orders = map_orders
        self._told: tuple[tuple[object, ...], str] = ((), "")
        self._reasons: dict[tuple[str, int], str] = {}

    def problem(self) -> str:
        """Return why one half-set has no row at all, and what to do; "" where both have some, or more is being read."""
        if not self._is_trained() and (why := self._one_half(ALIGNED_KINDS, least=1)):
            return why
        if self._map_orders.waits():
            return self._one_half((PREDICT, PREDICT), least=self._settings.noise_rows_per_half)
        return ""

    def notes(self) -> list[str]:
        """Return what is finished and not enough, or refused, of aligned stars while nothing was trained on them."""
        halves, least = self._rows_per_half(ALIGNED_KINDS), self._settings.min_aligned_per_half
        if self._is_trained() or min(halves) >= least:
            return []
        stars = self._ledger.execute("SELECT path, refused_rows, signature FROM stars WHERE aligned = 1").fetchall()
        notes = []
        for path, refused, _ in stars:
            if refused:
                why = self._why_refused(path, refused)
                notes.append(
                    f"{path}: {refused} aligned rows are refused{f' ({why})' if why else ''}; training waits for "
                    f"{least} a half-set and has {halves[0]} + {halves[1]}: mend that, then `cesped-stream requeue "
                    f"{self._folder.root}`"
                )
        finished = [path for path, _, signature in stars if signature and Path(path + DONE_SUFFIX).exists()]
        if finished and len(finished) == len(stars) and min(halves) > 0:
            notes.append(
                f"{finished[0]}: finished (it has a {DONE_SUFFIX} marker), with {halves[0]} + {halves[1]} aligned rows "
                f"of the {least} a half-set that training waits for: land more, or start `run` again with "
                f"--min_aligned_per_half {min(halves)} at most"
            )
        return notes

    def _rows_per_half(self, kinds: tuple[str, str]) -> tuple[int, int]:
        row = self._ledger.execute(
            "SELECT coalesce(sum(half_0), 0), coalesce(sum(half_1), 0) FROM batches WHERE kind IN (?, ?)", kinds
        ).fetchone()
        return int(row[0]), int(row[1])

    def _is_trained(self) -> bool:
        trainings = self._ledger.scalar("SELECT count(*) FROM trainings WHERE source = ?", (ALIGNED,))
        return bool(self._settings.checkpoint) or trainings > 0

    def _is_reading(self, kinds: tuple[str, str]) -> bool:
        """Return whether a star that brought such rows may bring more at once: it was not read to its end."""
        return (
            self._ledger.scalar(
                "SELECT count(*) FROM stars WHERE signature = '' AND problem = '' AND star_id IN"
                " (SELECT star_id FROM batches WHERE kind IN (?, ?))",
                kinds,
            )
            > 0
        )

    def _one_half(self, kinds: tuple[str, str], *, least: int) -> str:
        halves = self._rows_per_half(kinds)
        if max(halves) < least or min(halves) > 0 or self._is_reading(kinds):
            return ""
        key = (kinds, halves)
        if self._told[0] != key:
            self._told = (key, self._words_of_one_half(kinds, halves))
        return self._told[1]

    def _words_of_one_half(self, kinds: tuple[str, str], halves: tuple[int, int]) -> str:
        rows = self._ledger.execute(
            "SELECT batch_id, path FROM batches JOIN stars USING(star_id) WHERE batches.kind IN (?, ?)"
            " ORDER BY batch_id",
            kinds,
        ).fetchall()
        stars = list(dict.fromkeys(str(path) for _, path in rows))
        halves_of_star, has_subset = _looked_at(Path(stars[0]))
        if len(halves_of_star) > 1:
            return ""  # its rows of the other half-set were refused, which is said elsewhere
        names: set[str] = set()
        for batch_id, _ in rows[:BATCHES_LOOKED_AT]:
            names.update(self._tables[int(batch_id)].micrographs())
            if len(names) > 1:
                break
        half = 0 if halves[0] else 1
        one = OneHalf(half, halves[half], has_subset, tuple(sorted(names)))
        more = f" and {len(stars) - 1} more stars" if len(stars) > 1 else ""
        return one.words(stars[0] + more) + CORRECTED_COUNTS

    def _why_refused(self, star: str, refused: int) -> str:
        """Return the first reason for which rows of a star were refused, as its reason file says."""
        if (star, refused) not in self._reasons:
            self._reasons = {(star, refused): _first_reason(self._folder.quarantine, star)}
        return self._reasons[star, refused]


def _looked_at(star: Path) -> tuple[set[int], bool]:
    """Return the half-sets of a star's first rows by its own word, and whether it has rlnRandomSubset."""
    halves: set[int] = set()
    has_subset, seen = True, 0
    try:
        for table in iter_star(star):
            has_subset = SUBSET_LABEL in table
            halves.update(table.half_sets().tolist())
            seen += len(table)
            if len(halves) > 1 or seen >= ROWS_LOOKED_AT:
                break
    except CespedStreamError:
        return set(), True
    return halves, has_subset


def _first_reason(quarantine: Path, star: str) -> str:
    for file in sorted(quarantine.glob("rows_*.json")):
        try:
            told = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        if told.get("star") == star and told.get("rows"):
            return f"row {told['rows'][0]['row']}: {told['rows'][0]['reason']}"
    return ""
