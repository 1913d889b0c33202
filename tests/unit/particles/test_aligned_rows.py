"""What is taken for aligned rows, and how independent their half-sets are."""

import numpy as np
import pytest

from cesped_stream.errors import InvalidStarError
from cesped_stream.particles.aligned_rows import (
    alignment_of_rows,
    are_poses,
    least_independent,
    refuse_2d_classes,
    refuse_own_predictions,
)
from cesped_stream.particles.table import OpticsGroup, ParticleTable

GROUP = OpticsGroup((("rlnOpticsGroupName", "g"), ("rlnImagePixelSize", "1.5")))
LABELS = ("rlnImageName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")


def table(*tilts: str, **columns: list[str]) -> ParticleTable:
    rows = [(f"{k + 1}@a.mrcs", "10", tilt, "20") for k, tilt in enumerate(tilts)]
    made = ParticleTable(LABELS, rows, (GROUP,), np.zeros(len(rows), np.int64), source="a.star")
    return made.with_columns(columns)  # type: ignore[arg-type]


OWN = {"cestreamStatus": ["given", "predicted", "predicted"]}
REFINED = OWN | {"rlnNrOfSignificantSamples": ["3", "2", "1"]}
HALVES = {"rlnRandomSubset": ["1", "2", "1"]}


def test_rows_of_one_tilt_are_2d_classes() -> None:
    for flat in (table("0", "0", "0"), table("37.5", "37.5"), table("0", "0", "-999")):
        assert not are_poses(flat)
        with pytest.raises(InvalidStarError, match=r"a\.star: rlnAngleTilt is .* in all"):
            refuse_2d_classes(flat)
    refuse_2d_classes(table("0", "30"))
    assert are_poses(table("0", "30"))


def test_own_predictions_are_refused_with_count_first_row_and_remedy() -> None:
    with pytest.raises(InvalidStarError, match=r"2 of 3 rows .* first is row 2.*--allow"):
        refuse_own_predictions(table("1", "2", "3", **OWN), "--allow")
    refuse_own_predictions(table("1", "2", "3", **REFINED), "--allow")
    refuse_own_predictions(table("1", "-999", "-999", **OWN), "--allow")  # rows without a pose align nothing


@pytest.mark.parametrize(
    ("columns", "halves_given", "independence", "own", "doubt"),
    [
        (HALVES, None, "independent", 0, ""),
        ({}, None, "unknown", 0, "rlnRandomSubset"),
        (HALVES, False, "unknown", 0, "rlnRandomSubset"),
        ({}, True, "independent", 0, ""),
        (HALVES | REFINED, None, "unknown", 2, "2 of 3 aligned poses were refined from predictions"),
        (HALVES | OWN, None, "unknown", 2, "2 of 3 aligned poses are predictions"),
    ],
)
def test_stated_independence_falls_to_what_the_rows_deserve(
    columns: dict[str, list[str]], halves_given: bool | None, independence: str, own: int, doubt: str
) -> None:
    found = alignment_of_rows("independent", table("1", "2", "3", **columns), halves_given=halves_given)
    assert (found.independence, found.initialised_from_own_predictions) == (independence, own)
    assert [doubt in said for said in found.doubts] == ([True] if doubt else [])


def test_independence_never_rises() -> None:
    assert alignment_of_rows("shared_reference", table("1", "2", "3")).independence == "shared_reference"
    assert alignment_of_rows("unknown", table("1", "2", "3", **HALVES)).independence == "unknown"
    assert least_independent("independent", "unknown", "shared_reference") == "shared_reference"
