"""Predictions of another entry are refused, though its stacks are named alike; refined and renamed ones are not."""

from pathlib import Path

import numpy as np
import pytest
from support.scored import small_entry, truth_of

from cesped_stream.benchmark.predictions import PredictionType, match_predictions, read_predictions
from cesped_stream.errors import InvalidStarError
from cesped_stream.particles.star import write_star
from cesped_stream.particles.table import ParticleTable

SO3 = PredictionType.SO3


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> ParticleTable:
    return truth_of(small_entry(tmp_path_factory.mktemp("ours")))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> ParticleTable:
    return truth_of(small_entry(tmp_path_factory.mktemp("other"), seed=8))


def matches(truth: ParticleTable, predicted: ParticleTable) -> int:
    return len(match_predictions(truth, predicted, SO3).rows)


def shifted_defocus(table: ParticleTable, angstrom: np.ndarray) -> ParticleTable:
    return table.with_columns({"rlnDefocusU": [f"{u:.2f}" for u in table.numbers("rlnDefocusU") + angstrom]})


def test_another_entry_with_the_same_names_is_refused(
    truth: ParticleTable, other: ParticleTable, tmp_path: Path
) -> None:
    assert truth.column("rlnImageName") == other.column("rlnImageName")
    write_star(tmp_path / "other.star", other.without(["cestreamStack"]))
    with pytest.raises(InvalidStarError, match=r"other.star: .* rows are of another micrograph .* another entry\?"):
        match_predictions(truth, read_predictions([tmp_path / "other.star"]), SO3)


@pytest.mark.parametrize("column", ["rlnDefocusU", "rlnMicrographName"])
def test_either_column_is_enough(truth: ParticleTable, other: ParticleTable, column: str) -> None:
    mixed = np.random.default_rng(0).permutation(len(truth))
    wrong = other if column == "rlnDefocusU" else truth.select(mixed)
    with pytest.raises(InvalidStarError, match="another entry"):
        matches(truth, truth.with_columns({column: wrong.column(column)}))


def test_what_is_not_there_is_not_compared(truth: ParticleTable, other: ParticleTable) -> None:
    bare = other.without(["rlnDefocusU", "rlnMicrographName"])
    assert matches(truth, bare) == matches(truth.without(["rlnDefocusU", "rlnMicrographName"]), other) == len(truth)
    unknown = truth.with_columns({"rlnDefocusU": ["0.000000"] * len(truth)})
    assert matches(truth, unknown) == len(truth)


def test_refined_defocus_and_renamed_micrographs_are_the_same_particles(truth: ParticleTable) -> None:
    refined = np.random.default_rng(1).normal(0, 400, len(truth))
    refined[:40] = 3000.0  # some go astray
    assert matches(truth, shifted_defocus(truth, refined)) == len(truth)
    names = [f"J12/imported/012345678901234567890_{n}" for n in truth.column("rlnMicrographName")]
    assert matches(truth, truth.with_columns({"rlnMicrographName": names})) == len(truth)
    renamed = [f"motion/{n[:-4]}_doseweighted.mrc" for n in truth.column("rlnMicrographName")]
    assert matches(truth, truth.with_columns({"rlnMicrographName": renamed})) == len(truth)


def test_one_row_of_another_micrograph_is_counted(truth: ParticleTable) -> None:
    names = truth.column("rlnMicrographName")
    names[0] = next(name for name in names if name != names[0])
    with pytest.raises(InvalidStarError, match=r": 1 of 120 rows are of another micrograph"):
        matches(truth, truth.with_columns({"rlnMicrographName": names}))
