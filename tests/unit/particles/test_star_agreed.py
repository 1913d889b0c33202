"""Rows of a star that changes all the time are taken as far as two looks agree, and no further."""

from pathlib import Path

import pytest
from samples.stars import relion31

from cesped_stream.errors import InvalidStarError
from cesped_stream.particles.star import PrefixChanged, StarPrefix, read_bytes_behind, read_star, read_tail
from cesped_stream.particles.star_agreed import look_again
from cesped_stream.particles.table import ParticleTable


def rows_of(path: Path, prefix: StarPrefix | None, agreed: bytes) -> tuple[list[ParticleTable], StarPrefix | None]:
    tables = []
    for table, after in read_bytes_behind(path, prefix, agreed, rows_per_table=3):
        tables.append(table)
        prefix = after
    return tables, prefix


def test_one_look_agrees_with_nothing(tmp_path: Path) -> None:
    star = tmp_path / "a.star"
    star.write_bytes(relion31(7))
    look, agreed = look_again(star, None, None)
    assert agreed == b"" and len(look.lines) == relion31(7).count(b"\n")


def test_the_lines_that_two_looks_share_are_rows_and_the_changed_ones_wait(tmp_path: Path) -> None:
    star = tmp_path / "a.star"
    star.write_bytes(relion31(7))
    look, _ = look_again(star, None, None)
    changed = relion31(9).replace(b"000006@", b"000066@")
    star.write_bytes(changed)
    _, agreed = look_again(star, None, look)
    tables, prefix = rows_of(star, None, agreed)
    assert [row for table in tables for row in table.rows] == read_star(star).rows[:5]
    rest, _ = zip(*read_tail(star, prefix), strict=True)
    assert [row for table in rest for row in table.rows] == read_star(star).rows[5:]


def test_a_star_that_grows_from_every_byte_gives_whole_rows_only(tmp_path: Path) -> None:
    valid = relion31(4)
    (tmp_path / "whole.star").write_bytes(valid)
    whole = read_star(tmp_path / "whole.star").rows
    star = tmp_path / "a.star"
    for first in range(0, len(valid), 7):
        star.write_bytes(valid[:first])
        look, _ = look_again(star, None, None)
        star.write_bytes(valid[: first + 40])
        _, agreed = look_again(star, None, look)
        rows = [row for table in rows_of(star, None, agreed)[0] for row in table.rows]
        assert rows == whole[: len(rows)]
        assert len(rows) == valid[: valid.rfind(b"\n", 0, first) + 1].count(b"@Extract")


def test_zero_bytes_that_both_looks_see_end_what_is_agreed(tmp_path: Path) -> None:
    star = tmp_path / "a.star"
    text = relion31(5)
    place = text.index(b"000004@")
    star.write_bytes(text[:place] + b"\0" * 30 + text[place + 30 :])
    look, _ = look_again(star, None, None)
    _, agreed = look_again(star, None, look)
    assert sum(map(len, rows_of(star, None, agreed)[0])) == 3


def test_accepted_rows_that_changed_are_told(tmp_path: Path) -> None:
    star = tmp_path / "a.star"
    star.write_bytes(relion31(5))
    ((_, prefix),) = read_tail(star, None)
    star.write_bytes(relion31(6).replace(b"000002@", b"000022@"))
    with pytest.raises(PrefixChanged):
        look_again(star, prefix, None)


def test_what_is_no_star_is_refused_at_the_first_look(tmp_path: Path) -> None:
    star = tmp_path / "a.star"
    star.write_bytes(b"\x93NUMPY and more")
    with pytest.raises(InvalidStarError, match="cryoSPARC"):
        look_again(star, None, None)
