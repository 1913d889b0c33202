"""Problems are listed by what they cost, new kinds first, capped."""

from cesped_stream_service.problems import MOST_LINES, Cost, Problem, ProblemList, named_problem


def texts(problems: list[Problem]) -> list[str]:
    return [problem.text for problem in problems]


def test_what_costs_rows_stands_before_what_keeps_training_from_starting_and_that_before_the_rest() -> None:
    problems = [
        Problem("c", Cost.REST, "rest"),
        Problem("b", Cost.TRAINING, "training"),
        Problem("a", Cost.ROWS, "rows"),
    ]
    listed, new = ProblemList().listed(problems)
    assert texts(listed) == ["rows", "training", "rest"] and sorted(new) == ["a", "b", "c"]


def test_a_new_kind_stands_before_older_ones_of_the_same_cost_and_is_named_once() -> None:
    seen = ProblemList()
    old, new = Problem("old", Cost.ROWS, "old"), Problem("new", Cost.ROWS, "new")
    assert seen.listed([old])[1] == ["old"]
    listed, kinds = seen.listed([old, new])
    assert texts(listed) == ["new", "old"] and kinds == ["new"]
    assert seen.listed([old, new])[1] == []
    seen.listed([new])
    listed, kinds = seen.listed([new, old])
    assert texts(listed) == ["old", "new"] and kinds == ["old"]


def test_of_one_kind_those_of_most_rows_are_told_and_the_rest_counted_with_their_rows() -> None:
    problems = [Problem("a", Cost.ROWS, f"{k} rows", k) for k in range(6)]
    assert texts(ProblemList().listed(problems)[0]) == [
        "5 rows",
        "4 rows",
        "3 rows",
        "and 3 more like the last, of 3 rows",
    ]


def test_the_list_is_capped_and_says_how_many_are_missing() -> None:
    problems = [Problem(f"kind {k}", Cost.REST, f"{k}") for k in range(30)]
    listed, _ = ProblemList().listed(problems)
    assert len(listed) == MOST_LINES
    assert listed[-1].text.startswith("11 more problems")


def test_a_problem_without_a_text_is_none() -> None:
    assert ProblemList().listed([Problem("a", Cost.ROWS, "")]) == ([], [])


def test_problems_by_name_cost_what_their_name_is_about_and_share_a_kind_whatever_their_number() -> None:
    assert named_problem("batch 17", "x") == Problem("batch", Cost.ROWS, "x")
    assert named_problem("pose file 2", "x") == Problem("pose file", Cost.ROWS, "x")
    assert named_problem("training", "x").cost is Cost.TRAINING
    assert named_problem("redo", "x").cost is Cost.REST
