"""A session's own predictions are known wherever they come back."""

import numpy as np

from cesped_stream.particles.own_rows import PoseSource, consensus_confidences, pose_sources
from cesped_stream.particles.table import OpticsGroup, ParticleTable

GROUP = OpticsGroup((("rlnOpticsGroupName", "g"), ("rlnImagePixelSize", "1.5")))


def _sources(labels: tuple[str, ...], *rows: tuple[str, ...]) -> list[int]:
    return pose_sources(ParticleTable(labels, list(rows), (GROUP,), np.zeros(len(rows), np.int64))).tolist()


def test_rows_without_our_columns_are_foreign() -> None:
    assert _sources(("rlnAngleRot",), ("1",), ("2",)) == [PoseSource.FOREIGN] * 2


def test_only_given_rows_of_no_checkpoint_are_foreign() -> None:
    rows = [("given", "none"), ("predicted", "ref-1"), ("given", "ref-1"), ("predicted", "none"), ("nan", "ref-1")]
    own = PoseSource.OWN
    assert _sources(("cestreamStatus", "cestreamCheckpoint"), *rows) == [PoseSource.FOREIGN, own, own, own, own]


def test_one_of_the_two_columns_is_enough() -> None:
    assert _sources(("cestreamStatus",), ("predicted",), ("given",)) == [PoseSource.OWN, PoseSource.FOREIGN]
    assert _sources(("cestreamCheckpoint",), ("ref-1",), ("none",)) == [PoseSource.OWN, PoseSource.FOREIGN]


def test_predictions_that_relion_refined_are_told_from_predictions() -> None:
    labels = ("cestreamStatus", "rlnNrOfSignificantSamples")
    assert _sources(labels, ("predicted", "0"), ("predicted", "7"), ("given", "7")) == [
        PoseSource.OWN,
        PoseSource.REFINED_FROM_OWN,
        PoseSource.FOREIGN,
    ]


def test_our_confidence_is_never_taken_for_a_consensus_figure() -> None:
    """A loss and wMAnE weigh labels by it: a prediction of ours counts as a label without the figure."""
    labels = ("cestreamStatus", "rlnMaxValueProbDistribution", "rlnNrOfSignificantSamples")
    rows = [("predicted", "0.3", "0"), ("predicted", "0.3", "7"), ("given", "0.3", "7"), ("given", "0.3", "0")]
    table = ParticleTable(labels, rows, (GROUP,), np.zeros(4, np.int64))
    assert consensus_confidences(table).tolist() == [1.0, 0.3, 0.3, 0.3]
