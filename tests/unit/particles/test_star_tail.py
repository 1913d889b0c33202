"""A star that grows under one name gives each row once."""

import json
from pathlib import Path

import pytest
from samples.stars import particles_first, relion31, relion31_row, written

from cesped_stream.errors import InvalidStarError, NotSettledError, TransientError, UnreachableFileError
from cesped_stream.particles.star import PrefixChanged, StarPrefix, read_tail, tail_is_blank
from cesped_stream.particles.table import ParticleTable


def drained(path: Path, prefix: StarPrefix | None) -> tuple[list[ParticleTable], StarPrefix]:
    tables = list(read_tail(path, prefix, rows_per_table=4))
    last = tables[-1][1] if tables else prefix
    assert last is not None
    return [table for table, _ in tables], last


def test_tail_gives_only_rows_after_the_prefix_with_their_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, relion31(5))
    _, prefix = drained(path, None)
    with path.open("ab") as stream:
        stream.write((relion31_row(5) + relion31_row(6)).encode())
    (table,), prefix = drained(path, prefix)
    assert table.column("rlnImageName") == ["000006@Extract/job010/mic_2.mrcs", "000007@Extract/job010/mic_0.mrcs"]
    assert table.first_row == 5
    assert prefix.num_rows == 7
    assert prefix.length == path.stat().st_size


def test_rewritten_star_with_more_rows_is_followed_where_its_beginning_is_the_same(tmp_path: Path) -> None:
    path = written(tmp_path, relion31(5)[:-2])
    _, prefix = drained(path, None)
    written(tmp_path, relion31(8))
    (table,), _ = drained(path, prefix)
    assert len(table) == 3


def test_prefix_survives_json(tmp_path: Path) -> None:
    path = written(tmp_path, relion31(3))
    _, prefix = drained(path, None)
    assert StarPrefix.from_json(json.loads(json.dumps(prefix.to_json()))) == prefix


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b"11234.25", b"11234.26"),
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: relion31(9).replace(b"1.330000", b"1.340000"),
    ],
)
def test_changed_prefix_is_told_and_gives_no_row(change: object, tmp_path: Path) -> None:
    path = written(tmp_path, relion31(5))
    _, prefix = drained(path, None)
    written(tmp_path, change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(PrefixChanged, match="first 5 rows changed") as caught:
        list(read_tail(path, prefix))
    assert isinstance(caught.value, TransientError)


def test_wrong_rows_in_the_tail_are_named_by_their_place_in_the_file_and_the_others_are_given(tmp_path: Path) -> None:
    path = written(tmp_path, relion31(5))
    _, prefix = drained(path, None)
    with path.open("ab") as stream:
        stream.write(relion31_row(5).encode() + relion31_row(6).replace("11336.25", "zero").encode())
        stream.write(relion31_row(7).replace("000008@", "0@").encode() + relion31_row(8).encode())
    (table,), prefix = drained(path, prefix)
    assert table.places_in_star() == (5, 8)
    assert [name[:7] for name in table.column("rlnImageName")] == ["000006@", "000009@"]
    assert [place for place, _ in table.refused] == [6, 7]
    assert "row 7, rlnDefocusU: 'zero" in table.refused[0][1]
    assert "row 8, rlnImageName: " in table.refused[1][1]
    assert all(str(path) in why for _, why in table.refused)
    assert prefix.num_rows == 9
    assert tail_is_blank(path, prefix)


def test_rows_with_a_value_too_few_are_refused_alone(tmp_path: Path) -> None:
    data = relion31(4).replace(b"11251.250000", b"")
    (table,), _ = drained(written(tmp_path, data), None)
    assert table.places_in_star() == (0, 2, 3)
    assert "row 2 has 11 values for 12 labels" in table.refused[0][1]


def test_part_whose_rows_are_all_refused_is_told_and_reading_goes_on(tmp_path: Path) -> None:
    data = relion31(6)
    for row in range(4):
        data = data.replace(f"{row + 1:06d}@".encode(), b"0@")
    tables, prefix = drained(written(tmp_path, data), None)
    assert [(len(table), len(table.refused)) for table in tables] == [(0, 4), (2, 0)]
    assert tables[1].places_in_star() == (4, 5)
    assert prefix.num_rows == 6


def test_rows_before_a_hole_are_given_and_the_hole_waits(tmp_path: Path) -> None:
    whole = relion31(5)
    place = whole.index(b"000004@")
    path = written(tmp_path, whole[:place] + b"\0" * 20 + whole[place + 20 :])
    (table,), prefix = drained(path, None)
    assert len(table) == 3
    assert not tail_is_blank(path, prefix)
    path.write_bytes(whole)
    (table,), prefix = drained(path, prefix)
    assert len(table) == 2
    assert tail_is_blank(path, prefix)


def test_rows_of_a_later_block_are_no_particles(tmp_path: Path) -> None:
    path = written(tmp_path, relion31(3) + b"\ndata_other\n\nloop_\n_rlnA #1\n_rlnB #2\n1 2\n")
    tables, prefix = drained(path, None)
    assert sum(map(len, tables)) == 3
    assert tail_is_blank(path, prefix)
    assert list(read_tail(path, prefix)) == []


def test_comment_and_block_that_come_later_are_no_cut_row(tmp_path: Path) -> None:
    path = written(tmp_path, relion31(3))
    _, prefix = drained(path, None)
    with path.open("ab") as stream:
        stream.write(b"\n# version 30001\n\ndata_other\n")
    assert list(read_tail(path, prefix)) == []
    assert tail_is_blank(path, prefix)


def test_star_rewritten_while_it_is_read_gives_no_mixed_row(tmp_path: Path) -> None:
    path = written(tmp_path, relion31(6))
    tables = read_tail(path, None, rows_per_table=2)
    first, prefix = next(tables)
    assert len(first) == 2
    path.write_bytes(relion31(7).replace(b"11234.25", b"11111.11"))
    assert list(tables) == []
    with pytest.raises(PrefixChanged):
        list(read_tail(path, prefix))


def test_star_on_a_failing_disk_is_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, relion31(6))

    def failing(*_: object) -> bytes:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr("cesped_stream.particles.star.refuse_foreign", failing)
    with pytest.raises(UnreachableFileError, match="Stale file handle; is its mount there"):
        list(read_tail(path, None))


def test_second_star_after_the_first_is_refused_by_its_line_also_when_it_comes_later(tmp_path: Path) -> None:
    path = written(tmp_path, relion31(3) + relion31(2))
    with pytest.raises(InvalidStarError, match=r"line 41: another data_optics"):
        list(read_tail(path, None))
    path = written(tmp_path, relion31(3))
    _, prefix = drained(path, None)
    with path.open("ab") as stream:
        stream.write(b"\ndata_particles\n\nloop_\n_rlnMicrographName #1\n_rlnImageName #2\n")
    with pytest.raises(InvalidStarError, match=r"line 39: data_particles holds particles again"):
        list(read_tail(path, prefix))


def test_rows_before_their_optics_wait_and_a_tail_follows_them(tmp_path: Path) -> None:
    # No empty line between, so that the next row lies beyond what was accepted.
    rows, optics = particles_first().split(b" \n\n# version 30001\n\ndata_optics")
    whole = rows + b"data_optics" + optics
    path = written(tmp_path, whole.partition(b"data_optics")[0])
    with pytest.raises(NotSettledError, match="no data_optics with a row stands before them or after them"):
        list(read_tail(path, None))
    path.write_bytes(whole)
    (first, second), prefix = drained(path, None)
    assert (len(first), len(second), prefix.num_rows) == (4, 1, 5)
    prefix = StarPrefix.from_json(json.loads(json.dumps(prefix.to_json())))
    longer = whole.replace(relion31_row(4).encode(), (relion31_row(4) + relion31_row(5)).encode())
    path.write_bytes(longer)
    (table,), after = drained(path, prefix)
    assert table.places_in_star() == (5,)
    assert table.optics == first.optics
    path.write_bytes(longer.replace(b"300.000000", b"200.000000"))
    with pytest.raises(PrefixChanged, match="optics of its rows changed"):
        list(read_tail(path, after))
