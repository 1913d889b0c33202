"""A table of text columns gives poses, half-sets and CTF in the conventions of RELION."""

from pathlib import Path

import numpy as np
import pytest
from samples.stars import relion30, relion31, written

from cesped_stream.errors import InvalidStarError
from cesped_stream.particles.own_rows import consensus_confidences
from cesped_stream.particles.star import read_star
from cesped_stream.particles.table import OpticsGroup, ParticleTable

GROUP = OpticsGroup((("rlnOpticsGroupName", "g"), ("rlnImagePixelSize", "1.5")))
ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")


def _table(labels: tuple[str, ...], rows: list[tuple[str, ...]]) -> ParticleTable:
    return ParticleTable(labels, rows, (GROUP,), np.zeros(len(rows), np.int64), source="x.star")


def test_view_axis_is_the_last_column_of_the_rotation() -> None:
    rotation = _table(ANGLES, [("30", "90", "-40")]).rotations()[0]
    np.testing.assert_allclose(rotation[:, 2], [np.cos(np.pi / 6), 0.5, 0.0], atol=1e-12)


def test_unset_angles_are_no_pose() -> None:
    table = _table(ANGLES, [("1", "2", "3"), ("1", "2", "-999.0"), ("999", "2", "3"), ("0", "0", "0")])
    assert table.has_poses().tolist() == [True, False, False, True]
    assert _table(ANGLES[:2], [("1", "2")]).has_poses().tolist() == [False]


def test_half_sets_are_relions_subsets_less_one() -> None:
    assert _table(("rlnRandomSubset",), [("1",), ("2",), ("2",)]).half_sets().tolist() == [0, 1, 1]
    with pytest.raises(InvalidStarError, match="rlnRandomSubset is 3"):
        _table(("rlnRandomSubset",), [("3",)]).half_sets()


def test_half_sets_without_subsets_follow_the_micrograph_for_life() -> None:
    names = [f"{1 + k}@{'ab'[k % 2]}.mrcs" for k in range(40)]
    micrographs = [f"mic_{k // 4}.mrc" for k in range(40)]
    rows = list(zip(names, micrographs, strict=True))
    halves = _table(("rlnImageName", "rlnMicrographName"), rows).half_sets()
    assert set(halves.tolist()) == {0, 1}
    assert all(len(set(halves[k : k + 4].tolist())) == 1 for k in range(0, 40, 4))
    turned = _table(("rlnImageName", "rlnMicrographName"), rows[::-1]).half_sets()
    assert turned.tolist() == halves.tolist()[::-1]


def test_half_sets_without_micrographs_follow_the_stack() -> None:
    table = _table(("rlnImageName",), [("1@a.mrcs",), ("2@a.mrcs",), ("9@a.mrcs",)])
    assert len(set(table.half_sets().tolist())) == 1
    assert table.micrographs() == ["a.mrcs"] * 3


def test_ctf_takes_voltage_from_each_rows_optics_group(tmp_path: Path) -> None:
    ctf = read_star(written(tmp_path, relion31(3))).ctf_parameters()
    assert ctf.voltage_kv.tolist() == [300.0, 200.0, 300.0]
    assert ctf.defocus_u_angstrom.tolist() == [11234.25, 11251.25, 11268.25]
    assert ctf.select(slice(1, 2)).amplitude_contrast.tolist() == [0.07]
    assert not ctf.premultiplied.any() and (ctf.scale == 1.0).all()


def test_ctf_without_defocus_is_refused_naming_the_column() -> None:
    with pytest.raises(
        InvalidStarError, match=r"x\.star: no rlnDefocusU, neither a column of the particles nor of data_optics"
    ):
        _table(("rlnImageName",), [("1@a.mrcs",)]).ctf_parameters()


def test_columns_are_replaced_in_place_appended_and_left_out(tmp_path: Path) -> None:
    table = read_star(written(tmp_path, relion30(2)))
    changed = table.with_columns({"rlnMicrographName": ["x", "y"], "rlnRandomSubset": ["1", "2"]})
    assert changed.labels == (*table.labels, "rlnRandomSubset")
    assert changed.column("rlnMicrographName") == ["x", "y"]
    assert changed.without(["rlnRandomSubset", "rlnAbsent"]).labels == table.labels
    with pytest.raises(ValueError, match="1 values for 2 rows"):
        table.with_columns({"rlnRandomSubset": ["1"]})


def test_confidence_is_one_where_the_star_has_none() -> None:
    assert consensus_confidences(_table(("rlnImageName",), [("1@a.mrcs",)])).tolist() == [1.0]
    assert consensus_confidences(_table(("rlnMaxValueProbDistribution",), [("0.25",)])).tolist() == [0.25]
