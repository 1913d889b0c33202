import numpy as np

from cesped_stream.particles.flags import Clipped
from cesped_stream.particles.own_columns import is_refined, list_cell, number_cell, numbers_of, poses_of


def test_what_is_not_known_is_a_word_and_comes_back_as_nan() -> None:
    cells = [number_cell(1.25), number_cell(float("nan")), number_cell(-3.0, 2)]
    assert cells == ["1.2500", "none", "-3.00"]
    np.testing.assert_array_equal(numbers_of(cells), [1.25, np.nan, -3.0])


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
