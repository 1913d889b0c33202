import numpy as np

from cesped_stream.particles.flags import Clipped
from cesped_stream.particles.own_columns import (
    ABOVE_NOISE,
    APART,
    CONFIDENCE,
    NEUTRAL_CELLS,
    NO_ABOVE_NOISE,
    NO_APART,
    REVISION,
    is_refined,
    list_cell,
    number_cell,
    numbers_of,
    poses_of,
)


def test_what_is_not_known_is_a_number_that_a_filter_drops_and_comes_back_as_nan() -> None:
    above = [number_cell(number, NO_ABOVE_NOISE) for number in (1.25, np.nan, -3.0)]
    apart = [number_cell(number, NO_APART) for number in (12.0, np.inf)]
    assert above == ["1.2500", "-999.0000", "-3.0000"] and apart == ["12.0000", "999.0000"]
    np.testing.assert_array_equal(numbers_of(above), [1.25, np.nan, -3.0])
    np.testing.assert_array_equal(numbers_of(apart), [12.0, np.nan])


def test_a_number_that_another_program_wrote_again_and_the_word_of_former_versions_are_read() -> None:
    np.testing.assert_array_equal(numbers_of(["-999", "999.000000", "none", "2"]), [np.nan, np.nan, np.nan, 2.0])


def test_the_number_columns_hold_numbers_in_rows_that_say_nothing() -> None:
    for label in (CONFIDENCE, REVISION, ABOVE_NOISE, APART):
        assert np.isfinite(float(NEUTRAL_CELLS[label]))


def test_a_pose_comes_back_as_it_was_written_and_none_as_nan() -> None:
    angles = np.array([[12.5, -7.25, 180.0], [np.nan] * 3])
    cells = [list_cell(row) for row in angles]
    assert cells[1] == "[]" and " " not in cells[0]
    np.testing.assert_array_equal(poses_of(cells), angles)
    np.testing.assert_array_equal(poses_of(["[1,2,3,0.9,4,5,6,0.1]"]), [[1, 2, 3]])


def test_every_edge_has_a_word() -> None:
    assert [Clipped(k).text for k in range(4)] == ["no", "angle", "shift", "both"]
    assert Clipped.ANGLE | Clipped.SHIFT == Clipped.BOTH


def test_a_pose_is_refined_where_the_last_word_of_its_proposer_says_so() -> None:
    words = ("gallery+refinement", "network+gallery+refinement", "image2sphere", "network+gallery", "given")
    assert [is_refined(word) for word in words] == [True, True, False, False, False]
