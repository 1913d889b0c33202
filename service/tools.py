"""Training and inference on star files, without a session."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cesped_stream.conventions import HALVES
from cesped_stream.errors import CespedStreamError, InvalidSettingsError
from cesped_stream.faulty_rows import poses_of_each
from cesped_stream.fused_pair import read_fused_manifest
from cesped_stream.imaging.maps import read_map
from cesped_stream.inference import PoseBatch
from cesped_stream.model.checkpoint import read_manifest
from cesped_stream.model.device import intra_op_threads
from cesped_stream.particles.aligned_rows import Alignment, alignment_of_rows, refuse_2d_classes, refuse_own_predictions
from cesped_stream.particles.flags import ImageFlag
from cesped_stream.particles.half_sets import check_both_halves, one_half_of
from cesped_stream.particles.own_columns import STATUS
from cesped_stream.particles.stack_paths import resolve_stack
from cesped_stream.particles.stacks import STACK_LABEL, StackReader, parse_image_name, read_header
from cesped_stream.particles.star import iter_star, read_star, write_star
from cesped_stream.particles.table import ParticleTable
from cesped_stream.pipeline import Proposer, open_proposer
from cesped_stream.reference_pair import checkpoint_kind, publish_map, read_reference_manifest
from cesped_stream.training import fit

from .finished import Finished, Poses, joined, output_tables
from .process import StopRequest, usable_cores
from .publishing import Publisher
from .settings import InferCommand, TrainCommand
from .without_effect import of_training
from .worker import matching_settings, pose_frames

ROWS_AT_ONCE = 512
FAULTS_SHOWN = 10
WORK_FOLDER = "training.work"


def train(settings: TrainCommand, stop: StopRequest, console: Console) -> Path:
    """Fine-tune on an aligned star, or make references of it, and publish; return the checkpoint's folder.

    TrainingStopped on request.
    """
    _check(settings)
    for said in of_training(settings):
        console.print(said, soft_wrap=True, highlight=False)
    torch.set_num_threads(settings.inference.threads or usable_cores())
    table = read_star(settings.star)
    trained_on = table if settings.reference is not None else table.select(np.flatnonzero(table.has_poses()))
    check_both_halves(trained_on)
    table = with_stacks(table, settings.star, settings.image_root)
    if settings.reference is not None:
        return _of_map(settings, settings.reference, table, console)
    alignment = _checked_alignment(settings, table)
    with progress_bars(console) as bars:
        publisher = Publisher(
            settings,
            table,
            settings.output / WORK_FOLDER,
            settings.output,
            trained_on=settings.star.name,
            alignment=alignment,
            on_progress=training_progress(bars),
            should_stop=stop.asked,
        )
        published = publisher.publish(lambda first: console.print(f"{first.folder}: published", highlight=False))
    console.print(f"{published.folder}: {_words_of(published.folder)}", highlight=False)
    return published.folder


def _checked_alignment(settings: TrainCommand, table: ParticleTable) -> Alignment:
    """Return what the aligned rows make of the stated independence; InvalidStarError where they are no aligned rows."""
    refuse_2d_classes(table)
    if not settings.allow_own_predictions:
        refuse_own_predictions(table, "--allow_own_predictions true")
    return alignment_of_rows(settings.training.alignment, table)


def _check(settings: TrainCommand) -> None:
    """Raise InvalidSettingsError where settings contradict each other."""
    if settings.reference is not None and settings.proposer != "gallery":
        raise InvalidSettingsError(
            f"reference {settings.reference}: of no use to proposer {settings.proposer}; take gallery"
        )
    if settings.referencing.rebuild_rows:
        raise InvalidSettingsError(
            f"referencing.rebuild_rows {settings.referencing.rebuild_rows}: poses accumulate in a session only; "
            "leave it out, or use run"
        )


def _words_of(folder: Path) -> str:
    """Return what a published checkpoint is, for the user."""
    kind = checkpoint_kind(folder)
    if kind == "network":
        networks = read_manifest(folder)
        return f"trained until {networks.stopped_by}, from {networks.origin}{_doubt_words(networks.doubts)}"
    if kind == "reference":
        references = read_reference_manifest(folder)
        finest = min(record.resolution_angstrom for record in references.halves.values())
        sure = _confidence_words(references.uncalibrated)
        doubts = _doubt_words(references.doubts)
        return f"references of {references.origin}, to {finest:.1f} angstrom; {sure}{doubts}"
    fused = read_fused_manifest(folder)
    sure = _confidence_words(fused.uncalibrated)
    return f"network and references together; {sure}{_doubt_words(fused.doubts)}"


def _doubt_words(doubts: tuple[str, ...]) -> str:
    return "".join(f"\nin doubt: {doubt}" for doubt in doubts)


def _confidence_words(uncalibrated: str) -> str:
    return f"confidence is a mass, not calibrated: {uncalibrated}" if uncalibrated else "confidence is calibrated"


def _of_map(settings: TrainCommand, reference: Path, table: ParticleTable, console: Console) -> Path:
    work_folder = settings.output / WORK_FOLDER
    volume, pixel_size = read_map(reference)
    with fit.sole_trainer(work_folder), intra_op_threads(1):
        folder, _ = publish_map(
            volume, pixel_size, table, StackReader(), settings.training, matching_settings(settings),
            work_folder=work_folder, checkpoints_folder=settings.output, trained_on=settings.star.name,
        )  # fmt: skip
    console.print(f"{folder}: {_words_of(folder)}", highlight=False)
    return folder


def infer(settings: InferCommand, console: Console) -> None:
    """Write the poses of a star's particles; rows whose image is unusable, or that fail, go to a second star."""
    if settings.star.resolve() in (settings.output.resolve(), unposed_path(settings.output).resolve()):
        raise InvalidSettingsError(f"output: {settings.output} would replace the input star; give another path")
    torch.set_num_threads(settings.inference.threads or usable_cores())
    proposer = open_proposer(settings.checkpoint, settings.inference, matching_settings(settings), settings.half_mode)
    reader = StackReader()
    posed: list[ParticleTable] = []
    unposed: list[ParticleTable] = []
    faults: list[str] = []
    with progress_bars(console) as bars:
        task = bars.add_task("inferred", total=None)
        for read in iter_star(settings.star, rows_per_table=ROWS_AT_ONCE):
            parts = inferred(proposer, read, settings, reader, works=bool(posed))
            for kept, part in zip((posed, unposed), parts[:2], strict=True):
                kept.extend([part] if len(part) else [])
            faults += parts[2]
            bars.advance(task, len(read))
    if not posed:
        if not unposed:
            console.print(f"{settings.star}: has no particle row; the output is empty", highlight=False, soft_wrap=True)
        posed.append(unposed[0].select([]) if unposed else read_star(settings.star))
    for path, tables in ((settings.output, posed), (unposed_path(settings.output), unposed)):
        if tables:
            path.parent.mkdir(parents=True, exist_ok=True)
            table = joined(tables)
            write_star(path, table)
            kinds = Counter(table.column(STATUS)) if tables is unposed else {}
            said = ", ".join(f"{many} {status}" for status, many in sorted(kinds.items()))
            console.print(f"{path}: {len(table)} particles{f' ({said})' if said else ''}", highlight=False)
    if posed and (one_half := one_half_of(joined(posed))):
        said = f"note: {one_half.words(str(settings.star))}; all are posed by the model of that half-set alone"
        console.print(said, soft_wrap=True, highlight=False, markup=False)
    for said in faults[:FAULTS_SHOWN]:
        console.print(said, soft_wrap=True, highlight=False, markup=False)
    if len(faults) > FAULTS_SHOWN:
        console.print(f"and {len(faults) - FAULTS_SHOWN} more rows that failed; see cestreamStatus", highlight=False)


def inferred(
    proposer: Proposer, read: ParticleTable, settings: InferCommand, reader: StackReader, *, works: bool
) -> tuple[ParticleTable, ParticleTable, list[str]]:
    """Infer rows as they were read; return those with a pose, those without, and why rows failed, one text each.

    Where all of them fail the first one's error is raised, unless others went well before (`works`).
    """
    missing = rows_without_stack(read, settings.star, settings.image_root)
    if len(missing) == len(read) and missing and not works:
        raise next(iter(missing.values()))
    there = [row for row in range(len(read)) if row not in missing]
    unposed = [_unposed(read.select(sorted(missing)), proposer)] if missing else []
    posed = read.select([])
    failed: dict[int, Exception] = dict(missing)
    if there:
        table = with_stacks(read.select(there), settings.star, settings.image_root)
        poses, faults = poses_of_each(proposer, table, reader, works=works)
        posed, flagged = _output_tables(table, poses, proposer)
        unposed += [flagged] if len(flagged) else []
        failed.update({there[row]: error for row, error in faults.items()})
    names = read.column("rlnImageName")
    said = [f"row {read.first_row + row + 1} ({names[row]}): {failed[row]}" for row in sorted(failed)]
    return posed, joined(unposed) if unposed else read.select([]), said


def rows_without_stack(table: ParticleTable, star: Path, image_root: Path | None) -> dict[int, CespedStreamError]:
    """Return the rows whose stack is not there or cannot be read, each with the reason."""
    faults: dict[str, CespedStreamError | None] = {}
    missing = {}
    for row, text in enumerate(table.column("rlnImageName")):
        name = parse_image_name(text)[1]
        if name not in faults:
            try:
                read_header(_stack_of(name, star, image_root))
                faults[name] = None
            except CespedStreamError as error:
                faults[name] = error
        if (fault := faults[name]) is not None:
            missing[row] = fault
    return missing


def _unposed(table: ParticleTable, proposer: Proposer) -> ParticleTable:
    poses = PoseBatch.empty(len(table), 1)
    poses.flag[:] = ImageFlag.UNREADABLE
    return _output_tables(table, poses, proposer)[1]


def training_progress(bars: Progress) -> Callable[[fit.Progress], None]:
    """Return what shows each half's training as a bar of its own."""
    tasks = [bars.add_task(f"half {half}", total=None) for half in HALVES]

    def on_progress(progress: fit.Progress) -> None:
        if progress.stage:
            bars.update(tasks[progress.half_set], description=f"half {progress.half_set}, {progress.stage}")
            return
        error = progress.validation_error_deg[progress.half_set]
        words = f"half {progress.half_set}, loss {progress.loss:.3f}"
        words += "" if error is None else f", validation {error:.1f} deg"
        bars.update(tasks[progress.half_set], total=progress.max_steps, completed=progress.step, description=words)

    return on_progress


def posed_and_unposed(
    proposer: Proposer, table: ParticleTable, reader: StackReader
) -> tuple[ParticleTable, ParticleTable]:
    """Infer the rows of a table (`with_stacks`); return those with a pose, and those whose image is unusable."""
    return _output_tables(table, proposer.poses(table, reader), proposer)


def _output_tables(table: ParticleTable, poses: PoseBatch, proposer: Proposer) -> tuple[ParticleTable, ParticleTable]:
    finished = Finished(
        batch_id=0,
        first_row=0,
        num_rows=len(table),
        poses=Poses(**pose_frames(poses)),
        checkpoint_id=proposer.checkpoint_id,
        proposer=proposer.proposer,
    )
    return output_tables(table, finished)


def unposed_path(output: Path) -> Path:
    """Return where the rows without a pose go: `poses.star` has `poses_unposed.star` beside it."""
    return output.with_name(f"{output.stem}_unposed{output.suffix}")


def with_stacks(table: ParticleTable, star: Path, image_root: Path | None) -> ParticleTable:
    """Return the table with each row's resolved stack in `cestreamStack`, and rlnImageSize, which RELION needs.

    UnreachableFileError names a missing stack.
    """
    found: dict[str, str] = {}
    for text in table.column("rlnImageName"):
        name = parse_image_name(text)[1]
        if name not in found:
            found[name] = quote(str(_stack_of(name, star, image_root)))
    stacks = [found[parse_image_name(text)[1]] for text in table.column("rlnImageName")]
    table = table.with_columns({STACK_LABEL: stacks})
    if all(group.text("rlnImageSize") is not None for group in table.optics):
        return table
    boxes = {stack: read_header(Path(unquote(stack))).box_size for stack in set(stacks)}
    return table.with_image_sizes([boxes[stack] for stack in stacks])


def _stack_of(name: str, star: Path, image_root: Path | None) -> Path:
    # The user names this star on this machine: any folder that it points to may be read.
    return resolve_stack(name, star=star, image_root=image_root, allowed_roots=(Path("/"),))


def progress_bars(console: Console) -> Progress:
    """Return bars of a command that computes."""
    return Progress(
        TextColumn("{task.description:<44}"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
