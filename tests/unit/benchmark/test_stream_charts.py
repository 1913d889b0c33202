"""A resolution that only the pixel size limits is marked as such in the curves."""

from cesped_stream.benchmark.stream_charts import resolution_chart
from cesped_stream.benchmark.stream_curves import MapPoint

HOLLOW = b"hollow: at Nyquist, or finer"


def point(seen: int, *, at_nyquist: bool = False) -> MapPoint:
    return MapPoint(seen, None, 10.0, 9.0, None, 8.0, half_to_half_0143_at_nyquist=at_nyquist)


def test_points_at_nyquist_are_hollow_and_others_are_not() -> None:
    plain = resolution_chart([point(10), point(20)], 12.0)
    marked = resolution_chart([point(10), point(20, at_nyquist=True)], 12.0)
    assert HOLLOW in marked and HOLLOW not in plain
    assert marked == resolution_chart([point(10), point(20, at_nyquist=True)], 12.0)


def test_the_truths_own_level_says_that_it_is_nyquists() -> None:
    words = b"the truth's own halves, 0.5 (Nyquist)"
    assert words in resolution_chart([point(10)], 12.0, best_at_nyquist=True)
    assert words not in resolution_chart([point(10)], 12.0)
