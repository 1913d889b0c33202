"""`cesped-stream score`: any tool's stars held against a replayed stream, by the one evaluator, on the same page."""

import argparse
from pathlib import Path
from typing import Any

from .evaluate_command import add_prediction_type

OUTPUT_NAME = "score"


def add_score(commands: Any) -> None:
    """Add the command; nothing heavy is imported before it runs."""
    parser = commands.add_parser(
        "score",
        help="score any tool's star files against a replayed stream",
        description="Score star files of any tool (RELION, cryoSPARC through csparc2star, cryoPARES, ours) against\n"
        "the truth of a replay. Images are matched by the stack's name and the index as they landed; folders in\n"
        "front of it, and the number that cryoSPARC's import puts there, do not matter. Partial results are scored\n"
        "where they are. Particles that landed aligned, with their poses, are not scored.",
    )
    parser.add_argument("_replay", type=Path, metavar="REPLAY_OUTPUT", help="output folder of `cesped-stream replay`")
    parser.add_argument(
        "--poses", dest="_poses", type=Path, action="append", required=True, metavar="STAR", help="repeatable"
    )
    add_prediction_type(parser)
    parser.add_argument("--name", dest="_name", default="", metavar="TOOL", help="what the page calls the tool")
    parser.add_argument(
        "--symmetry", dest="_symmetry", default="", metavar="NAME", help="point group (default: the replay's)"
    )
    parser.add_argument(
        "--beside",
        dest="_beside",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="output of a replay or another score that the page shows too; repeatable",
    )
    parser.add_argument("--no-maps", dest="_maps", action="store_false", help="poses only")
    parser.add_argument(
        "--no-confidence",
        dest="_use_confidence",
        action="store_false",
        help="do not use cestreamConfidence (a figure of merit, often a picker's score, is never used here)",
    )
    parser.add_argument(
        "--points",
        dest="_points",
        type=_points,
        default=9,
        metavar="N",
        help="moments of the stream to measure at, 1 to 100",
    )
    parser.add_argument(
        "--output",
        dest="_output",
        type=Path,
        metavar="FOLDER",
        help="folder of metrics.json and report.html (default: beside the star)",
    )
    parser.set_defaults(_command=score_command)


def _points(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r}; it goes from 1 to 100")
    return int(text)


def score_command(arguments: argparse.Namespace) -> int:
    """Count, measure and write metrics.json and report.html."""
    from rich.console import Console

    from cesped_stream.benchmark.evaluation_report import evaluation_report

    from .scoring import score

    console = Console()
    stars = list(arguments._poses)
    output = arguments._output or stars[0].parent / f"{stars[0].stem}_{OUTPUT_NAME}"
    measures = score(
        arguments._replay,
        stars,
        output,
        prediction_type=arguments._prediction_type,
        name=arguments._name,
        symmetry=arguments._symmetry,
        maps=arguments._maps,
        points=arguments._points,
        console=console,
        beside=arguments._beside,
        use_confidence=arguments._use_confidence,
    )
    counts = measures.counts
    console.print(
        f"{counts.inferred:,} of {counts.streamed:,} streamed particles have a pose in these stars; "
        f"{counts.doubled:,} more rows are of a particle that stands there already (the first one counts), "
        f"{counts.foreign:,} particles never landed",
        highlight=False,
    )
    if measures.evaluation is not None:
        console.print(evaluation_report(measures.evaluation, arguments._name or stars[0].name))
    if measures.why_no_maps:
        console.print(f"no maps: {measures.why_no_maps}", highlight=False)
    console.print(f"{output}: metrics.json, report.html", highlight=False)
    return 0
