"""What the status says of where the poses' references come from."""

from .independence import SHARED, shared_note
from .ledger import UNPOSED_PLACE
from .settings import SessionSettings
from .work import Work


def source_notes(work: Work, settings: SessionSettings) -> list[str]:
    """Return what a microscopist should know of the session's references; nothing where they are the usual ones."""
    notes = []
    orders = work.gate.map_orders
    if settings.reference is not None and work.checkpoint is None and orders.waits():
        rows, least = orders.rows_per_half(), settings.noise_rows_per_half
        notes.append(
            f"reference {settings.reference.name}: poses by it begin once {least} particles of each half-set have "
            f"landed, so far {rows[0]} + {rows[1]}"
        )
    if work.checkpoint is not None and work.checkpoint.independence == SHARED:
        notes.append(
            f"{work.checkpoint.checkpoint_id}: both half-sets' poses come from one map (shared_reference), so their "
            "half maps are not independent"
        )
    elif note := shared_note(_rows_by_checkpoint(work), settings):
        notes.append(note)
    if work.checkpoint is not None:
        notes += [f"{work.checkpoint.checkpoint_id} is in doubt: {doubt}" for doubt in work.checkpoint.doubts]
    if settings.referencing.rebuild_rows:
        rows = work.gate.rebuild_orders.confident_per_half()
        notes.append(
            f"references are made anew at {settings.referencing.rebuild_rows} more confident poses a half-set, so far "
            f"{rows[0]} + {rows[1]}"
        )
    notes += work.gate.waits.notes()
    if many := work.reinference.kept_members():
        notes.append(f"{many} rows keep their pose in the redo: the reference that would redo them is made of them")
    return notes


def _rows_by_checkpoint(work: Work) -> dict[str, int]:
    rows = work.ledger.execute(
        "SELECT checkpoint_id, sum(num_rows) FROM runs WHERE place != ? GROUP BY checkpoint_id", (UNPOSED_PLACE,)
    )
    return {str(name): int(many) for name, many in rows.fetchall()}
