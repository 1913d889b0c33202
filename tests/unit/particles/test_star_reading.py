"""Whole stars: what is read, what is refused, and what the refusal says."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import starfile
from samples.stars import particles_first, quoted_names, relion30, relion31, relion31_row, written

from cesped_stream.errors import InvalidStarError, NotSettledError, UnreachableFileError
from cesped_stream.particles.star import iter_star, optics_block, particles_header, read_star, row_line

RELION30_PIXEL_SIZE = 1e4 * 1.5 / 1e4


def test_every_cell_is_what_starfile_reads(tmp_path: Path) -> None:
    path = written(tmp_path, relion31(9))
    table = read_star(path)
    oracle = starfile.read(path, parse_as_string=list(table.labels))["particles"]
    for label in table.labels:
        assert table.column(label) == oracle[label].tolist()


def test_optics_groups_follow_their_numbers_in_any_order(tmp_path: Path) -> None:
    data = relion31(4).replace(b"\n           1 opticsGroup1", b"\n           7 opticsGroup1")
    data = data.replace(b"           1 11", b"           7 11")
    table = read_star(written(tmp_path, data))
    assert [table.optics[k].name for k in table.optics_index] == ["opticsGroup1", "opticsGroup2"] * 2
    assert table.pixel_sizes_angstrom().tolist() == [1.33, 1.06, 1.33, 1.06]
    assert "rlnOpticsGroup" not in table


def test_equal_optics_groups_become_one(tmp_path: Path) -> None:
    data = relion31(4).replace(
        b"2 opticsGroup2   200.000000     2.700000     0.070000     1.060000",
        b"2 opticsGroup1   300.000000     2.700000     0.100000     1.330000",
    )
    table = read_star(written(tmp_path, data))
    assert len(table.optics) == 1
    assert table.optics_index.tolist() == [0] * 4


def test_relion30_origins_become_angstrom_and_optics_come_from_columns(tmp_path: Path) -> None:
    table = read_star(written(tmp_path, relion30(3)))
    np.testing.assert_allclose(
        table.shifts_angstrom(), np.array([[1.25, -2.5], [2.25, -3.5], [3.25, -4.5]]) * RELION30_PIXEL_SIZE, atol=1e-6
    )
    assert len(table.optics) == 1
    assert table.optics[0].pixel_size_angstrom == RELION30_PIXEL_SIZE
    assert table.ctf_parameters().voltage_kv.tolist() == [300.0] * 3
    assert not {"rlnOriginX", "rlnVoltage", "rlnMagnification"} & set(table.labels)


def test_relion30_optics_are_the_same_group_whatever_stands_before_them(tmp_path: Path) -> None:
    lines = relion30(4).splitlines(keepends=True)
    first_row = next(k for k, line in enumerate(lines) if line.startswith(b"300."))
    lines[first_row] = lines[first_row].replace(b"300.000000", b"200.000000", 1)
    mixed = read_star(written(tmp_path, b"".join(lines)))
    plain = read_star(written(tmp_path, relion30(4)))
    assert len(mixed.optics) == 2
    assert mixed.optics[1] == plain.optics[0]


def test_relion30_priors_in_pixels_become_angstrom(tmp_path: Path) -> None:
    data = relion30(1).replace(b"_rlnOriginX ", b"_rlnOriginXPrior ").replace(b"_rlnOriginY ", b"_rlnOriginYPrior ")
    table = read_star(written(tmp_path, data))
    assert table.column("rlnOriginXPriorAngst") == [f"{1.25 * RELION30_PIXEL_SIZE:.6f}"]


def test_quoted_texts_keep_their_blanks(tmp_path: Path) -> None:
    table = read_star(written(tmp_path, quoted_names()))
    assert table.column("rlnMicrographName") == ["data 01/mic 1.mrc", "data 01/mic 2.mrc", "data_01/mic_3.mrc"]
    assert table.optics[0].name == "grid square 1"


def test_row_may_begin_with_a_micrograph_named_like_a_block_or_a_label(tmp_path: Path) -> None:
    head = b"data_particles\n\nloop_\n_rlnMicrographName #1\n_rlnImageName #2\n_rlnImagePixelSize #3\n"
    rows = b"_first.mrc 1@a.mrcs 1.5\ndata_2.mrc 2@a.mrcs 1.5\n"
    table = read_star(written(tmp_path, head + rows))
    assert table.column("rlnMicrographName") == ["_first.mrc", "data_2.mrc"]


def test_names_beyond_ascii_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, relion31(2).replace(b"mic_1", "Gitter\u00a0\u00fcber_1".encode()))
    assert read_star(path).column("rlnMicrographName")[1] == "MotionCorr/Gitter\u00a0\u00fcber_1.mrc"


def test_star_without_rows_is_an_empty_table(tmp_path: Path) -> None:
    table = read_star(written(tmp_path, relion31(0)))
    assert len(table) == 0
    assert "rlnImageName" in table and len(table.optics) == 2


def test_several_tables_carry_their_first_row(tmp_path: Path) -> None:
    tables = list(iter_star(written(tmp_path, relion31(7)), rows_per_table=3))
    assert [(len(t), t.first_row) for t in tables] == [(3, 0), (3, 3), (1, 6)]


def _row3(old: str, new: str) -> bytes:
    row = relion31_row(2)
    assert old in row
    return relion31(4).replace(row.encode(), row.replace(old, new).encode())


def _particles(num_rows: int) -> bytes:
    return b"\n# version 30001\n\ndata_particles" + relion31(num_rows).partition(b"data_particles")[2]


def _optics_misspelt(block: bytes) -> bytes:
    return relion31(2).replace(b"data_optics", b"data_opticks").replace(b"data_particles", block)


def test_particles_before_optics_are_those_of_the_usual_order(tmp_path: Path) -> None:
    usual = read_star(written(tmp_path, relion31(5)))
    table = read_star(written(tmp_path, particles_first()))
    assert (table.rows, table.optics, table.labels) == (usual.rows, usual.optics, usual.labels)
    assert table.optics_index.tolist() == usual.optics_index.tolist()


@pytest.mark.parametrize("block", [b"data_other\n\nloop_\n_rlnA #1\n_rlnB #2\n1 2\n", b"data_micrographs\n\n_rlnC 3\n"])
def test_tables_of_other_things_after_the_particles_are_passed_over(block: bytes, tmp_path: Path) -> None:
    assert len(read_star(written(tmp_path, relion31(3) + b"\n" + block))) == 3
    assert len(read_star(written(tmp_path, particles_first() + b"\n" + block))) == 5


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (_row3("11268.250000", "nan"), r"row 3, rlnDefocusU: 'nan'"),
        (_row3("11268.250000", "inf"), r"row 3, rlnDefocusU: 'inf'"),
        (_row3("11268.250000", "1e999"), r"row 3, rlnDefocusU: '1e999'"),
        (_row3("11268.250000", "1_268"), r"row 3, rlnDefocusU: '1_268'"),
        (_row3("11268.250000", "\u0661"), r"row 3, rlnDefocusU: '\u0661'"),
        (_row3("11268.250000", "MotionCorr"), r"row 3, rlnDefocusU: 'MotionCorr'"),
        (_row3("11268.250000", ""), r"row 3 has 11 values for 12 labels"),
        (_row3("11268.250000", "1.0 2.0"), r"row 3 has 13 values for 12 labels"),
        (_row3("000003@", "0@"), r"row 3, rlnImageName: .* image 0 cannot be"),
        (_row3("000003@", "-1@"), r"row 3, rlnImageName: '-1@Extract/.*' is no image name"),
        (_row3("000003@", "1000000000000@"), r"row 3, rlnImageName: .* image 1000000000000 cannot be"),
        (_row3("000003@", "1e12@"), r"row 3, rlnImageName: '1e12@Extract/.*' is no image name"),
        (_row3("           1 11268", "           9 11268"), r"row 3, rlnOpticsGroup: '9' is not in data_optics"),
        (
            _row3("           1 \n", "           3 \n"),
            r"row 3, rlnRandomSubset: '3' is no half-set: RELION knows 1 and 2",
        ),
        (relion31(2).replace(b"_rlnImageName", b"_rlnImagename"), r"data_particles has no rlnImageName"),
        (relion31(2).replace(b"_rlnAngleTilt", b"_rlnAngleRot"), r"names _rlnAngleRot twice"),
        (_optics_misspelt(b"data_images"), r"no data_optics stands before"),
        (relion31(2) + relion31(2), r"line 40: another data_optics after the particles; .*relion_star_handler"),
        (relion31(2) + _particles(2), r"line 40: data_particles holds particles again"),
        (relion30(2) + relion30(2), r"line 21: data_ holds particles again, after those before it"),
        (relion30(2) + relion31(2), r"line 23: another data_optics after the particles"),
        (particles_first() + relion31(2), r"line 41: another data_optics after the particles"),
        (
            relion31(2).replace(b"1.330000", b"0.000000"),
            r"group 'opticsGroup1', rlnImagePixelSize: '0.000000' must be above 0",
        ),
        (relion31(2).replace(b"1.330000", b"wide"), r"'opticsGroup1', rlnImagePixelSize: 'wide'"),
        (relion31(2).replace(b"_rlnImagePixelSize", b"_rlnPixels"), r"has no rlnImagePixelSize"),
        (relion31(2).replace(b" 1.330000 ", b" "), r"data_optics row 1 has 5 values for 6 labels"),
        (relion31(2).replace(b"   2 opticsGroup2", b"   1 opticsGroup2"), r"rlnOpticsGroup is '1'; it must be a new"),
        (relion30(2).replace(b"_rlnDetectorPixelSize", b"_rlnDetector"), r"no pixel size"),
        (b"data_micrographs\n\nloop_\n_rlnMicrographName #1\na.mrc\n", r"data_micrographs has no rlnImageName"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': [('uid', '<u8')]}\n", r"cryoSPARC dataset .*csparc2star"),
        (b"\xef\xbb\xbfdata_\n", r"byte order mark"),
        (b"%PDF-1.7\n", r"starts with b'%PDF-1.7"),
        (b"\xc8\x00\x00\x00" * 400 + b"\n", r"not with a data_ block"),
        (b"data_\n" + b"x" * 3_000_000 + b"\n", r"more than 1 MiB"),
        (relion31(2).replace(b"mic_1", b"mic_\xff"), r"not UTF-8"),
        (quoted_names().replace(b'1.mrc"', b"1.mrc"), r"a quote is not closed"),
    ],
)
def test_wrong_star_is_refused_saying_where(data: bytes, says: str, tmp_path: Path) -> None:
    path = written(tmp_path, data)
    with pytest.raises(InvalidStarError, match=says) as caught:
        read_star(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no newline at its end"),
        (relion31(3)[:-3], "no newline at its end"),
        (relion31(3).partition(b"000001@")[0], "no particle row yet"),
        (relion31(3).partition(b"data_particles")[0], "found: data_optics"),
        (relion31(3).replace(b"000003@Extract", b"\0\0\0\0\0\0\0Extract"), "zero bytes"),
        (b"\0" * 512 + b"\n", "zero bytes"),
        (_optics_misspelt(b"data_particles"), "no data_optics with a row stands before them or after them"),
        (_particles(3), "no data_optics with a row"),
        (particles_first().partition(b"           2 opticsGroup2")[0], "rows name optics group 2, which data_optics"),
    ],
)
def test_unfinished_star_waits(data: bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(NotSettledError, match=says):
        read_star(written(tmp_path, data))


def test_star_that_changes_while_it_is_read_waits(tmp_path: Path) -> None:
    path = written(tmp_path, relion31(6))
    tables = iter_star(path, rows_per_table=2)
    next(tables)
    with path.open("ab") as stream:
        stream.write(relion31_row(6).encode())
    with pytest.raises(NotSettledError, match="changed while it was read"):
        list(tables)


@pytest.mark.parametrize(
    "make", [lambda path: None, lambda path: path.mkdir(), lambda path: __import__("os").mkfifo(path)]
)
def test_what_is_no_regular_file_is_unreachable(make: object, tmp_path: Path) -> None:
    path = tmp_path / "x.star"
    make(path)  # type: ignore[operator]
    with pytest.raises(UnreachableFileError, match=r"x\.star"):
        read_star(path)


def _big_star(path: Path, num_rows: int) -> None:
    table = read_star(written(path.parent, relion31(6), "small.star"))
    lines = [row_line(row, 1) for row in table.rows]
    with path.open("wb") as stream:
        stream.write(optics_block(table.optics) + particles_header(table.labels))
        for _ in range(num_rows // 6):
            stream.writelines(lines)


def test_memory_of_streaming_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    peaks = []
    for num_rows in (4002, 12006):
        _big_star(tmp_path / "big.star", num_rows)
        tracemalloc.start()
        assert sum(len(table) for table in iter_star(tmp_path / "big.star", rows_per_table=300)) == num_rows
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 6e6


_COUNT_AND_PEAK = """
import resource, sys
from pathlib import Path
from cesped_stream.particles.star import iter_star
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
rows = sum(len(table) for table in iter_star(Path(sys.argv[1])))
print(rows, peak() - before)
"""


@pytest.mark.slow
def test_a_million_rows_are_streamed_in_32_mib(tmp_path: Path) -> None:
    _big_star(tmp_path / "million.star", 1_000_002)
    output = subprocess.run(
        [sys.executable, "-c", _COUNT_AND_PEAK, str(tmp_path / "million.star")],
        capture_output=True,
        check=True,
        text=True,
    )
    rows, peak_mib = map(int, output.stdout.split())
    assert rows == 1_000_002
    assert peak_mib < 32
