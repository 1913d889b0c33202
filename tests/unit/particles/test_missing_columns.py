"""Rows of different stars side by side: each column is every row's own, RELION's "no column", or left out."""

import numpy as np
import pytest

from cesped_stream.particles.missing_columns import (
    NEUTRAL_OPTICS,
    NEUTRAL_VALUES,
    filled_rows,
    noise_group,
    shared_columns,
    shared_optics,
)
from cesped_stream.particles.table import OpticsGroup, ParticleTable

PLAIN = OpticsGroup((("rlnOpticsGroupName", "a"), ("rlnVoltage", "300")))


def table_of(*optics: OpticsGroup, **columns: str) -> ParticleTable:
    """Return a row for each group, with these cells."""
    rows = [tuple(columns.values())] * len(optics)
    return ParticleTable(tuple(columns), rows, optics, np.arange(len(optics)))


def filled(table: ParticleTable, *labels: str) -> list[str]:
    (row,) = filled_rows(labels, table)
    return list(row)


def test_what_relion_reads_as_no_column_is_filled_and_the_rest_left_out() -> None:
    a = table_of(PLAIN, rlnImageName="1@a.mrcs", rlnNormCorrection="0.9", rlnMtfFileName="k2.star", rlnCoordinateX="7")
    b = table_of(PLAIN, rlnImageName="1@b.mrcs", rlnCtfScalefactor="0.5")
    columns = shared_columns((table.labels, table.optics) for table in (a, b))
    assert columns.kept == ("rlnImageName", "rlnNormCorrection", "rlnCtfScalefactor")
    assert columns.left_out == ("rlnMtfFileName", "rlnCoordinateX")
    assert filled(a, *columns.kept) == ["1@a.mrcs", "0.9", "1.000000"]
    assert filled(b, *columns.kept) == ["1@b.mrcs", "1.000000", "0.5"]


def test_rows_with_the_same_columns_lose_none() -> None:
    table = table_of(PLAIN, rlnImageName="1@a.mrcs", rlnMtfFileName="k2.star", fooBar="x")
    assert shared_columns([(table.labels, table.optics)] * 2).kept == table.labels


def test_a_random_subset_stands_on_every_row_or_on_none() -> None:
    layouts = [(("rlnImageName", "rlnRandomSubset"), (PLAIN,)), (("rlnImageName",), (PLAIN,))]
    assert shared_columns(layouts).left_out == ("rlnRandomSubset",)


def test_a_row_takes_its_optics_groups_value_before_a_neutral_one() -> None:
    """RELION prefers the row's: a 0 there would undo the phase plate that the group tells of."""
    plate = OpticsGroup((*PLAIN.values, ("rlnPhaseShift", "90.0")))
    table = table_of(plate, PLAIN, rlnImageName="1@a.mrcs")
    labels = ("rlnImageName", "rlnPhaseShift", "rlnVoltage")
    assert shared_columns([(labels, (PLAIN,)), (table.labels, table.optics)]).kept == labels
    assert filled_rows(labels, table) == [("1@a.mrcs", "90.0", "300"), ("1@a.mrcs", "0.000000", "300")]


def test_a_row_without_a_noise_group_gets_the_one_that_relion_gives_it() -> None:
    row = {"rlnImageName": "1@Extract/job005/mics/m1.mrcs", "rlnMicrographName": "MotionCorr/job002/mics/m1.mrc"}
    assert filled(table_of(PLAIN, **row), "rlnGroupName") == ["mics/m1.mrc"]
    del row["rlnMicrographName"]
    assert filled(table_of(PLAIN, **row), "rlnGroupName", "rlnMicrographName") == [
        "mics/m1.mrcs",
        "Extract/job005/mics/m1.mrcs",
    ]


@pytest.mark.parametrize(
    "name, group",
    [
        ("MotionCorr/job002/Movies/m1.mrc", "Movies/m1.mrc"),
        ("Movies/m1.mrc", "Movies/m1.mrc"),
        ("m1.mrc", "m1.mrc"),
        ("MotionCorr/jobs/m1.mrc", "MotionCorr/jobs/m1.mrc"),
    ],
)
def test_a_noise_group_is_the_micrograph_without_its_jobs_folder(name: str, group: str) -> None:
    assert noise_group(name) == group


def test_a_prior_is_the_rows_own_pose_and_of_a_row_without_a_pose_there_is_none() -> None:
    table = table_of(PLAIN, rlnImageName="1@a.mrcs", rlnAngleTilt="35.5", rlnOriginXAngst="2.5")
    assert filled(table, "rlnAngleTiltPrior", "rlnOriginXPriorAngst") == ["35.5", "2.5"]
    layouts = [(("rlnAngleTiltPrior",), (PLAIN,)), ((), (PLAIN,))]
    assert shared_columns(layouts).left_out == ("rlnAngleTiltPrior",)
    with pytest.raises(ValueError, match="rlnAngleRotPrior"):
        filled(table, "rlnAngleRotPrior")


def test_optics_columns_without_a_neutral_value_are_left_out_for_all_groups() -> None:
    full = (("rlnMtfFileName", "k2.star"), ("rlnMicrographOriginalPixelSize", "0.5"), ("rlnBeamTiltX", "0.2"))
    columns = shared_optics([OpticsGroup((*PLAIN.values, *full)), PLAIN])
    assert columns.kept == ("rlnOpticsGroupName", "rlnVoltage", "rlnBeamTiltX")
    assert columns.left_out == ("rlnMtfFileName", "rlnMicrographOriginalPixelSize")


@pytest.mark.parametrize(
    "label", ["rlnMtfFileName", "rlnMicrographOriginalPixelSize", "rlnImageSize", "rlnCoordinateX"]
)
def test_no_text_stands_for_a_missing_file_size_or_place(label: str) -> None:
    assert label not in NEUTRAL_VALUES and label not in NEUTRAL_OPTICS
