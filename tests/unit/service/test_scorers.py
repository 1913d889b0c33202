"""Rows that the references in use are made of get their first pose from a former checkpoint that they are not in."""

from pathlib import Path

from support.session_bench import Bench, fake_references, turn

from cesped_stream_service.leasing import Span
from cesped_stream_service.scorers import Scorers
from cesped_stream_service.training_gate import verify_checkpoint


def scored_by(tmp_path: Path, members: dict[str, list[int]], rows: int = 4) -> list[tuple[int, str]]:
    """Return (rows, checkpoint) of the parts of a batch; the last of `members` is in use, the others are former ones,
    the newest last."""
    bench = Bench(tmp_path / "b", service={"batch_rows": rows})
    bench.land("s", rows)
    core = bench.open()
    for _ in range(6):
        turn(core, bench.clock, [])
    assert core._work is not None
    ledger, tables = core._work.ledger, core._work.tables
    for k, (name, inside) in enumerate(members.items()):
        folder = fake_references(tmp_path, name, tables[1].select(inside))
        ledger.execute(
            "INSERT INTO trainings VALUES(?, 'done', 1, ?, ?, 1.0, '', 'poses', '', 0, 0, 0)",
            (k + 1, name, str(folder)),
        )
    scorers, span, parts = Scorers(ledger, tables, "gold_standard"), Span(1, 0, rows), []
    while span.num_rows:
        part, checkpoint = scorers.first_part(span, verify_checkpoint(folder))
        parts.append((part.num_rows, checkpoint.checkpoint_id if checkpoint else ""))
        span = span.part(part.num_rows, span.num_rows - part.num_rows)
    core.close()
    return parts


def test_rows_that_no_one_checkpoint_may_score_together_get_one_each(tmp_path: Path) -> None:
    parts = scored_by(tmp_path, {"ref-x": [0, 1], "ref-y": [2, 3], "ref-used": [0, 1, 2, 3]})
    assert parts == [(2, "ref-y"), (2, "ref-x")]


def test_a_row_has_its_checkpoint_whatever_stands_beside_it_and_none_where_it_is_in_all(tmp_path: Path) -> None:
    parts = scored_by(tmp_path, {"ref-x": [3], "ref-y": [2, 3], "ref-used": [1, 2, 3]})
    assert parts == [(1, "ref-used"), (1, "ref-y"), (1, "ref-x"), (1, "")]
