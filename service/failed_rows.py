"""Rows whose lease failed: tried again, in halves until the one to blame is alone, or set aside with the reason."""

import json
import logging
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from cesped_stream.durable import Step, write_whole
from cesped_stream.particles.stacks import STACK_LABEL

from .finished import BatchTables
from .leasing import (
    LeaseInHand,
    PendingRows,
    Span,
    after_expiry,
    after_failure,
    after_loss,
    backoff_seconds,
    has_failed_too_long,
    is_failure,
    is_hopeless,
)
from .ledger import Ledger
from .reinfer import Reinference
from .session import SessionFolder
from .settings import SessionSettings
from .worker_records import WorkerRecords

logger = logging.getLogger(__name__)

NAMED_ROWS = 100
"""Rows that a reason file names one by one."""
_AROUND_CELLS = {b" ", b"\t", b"\r", b"\n", b'"', b"'", b""}


@dataclass(frozen=True)
class LeaseFailure:
    """What became of a lease that was not done."""

    worker: str
    checkpoint_id: str
    why: str
    transient: bool
    """A retry can help: a file, a mount or the worker is to blame."""
    worker_at_fault: bool = False
    row: int = -1
    """Row of the span that alone is to blame, -1 where that is not known."""


class FailedRows:
    """Tries rows that failed again and quarantines those that always fail, one by one."""

    def __init__(
        self,
        settings: SessionSettings,
        folder: SessionFolder,
        ledger: Ledger,
        tables: BatchTables,
        reinference: Reinference,
        pending: PendingRows,
        problems: dict[str, str],
        *,
        step: Step,
    ) -> None:
        """`problems` is what the status says; it is written to."""
        self._settings = settings
        self._folder = folder
        self._ledger = ledger
        self._tables = tables
        self._reinference = reinference
        self._pending = pending
        self._problems = problems
        self._step = step
        self.workers = WorkerRecords()

    def failed(self, span: Span, failure: LeaseFailure, now: float) -> None:
        """Try rows that failed again, in halves where any of them may be to blame; a row that is known to be, alone.

        Rows that failed with a worker which does no others either are only put back.
        """
        is_known = 0 <= failure.row < span.num_rows and not failure.transient
        may_be_worker = failure.worker_at_fault or not (failure.transient or is_known)
        if may_be_worker and self.workers.failed(failure.worker, failure.checkpoint_id, span, failure.why, now):
            self._set_aside(failure.worker, span)
            return
        if is_known:
            span = span.parted()
            before, after = span.part(0, failure.row), span.part(failure.row + 1, span.num_rows - failure.row - 1)
            for others in (before, after):
                self.put_back(others, failure.why, now)
            span = span.part(failure.row, 1)
        go_well = self.workers.others_go_well_since(span.failing_since)
        for part in after_failure(span, transient=failure.transient, others_go_well=go_well, now=now):
            self.put_back(part, failure.why, now, failure.worker)

    def lost(self, lease: LeaseInHand, worker: str, now: float) -> None:
        """Try rows again whose worker ("": not known any more) died: in halves, when that has happened so often that
        they may be to blame."""
        span, why = lease.span, "its workers died"
        if worker and is_failure(span) and self.workers.failed(worker, lease.checkpoint_id, span, why, now):
            self._set_aside(worker, span)
            return
        for part in after_loss(span, now):
            self.put_back(part, why, now, worker)

    def expired(self, span: Span, now: float) -> None:
        """Try rows again whose worker beats on without progress: that says nothing against them."""
        for part in after_expiry(span):
            self.put_back(part, "its leases expired", now)

    def done(self, span: Span, worker: str, now: float) -> None:
        """Note that a worker did a lease."""
        self.workers.succeeded(worker, now)
        self._problems.pop(_of_worker(worker), None)
        if span.failures or span.retries or span.whole_first_row is not None:
            self._problems.pop(_of_batch(span), None)

    def put_back(self, span: Span, why: str, now: float, worker: str = "") -> None:
        """Let rows be leased again, after a while where they failed; quarantine those that failed too often."""
        if span.num_rows == 0 or (span.shard_id and self._reinference.checkpoint is None):
            return
        patience = self._settings.landing.stack_timeout_seconds
        if is_hopeless(span, self._settings.service, patience, now):
            too_long = has_failed_too_long(span, patience, now)
            if too_long and span.num_rows > 1 and self.workers.others_go_well_since(span.failing_since):
                for half in span.halves():
                    self._pending.add(half)
                return
            self.quarantine(span, why)
            self.workers.quarantined(worker, span)
            return
        tries = span.failures + span.retries
        self._pending.add(span, now + backoff_seconds(tries) if tries else None)
        if tries or span.whole_first_row is not None:
            how = "tried again" if tries else "tried again in parts"
            self._problems[_of_batch(span)] = f"batch {span.batch_id}: {why}; {how}"

    def quarantine(self, span: Span, why: str) -> None:
        """Set rows aside with a reason file. Rows that were only to be redone keep their pose instead."""
        particles = self._named(span)
        why = f"{_words_of(particles)}: {why}"
        reason = {
            "batch": str(self._folder.batch_star(span.batch_id)),
            "first_row": span.first_row + 1,
            "num_rows": span.num_rows,
            "particles": particles,
            "reason": why,
            "remedy": "when the cause is gone: "
            + ("cesped-stream reinfer" if span.shard_id else f"cesped-stream requeue --batch {span.batch_id}"),
        }
        write_whole(self._reason_file(span), json.dumps(reason, indent=1).encode() + b"\n", step=self._step)
        logger.error("rows quarantined", extra={"batch_id": span.batch_id, "rows": span.num_rows, "why": why})
        self._problems.pop(_of_batch(span), None)
        with self._ledger.transaction("rows quarantined"):
            if span.shard_id:
                self._ledger.executemany(
                    "INSERT OR IGNORE INTO staged VALUES(?, ?, '')",
                    [(span.shard_id, span.position + k) for k in range(span.num_rows)],
                )
            else:
                self._ledger.execute(
                    "INSERT INTO quarantined VALUES(?, ?, ?, ?)", (span.batch_id, span.first_row, span.num_rows, why)
                )
                self._ledger.mark_complete([span.batch_id])
        if span.shard_id:
            self._reinference.switch_ready({span.shard_id})

    def bring_back(self, spans: Sequence[Span]) -> None:
        """Let rows be leased again, as if nothing had been, those of them that are quarantined still."""
        if not spans:
            return
        here = "batch_id = ? AND first_row = ?"
        with self._ledger.transaction("rows requeued"):
            deleted = [
                self._ledger.execute(f"DELETE FROM quarantined WHERE {here}", (span.batch_id, span.first_row)).rowcount
                for span in spans
            ]
            self._ledger.mark_complete([span.batch_id for span in spans])
        for span, was_there in zip(spans, deleted, strict=True):
            if was_there:
                self._pending.add(Span(span.batch_id, span.first_row, span.num_rows))
                self._reason_file(span).unlink(missing_ok=True)

    def _set_aside(self, worker: str, span: Span) -> None:
        """Put back what a worker failed that does no rows: also what was quarantined on its word alone."""
        self._pending.add(span.acquitted())
        self.bring_back([taken for taken in self.workers.take_quarantined(worker) if not taken.shard_id])
        self._problems[_of_worker(worker)] = self.workers.problem(worker)
        self._problems.pop(_of_batch(span), None)

    def _reason_file(self, span: Span) -> Path:
        return self._folder.quarantine / f"batch_{span.batch_id:06d}_row_{span.first_row}.json"

    def _named(self, span: Span) -> list[dict[str, str | int]]:
        """Return image, stack, star and line of the first rows of a span."""
        table = self._tables.rows(span.batch_id, span.first_row, min(span.num_rows, NAMED_ROWS))
        found = self._ledger.execute(
            "SELECT path FROM stars JOIN batches USING(star_id) WHERE batch_id = ?", (span.batch_id,)
        ).fetchone()
        star = str(found[0]) if found else ""
        images = table.column("rlnImageName")
        stacks = table.column(STACK_LABEL)
        lines = lines_of(Path(star), images)
        return [
            {"image": image, "stack": unquote(stack), "star": star, "line": line}
            for image, stack, line in zip(images, stacks, lines, strict=True)
        ]


def lines_of(star: Path, images: Sequence[str]) -> list[int]:
    """Return the line of a star, from 1, in which each image name stands; 0 where it does not, or cannot be read."""
    try:
        with open(star, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
            return [_line_of(text, image.encode()) for image in images]
    except (OSError, ValueError):
        return [0] * len(images)


def _line_of(text: mmap.mmap, image: bytes) -> int:
    place = text.find(image)
    while place >= 0:
        end = place + len(image)
        if {text[place - 1 : place], text[end : end + 1]} <= _AROUND_CELLS:
            return text[:place].count(b"\n") + 1
        place = text.find(image, end)
    return 0


def _words_of(particles: Sequence[dict[str, str | int]]) -> str:
    first = particles[0]
    line = f"line {first['line']} of " if first["line"] else ""
    more = f" and {len(particles) - 1} more" if len(particles) > 1 else ""
    return f"{first['image']}{more} ({line}{first['star']})"


def _of_worker(worker: str) -> str:
    return f"worker {worker}"


def _of_batch(span: Span) -> str:
    return f"batch {span.batch_id}"
