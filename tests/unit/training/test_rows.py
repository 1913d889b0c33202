import numpy as np
import pytest

from cesped_stream.errors import PermanentError
from cesped_stream.particles.table import ParticleTable
from cesped_stream.training.rows import rows_of_half, split_by_micrograph


def test_no_micrograph_is_split_between_training_and_validation() -> None:
    micrographs = [f"m{i % 7}" for i in range(100)]
    split = split_by_micrograph(micrographs, 0.2, seed=3)
    trained = {micrographs[i] for i in split.training}
    held_out = {micrographs[i] for i in split.validation}
    assert trained & held_out == set()
    assert sorted([*split.training, *split.validation]) == list(range(100))
    assert 0.2 <= len(split.validation) / 100 <= 0.2 + 15 / 100


def test_the_split_does_not_depend_on_the_order_of_rows() -> None:
    micrographs = [f"m{i % 7}" for i in range(50)]
    held_out = {micrographs[i] for i in split_by_micrograph(micrographs, 0.3, seed=1).validation}
    backwards = micrographs[::-1]
    assert {backwards[i] for i in split_by_micrograph(backwards, 0.3, seed=1).validation} == held_out


@pytest.mark.parametrize("micrographs", [["only"] * 5, ["a", "b"]])
def test_some_rows_always_remain_to_train_on(micrographs: list[str]) -> None:
    assert len(split_by_micrograph(micrographs, 0.9, seed=0).training) > 0


def test_a_single_micrograph_holds_nothing_out() -> None:
    assert len(split_by_micrograph(["only"] * 5, 0.5, seed=0).validation) == 0


def test_a_half_without_aligned_rows_is_refused_by_name() -> None:
    table = ParticleTable(
        ("rlnImageName", "rlnRandomSubset"), [("1@a.mrcs", "1")], (), np.zeros(1, np.int64), source="aligned.star"
    )
    assert len(rows_of_half(table, 0)) == 1
    with pytest.raises(PermanentError, match=r"aligned\.star: all 1 rows have rlnRandomSubset 1 and none 2"):
        rows_of_half(table, 1)
