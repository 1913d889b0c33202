"""What a session waits for, in words: for the status, the live view and the plain lines."""

import math
from collections.abc import Set

from .messages import ALIGNED
from .settings import SessionSettings
from .training_gate import ORDERED
from .watcher import Watcher
from .work import Work


def waits_for(work: Work, watcher: Watcher, settings: SessionSettings, roles: Set[str], now: float) -> tuple[str, ...]:
    """Return what has to come before the session goes on; nothing where it has work, or all is done.

    `roles` are the kinds of those that are connected.
    """
    return (*_files(work, watcher, settings), *_aligned_rows(work, settings, now), *_missing_roles(work, roles))


def rows_in_hand(work: Work) -> tuple[str, ...]:
    """Return what a stop waits for."""
    leases = list(work.leases)
    rows, workers = sum(lease.span.num_rows for lease in leases), len({lease.incarnation for lease in leases})
    if not rows:
        return ()
    return (f"{rows:,} rows in hand at {workers} worker{'s' * (workers != 1)}",)


def _files(work: Work, watcher: Watcher, settings: SessionSettings) -> list[str]:
    words = []
    if settling := watcher.stars_unsettled:
        stars = "1 star" if settling == 1 else f"{settling:,} stars"
        words.append(f"{stars} to settle (unchanged for {settings.landing.settle_seconds:g} s)")
    if rows := work.ingest.waiting_rows:
        words.append(f"the stacks of {rows:,} rows")
    landed = work.ledger.scalar("SELECT count(*) FROM batches")
    if not (words or landed or work.ingest.stars_in_hand):
        refused = work.ledger.scalar("SELECT sum(refused_rows) FROM stars")
        none = f"all {refused:,} that landed were refused" if refused else "no star has landed"
        words.append(f"rows: {none} in {settings.landing.folder}")
    return words


def _aligned_rows(work: Work, settings: SessionSettings, now: float) -> list[str]:
    """Say what the first order on aligned rows, or the one that was asked for, still lacks."""
    gate, ledger = work.gate, work.ledger
    if ledger.scalar("SELECT count(*) FROM trainings WHERE state = ?", (ORDERED,)):
        return []
    trained = ledger.scalar("SELECT count(*) FROM trainings WHERE source = ?", (ALIGNED,))
    halves, least = gate.aligned_per_half(), settings.min_aligned_per_half
    nothing_yet = work.checkpoint is None and ledger.scalar("SELECT count(*) FROM batches")
    if (trained or settings.checkpoint) and not gate.requested:
        return []
    words = []
    missing = [max(0, least - rows) for rows in halves]
    if any(missing) and (nothing_yet or any(halves)):
        words.append(f"{missing[0]:,} + {missing[1]:,} more aligned rows ({least:,} a half)")
    elif not any(missing) and (seconds := math.ceil(gate.quiet_seconds_left(now))):
        words.append(f"{seconds:,} s without a new aligned row")
    if gate.map_orders.waits():
        least = settings.noise_rows_per_half
        missing = [max(0, least - rows) for rows in gate.map_orders.rows_per_half()]
        if any(missing):
            words.insert(0, f"{missing[0]:,} + {missing[1]:,} more rows to learn the noise from ({least:,} a half)")
    return words


def _missing_roles(work: Work, roles: Set[str]) -> list[str]:
    words = []
    if "trainer" not in roles and work.gate.order() is not None:
        words.append("a trainer: none is connected")
    if (
        "worker" not in roles
        and work.checkpoint is not None
        and (work.pending.num_rows or work.reinference.shards_left())
    ):
        words.append("a worker: none is connected")
    return words
