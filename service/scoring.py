"""Scores of star files against a replay's truth: what `cesped-stream score` computes."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cesped_stream.benchmark.beside import read_run
from cesped_stream.benchmark.compare import Counts, compare
from cesped_stream.benchmark.output_folder import output_folder
from cesped_stream.benchmark.predictions import PredictionType, read_predictions
from cesped_stream.benchmark.replay import TRUTH_NAME
from cesped_stream.benchmark.stream_report import StreamMeasures, measure_stream, with_landed_names
from cesped_stream.conventions import ANGLE_LABELS
from cesped_stream.errors import InvalidStarError
from cesped_stream.particles.own_columns import PREDICTED, STATUS
from cesped_stream.particles.star import read_star
from cesped_stream.particles.table import ParticleTable
from cesped_stream.reconstruction.engine import BuiltinEngine

from .stream_outcome import REPORT_NAME, StageBars, StreamStatement, write_outcome
from .stream_progress import progress_bars


def score(
    replayed: Path,
    stars: Sequence[Path],
    output: Path,
    *,
    prediction_type: str,
    name: str,
    symmetry: str,
    maps: bool,
    points: int,
    console: Console,
    use_confidence: bool = True,
    beside: Sequence[Path] = (),
) -> StreamMeasures:
    """Score `stars` against the replay whose output folder is `replayed`; write metrics.json and report.html.

    `beside` are outputs of other replays and scores, which the page shows too.
    """
    runs = [read_run(folder) for folder in beside]
    output_folder(output)
    truth_folder = replayed / "truth"
    statement = StreamStatement.read(truth_folder)
    truth = read_star(truth_folder / TRUTH_NAME)
    predicted = with_landed_names(read_predictions(stars), truth)
    symmetry = symmetry.upper() or statement.symmetry
    counts = counts_of(predicted, truth, symmetry, PredictionType(prediction_type))
    _check_any_landed(counts, predicted, truth)
    with progress_bars(console) as bars:
        measures = measure_stream(
            predicted,
            truth,
            counts,
            symmetry,
            landing=replayed / "landing",
            engine=BuiltinEngine() if maps else None,
            prediction_type=PredictionType(prediction_type),
            points=points,
            use_confidence=use_confidence,
            facts=_facts(statement, stars, prediction_type),
            on_progress=StageBars(bars),
        )
    title = f"{name or stars[0].name} on the stream of {statement.entry}"
    write_outcome(measures, output / REPORT_NAME, title, metrics_folder=output, truth=truth, beside=runs)
    return measures


def counts_of(
    predicted: ParticleTable, truth: ParticleTable, symmetry: str, prediction_type: PredictionType = PredictionType.SO3
) -> Counts:
    """Return the counts of a tool's rows; a row of a tool that has no `cestreamStatus` is a prediction.

    A view (S2) is a pose here whatever its psi, if there is one at all.
    """
    for label in (label for label in ANGLE_LABELS if label not in prediction_type.angle_labels):
        predicted = predicted.with_columns({label: ["0.000000"] * len(predicted)})
    if STATUS not in predicted:
        predicted = predicted.with_columns({STATUS: [PREDICTED] * len(predicted)})
    return compare([predicted], truth, symmetry).counts


def _check_any_landed(counts: Counts, predicted: ParticleTable, truth: ParticleTable) -> None:
    """Raise InvalidStarError where no row is of an image that landed in this replay."""
    if counts.lost < counts.landed:
        return
    raise InvalidStarError(
        f"{predicted.source or 'these stars'}: none of {len(predicted):,} rows is an image of this replay; they read "
        f"{predicted.column('rlnImageName')[0]!r}, what landed {truth.column('rlnImageName')[0]!r}; are these poses of "
        "this stream?"
    )


def _facts(statement: StreamStatement, stars: Sequence[Path], prediction_type: str) -> dict[str, object]:
    return {
        "entry": statement.entry,
        "contained": list(statement.contained),
        "complete": False,
        "half_words": "what another tool did with them is not known here: not called gold standard",
        "alignment_limit_angstrom": None,
        "maps_are_of": "streamed particles only",
        "made_by": {"stars": ", ".join(star.name for star in stars), "prediction_type": prediction_type},
        "replay": dict(statement.replay),
    }
