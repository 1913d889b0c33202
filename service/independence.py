"""How independent the half-sets are of poses that several checkpoints made. No torch here."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cesped_stream.errors import CespedStreamError
from cesped_stream.particles.own_columns import CHECKPOINT
from cesped_stream.particles.table import ParticleTable
from cesped_stream.published import read_listing

from .finished import NO_CHECKPOINT
from .session import SessionFolder
from .settings import SessionSettings

SHARED, INDEPENDENT, UNKNOWN = "shared_reference", "independent", "unknown"


def least_independent(found: Iterable[str]) -> str:
    """Return the least independent of what several checkpoints' halves are; of none `unknown`."""
    found = set(found)
    return SHARED if SHARED in found else INDEPENDENT if found == {INDEPENDENT} else UNKNOWN


def independence_of(used: Iterable[str], checkpoints: Path, given: str, alignment: str) -> str:
    """Return the independence of rows by their `cestreamCheckpoint`.

    `checkpoints` is the session's folder of them, `given` the one that its settings name; rows that no checkpoint posed
    are as independent as their `alignment` was.
    """
    return least_independent(
        alignment if name == NO_CHECKPOINT else _stated(name, checkpoints, given) for name in sorted(set(used))
    )


def independence_of_rows(exported: Sequence[ParticleTable], session: SessionSettings) -> str:
    """Return the independence of all predicted rows of a session's export, whichever checkpoint is in use by then."""
    used = {name for table in exported for name in table.column(CHECKPOINT)} - {NO_CHECKPOINT}
    checkpoints = SessionFolder.of(session).checkpoints
    return independence_of(used, checkpoints, session.checkpoint, session.training.alignment)


def rows_by_checkpoint(exported: Iterable[ParticleTable]) -> Counter[str]:
    """Return how many rows of a session's export have which `cestreamCheckpoint`."""
    return Counter(name for table in exported for name in table.column(CHECKPOINT))


def shared_note(rows_of: Mapping[str, int], settings: SessionSettings) -> str:
    """Return what is to be told of a session's rows, by their `cestreamCheckpoint`, that one map for both half-sets
    posed; "" where there are none."""
    checkpoints = SessionFolder.of(settings).checkpoints
    shared = {name: rows for name, rows in rows_of.items() if name != NO_CHECKPOINT and rows}
    shared = {name: n for name, n in shared.items() if _stated(name, checkpoints, settings.checkpoint) == SHARED}
    if not shared:
        return ""
    return (
        f"{sum(shared.values()):,} poses come from one map for both half-sets (shared_reference: "
        f"{', '.join(sorted(shared))}), so half maps of them are not independent; `reinfer` redoes them with the "
        "checkpoint in use"
    )


def _stated(checkpoint_id: str, checkpoints: Path, given: str) -> str:
    for folder in (checkpoints / checkpoint_id, Path(given)):
        try:
            listing = read_listing(folder)
        except CespedStreamError:
            continue
        if listing.checkpoint_id == checkpoint_id:
            return listing.independence
    return UNKNOWN
