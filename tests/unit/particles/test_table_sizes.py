"""RELION takes the box size from data_optics, so every group that we write has it."""

import numpy as np
import pytest

from cesped_stream.errors import InvalidStarError
from cesped_stream.particles.table import OpticsGroup, ParticleTable


def _table(*values: tuple[str, str]) -> ParticleTable:
    group = OpticsGroup((("rlnOpticsGroupName", "g"), ("rlnImagePixelSize", "1.5"), *values))
    return ParticleTable(
        ("rlnImageName",), [("1@a.mrcs",), ("1@b.mrcs",), ("2@a.mrcs",)], (group,), np.zeros(3, np.int64)
    )


def test_group_with_two_box_sizes_becomes_two() -> None:
    table = _table().with_image_sizes([64, 96, 64])
    assert table.optics_index.tolist() == [0, 1, 0]
    assert [group.text("rlnImageSize") for group in table.optics] == ["64", "96"]
    assert {group.text("rlnImageDimensionality") for group in table.optics} == {"2"}


def test_group_that_names_its_size_stays_as_it_is() -> None:
    table = _table(("rlnImageSize", "64"), ("rlnImageDimensionality", "2"))
    assert table.with_image_sizes([64, 64, 64]).optics == table.optics


def test_group_that_names_another_size_is_refused() -> None:
    with pytest.raises(InvalidStarError, match=r"row 2: optics group 'g' has rlnImageSize 64, the image 96 pixels"):
        _table(("rlnImageSize", "64")).with_image_sizes([64, 96, 64])
