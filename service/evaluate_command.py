"""`cesped-stream evaluate`: score predicted poses of a target. Nothing heavy is imported before the command runs."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cesped_stream.errors import InvalidSettingsError

from .entries_commands import add_root_argument, benchmark_root

if TYPE_CHECKING:
    from rich.console import Console

    from cesped_stream.benchmark.truth_maps import OnProgress
    from cesped_stream.settings import EngineSettings

DESCRIPTION = """\
Score predicted poses of a target, from stars of any tool: errors of the poses, and maps against the truth's.

  cesped-stream evaluate --target 10280 --half0 preds_0.star --half1 preds_1.star --prediction-type SO3 --output scores
  cesped-stream evaluate --target DEMO --predictions poses.star --mask none

Predictions are matched to the truth by image, so that their order does not matter and partial ones are scored where
they are. What was not predicted is taken from the truth: psi and shifts (S2), shifts (SO3), nothing (SO3xR2).
"""


def add_evaluate(commands: Any) -> None:
    """Add `evaluate` to the commands."""
    parser = commands.add_parser(
        "evaluate", help="score predicted poses of a benchmark target", description=DESCRIPTION
    )
    parser.set_defaults(_command=_evaluate)
    parser.add_argument(
        "--target",
        dest="_target",
        required=True,
        metavar="TARGET",
        help="an entry under the root, an entry's folder, or a star with the true poses",
    )
    for half in (0, 1):
        parser.add_argument(
            f"--half{half}", dest=f"_half{half}", type=Path, metavar="STAR", help=f"predictions of half-set {half}"
        )
    parser.add_argument("--predictions", dest="_predictions", type=Path, metavar="STAR", help="or of both, in one star")
    add_prediction_type(parser)
    parser.add_argument("--symmetry", dest="_symmetry", metavar="NAME", help="point group; default: the entry's")
    parser.add_argument(
        "--mask",
        dest="_mask",
        default="auto",
        metavar="FILE|auto|none",
        help="for masked figures beside the unmasked ones; auto (default): the entry's published mask where it was "
        "downloaded, else one made of the truth's map",
    )
    parser.add_argument(
        "--no-confidence", dest="_use_confidence", action="store_false", help="no second map, weighted by confidence"
    )
    parser.add_argument("--poses-only", dest="_poses_only", action="store_true", help="no maps: seconds, not minutes")
    parser.add_argument(
        "--output", dest="_output", type=Path, metavar="FOLDER", help="keep metrics.json, maps, pictures"
    )
    parser.add_argument(
        "--cache", dest="_cache", type=Path, metavar="FOLDER", help="the truth's maps; default: the root"
    )
    add_root_argument(parser)
    _add_engine(parser.add_argument_group("engine"))
    parser.set_defaults(_defaults={name: parser.get_default(name) for name in _OF_MAPS})


def add_prediction_type(parser: argparse.ArgumentParser) -> None:
    """Give a command `--prediction-type`."""
    parser.add_argument(
        "--prediction-type",
        dest="_prediction_type",
        choices=("S2", "SO3", "SO3xR2"),
        default="SO3",
        help="what was predicted: S2, rot and tilt; SO3 (default), the rotation; SO3xR2, rotation and shift. The rest "
        "is taken from the truth",
    )


_OF_MAPS = (
    *("_mask", "_use_confidence", "_cache", "_engine", "_device", "_relion_folder", "_skip_gridding"),
    *("_processes", "_mpirun", "_singularity_image"),
)
_OF_RELION = ("_relion_folder", "_skip_gridding", "_processes", "_mpirun", "_singularity_image")


def _refuse_without_effect(arguments: argparse.Namespace) -> None:
    """Raise InvalidSettingsError for options that are given and that the others leave nothing to say."""
    if arguments._poses_only and (given := _given(arguments, _OF_MAPS)):
        raise InvalidSettingsError(f"{given}: of maps, and --poses-only makes none; leave one of them out")
    if arguments._engine != "relion" and (given := _given(arguments, _OF_RELION)):
        raise InvalidSettingsError(f"{given}: of RELION; add --engine relion, or leave it out")
    if arguments._engine == "relion" and (given := _given(arguments, ("_device",))):
        raise InvalidSettingsError(f"{given}: of the builtin engine; leave it out with --engine relion")


def _given(arguments: argparse.Namespace, names: tuple[str, ...]) -> str:
    """Return the options among these that do not have their default."""
    said = [name for name in names if getattr(arguments, name) != arguments._defaults[name]]
    flags = {"_use_confidence": "--no-confidence"}
    return ", ".join(flags.get(name, "--" + name.strip("_").replace("_", "-")) for name in said)


def engine_settings(arguments: argparse.Namespace) -> "EngineSettings":
    """Return what the options of `_add_engine` say."""
    from cesped_stream.benchmark.evaluate_target import checked_engine_settings

    return checked_engine_settings(
        kind=arguments._engine,
        device=arguments._device,
        relion_folder=arguments._relion_folder,
        skip_gridding=arguments._skip_gridding,
        processes=arguments._processes,
        mpirun=arguments._mpirun,
        singularity_image=arguments._singularity_image,
    )


def _add_engine(group: Any) -> None:
    group.add_argument(
        "--engine",
        dest="_engine",
        choices=("builtin", "relion"),
        default="builtin",
        help="what makes the maps: our own backprojection (default), or relion_reconstruct",
    )
    group.add_argument("--device", dest="_device", choices=("auto", "cuda", "cpu"), default="auto", help="of builtin")
    group.add_argument("--relion-folder", dest="_relion_folder", type=Path, metavar="FOLDER", help="default: PATH")
    group.add_argument("--skip-gridding", dest="_skip_gridding", action="store_true", help="RELION without gridding")
    group.add_argument(
        "--processes", dest="_processes", type=int, default=1, metavar="N", help="of RELION, under mpirun"
    )
    group.add_argument("--mpirun", dest="_mpirun", default="mpirun", metavar="COMMAND", help="default: mpirun")
    group.add_argument(
        "--singularity-image", dest="_singularity_image", type=Path, metavar="FILE", help="an image with RELION"
    )


def _evaluate(arguments: argparse.Namespace) -> int:
    stars = _prediction_stars(arguments)
    _refuse_without_effect(arguments)
    from rich.console import Console

    from cesped_stream.benchmark.cesped_evaluate import prediction_type_of
    from cesped_stream.benchmark.entries import find_entry
    from cesped_stream.benchmark.evaluate_target import CACHE_FOLDER, evaluate_target
    from cesped_stream.benchmark.evaluation_files import write_evaluation
    from cesped_stream.benchmark.evaluation_report import evaluation_report
    from cesped_stream.benchmark.output_folder import output_folder
    from cesped_stream.reconstruction.engine import engine_from

    root, console = benchmark_root(arguments), Console()
    if arguments._output is not None:
        output_folder(arguments._output)
    with _progress(console) as on_progress:
        result = evaluate_target(
            find_entry(arguments._target, root),
            stars,
            prediction_type=prediction_type_of(arguments._prediction_type),
            engine=None if arguments._poses_only else engine_from(engine_settings(arguments)),
            symmetry=arguments._symmetry,
            mask=arguments._mask,
            use_confidence=arguments._use_confidence,
            cache=arguments._cache or root / CACHE_FOLDER,
            on_progress=on_progress,
        )
    console.print(evaluation_report(result.evaluation, result.target, result.notes), highlight=False)
    if arguments._output is not None:
        write_evaluation(result.evaluation, arguments._output, result.target, context=result.context, mask=result.mask)
        console.print(f"kept in {arguments._output}", soft_wrap=True, markup=False, highlight=False)
    return 0


def _prediction_stars(arguments: argparse.Namespace) -> list[Path]:
    halves = [arguments._half0, arguments._half1]
    if arguments._predictions is not None and halves == [None, None]:
        return [arguments._predictions]
    if arguments._predictions is None and None not in halves:
        return halves
    raise InvalidSettingsError("predictions: give --half0 and --half1, or --predictions with both halves in one star")


@contextmanager
def _progress(console: "Console") -> Iterator["OnProgress"]:
    """Yield a function that shows particles done, one bar for each kind of map."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        tasks: dict[str, Any] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = shown.add_task(what, total=total)
            shown.update(tasks[what], completed=done)

        yield on_progress
