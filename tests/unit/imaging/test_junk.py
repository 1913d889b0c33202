"""Which rows of a truth are particles."""

import numpy as np

from cesped_stream.imaging.junk import is_particle, kinds_of
from cesped_stream.particles.table import ParticleTable


def rows(**columns: list[str]) -> ParticleTable:
    names = tuple((f"{k}@x.mrcs",) for k in (1, 2, 3))
    return ParticleTable(("rlnImageName",), names, (), np.zeros(3, np.int64)).with_columns(columns)


def test_rows_are_what_their_kind_says_and_particles_where_nobody_says() -> None:
    known = rows(cestreamKind=["particle", "ice", "carbon_edge"])
    assert kinds_of(known) == ["particle", "ice", "carbon_edge"]
    assert is_particle(known).tolist() == [True, False, False]
    assert kinds_of(rows()) == ["particle"] * 3
    assert is_particle(rows()).tolist() == [True] * 3
    assert is_particle(known.select([])).shape == (0,)
