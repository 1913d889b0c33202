"""Half-sets are never called more independent than their rows deserve."""

import numpy as np
import pytest

from cesped_stream.particles.table import OpticsGroup, ParticleTable
from cesped_stream.training.alignment import (
    HALVES_BY_HASH,
    INITIALISED_FROM_OWN_PREDICTIONS,
    Alignment,
    Independence,
    alignment_of_rows,
)

GROUP = OpticsGroup((("rlnOpticsGroupName", "g"), ("rlnImagePixelSize", "1.5")))
POSE = {"rlnAngleRot": "1", "rlnAngleTilt": "2", "rlnAnglePsi": "3"}


def _alignment(stated: Independence, **columns: str) -> Alignment:
    cells = POSE | columns
    table = ParticleTable(tuple(cells), [tuple(cells.values())] * 2, (GROUP,), np.zeros(2, np.int64))
    return alignment_of_rows(stated, table)


def test_rows_with_half_sets_are_as_independent_as_it_is_stated() -> None:
    assert _alignment("independent", rlnRandomSubset="1") == Alignment("independent")
    assert _alignment("shared_reference", rlnRandomSubset="1") == Alignment("shared_reference")


def test_rows_without_half_sets_are_unknown_at_best() -> None:
    assert _alignment("independent") == Alignment("unknown", (HALVES_BY_HASH,))
    assert _alignment("unknown") == Alignment("unknown")
    assert _alignment("shared_reference") == Alignment("shared_reference")


@pytest.mark.parametrize(("stated", "expected"), [("independent", "unknown"), ("shared_reference", "shared_reference")])
def test_refined_predictions_are_told_and_unknown_at_best(stated: Independence, expected: Independence) -> None:
    refined = {"cestreamStatus": "predicted", "rlnNrOfSignificantSamples": "4", "rlnRandomSubset": "1"}
    assert _alignment(stated, **refined) == Alignment(expected, (INITIALISED_FROM_OWN_PREDICTIONS,))
