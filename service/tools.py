"""Training and inference on star files, without a session."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, unquote

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cesped_stream.conventions import HALVES
from cesped_stream.errors import InvalidSettingsError
from cesped_stream.imaging.maps import read_map
from cesped_stream.particles.stack_paths import resolve_stack
from cesped_stream.particles.stacks import STACK_LABEL, StackReader, parse_image_name, read_header
from cesped_stream.particles.star import iter_star, read_star, write_star
from cesped_stream.particles.table import ParticleTable
from cesped_stream.pipeline import Proposer, open_proposer
from cesped_stream.reference_pair import ReferenceManifest, publish_map, publish_references
from cesped_stream.training import fit

from .finished import Finished, Poses, joined, output_tables
from .process import StopRequest, usable_cores
from .settings import InferCommand, TrainCommand
from .worker import matching_settings, pose_frames

ROWS_AT_ONCE = 512
WORK_FOLDER = "training.work"


def train(settings: TrainCommand, stop: StopRequest, console: Console) -> Path:
    """Fine-tune on an aligned star, or make references of it, and publish; return the checkpoint's folder.

    TrainingStopped on request.
    """
    torch.set_num_threads(settings.inference.threads or usable_cores())
    table = with_stacks(read_star(settings.star), settings.star, settings.image_root)
    if settings.reference is not None and settings.proposer != "gallery":
        raise InvalidSettingsError(f"reference {settings.reference}: of no use to proposer network; take gallery")
    if settings.proposer == "gallery":
        folder, made = _references(settings, table)
        finest = ", ".join(f"{record.resolution_angstrom:.1f}" for _, record in sorted(made.halves.items()))
        console.print(f"{folder}: references of {made.origin}, to {finest} angstrom", highlight=False)
        return folder
    with progress_bars(console) as bars:
        folder, manifest = fit.fit_pair(
            table,
            StackReader(),
            settings.training,
            settings.inference,
            work_folder=settings.output / WORK_FOLDER,
            checkpoints_folder=settings.output,
            trained_on=settings.star.name,
            on_progress=training_progress(bars),
            should_stop=stop.asked,
        )
    console.print(f"{folder}: trained until {manifest.stopped_by}, from {manifest.origin}", highlight=False)
    return folder


def _references(settings: TrainCommand, table: ParticleTable) -> tuple[Path, ReferenceManifest]:
    work_folder, matching, name = settings.output / WORK_FOLDER, matching_settings(settings), settings.star.name
    training, reader = settings.training, StackReader()
    with fit.sole_trainer(work_folder), fit.intra_op_threads(1):
        if settings.reference is not None:
            volume, pixel_size = read_map(settings.reference)
            return publish_map(
                volume, pixel_size, table, reader, training, matching,
                work_folder=work_folder, checkpoints_folder=settings.output, trained_on=name,
            )  # fmt: skip
        return publish_references(
            table, reader, training, matching,
            work_folder=work_folder, checkpoints_folder=settings.output, trained_on=name,
        )  # fmt: skip


def infer(settings: InferCommand, console: Console) -> None:
    """Write the poses of a star's particles; rows whose image is unusable go to a second star."""
    if settings.output.resolve() == settings.star.resolve():
        raise InvalidSettingsError(f"output: {settings.output} is the input star; give another path")
    torch.set_num_threads(settings.inference.threads or usable_cores())
    proposer = open_proposer(settings.checkpoint, settings.inference, matching_settings(settings), settings.half_mode)
    reader = StackReader()
    posed: list[ParticleTable] = []
    unposed: list[ParticleTable] = []
    with progress_bars(console) as bars:
        task = bars.add_task("inferred", total=None)
        for read in iter_star(settings.star, rows_per_table=ROWS_AT_ONCE):
            table = with_stacks(read, settings.star, settings.image_root)
            for kept, part in zip((posed, unposed), posed_and_unposed(proposer, table, reader), strict=True):
                kept.extend([part] if len(part) else [])
            bars.advance(task, len(table))
    for path, tables in ((settings.output, posed), (unposed_path(settings.output), unposed)):
        if tables:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_star(path, joined(tables))
            console.print(f"{path}: {sum(map(len, tables))} particles", highlight=False)


def training_progress(bars: Progress) -> Callable[[fit.Progress], None]:
    """Return what shows each half's training as a bar of its own."""
    tasks = [bars.add_task(f"half {half}", total=None) for half in HALVES]

    def on_progress(progress: fit.Progress) -> None:
        error = progress.validation_error_deg[progress.half_set]
        words = f"half {progress.half_set}, loss {progress.loss:.3f}"
        words += "" if error is None else f", validation {error:.1f} deg"
        bars.update(tasks[progress.half_set], total=progress.max_steps, completed=progress.step, description=words)

    return on_progress


def posed_and_unposed(
    proposer: Proposer, table: ParticleTable, reader: StackReader
) -> tuple[ParticleTable, ParticleTable]:
    """Infer the rows of a table (`with_stacks`); return those with a pose, and those whose image is unusable."""
    finished = Finished(
        batch_id=0,
        first_row=0,
        num_rows=len(table),
        poses=Poses(**pose_frames(proposer.poses(table, reader))),
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
            # The user names this star on this machine: any folder that it points to may be read.
            path = resolve_stack(name, star=star, image_root=image_root, allowed_roots=(Path("/"),))
            found[name] = quote(str(path))
    stacks = [found[parse_image_name(text)[1]] for text in table.column("rlnImageName")]
    table = table.with_columns({STACK_LABEL: stacks})
    if all(group.text("rlnImageSize") is not None for group in table.optics):
        return table
    boxes = {stack: read_header(Path(unquote(stack))).box_size for stack in set(stacks)}
    return table.with_image_sizes([boxes[stack] for stack in stacks])


def progress_bars(console: Console) -> Progress:
    """Return bars of a command that computes."""
    return Progress(
        TextColumn("{task.description:<44}"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
