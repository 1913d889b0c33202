"""What the status tells of the landing folder: rows that are refused or wait, and stars that are no inputs."""

import os
from itertools import islice
from typing import Final

from .ledger import Ledger
from .problems import MOST_OF_A_KIND, Cost, Problem
from .watcher import Watcher
from .work import Work

MOST_OF_EACH: Final = 50
"""Stars with refused rows, stars set aside and batches that are put into the list; their number is told whole."""


def first_refusal(ledger: Ledger) -> str:
    """Return star, row and reason of one refused row, of the star that was read last; "" where none is refused."""
    row = ledger.execute(
        "SELECT path, refusal FROM stars WHERE refused_rows > 0 ORDER BY star_id DESC LIMIT 1"
    ).fetchone()
    return f"{row[0]}: {row[1]}" if row else ""


def landing_problems(work: Work, watcher: Watcher, now: float) -> list[Problem]:
    """Return why rows that landed have no pose."""
    return [
        *_refused(work.ledger),
        *_set_aside(work.ledger),
        *_quarantined(work.ledger),
        *work.ingest.problems(),
        *(problem for problem in _restless(work, watcher, now) if problem.cost is Cost.ROWS),
        *(Problem("linked folder", Cost.ROWS, text) for text in watcher.linked_folders),
    ]


def _refused(ledger: Ledger) -> list[Problem]:
    stars = ledger.execute(
        "SELECT path, refused_rows, refusal FROM stars WHERE refused_rows > 0 ORDER BY star_id DESC LIMIT ?",
        (MOST_OF_EACH,),
    ).fetchall()
    return [
        Problem(
            "refused",
            Cost.ROWS,
            f"{path}: {rows:,} rows refused, such as {refusal}; each has its reason in quarantine/; correct the star, "
            "or correct what it names and `requeue` it",
            rows,
        )
        for path, rows, refusal in stars
    ]


def _set_aside(ledger: Ledger) -> list[Problem]:
    rows = ledger.execute(
        "SELECT problem FROM stars WHERE problem != '' ORDER BY star_id DESC LIMIT ?", (MOST_OF_EACH,)
    )
    return [Problem("star", Cost.ROWS, str(row[0])) for row in rows.fetchall()]


def _quarantined(ledger: Ledger) -> list[Problem]:
    rows = ledger.execute(
        "SELECT batch_id, num_rows, reason FROM quarantined ORDER BY batch_id DESC LIMIT ?", (MOST_OF_EACH,)
    )
    return [
        Problem("quarantined", Cost.ROWS, f"batch {batch_id} has quarantined rows: {reason}", many)
        for batch_id, many, reason in rows.fetchall()
    ]


def _restless(work: Work, watcher: Watcher, now: float) -> list[Problem]:
    """Return what is told of stars that never stand still; it costs no rows where rows of them are taken."""
    problems = []
    for star in watcher.restless(now):
        if work.ingest.left(star.path):
            continue
        record = work.ledger.star(star.path)
        rows = record.rows_read if record is not None else 0
        still = f"{star.path}: has not stood still for {star.seconds:.0f} s: {star.why}; "
        taken = f"{rows:,} rows are taken so far, those that two looks at it agree on"
        none = "no row could be taken, no two looks at it agree; write it under another name and rename it when it is "
        none += f"complete, or put {os.path.basename(star.path)}.done beside it"
        problems.append(Problem("never still", Cost.REST if rows else Cost.ROWS, still + (taken if rows else none)))
    return problems


def stars_left(work: Work, watcher: Watcher) -> dict[str, int]:
    """Return how many stars are no inputs, by what they are, the most frequent first."""
    left = work.ingest.stars_left
    left.update({str(why): many for why, many in watcher.left.items()})
    return {str(what): many for what, many in left.most_common()}


def landing_notes(work: Work, watcher: Watcher, now: float) -> list[str]:
    """Return which stars are no inputs, in a line, and which never stand still although their rows are taken."""
    restless = (problem.text for problem in _restless(work, watcher, now) if problem.cost is not Cost.ROWS)
    notes = list(islice(restless, MOST_OF_A_KIND))
    passed_over = watcher.stars_passed_over
    if passed_over:
        stars = "1 intermediate RELION star" if passed_over == 1 else f"{passed_over:,} intermediate RELION stars"
        notes.append(f"{stars} passed over (*_it000_data.star and the like); landing.aligned takes the one it names")
    left = stars_left(work, watcher)
    if left:
        kinds = ", ".join(f"{many:,} {what}" for what, many in left.items())
        notes.append(f"{sum(left.values()):,} stars are no inputs: {kinds}; `cesped-stream doctor` lists them")
    return notes
