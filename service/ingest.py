"""From settled stars to batches: every row is accepted once, waits for its stack, or is refused with a reason."""

import hashlib
import json
import logging
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cesped_stream.durable import Step, write_whole
from cesped_stream.errors import InvalidStarError, NotSettledError, PermanentError, TransientError
from cesped_stream.particles.star import PrefixChanged, StarPrefix, read_tail, tail_is_blank
from cesped_stream.particles.table import ParticleTable

from .accepting import Acceptance, AcceptedRows, Part, ReadyRows
from .ledger import Ledger, StarRecord
from .session import SessionFolder
from .settings import SessionSettings
from .stack_check import StackCheck
from .watcher import LandedStar, Watcher, signature_of

logger = logging.getLogger(__name__)

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
        self._acceptance = Acceptance(settings, folder, ledger, watcher, has_model, step=step)
        self._stacks = StackCheck(settings.landing, watcher)
        self.marker_seen = False
        """A `.done` marker lay beside an aligned star that was read to its end."""
        self._reading: dict[str, _Reading] = {}
        self._busy = False
        self._signatures = {star.path: star.signature for star in ledger.stars()}

    def stars_landed(self, stars: list[LandedStar], now: float) -> None:
        """Take note of settled stars; one that was read to its end and is unchanged costs nothing."""
        for star in stars:
            path = str(star.path)
            reading = self._reading.get(path)
            if reading is not None:
                if reading.star.signature != star.signature:
                    self._open(star, now, reading)
                elif star.done:
                    reading.star = star
            elif self._signatures.get(path) != json.dumps(star.signature):
                self._open(star, now, None)

    def _open(self, star: LandedStar, now: float, before: _Reading | None) -> None:
        record = self._ledger.star(str(star.path)) or StarRecord(0, str(star.path), "", "", 0, False, 0, "")
        if before is not None:
            reading = replace(before, star=star, tables=None, not_before=now, cut="")
        else:
            prefix = StarPrefix.from_json(json.loads(record.prefix)) if record.prefix else None
            rescan = prefix is None and record.rows_read > 0
            reading = _Reading(star, replace(record, problem=""), None, prefix, rescan)
        reading.tables = read_tail(star.path, reading.prefix, rows_per_table=self._settings.service.batch_rows)
        self._reading[str(star.path)] = reading

    def advance(self, now: float) -> list[AcceptedRows]:
        """Read and accept the next part of the star that landed first, or look again at waiting rows."""
        for path, reading in list(self._reading.items()):
            if reading.not_before > now:
                continue
            self._reading[path] = self._reading.pop(path)
            try:
                accepted, busy = self._advance(reading, now)
            except PrefixChanged:
                self._reading[path] = replace(reading, prefix=None, rescan=True, waiting=[], tables=None)
                self._open(reading.star, now, self._reading[path])
                continue
            except TransientError as error:
                self._postpone(reading, str(error), now, cut=isinstance(error, NotSettledError))
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
            if signature_of(reading.star.path) != reading.star.signature:
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
            reading.cut = _cut(reading)
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
            lost = verdict.refused + (verdict.waiting if late else [])
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
        read, ended = not reading.waiting, reading.tables is None and not reading.cut
        prefix = json.dumps(reading.prefix.to_json()) if read and reading.prefix else reading.record.prefix
        record = replace(
            reading.record,
            prefix=prefix,
            signature=json.dumps(reading.star.signature) if read and ended else "",
            refused_rows=reading.record.refused_rows + len(refused),
        )
        if ready or refused or (read and (ended or prefix != reading.record.prefix)):
            accepted, reading.record = self._acceptance.take(record, reading.star, ready, reading.rescan, now)
        else:
            accepted = []
        if read and ended:
            self._finish(reading)
        return accepted

    def _finish(self, reading: _Reading) -> None:
        path = str(reading.star.path)
        self._signatures[path] = json.dumps(reading.star.signature)
        del self._reading[path]
        (self._folder.quarantine / f"star_{_short(path)}.json").unlink(missing_ok=True)
        if reading.star.done and reading.record.aligned:
            self.marker_seen = True

    def _postpone(self, reading: _Reading, problem: str, now: float, *, cut: bool) -> None:
        """Look again later. A star that stays cut is quarantined like rows whose stack never comes; one that stays
        away is left to the next scan that sees it, unless rows of it are in memory."""
        reading.problem = problem
        reading.failing_since = now if reading.failing_since is None else reading.failing_since
        late = now - reading.failing_since > self._settings.landing.stack_timeout_seconds
        if late and cut:
            self._quarantine_star(reading, problem)
            return
        if late and not reading.waiting:
            logger.warning("star is away", extra={"star": str(reading.star.path), "why": problem})
            del self._reading[str(reading.star.path)]
            return
        reading.not_before = now + self._settings.landing.scan_seconds
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
            record = replace(reading.record, signature=json.dumps(reading.star.signature), problem=problem)
            self._ledger.put_star(record)
        self._signatures[str(reading.star.path)] = json.dumps(reading.star.signature)
        del self._reading[str(reading.star.path)]

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
                self._ledger.put_star(replace(record, signature="", prefix="", problem="", refused_rows=0))
            self._signatures.pop(record.path, None)
            self._reading.pop(record.path, None)
            for reason in self._folder.quarantine.glob(f"*_{_short(record.path)}*.json"):
                reason.unlink()
        return len(records)

    @property
    def waiting_rows(self) -> int:
        return sum(reading.waiting_rows for reading in self._reading.values())

    @property
    def busy(self) -> bool:
        """The last `advance` got something done, so that another one may too."""
        return self._busy

    @property
    def stars_in_hand(self) -> int:
        return len(self._reading)

    def problems(self) -> list[str]:
        return [reading.problem for reading in self._reading.values() if reading.problem]


def _cut(reading: _Reading) -> str:
    path = reading.star.path
    if reading.prefix is None:
        return f"{path}: no particle row yet; is it being written?"
    if not tail_is_blank(path, reading.prefix):
        return (
            f"{path}: its last row (after {reading.prefix.num_rows} complete ones) is cut; is it being written? If it "
            f"is complete, only its last newline is missing: add it (echo >> {path.name})"
        )
    return ""


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
