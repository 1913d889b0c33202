"""Whose fault a failure is: a worker that fails leases of different rows, and no other, is set aside, not the rows."""

import logging
from collections.abc import Collection
from dataclasses import dataclass, field

from .leasing import Span, Whole

logger = logging.getLogger(__name__)

FAILED_WHOLES = 3
"""A worker that failed leases of so many different rows since it last did one is set aside."""
FAILURES_BEFORE_OTHER_ROWS = 3
"""After so many failures in a row (a lease and parts of it) a worker is given other rows, if there are any: whether it
can do those tells whose fault it is."""
FIRST_REST_SECONDS, LAST_REST_SECONDS = 60.0, 960.0


@dataclass
class _Record:
    """What a worker has failed since it last did a lease, all with one checkpoint."""

    checkpoint_id: str
    num_failures: int = 0
    wholes: set[Whole] = field(default_factory=set)
    quarantined: list[Span] = field(default_factory=list)
    num_rests: int = 0
    rests_until: float = float("-inf")
    why: str = ""


class WorkerRecords:
    """What each worker failed, by name: one that is started again under its name has not done better yet."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}
        self._last_success = float("-inf")

    def succeeded(self, worker: str, now: float) -> None:
        """Note that a worker did a lease: what it failed before was the rows' fault."""
        self._records.pop(worker, None)
        self._last_success = now

    def others_go_well_since(self, since: float | None) -> bool:
        """Return whether any lease was done since a time."""
        return since is not None and self._last_success >= since

    def failed(self, worker: str, checkpoint_id: str, span: Span, why: str, now: float) -> bool:
        """Note a failure that may be the worker's fault; return whether the worker is set aside for it."""
        record = self._records.get(worker)
        if record is None or record.checkpoint_id != checkpoint_id:
            record = self._records[worker] = _Record(checkpoint_id)
        record.num_failures += 1
        record.wholes.add(span.whole)
        record.why = why
        if len(record.wholes) < FAILED_WHOLES:
            return False
        pause = min(LAST_REST_SECONDS, FIRST_REST_SECONDS * 2.0**record.num_rests)
        record.num_rests += 1
        record.rests_until = now + pause
        logger.error("worker set aside", extra={"role_name": worker, "seconds": pause, "why": why})
        return True

    def quarantined(self, worker: str, span: Span) -> None:
        """Note rows that were quarantined on this worker's word."""
        if (record := self._records.get(worker)) is not None:
            record.quarantined.append(span)

    def take_quarantined(self, worker: str) -> list[Span]:
        """Return, once, the rows that were quarantined on a worker's word since it last did a lease."""
        record = self._records.get(worker)
        if record is None:
            return []
        spans, record.quarantined = record.quarantined, []
        return spans

    def rests(self, worker: str, checkpoint_ids: Collection[str], now: float) -> bool:
        """Return whether a worker is set aside now for what it failed with one of the checkpoints in use.

        After its rest it is tried with one lease."""
        record = self._records.get(worker)
        return record is not None and record.checkpoint_id in checkpoint_ids and now < record.rests_until

    def rather_not(self, worker: str) -> frozenset[Whole]:
        """Return the leases whose parts a worker is not given while there are other rows."""
        record = self._records.get(worker)
        if record is None or record.num_failures < FAILURES_BEFORE_OTHER_ROWS:
            return frozenset()
        return frozenset(record.wholes)

    def problem(self, worker: str) -> str:
        """Return what to say of a worker that is set aside."""
        record = self._records[worker]
        return (
            f"{worker} is set aside: it failed leases of {len(record.wholes)} different parts of the data and has done "
            f"none since, the last with {record.why}; no row is quarantined for that. It is tried again now and then "
            f"(at least every {LAST_REST_SECONDS / 60:.0f} minutes): look at its device, its memory and its log"
        )
