"""What the status says of consensus poses: whose half-sets count, what is newer than the references, what is left."""

from .accepting import NOT_NEWEST, OWN_ROWS, REFINED_CTF
from .consensus import NEWER, NEWER_THAN_REFERENCES, OTHER_SPLIT, REDO_AFTER_TRAINING, TOOK_HALF
from .ledger import BY_HASH, FORMER_SPLIT, FROM_OWN
from .settings import SessionSettings
from .work import Work


def consensus_notes(work: Work, settings: SessionSettings) -> list[str]:
    """Return what a microscopist should know of the aligned rows that came back; nothing where all is as usual."""
    return [note for note in (*_half_set_notes(work, settings), *_pose_notes(work, settings)) if note]


def _half_set_notes(work: Work, settings: SessionSettings) -> list[str]:
    ledger, notes = work.ledger, []
    if many := ledger.counter(TOOK_HALF):
        notes.append(
            f"{many:,} particles took the half-set of the aligned star: they had landed without rlnRandomSubset, and "
            "their half-set by micrograph name was provisional"
        )
    if settings.half_mode == "gold_standard" and (many := work.gate.rows_with(BY_HASH)):
        notes.append(
            f"independence of the half-sets is unknown: {many:,} aligned rows have no rlnRandomSubset, so their poses "
            "may come from one refinement of all particles (Class3D, say)"
        )
    if settings.half_mode == "gold_standard" and (many := work.gate.rows_with(FORMER_SPLIT)):
        notes.append(
            f"independence of the half-sets is unknown: {many:,} aligned rows are of a former refinement with other "
            "half-sets, and the newer one does not name them"
        )
    if ledger.fact(REDO_AFTER_TRAINING):
        notes.append(
            f"the newer aligned star divides the particles otherwise ({ledger.counter(OTHER_SPLIT):,} particles of the "
            "references changed their half-set): references are made anew of it, then all predicted poses are redone"
        )
    return notes


def _pose_notes(work: Work, settings: SessionSettings) -> list[str]:
    ledger, notes = work.ledger, []
    if many := ledger.counter(NEWER):
        later = ledger.counter(NEWER_THAN_REFERENCES)
        behind = (
            f"; {later:,} of them came after the references in use were made: `retrain` makes new ones" if later else ""
        )
        notes.append(f"{many:,} rows have a newer consensus, which replaced their former pose{behind}")
    if many := ledger.counter(NOT_NEWEST):
        notes.append(
            f"{many:,} rows have a newer consensus, which landing.consensus = {settings.landing.consensus} leaves"
        )
    if many := ledger.counter(REFINED_CTF):
        taken = "replaced the one that landed" if settings.landing.refined_ctf == "with_consensus" else "is not taken"
        notes.append(f"{many:,} aligned rows have a refined CTF, which {taken} (landing.refined_ctf)")
    if many := work.gate.rows_with(FROM_OWN):
        notes.append(
            f"{many:,} aligned rows are RELION's refinement of poses that were predicted here "
            "(initialised_from_own_predictions): they are no independent consensus"
        )
    rows = ledger.execute(
        "SELECT name, value FROM facts WHERE name LIKE ? || '%' ORDER BY name", (OWN_ROWS,)
    ).fetchall()
    if rows:
        many, star = sum(int(value) for _, value in rows), str(rows[0][0]).removeprefix(OWN_ROWS)
        more = f" and {len(rows) - 1} more stars" if len(rows) > 1 else ""
        notes.append(f"{many:,} rows of {star}{more} are poses that were predicted here: they are not taken as aligned")
    return notes
