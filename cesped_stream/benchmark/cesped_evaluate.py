"""The public `cesped` package's evaluator under its own names: Listing 4 of the paper runs with `from cesped_stream
import evaluate`."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from cesped_stream.benchmark.catalogue import CATALOGUE, DEFAULT_ROOT
from cesped_stream.benchmark.entries import Entry, find_entry
from cesped_stream.benchmark.entry_folder import mask_path
from cesped_stream.benchmark.evaluate_target import (
    CACHE_FOLDER,
    NO_MASK,
    TargetEvaluation,
    checked_engine_settings,
    evaluate_target,
)
from cesped_stream.benchmark.evaluation import PredictionType
from cesped_stream.benchmark.evaluation_files import write_evaluation
from cesped_stream.benchmark.output_folder import output_folder
from cesped_stream.benchmark.truth_maps import OnProgress
from cesped_stream.errors import CespedStreamError, InvalidSettingsError
from cesped_stream.reconstruction.engine import engine_from
from cesped_stream.settings import EngineSettings

EngineKind = Literal["builtin", "relion"]


def evaluate(
    targetName: str,
    half0PredsFname: str | Path,
    half1PredsFname: str | Path,
    predictionType: Literal["S2", "SO3", "SO3xR2"],
    usePredConfidence: bool = True,
    benchmarkDir: str | Path | None = None,
    relionBinDir: str | Path | None = None,
    mpirun: str | None = None,
    relionSingularity: str | Path | None = None,
    rm_prev_reconstructions: bool = True,
    ignore_symmetry: bool = False,
    use_gt_mask: bool = True,
    n_cpus: int = 2,
    outdir: str | Path | None = None,
    *,
    engine: EngineKind | None = None,
    on_result: Callable[[TargetEvaluation], None] = lambda result: None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> dict[str, float]:
    """Score predicted poses of both halves of a target and return the metrics under `cesped`'s keys.

    Names, order and meaning of the parameters are those of cesped.evaluateEntry.evaluate 25.12.0; the keys are those
    of `cesped_metrics`, NaN where something was not measured. Where it differs:

    - Maps are made by the builtin engine, unless `engine` is "relion" or `relionBinDir` or `relionSingularity` is
      given. `n_cpus` and `mpirun` are RELION's.
    - `targetName` may also be an entry's folder, or a star with the true poses.
    - Predictions are matched by image; partial ones are scored where they are.
    - `use_gt_mask`: the published mask, downloaded where it is not there; where it cannot be had, all figures are
      unmasked, and metrics.json's "notes" say so.
    - The truth's maps are kept by content under `benchmarkDir`; those of predictions are always made anew, so that
      `rm_prev_reconstructions` changes nothing.
    - `outdir` gets metrics.json, maps and pictures (`write_evaluation`); None keeps nothing.

    `on_result` gets the whole evaluation. Raises CespedStreamError.
    """
    del rm_prev_reconstructions
    folder = None if outdir is None else output_folder(Path(outdir).expanduser())
    root = Path(benchmarkDir if benchmarkDir is not None else DEFAULT_ROOT).expanduser()
    entry = find_entry(targetName, root)
    mask, notes = _mask(entry, root) if use_gt_mask else (NO_MASK, [])
    result = evaluate_target(
        entry,
        [_prediction_file(half0PredsFname), _prediction_file(half1PredsFname)],
        prediction_type=prediction_type_of(predictionType),
        engine=engine_from(_engine_settings(engine, relionBinDir, mpirun, relionSingularity, n_cpus)),
        symmetry="C1" if ignore_symmetry else None,
        mask=mask,
        use_confidence=usePredConfidence,
        cache=root / CACHE_FOLDER,
        notes=notes,
        on_progress=on_progress,
    )
    on_result(result)
    if folder is not None:
        write_evaluation(result.evaluation, folder, entry.name, context=result.context, mask=result.mask)
    return result.evaluation.cesped_metrics()


def prediction_type_of(text: str) -> PredictionType:
    """Return the prediction type of that name; InvalidSettingsError names the three."""
    try:
        return PredictionType(text)
    except ValueError:
        raise InvalidSettingsError(
            f"prediction type: {text!r} is none; S2 (rot and tilt), SO3 (rotation) or SO3xR2 (rotation and shift)"
        ) from None


def _prediction_file(name: str | Path) -> Path:
    return Path(name).expanduser()


def _mask(entry: Entry, root: Path) -> tuple[str, list[str]]:
    """Return the published mask's file, else "none" and why."""
    file = mask_path(entry.folder)
    if file.is_file():
        return str(file), []
    if entry.name not in CATALOGUE:
        return NO_MASK, [f"{entry.name} has no published mask: every figure is unmasked."]
    try:
        return str(_downloaded_mask(entry, root)), []
    except CespedStreamError as error:
        return NO_MASK, [f"The published mask could not be had, so every figure is unmasked: {error}"]


def _downloaded_mask(entry: Entry, root: Path) -> Path:
    from cesped_stream.benchmark.download_entry import download_mask

    return download_mask(entry.name, root)


def _engine_settings(
    engine: EngineKind | None,
    relion_folder: str | Path | None,
    mpirun: str | None,
    image: str | Path | None,
    processes: int,
) -> EngineSettings:
    kind = engine or ("relion" if relion_folder or image else "builtin")
    if kind == "builtin":
        return EngineSettings()
    return checked_engine_settings(
        kind="relion",
        relion_folder=Path(relion_folder).expanduser() if relion_folder else None,
        singularity_image=Path(image).expanduser() if image else None,
        processes=processes,
        mpirun=mpirun or "mpirun",
    )
