"""What we write is what starfile reads, and what we read again."""

from pathlib import Path

import numpy as np
import pytest
import starfile
from samples.stars import quoted_names, relion31, written

from cesped_stream.particles.star import (
    concatenated,
    optics_block,
    particles_header,
    read_star,
    renumber,
    row_line,
    star_bytes,
    write_star,
)
from cesped_stream.particles.table import OpticsGroup, ParticleTable


@pytest.mark.parametrize("data", [relion31(6), relion31(0), quoted_names()])
def test_table_written_and_read_is_the_same(data: bytes, tmp_path: Path) -> None:
    table = read_star(written(tmp_path, data))
    write_star(tmp_path / "again.star", table)
    again = read_star(tmp_path / "again.star")
    assert (again.labels, again.rows, again.optics) == (table.labels, table.rows, table.optics)
    assert again.optics_index.tolist() == table.optics_index.tolist()


def test_rows_written_one_by_one_are_the_whole_star(tmp_path: Path) -> None:
    table = read_star(written(tmp_path, relion31(6)))
    lines = [row_line(row, k + 1) for row, k in zip(table.rows, table.optics_index.tolist(), strict=True)]
    data = b"".join([optics_block(table.optics), particles_header(table.labels), *lines])
    assert star_bytes(table) == data + b"\n"
    assert read_star(written(tmp_path, data)).rows == table.rows


def test_starfile_reads_what_we_write(tmp_path: Path) -> None:
    table = read_star(written(tmp_path, relion31(6)))
    write_star(tmp_path / "ours.star", table)
    ours = starfile.read(tmp_path / "ours.star")
    theirs = starfile.read(tmp_path / "particles.star")
    for block in ("optics", "particles"):
        assert ours[block][theirs[block].columns].equals(theirs[block])


def test_groups_of_different_columns_are_written_with_their_union(tmp_path: Path) -> None:
    a = OpticsGroup((("rlnOpticsGroupName", "a"), ("rlnImagePixelSize", "1.5")))
    b = OpticsGroup((("rlnImagePixelSize", "1.6"), ("rlnCtfDataAreCtfPremultiplied", "1"), ("rlnMagMat00", "1.01")))
    table = ParticleTable(("rlnImageName",), [("1@a.mrcs",), ("2@a.mrcs",)], (a, b), np.array([0, 1]))
    write_star(tmp_path / "x.star", table)
    read = read_star(tmp_path / "x.star")
    assert [group.ctf_premultiplied for group in read.optics] == [False, True]
    assert [group.text("rlnMagMat00") for group in read.optics] == ["1.000000", "1.01"]
    assert read.optics[1].name == "opticsGroup2"


@pytest.mark.parametrize(
    "cell", ["", "two words", "tab\there", " ", "#1", "'", '"', "it's", 'a "b"', "\u00a0", "\x1c", "x "]
)
def test_any_text_of_one_line_survives(cell: str, tmp_path: Path) -> None:
    group = OpticsGroup((("rlnOpticsGroupName", "a b"), ("rlnImagePixelSize", "1.5")))
    labels = ("rlnMicrographName", "rlnImageName", "rlnGroupName")
    table = ParticleTable(labels, [(cell, "1@a.mrcs", cell), ("", "2@a.mrcs", "x y")], (group,), np.zeros(2, np.int64))
    write_star(tmp_path / "x.star", table)
    assert read_star(tmp_path / "x.star").rows == table.rows


@pytest.mark.parametrize("cell", ["two\nlines", "both ' and \"", "zero \0", "return \r"])
def test_text_that_no_star_can_hold_is_refused(cell: str) -> None:
    with pytest.raises(ValueError, match="no star file can hold"):
        row_line(("1@a.mrcs", cell), 1)


def test_groups_are_renumbered_by_content() -> None:
    a, b, c = (OpticsGroup((("rlnImagePixelSize", text),)) for text in ("1.0", "2.0", "3.0"))
    optics, places = renumber([(a, b), (c, b), (b,)])
    assert optics == (a, b, c)
    assert [place.tolist() for place in places] == [[0, 1], [2, 1], [1]]


def test_concatenated_tables_keep_each_rows_optics(tmp_path: Path) -> None:
    table = read_star(written(tmp_path, relion31(6)))
    joined = concatenated([table.select([1, 3]), table.select([0, 2])])
    assert [joined.optics[k].name for k in joined.optics_index] == ["opticsGroup2"] * 2 + ["opticsGroup1"] * 2


def test_groups_without_a_name_get_one_where_others_have_one() -> None:
    groups = [OpticsGroup((("rlnOpticsGroupName", "a"), ("rlnVoltage", "300"))), OpticsGroup((("rlnVoltage", "200"),))]
    lines = optics_block(groups).decode().splitlines()
    assert [line for line in lines if line[:1].isdigit()] == ["1 a 300", "2 opticsGroup2 200"]
