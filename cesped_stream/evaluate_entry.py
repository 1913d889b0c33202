"""`python -m cesped_stream.evaluate_entry`: Listing 3 of the paper, with the flags of the `cesped` package."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from cesped_stream.errors import CespedStreamError, TransientError
from cesped_stream.termination import ended_by_signals

ERROR_EXIT_CODE = 2
RETRY_EXIT_CODE = 75
"""As `cesped-stream` ends: a file that is not there now, a full disk."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of cesped.evaluateEntry's flags (25.12.0), and of `--engine`, which is ours."""
    parser = argparse.ArgumentParser(
        prog="python -m cesped_stream.evaluate_entry",
        description="Score predicted poses of both halves of a CESPED target: poses, maps, the truth's maps.",
        allow_abbrev=False,
    )
    parser.add_argument("--targetName", required=True, help="entry under the benchmark folder, its folder, or a star")
    for half in (0, 1):
        parser.add_argument(f"--half{half}PredsFname", required=True, help=f"star of half {half} with predicted poses")
    parser.add_argument(
        "--predictionType",
        required=True,
        choices=("S2", "SO3", "SO3xR2"),
        help="what was predicted: rot and tilt, the rotation, rotation and shift; the truth gives the rest",
    )
    _add_switch(parser, "usePredConfidence", "do not weight a map by the predicted confidence")
    parser.add_argument("--benchmarkDir", help="folder of the entries (default: ~/cesped_stream_entries)")
    parser.add_argument("--relionBinDir", help="make maps with the RELION in this folder")
    parser.add_argument("--mpirun", help="command that starts RELION with --n_cpus processes (default: mpirun)")
    parser.add_argument(
        "--relionSingularity", "--singularityImgFile", help="make maps with the RELION in this Singularity image"
    )
    _add_switch(parser, "rm_prev_reconstructions", "no effect: maps of predictions are always made anew")
    parser.add_argument("--ignore_symmetry", action="store_true", help="score and reconstruct in C1")
    _add_switch(parser, "use_gt_mask", "leave the published mask, and all masked figures, out")
    parser.add_argument("--n_cpus", type=int, default=2, help="processes of RELION (default: 2)")
    parser.add_argument("--outdir", help="folder for metrics.json, maps and pictures (default: none is kept)")
    parser.add_argument("--engine", choices=("builtin", "relion"), help="what makes the maps (default: builtin)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Score what the arguments say and print the report; return 0, or with one line on stderr 2, or 75 (try later)."""
    arguments = vars(build_parser().parse_args(argv))
    try:
        with ended_by_signals():
            _evaluate(arguments)
    except CespedStreamError as error:
        print(f"evaluate_entry: error: {error}", file=sys.stderr)
        return RETRY_EXIT_CODE if isinstance(error, TransientError) else ERROR_EXIT_CODE
    return 0


def _add_switch(parser: argparse.ArgumentParser, name: str, help_of_not: str) -> None:
    """`--NOT_name`, as the package's own command line has it, and `--name`, which says the default."""
    parser.add_argument(f"--NOT_{name}", dest=name, action="store_false", help=help_of_not)
    parser.add_argument(f"--{name}", dest=name, action="store_true", default=True, help=argparse.SUPPRESS)


def _evaluate(arguments: dict[str, Any]) -> None:
    from rich.console import Console

    from cesped_stream.benchmark.cesped_evaluate import evaluate
    from cesped_stream.benchmark.evaluation_report import evaluation_report

    console = Console()
    evaluate(
        **arguments,
        on_result=lambda result: console.print(
            evaluation_report(result.evaluation, result.target, result.notes), soft_wrap=False
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
