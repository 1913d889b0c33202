"""Counts of what rows say of themselves add up, whatever the cut, and given rows are in none."""

import json

import numpy as np
import pytest

from cesped_stream.particles.flags import Clipped
from cesped_stream.particles.pose_tally import PoseTally
from cesped_stream.particles.table import ParticleTable

LABELS = (
    "cestreamStatus", "cestreamProposer", "cestreamConfidenceKind", "cestreamConfidence", "cestreamClipped",
    "cestreamAboveNoise",
)  # fmt: skip
GALLERY, NETWORK = "gallery+refinement", "image2sphere"
ROWS = [
    ("given", "given", "given", "0.900000", "no", "none"),
    ("predicted", NETWORK, "mass", "0.290000", "no", "none"),
    ("predicted", GALLERY, "calibrated", "0.500000", "shift", "2.9999"),
    ("predicted", GALLERY, "calibrated", "0.490000", "both", "3.0000"),
    ("predicted", GALLERY, "calibrated", "1.000000", "angle", "-1.5000"),
    ("predicted", GALLERY, "calibrated", "0.970000", "no", "12.0000"),
]


def table(rows: list[tuple[str, ...]]) -> ParticleTable:
    return ParticleTable(LABELS, rows, (), np.zeros(len(rows), np.int64))


def test_rows_are_counted_by_proposer_edge_and_noise() -> None:
    tally = PoseTally.of(table(ROWS))
    assert tally.by_proposer == {NETWORK: 1, GALLERY: 4}
    assert tally.num_refined == 4
    assert [tally.clipped(edge) for edge in (Clipped.ANGLE, Clipped.SHIFT, Clipped.BOTH)] == [1, 1, 1]
    assert tally.num_clipped_shift == 2
    assert (tally.num_against_noise, tally.num_like_noise) == (4, 2)


def test_confidences_are_counted_by_kind_and_a_bins_lower_end_is_in_it() -> None:
    tally = PoseTally.of(table(ROWS))
    assert (tally.num_with_confidence("calibrated"), tally.num_with_confidence("mass")) == (4, 1)
    assert tally.num_with_confidence("given") == 0
    assert tally.num_at_least("calibrated", 0.5) == 3
    assert tally.median_confidence("mass") == pytest.approx(0.29, abs=0.0051)
    assert tally.median_confidence("calibrated") == pytest.approx(0.5, abs=0.0051)
    assert tally.median_confidence("given") is None


def test_the_median_is_that_of_the_rows_to_half_a_bin() -> None:
    values = np.random.default_rng(3).beta(2, 1, 1001)
    rows = [("predicted", NETWORK, "mass", f"{value:.6f}", "no", "none") for value in values]
    assert PoseTally.of(table(rows)).median_confidence("mass") == pytest.approx(np.median(values), abs=0.0051)


@pytest.mark.parametrize("cut", range(len(ROWS) + 1))
def test_the_tallies_of_two_parts_are_that_of_the_whole_and_survive_json(cut: int) -> None:
    parts = [PoseTally(json.loads(json.dumps(PoseTally.of(table(r)).counts))) for r in (ROWS[:cut], ROWS[cut:])]
    assert PoseTally.together(parts) == PoseTally.of(table(ROWS))


def test_rows_without_the_columns_are_not_counted() -> None:
    assert PoseTally.of(table(ROWS).without(["cestreamClipped"])) == PoseTally()
    assert PoseTally().by_proposer == {}
