"""Whatever stands in a table comes back from its star."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cesped_stream.particles.star import read_star, star_bytes
from cesped_stream.particles.table import OpticsGroup, ParticleTable

_CHARACTERS = st.characters(codec="utf-8", exclude_characters="\n\r\0")
TEXTS = st.text(_CHARACTERS, max_size=12).filter(lambda text: not ('"' in text and "'" in text))
ROWS = st.lists(st.tuples(TEXTS, st.integers(1, 2**31 - 1), TEXTS, st.integers(0, 1)), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, names=st.tuples(TEXTS, TEXTS))
def test_any_texts_come_back(rows: list[tuple[str, int, str, int]], names: tuple[str, str]) -> None:
    optics = tuple(
        OpticsGroup((("rlnOpticsGroupName", name), ("rlnImagePixelSize", f"{k + 1}.5"))) for k, name in enumerate(names)
    )
    table = ParticleTable(
        ("rlnMicrographName", "rlnImageName", "rlnGroupName"),
        [(first, f"{index}@a.mrcs", last) for first, index, last, _ in rows],
        optics,
        np.array([group for *_, group in rows], np.int64),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.star"
        path.write_bytes(star_bytes(table))
        again = read_star(path)
    assert (again.labels, again.rows, again.optics) == (table.labels, table.rows, table.optics)
    assert again.optics_index.tolist() == table.optics_index.tolist()
