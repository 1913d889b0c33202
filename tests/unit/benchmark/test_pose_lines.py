"""The table and the page tell what the columns tell, and nothing where they tell nothing."""

import numpy as np
import pytest
from support.sure_rows import NUMBER, SureRows

from cesped_stream.benchmark.pose_lines import sureness_lines, way_lines
from cesped_stream.benchmark.stream_charts import distribution_chart, reliability_chart
from cesped_stream.benchmark.sureness import how_sure
from cesped_stream.benchmark.sureness_page import sureness_section, ways_section

SUMMARY = {
    "first_pose_seconds": 15.04,
    "per_half": [{"num_particles": 600}, {"num_particles": 400}],
    "network_median_angular_error_deg": 54.0,
    "network_fraction_within_5_deg": 0.031,
    "network_num_particles": 250,
    "gallery_median_angular_error_deg": 3.8,
    "gallery_fraction_within_5_deg": 0.7,
    "gallery_num_particles": 1000,
    "refined_median_angular_error_deg": None,
    "limit_median_angular_error_deg": 1.3,
    "limit_fraction_within_5_deg": 0.996,
}


def test_each_way_that_made_poses_has_a_line_and_says_of_how_many() -> None:
    assert way_lines(SUMMARY) == [
        ("first pose after the last aligned row", "15.0 s"),
        ("  network alone: median / within 5°", "54.0° / 3 % (250 of 1,000)"),
        ("  gallery alone: median / within 5°", "3.8° / 70 %"),
        ("  from the true poses: median / within 5°", "1.3° / 100 %"),
    ]
    assert way_lines({}) == []


def test_rows_that_were_redone_are_told_where_latencies_are_of_first_poses() -> None:
    redone = SUMMARY | {"num_redone": 1000, "network_mean_angular_error_deg": 60.0}
    assert ("redone since; latencies are of first poses", "1,000") in way_lines(redone)
    assert "1,000 rows were redone with a later checkpoint" in "".join(ways_section(redone))
    assert "redone" not in "".join(ways_section(SUMMARY))


@pytest.mark.parametrize(("kind", "words"), [("calibrated", "(calibrated)"), ("mass", "(not calibrated: a rank)")])
def test_confidence_is_told_with_chance_beside_it_and_is_called_what_it_is(kind: str, words: str) -> None:
    found = SureRows([kind] * NUMBER).measured()
    figures = found.confidence[0].particles
    assert figures is not None
    lines = dict(sureness_lines({"sureness": found.to_json()}))
    assert f"confidence {words}" in lines
    error = f"{figures.expected_calibration_error:.3f} ({figures.expected_noise:.3f})"
    assert lines["  calibration error, ECE (by chance alone)"] == error
    assert lines["at the search's edge: angle / shift / both"] == f"0 / {NUMBER // 4} / 0 (25 %)"
    assert any(line.startswith("junk, AUC") for line in lines)


def test_nothing_is_told_of_rows_that_say_nothing() -> None:
    assert sureness_lines({"sureness": {}}) == sureness_lines({}) == sureness_section(None) == []
    assert not any(
        "junk" in line for line, _ in sureness_lines({"sureness": SureRows(junk=False).measured().to_json()})
    )


def test_the_page_shows_reliability_noise_and_what_to_do_about_edges() -> None:
    text = "".join(sureness_section(SureRows().measured()))
    assert text.count("<img") == 3
    assert "chance that a pose lies within 5°" in text
    assert "gallery.shift_range_angstrom" in text
    assert "junk too, as wrong" in text
    mass = "".join(sureness_section(SureRows(["mass"] * NUMBER).measured()))
    assert "no probability" in mass and "chance that a pose" not in mass


def test_a_few_clipped_poses_are_counted_and_call_for_nothing() -> None:
    rows = SureRows(junk=False)
    few = ["shift"] * 20 + ["angle"] * 900 + ["no"] * (NUMBER - 920)
    found = how_sure(rows.rows.with_columns({"cestreamClipped": few}), rows.truth, "C1")
    text = "".join(sureness_section(found))
    assert "900 ended at the edge of the angles" in text and "gallery.shift_range" not in text


def test_ways_are_compared_where_there_are_two() -> None:
    text = "".join(ways_section(SUMMARY))
    assert "54.0°" in text and "3 %" in text and "what the noise allows" in text and "as written" not in text
    assert ways_section({"network_median_angular_error_deg": 3.0}) == ways_section({}) == []


def test_equal_data_give_equal_charts() -> None:
    curve = SureRows().measured().confidence[0].curve
    assert curve is not None
    first, second = (reliability_chart([("calibrated", curve)], 5.0) for _ in range(2))
    assert first == second and first.startswith(b"<?xml")
    groups = [("particles", np.zeros(0)), ("junk", np.array([1.0]))]
    assert distribution_chart(groups, "x", 3.0) == distribution_chart(groups, "x", 3.0)
    assert distribution_chart(groups, "x").startswith(b"<?xml")
