"""A star cut anywhere is "wait" or a clean prefix, whoever wrote it, and the rest follows later."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from samples.stars import particles_first, quoted_names, relion30, relion31, windows_line_ends

from cesped_stream.errors import NotSettledError
from cesped_stream.particles.star import StarPrefix, concatenated, read_star, read_tail, star_bytes, tail_is_blank
from cesped_stream.particles.table import ParticleTable


def _by_starfile(folder: Path) -> bytes:
    import starfile

    whole = folder / "whole.star"
    whole.write_bytes(relion31(4))
    starfile.write(starfile.read(whole), folder / "starfile.star")
    return (folder / "starfile.star").read_bytes()


def _ours(folder: Path) -> bytes:
    (folder / "whole.star").write_bytes(relion31(4))
    return star_bytes(read_star(folder / "whole.star"))


WRITERS = {
    "relion31": lambda folder: relion31(5),
    "relion30": lambda folder: relion30(4),
    "quoted names": lambda folder: quoted_names(),
    "windows": lambda folder: windows_line_ends(),
    "starfile": _by_starfile,
    "ours": _ours,
    "particles first": lambda folder: particles_first(),
    "particles first, no empty line at the end": lambda folder: particles_first().rstrip() + b"\n",
}


@pytest.fixture(params=WRITERS)
def valid(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    return WRITERS[request.param](tmp_path)


def test_star_cut_at_every_byte_waits_or_gives_a_clean_prefix(valid: bytes, tmp_path: Path) -> None:
    (tmp_path / "whole.star").write_bytes(valid)
    whole = read_star(tmp_path / "whole.star")
    lengths = set()
    for cut, path in _growing(valid, tmp_path):
        try:
            table = read_star(path)
        except NotSettledError:
            continue
        assert valid[:cut].endswith(b"\n")
        assert table.labels == whole.labels and table.optics == whole.optics
        assert table.rows == whole.rows[: len(table)]
        assert table.optics_index.tolist() == whole.optics_index[: len(table)].tolist()
        lengths.add(len(table))
    if not valid.startswith(b"\ndata_particles"):
        assert lengths >= set(range(1, len(whole)))


def test_star_growing_from_every_byte_gives_each_row_once(valid: bytes, tmp_path: Path) -> None:
    complete = tmp_path / "whole.star"
    complete.write_bytes(valid)
    whole = read_star(complete)
    for cut, path in _growing(valid, tmp_path):
        first, prefix = _drained(path, None)
        assert [row for table in first for row in table.rows] == whole.rows[: sum(map(len, first))]
        if prefix is not None:
            assert prefix.length <= cut
            prefix = StarPrefix.from_json(prefix.to_json())
        rest, prefix = _drained(complete, prefix)
        everything = concatenated([*first, *rest])
        assert (everything.rows, everything.optics) == (whole.rows, whole.optics)
        assert everything.optics_index.tolist() == whole.optics_index.tolist()
        assert prefix is not None and tail_is_blank(complete, prefix)


def test_star_cut_inside_a_row_is_known_to_be_unfinished(tmp_path: Path) -> None:
    valid = relion31(3)
    path = tmp_path / "cut.star"
    path.write_bytes(valid[:-30])
    _, prefix = _drained(path, None)
    assert prefix is not None and prefix.num_rows == 2
    assert not tail_is_blank(path, prefix)


def _growing(valid: bytes, folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield the length and path of a file that gets one more byte each time."""
    path = folder / "growing.star"
    with path.open("wb", buffering=0) as stream:
        for cut in range(len(valid)):
            yield cut, path
            stream.write(valid[cut : cut + 1])


def _drained(path: Path, prefix: StarPrefix | None) -> tuple[list[ParticleTable], StarPrefix | None]:
    """Return the tables after the prefix; a star whose data_optics is to follow gives none yet."""
    tables = []
    try:
        for table, after in read_tail(path, prefix, rows_per_table=2):
            assert not table.refused
            tables.append(table)
            prefix = after
    except NotSettledError as error:
        assert "data_optics" in str(error)
    return tables, prefix
