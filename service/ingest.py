"""From settled stars to batches: every row is accepted once, waits for its stack, or is refused with a reason."""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cesped_stream.durable import Step, write_whole
from cesped_stream.errors import InvalidStarError, NotSettledError, PermanentError, TransientError
from cesped_stream.particles.star import (
    PrefixChanged,
    StarPrefix,
    iter_star,
    read_bytes_behind,
    read_tail,
    tail_is_blank,
)
from cesped_stream.particles.star_kind import StarKind, star_kind
from cesped_stream.particles.table import ParticleTable

from .accepting import Acceptance, AcceptedRows, Part, ReadyRows
from .changing_stars import ChangingStars
from .finished import BatchTables
from .ledger import Ledger, StarRecord
from .problems import Cost, Problem
from .session import SessionFolder
from .settings import SessionSettings
from .stack_check import StackCheck
from .watcher import LandedStar, Watcher, signature_of

logger = logging.getLogger(__name__)

MOST_LEFT_AT_ONCE = 64
"""Stars without particles that one `advance` sorts out, and one transaction remembers."""
MAX_WAITING_ROWS = 50_000
"""Rows of one star that may wait for stacks in memory; reading it goes on when some of them are resolved."""


@dataclass
class _Reading:
    """A star that is being read, or whose rows wait for stacks."""

    star: LandedStar
    record: StarRecord
    tables: Iterator[tuple[ParticleTable, StarPrefix]] | None
    prefix: StarPrefix | None
    rescan: bool
    waiting: list[Part] = field(default_factory=list)
    not_before: float = 0.0
    failing_since: float | None = None
    problem: str = ""
    cut: str = ""
    """Why the star cannot be at its end: what follows its last complete row."""
    is_part: bool = False
    """`tables` are the rows that two looks at a changing star agree on, not all that the star holds now."""

    @property
    def waiting_rows(self) -> int:
        return sum(len(part.numbers) for part in self.waiting)


class Ingest:
    """Reads one part of one star at each `advance`, so that leases and commits go on during a large one."""

    def __init__(
        self,
        settings: SessionSettings,
        folder: SessionFolder,
        ledger: Ledger,
        tables: BatchTables,
        watcher: Watcher,
        has_model: Callable[[], bool],
        *,
        step: Step,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._ledger = ledger
        self._watcher = watcher
        self._step = step
        self._acceptance = Acceptance(settings, folder, ledger, tables, watcher, has_model, step=step)
        self._stacks = StackCheck(settings.landing, watcher)
        self.marker_seen = False
        """A `.done` marker lay beside an aligned star that was read to its end."""
        self._reading: dict[str, _Reading] = {}
        self._busy = False
        stars = ledger.stars()
        self._signatures = {star.path: star.signature for star in stars}
        self._half_read = {star.path for star in stars if star.aligned and not (star.signature or star.problem)}
        """Aligned stars of which a part was read: by a process that ended meanwhile, or while they change."""
        self._changing = ChangingStars(settings.landing.settle_seconds)
        self._left = {star.path: star.kind for star in stars if not star.is_input}
        self._to_leave: dict[str, StarRecord] = {}

    def stars_landed(self, stars: list[LandedStar], now: float) -> None:
        """Take note of settled stars; one that was read to its end and is unchanged costs nothing."""
        self._half_read = {path for path in self._half_read if os.path.exists(path)}
        for star in stars:
            path = star.name
            reading = self._reading.get(path)
            if reading is not None:
                if reading.star.signature != star.signature:
                    self._open(star, now, reading)
                elif star.done:
                    reading.star = star
            elif self._signatures.get(path) != star.signature_text:
                self._open(star, now, None)
        self._changing.keep(self._watcher.changing)

    def _open(self, star: LandedStar, now: float, before: _Reading | None) -> None:
        reading = self._fresh(star, now, before)
        self._acceptance.begin(star.path)
        self._half_read.discard(str(star.path))
        reading.tables = read_tail(star.path, reading.prefix, rows_per_table=self._settings.service.batch_rows)
        self._reading[str(star.path)] = reading

    def _fresh(self, star: LandedStar, now: float, before: _Reading | None) -> _Reading:
        """Return a reading that goes on from the accepted rows; its tables are to be given."""
        if before is not None:
            return replace(before, star=star, tables=None, not_before=now, cut="", is_part=False)
        record = self._ledger.star(str(star.path)) or StarRecord(0, str(star.path), "", "", 0, False, 0, "")
        prefix = StarPrefix.from_json(json.loads(record.prefix)) if record.prefix else None
        rescan = prefix is None and record.rows_read > 0
        return _Reading(star, replace(record, problem=""), None, prefix, rescan)

    def _look_at_changing(self, now: float) -> None:
        """Look at the changing star that waited longest; what two looks agree on is read as a part of it."""
        star = self._changing.due(now)
        if star is None:
            return
        path = str(star.path)
        reading = self._fresh(star, now, self._reading.get(path))
        try:
            if self._holds_no_particles(reading):
                return
            agreed = self._changing.look(star, reading.prefix, now)
        except PrefixChanged:
            # Other rows stand where some were accepted: all are compared by identity, as far as two looks agree.
            reading = replace(reading, prefix=None, rescan=True, waiting=[], record=_unrefused(reading.record))
            agreed = self._changing.look(star, None, now)
        except TransientError:
            return
        except PermanentError as error:
            self._quarantine_star(reading, str(error))
            return
        if agreed:
            many = self._settings.service.batch_rows
            reading.tables = read_bytes_behind(star.path, reading.prefix, agreed, rows_per_table=many)
            reading.is_part = True
            self._reading[path] = reading

    def advance(self, now: float) -> list[AcceptedRows]:
        """Read and accept the next part of the star that landed first, or look again at waiting rows."""
        self._look_at_changing(now)
        try:
            return self._advance_first(now)
        finally:
            self._note_left()

    def _advance_first(self, now: float) -> list[AcceptedRows]:
        for path, reading in list(self._reading.items()):
            if len(self._to_leave) >= MOST_LEFT_AT_ONCE:
                self._busy = True
                return []
            if reading.not_before > now:
                continue
            self._reading[path] = self._reading.pop(path)
            try:
                if self._holds_no_particles(reading):
                    continue
                accepted, busy = self._advance(reading, now)
            except PrefixChanged:
                self._open(reading.star, now, self._from_start(reading))
                continue
            except TransientError as error:
                self._postpone(reading, str(error), now)
                continue
            except PermanentError as error:
                self._quarantine_star(reading, str(error))
                continue
            except ValueError as error:
                # A cell that can be read but not written again as a batch's star.
                self._quarantine_star(reading, f"{path}: {error}")
                continue
            if busy:
                self._busy = True
                return accepted
        self._busy = False
        return []

    def _advance(self, reading: _Reading, now: float) -> tuple[list[AcceptedRows], bool]:
        if reading.tables is not None and reading.waiting_rows < MAX_WAITING_ROWS:
            read = next(reading.tables, None)
            if not reading.is_part and signature_of(reading.star.path) != reading.star.signature:
                raise NotSettledError(f"{reading.star.path}: changed while it was read; is it still being written?")
            if read is not None:
                reading.failing_since, reading.problem = None, ""
                table, reading.prefix = read
                if len(table) + len(table.refused) < self._settings.service.batch_rows and isinstance(
                    reading.tables, Generator
                ):
                    # The last one: close the file now, thousands of stars may wait for their turn or their stacks.
                    reading.tables.close()
                return self._accept(reading, [self._part(reading, table, now)], now), True
            reading.tables = None
            reading.cut = "" if reading.is_part else _cut(reading)
        waiting, reading.waiting = reading.waiting, []
        accepted = self._accept(reading, waiting, now)
        if reading.waiting:
            reading.not_before = now + self._settings.landing.scan_seconds
        elif reading.cut and not accepted:
            raise NotSettledError(reading.cut)
        return accepted, bool(accepted)

    def _part(self, reading: _Reading, table: ParticleTable, now: float) -> Part:
        _require_ctf(reading.star.path, table)
        if not reading.record.aligned and self._acceptance.is_aligned(reading.star.path, table):
            reading.record = replace(reading.record, aligned=True)
        return Part(table, table.places_in_star(), now, reading.record.aligned)

    def _accept(self, reading: _Reading, parts: list[Part], now: float) -> list[AcceptedRows]:
        """Accept what has its stack, keep what waits, refuse what cannot be; after an error all parts wait."""
        before = list(reading.waiting)
        try:
            return self._accept_ready(reading, parts, now)
        except Exception:
            reading.waiting = [*before, *parts]
            raise

    def _accept_ready(self, reading: _Reading, parts: list[Part], now: float) -> list[AcceptedRows]:
        ready: list[ReadyRows] = []
        refused: list[tuple[int, str]] = []
        for part in parts:
            verdict = self._stacks.judge(part, reading.star, now)
            late = now - part.since > self._settings.landing.stack_timeout_seconds
            lost = verdict.refused + ([(place, self._too_late(why)) for place, why in verdict.waiting] if late else [])
            refused.extend((part.numbers[place], why) for place, why in lost)
            refused.extend(part.table.refused)
            if verdict.waiting and not late:
                reading.waiting.append(part.select([place for place, _ in verdict.waiting]))
                why = verdict.waiting[0][1]
                reading.problem = f"{reading.star.path}: {len(verdict.waiting)} rows wait for their stack: {why}"
            rows = verdict.ready(part)
            if rows is not None:
                ready.append(rows)
        if refused:
            self._write_reasons(reading, refused)
        refusal = f"row {refused[0][0] + 1}: {refused[0][1]}" if refused else ""
        read, ended = not reading.waiting, reading.tables is None and not reading.cut
        whole = ended and not reading.is_part
        prefix = json.dumps(reading.prefix.to_json()) if read and reading.prefix else reading.record.prefix
        record = replace(
            reading.record,
            prefix=prefix,
            signature=reading.star.signature_text if read and whole else "",
            refused_rows=reading.record.refused_rows + len(refused),
            refusal=reading.record.refusal or refusal,
            kind=StarKind.PARTICLES,
        )
        if ready or refused or (read and (whole or prefix != reading.record.prefix)):
            accepted, reading.record = self._acceptance.take(record, reading.star, ready, reading.rescan, now)
        else:
            accepted = []
        if read and ended:
            self._finish(reading)
        return accepted

    def _too_late(self, why: str) -> str:
        seconds = self._settings.landing.stack_timeout_seconds
        return f"no complete stack within {seconds:g} s (landing.stack_timeout_seconds): {why}"

    def _finish(self, reading: _Reading) -> None:
        path = str(reading.star.path)
        self._signatures[path] = "" if reading.is_part else reading.star.signature_text
        del self._reading[path]
        self._left.pop(path, None)
        if reading.is_part and reading.record.aligned:
            self._half_read.add(path)
        (self._folder.quarantine / f"star_{_short(path)}.json").unlink(missing_ok=True)
        if reading.star.done and reading.record.aligned:
            self.marker_seen = True

    def _from_start(self, reading: _Reading) -> _Reading:
        """Return the reading of a star whose accepted rows changed: every row is judged again, by its identity."""
        self._remove_reasons(str(reading.star.path))
        return replace(reading, prefix=None, rescan=True, waiting=[], tables=None, record=_unrefused(reading.record))

    def _holds_no_particles(self, reading: _Reading) -> bool:
        """Set a star without particles aside, for as long as it stays as it is; return whether it is one."""
        if reading.record.rows_read or reading.waiting or reading.is_part:
            return False
        path = str(reading.star.path)
        kind = star_kind(reading.star.path)
        if kind is StarKind.PARTICLES:
            self._left.pop(path, None)
            return False
        record = replace(reading.record, signature=reading.star.signature_text, kind=kind)
        self._to_leave[path] = record
        self._reading.pop(path, None)
        return True

    def _note_left(self) -> None:
        """Remember the stars without particles that were found, together."""
        if not self._to_leave:
            return
        with self._ledger.transaction("stars without particles noted"):
            for record in self._to_leave.values():
                self._ledger.put_star(record)
        for path, record in self._to_leave.items():
            self._signatures[path], self._left[path] = record.signature, record.kind
        self._to_leave.clear()

    def _postpone(self, reading: _Reading, problem: str, now: float) -> None:
        """Look again later. A star that stays cut is quarantined like rows whose stack never comes; one that stays
        away is left to the next scan that sees it, unless rows of it are in memory."""
        reading.problem = problem
        reading.failing_since = now if reading.failing_since is None else reading.failing_since
        late = now - reading.failing_since > self._settings.landing.stack_timeout_seconds
        if late and reading.cut:
            self._quarantine_star(reading, problem)
            return
        if late and not reading.waiting:
            logger.warning("star is away", extra={"star": str(reading.star.path), "why": problem})
            del self._reading[str(reading.star.path)]
            return
        reading.not_before = now + self._settings.landing.scan_seconds
        if reading.is_part:
            reading.tables = None
            if not reading.waiting:
                del self._reading[str(reading.star.path)]
            return
        self._open(reading.star, now, reading)
        self._reading[str(reading.star.path)].not_before = reading.not_before

    def _quarantine_star(self, reading: _Reading, problem: str) -> None:
        """Set a star aside until it changes; its rows accepted before stay."""
        logger.error("star quarantined", extra={"star": str(reading.star.path), "why": problem})
        name = f"star_{_short(str(reading.star.path))}.json"
        text = {"star": str(reading.star.path), "reason": problem, "remedy": "correct the file, or `requeue` it"}
        write_whole(self._folder.quarantine / name, _json_bytes(text))
        self._step("star's reason written")
        with self._ledger.transaction("star quarantined"):
            record = replace(reading.record, signature=reading.star.signature_text, problem=problem)
            self._ledger.put_star(record)
        self._signatures[str(reading.star.path)] = reading.star.signature_text
        self._reading.pop(str(reading.star.path), None)

    def _write_reasons(self, reading: _Reading, refused: list[tuple[int, str]]) -> None:
        path = str(reading.star.path)
        file = self._folder.quarantine / f"rows_{_short(path)}_{refused[0][0]}.json"
        rows = [{"row": row + 1, "reason": reason} for row, reason in refused]
        logger.error("rows quarantined", extra={"star": path, "rows": len(rows), "why": rows[0]["reason"]})
        write_whole(file, _json_bytes({"star": path, "rows": rows, "remedy": "correct it, then `requeue` the star"}))
        self._step("rows' reasons written")

    def requeue(self, star: str) -> int:
        """Read quarantined stars and stars with refused rows again from their start ("": all of them)."""
        records = [r for r in self._ledger.stars() if (r.problem or r.refused_rows) and star in ("", r.path)]
        for record in records:
            with self._ledger.transaction("star requeued"):
                self._ledger.put_star(replace(_unrefused(record), signature="", prefix="", problem=""))
            self._signatures.pop(record.path, None)
            self._reading.pop(record.path, None)
            self._remove_reasons(record.path)
        return len(records)

    def _remove_reasons(self, path: str) -> None:
        for reason in self._folder.quarantine.glob(f"*_{_short(path)}*.json"):
            reason.unlink()

    @property
    def waiting_rows(self) -> int:
        return sum(reading.waiting_rows for reading in self._reading.values())

    @property
    def busy(self) -> bool:
        """The last `advance` got something done, so that another one may too."""
        return self._busy

    @property
    def reads_aligned(self) -> bool:
        """An aligned star is being read: what it brings counts when all of it is there."""
        reading = any(
            reading.record.aligned and reading.tables is not None and reading.failing_since is None
            for reading in self._reading.values()
        )
        return reading or bool(self._half_read)

    def consensus_adopted(self) -> None:
        """Note that half-sets of rows that were accepted before may have changed."""
        self._acceptance.forget()

    @property
    def stars_in_hand(self) -> int:
        return len(self._reading)

    @property
    def stars_left(self) -> Counter[str]:
        """Stars without particles, by what they are about."""
        return Counter(self._left.values())

    def left(self, path: str) -> bool:
        """Return whether a star was found to hold no particles."""
        return path in self._left

    def problems(self) -> list[Problem]:
        """Return what keeps rows of stars in hand from being taken."""
        readings = [reading for reading in self._reading.values() if reading.problem]
        return [Problem("waits", Cost.ROWS, reading.problem, reading.waiting_rows) for reading in readings]


def _cut(reading: _Reading) -> str:
    path = reading.star.path
    if reading.prefix is None:
        return "" if _is_empty_table(path) else f"{path}: no particle row yet; is it being written?"
    if not tail_is_blank(path, reading.prefix):
        return (
            f"{path}: its last row (after {reading.prefix.num_rows} complete ones) is cut; is it being written? If it "
            f"is complete, only its last newline is missing: add it (echo >> {path.name})"
        )
    return ""


def _is_empty_table(path: Path) -> bool:
    """Return whether a star is complete and has no row, as a selection of nothing."""
    try:
        return not len(next(iter_star(path)))
    except NotSettledError:
        return False


def _unrefused(record: StarRecord) -> StarRecord:
    return replace(record, refused_rows=0, refusal="")


def _require_ctf(path: Path, table: ParticleTable) -> None:
    """Raise InvalidStarError where the CTF of the rows is not given."""
    # Whatever the preprocessing does with it: a checkpoint, perhaps of another session, brings its own, and workers
    # and trainer ask for the CTF and its pixel size of every row.
    try:
        table.ctf_parameters()
    except InvalidStarError as error:
        raise InvalidStarError(f"{path}: its rows have no complete CTF: {error}") from None


def _short(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()[:12]


def _json_bytes(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode() + b"\n"
