"""Rows of one half-set only are refused with what is wrong and what to do."""

import numpy as np
import pytest

from cesped_stream.errors import InvalidStarError
from cesped_stream.particles.half_sets import check_both_halves, one_half_of
from cesped_stream.particles.table import OpticsGroup, ParticleTable


def table(micrographs: list[str], subsets: list[int] | None = None) -> ParticleTable:
    labels = ("rlnImageName", "rlnMicrographName", *(["rlnRandomSubset"] if subsets else []))
    cells = [[str(subset)] for subset in subsets] if subsets else [[] for _ in micrographs]
    rows = [(f"{k + 1}@s.mrcs", name, *more) for k, (name, more) in enumerate(zip(micrographs, cells, strict=True))]
    return ParticleTable(labels, rows, (OpticsGroup(()),), np.zeros(len(rows), np.int64), source="a.star")


def of_one_half(count: int, half: int = 0) -> list[str]:
    names = (f"mic{k}.mrc" for k in range(1000))
    return [name for name in names if table([name]).half_sets()[0] == half][:count]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (table(["a", "b", "c"], [1, 1, 1]), "a.star: all 3 rows have rlnRandomSubset 1 and none 2.*remove the column"),
        (table(["a", "b"], [2, 2]), "all 2 rows have rlnRandomSubset 2 and none 1"),
        (table(["a", "a"], [1, 1]), "there must be more than this one"),
        (table(["a", "a", "a"]), r"a.star: all 3 rows are of one micrograph \(a\).*rlnRandomSubset 1 and 2"),
        (table(of_one_half(5)), "all 5 rows have no rlnRandomSubset.*fall in half-set 0; give more micrographs"),
    ],
)
def test_rows_of_one_half_are_refused_with_why_and_the_remedy(rows: ParticleTable, words: str) -> None:
    with pytest.raises(InvalidStarError, match=words):
        check_both_halves(rows)


def test_rows_of_both_halves_or_none_are_fine() -> None:
    for rows in (table(["a", "b"], [1, 2]), table([of_one_half(1, 0)[0], of_one_half(1, 1)[0]]), table([])):
        assert one_half_of(rows) is None
        check_both_halves(rows)
