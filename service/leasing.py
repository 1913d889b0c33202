"""Who works on which rows: roles as they are heard, pending rows, and leases that come back from silent roles."""

import heapq
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from .ledger import Ledger
from .messages import Heartbeat, Hello, Lease
from .settings import ServiceSettings

SILENT_HEARTBEATS = 6
LOSSES_PER_FAILURE = 5
"""A lost lease (its worker died) may not be the rows' fault: five of them weigh as much as one failure."""
RETRIES_BEFORE_HALVING, MOST_HALVINGS_OF_RETRIES = 3, 4
"""Rows that a retry did not help so often, while others went well, are halved so often at most: not into single rows,
whose leases would keep the workers from the others for as long as a mount is away."""
LEASE_ID_BLOCK = 1000
FIRST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS = 1.0, 60.0


Whole = tuple[int, int, int]
"""(shard, batch, first row) of a lease before it was halved."""


@dataclass(frozen=True)
class Span:
    """Rows of one batch that are to be done. With a `shard_id`, rows at `position` of that shard are to be redone."""

    batch_id: int
    first_row: int
    num_rows: int
    shard_id: int = 0
    position: int = 0
    failures: int = 0
    retries: int = 0
    losses: int = 0
    failing_since: float | None = None
    halvings: int = 0
    whole_first_row: int | None = None
    """First row of the lease that this is a part of since that failed; None where it is no such part."""

    def part(self, first: int, many: int) -> "Span":
        """Return `many` rows from the `first`-th of this span."""
        return replace(self, first_row=self.first_row + first, num_rows=many, position=self.position + first)

    def parted(self) -> "Span":
        """Return the span as one whose parts remember which lease they were of."""
        return self if self.whole_first_row is not None else replace(self, whole_first_row=self.first_row)

    def halves(self) -> list["Span"]:
        """Return the two halves of the span, of at least two rows: one of them may be to blame."""
        return replace(self, halvings=self.halvings + 1).shorter()

    def shorter(self) -> list["Span"]:
        """Return the two halves of the span, of at least two rows, which nothing speaks against."""
        whole, middle = self.parted(), self.num_rows // 2
        return [whole.part(0, middle), whole.part(middle, self.num_rows - middle)]

    def acquitted(self) -> "Span":
        """Return the same rows without anything that speaks against them."""
        return replace(self, failures=0, retries=0, losses=0, failing_since=None, halvings=0)

    @property
    def whole(self) -> "Whole":
        """What tells leases of different rows from parts of one that failed."""
        first = self.first_row if self.whole_first_row is None else self.whole_first_row
        return self.shard_id, self.batch_id, first

    @property
    def order(self) -> tuple[int, int, int, int]:
        return (self.shard_id > 0, self.shard_id, self.batch_id, self.first_row)


@dataclass
class Member:
    """One running worker or trainer."""

    peer: bytes
    role: Literal["worker", "trainer"]
    name: str
    incarnation: str
    pid: int
    device: str
    last_heard: float
    says: str = ""
    progress: int = 0
    particles_per_second: float = 0.0
    lease_ids: set[int] = field(default_factory=set)
    lease: Lease | None = None
    """What it was told of its last lease."""


@dataclass(frozen=True)
class LeaseInHand:
    lease_id: int
    span: Span
    incarnation: str
    checkpoint_id: str
    expires: float


class Members:
    """The roles that said hello and are not silent for more than six heartbeats."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._silence_seconds = SILENT_HEARTBEATS * settings.heartbeat_seconds
        self._members: dict[str, Member] = {}
        self._replaced: set[str] = set()

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    def get(self, incarnation: str) -> Member | None:
        return self._members.get(incarnation)

    def hello(self, peer: bytes, message: Hello, now: float) -> list[Member]:
        """Take a role in; return its former incarnations (same role and name), which are dead."""
        former = [
            member
            for member in self
            if (member.role, member.name) == (message.role, message.name) and member.incarnation != message.incarnation
        ]
        self._replaced.update(member.incarnation for member in former)
        known = self._members.get(message.incarnation)
        if known is not None:
            known.peer, known.last_heard = peer, now
        else:
            self._members[message.incarnation] = Member(
                peer, message.role, message.name, message.incarnation, message.pid, message.device, now
            )
        return former

    def is_replaced(self, incarnation: str) -> bool:
        """Return whether a newer role took this one's name: of two, the newer stays."""
        return incarnation in self._replaced

    def heartbeat(self, message: Heartbeat, now: float) -> bool:
        """Note a heartbeat; return whether its role made progress since the last one."""
        member = self._members.get(message.incarnation)
        if member is None:
            return False
        risen = message.progress > member.progress
        member.last_heard, member.says, member.progress = now, message.state, message.progress
        return risen

    def silent(self, now: float) -> list[Member]:
        return [member for member in self if now - member.last_heard > self._silence_seconds]

    def remove(self, incarnation: str) -> None:
        self._members.pop(incarnation, None)


class PendingRows:
    """Spans that wait for a worker, oldest batch first, rows to redo last; failed ones come back after a while."""

    def __init__(self) -> None:
        self._ready: list[tuple[tuple[int, int, int, int], Span]] = []
        self._later: list[tuple[float, tuple[int, int, int, int], Span]] = []
        self.num_rows = 0

    def add(self, span: Span, not_before: float | None = None) -> None:
        if span.shard_id == 0:
            self.num_rows += span.num_rows
        if not_before is None:
            heapq.heappush(self._ready, (span.order, span))
        else:
            heapq.heappush(self._later, (not_before, span.order, span))

    def take(self, max_rows: int, now: float, *, rather_not: Collection[Whole] = ()) -> Span | None:
        """Return at most `max_rows` rows of the first span, or None where nothing is ready.

        Parts of the leases `rather_not` are taken only where nothing else is ready.
        """
        while self._later and self._later[0][0] <= now:
            _, order, span = heapq.heappop(self._later)
            heapq.heappush(self._ready, (order, span))
        if not self._ready:
            return None
        span = self._first_but(rather_not)
        if span.num_rows > max_rows:
            rest = span.part(max_rows, span.num_rows - max_rows)
            heapq.heappush(self._ready, (rest.order, rest))
            span = span.part(0, max_rows)
        if span.shard_id == 0:
            self.num_rows -= span.num_rows
        return span

    def _first_but(self, rather_not: Collection[Whole]) -> Span:
        """Remove the first ready span that is no part of `rather_not`, or the first of all, and return it."""
        others = [entry for entry in self._ready if entry[1].whole not in rather_not] if rather_not else []
        if not others:
            return heapq.heappop(self._ready)[1]
        chosen = min(others)
        self._ready.remove(chosen)
        heapq.heapify(self._ready)
        return chosen[1]

    def drop_first_poses(self, batch_ids: Collection[int]) -> None:
        """Forget the rows of some batches that wait for their first pose."""

        def stays(span: Span) -> bool:
            return span.shard_id > 0 or span.batch_id not in batch_ids

        self._ready = [entry for entry in self._ready if stays(entry[1])]
        self._later = [entry for entry in self._later if stays(entry[2])]
        heapq.heapify(self._ready)
        heapq.heapify(self._later)
        spans = [entry[1] for entry in self._ready] + [entry[2] for entry in self._later]
        self.num_rows = sum(span.num_rows for span in spans if span.shard_id == 0)

    def drop_redos(self) -> None:
        """Forget the rows to redo (a newer request replaces them)."""
        self._ready = [entry for entry in self._ready if entry[1].shard_id == 0]
        self._later = [entry for entry in self._later if entry[2].shard_id == 0]
        heapq.heapify(self._ready)
        heapq.heapify(self._later)


class Leases:
    """Leases that are out. Ids are reserved in the ledger in blocks, so that none is ever given twice."""

    def __init__(self, ledger: Ledger, settings: ServiceSettings) -> None:
        self._ledger = ledger
        self._settings = settings
        self._in_hand: dict[int, LeaseInHand] = {}
        self._next_id = self._end_id = 0

    def __iter__(self) -> Iterator[LeaseInHand]:
        return iter(list(self._in_hand.values()))

    @property
    def num_rows(self) -> int:
        """Rows that are out for a first pose."""
        return sum(lease.span.num_rows for lease in self if lease.span.shard_id == 0)

    def grant(self, span: Span, checkpoint_id: str, member: Member, now: float) -> LeaseInHand:
        """Lease rows to a worker."""
        if self._next_id == self._end_id:
            self._next_id = self._ledger.reserve_lease_ids(LEASE_ID_BLOCK)
            self._end_id = self._next_id + LEASE_ID_BLOCK
        expires = now + self._settings.lease_expiry_seconds
        lease = LeaseInHand(self._next_id, span, member.incarnation, checkpoint_id, expires)
        self._next_id += 1
        self._in_hand[lease.lease_id] = lease
        member.lease_ids.add(lease.lease_id)
        return lease

    def extend(self, member: Member, now: float) -> None:
        """Let what a worker holds expire later: it makes progress, if slowly."""
        for lease_id in member.lease_ids:
            if (lease := self._in_hand.get(lease_id)) is not None:
                expires = now + self._settings.lease_expiry_seconds
                self._in_hand[lease_id] = replace(lease, expires=expires)

    def get(self, lease_id: int) -> LeaseInHand | None:
        return self._in_hand.get(lease_id)

    def remove(self, lease: LeaseInHand, member: Member | None) -> None:
        self._in_hand.pop(lease.lease_id, None)
        if member is not None:
            member.lease_ids.discard(lease.lease_id)


def lease_rows(settings: ServiceSettings, batch_size: int, particles_per_second: float) -> int:
    """Return how many rows a lease holds: `lease_seconds` of the worker's rate, in whole inference batches."""
    batches = int(particles_per_second * settings.lease_seconds // batch_size)
    return max(1, batches) * batch_size


def backoff_seconds(attempts: int) -> float:
    return float(min(LAST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** (attempts - 1)))


def after_failure(span: Span, *, transient: bool, others_go_well: bool, now: float) -> list[Span]:
    """Return what is to be tried next of rows that failed together.

    Rows that may themselves be to blame are halved, at once, until a failure is a single row's, and counts. A failure
    that a retry can help with counts by time, not by number; while others go well its rows are halved too, so that one
    file that is away keeps few rows waiting.
    """
    since = now if span.failing_since is None else span.failing_since
    if not transient:
        if span.num_rows > 1:
            return span.acquitted().halves()
        return [replace(span, failures=span.failures + 1, failing_since=since)]
    tried = replace(span, retries=span.retries + 1, failing_since=since)
    is_often = tried.retries > RETRIES_BEFORE_HALVING and tried.halvings < MOST_HALVINGS_OF_RETRIES
    return tried.halves() if others_go_well and is_often and span.num_rows > 1 else [tried]


def is_failure(span: Span) -> bool:
    """Return whether one more loss of these rows speaks against them or their worker: of parts any, else the fifth."""
    return span.halvings > 0 or (span.losses + 1) % LOSSES_PER_FAILURE == 0


def after_loss(span: Span, now: float) -> list[Span]:
    """Return what is to be tried next of rows whose worker died: the same ones, or, when that was often, their halves.

    Of rows that are a part already, each loss counts as a failure.
    """
    if is_failure(span) and (span.halvings or span.num_rows > 1):
        return after_failure(span, transient=False, others_go_well=False, now=now)
    return [replace(span, losses=span.losses + 1)]


def after_expiry(span: Span) -> list[Span]:
    """Return what is to be tried next of rows that a worker which still beats did not answer in time: shorter leases;
    a single row after a while, so that one that keeps workers busy for ever does not keep them from the others."""
    return span.shorter() if span.num_rows > 1 else [replace(span, retries=span.retries + 1)]


def has_failed_too_long(span: Span, patience_seconds: float, now: float) -> bool:
    """Return whether retries that can help did not, for longer than the session waits for a file."""
    return span.failing_since is not None and now - span.failing_since > patience_seconds


def is_hopeless(span: Span, settings: ServiceSettings, patience_seconds: float, now: float) -> bool:
    """Return whether the rows failed often enough, or for long enough, to be quarantined."""
    tries = span.failures + span.losses / LOSSES_PER_FAILURE
    return tries >= settings.max_attempts or has_failed_too_long(span, patience_seconds, now)
