"""`cesped-stream protocol`: train on each half of an entry, infer the other, reconstruct, evaluate; generalisation."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from cesped_stream.benchmark.entries import Entry, find_entry
from cesped_stream.benchmark.entry_folder import folder_lock
from cesped_stream.benchmark.evaluation import evaluate_poses
from cesped_stream.benchmark.evaluation_files import METRICS_FILE, write_evaluation
from cesped_stream.benchmark.evaluation_report import evaluation_report
from cesped_stream.benchmark.evaluation_result import Evaluation
from cesped_stream.benchmark.output_folder import output_folder
from cesped_stream.benchmark.predictions import PredictionType, read_predictions
from cesped_stream.benchmark.protocol_page import protocol_page
from cesped_stream.benchmark.report import half_words
from cesped_stream.benchmark.stream_report import why_no_maps
from cesped_stream.benchmark.transfer import (
    Manifest,
    check_transfer,
    manifest_of,
    trained_on,
    why_not_known_to_be_of_another_entry,
)
from cesped_stream.benchmark.truth_maps import truth_maps
from cesped_stream.conventions import HALVES
from cesped_stream.durable import write_whole
from cesped_stream.errors import InvalidSettingsError, InvalidStarError
from cesped_stream.model.checkpoint import CheckpointManifest
from cesped_stream.particles.half_sets import check_both_halves
from cesped_stream.particles.own_columns import CONFIDENCE
from cesped_stream.particles.stacks import STACK_LABEL, StackReader
from cesped_stream.particles.star import write_star
from cesped_stream.particles.table import ParticleTable
from cesped_stream.pipeline import open_proposer
from cesped_stream.reconstruction.engine import BuiltinEngine
from cesped_stream.reference_pair import ReferenceManifest, publish_references
from cesped_stream.settings import TrainingSettings
from cesped_stream.training import fit

from .finished import joined
from .process import StopRequest, usable_cores
from .replay_command import say_written, symmetry_of
from .stream_outcome import REPORT_NAME, StageBars, stated_of
from .stream_settings import ProtocolCommand
from .tools import ROWS_AT_ONCE, WORK_FOLDER, posed_and_unposed, progress_bars, training_progress, unposed_path
from .worker import matching_settings

RECORD_NAME = "protocol.json"
"""What the folder was begun with: started again with anything else, the command refuses."""
MERIT_LABEL, FORMER_MERIT_LABEL = "rlnParticleFigureOfMerit", "cestreamInputFigureOfMerit"


def protocol_command(settings: ProtocolCommand, stop: StopRequest, console: Console) -> int:
    """Run the protocol, or go on with it where the folder holds a part of it already.

    BusyEntryError where another process works in that folder.
    """
    output_folder(settings.output.absolute().parent)
    with folder_lock(settings.output.absolute()):
        return _protocol(settings, stop, console)


def _protocol(settings: ProtocolCommand, stop: StopRequest, console: Console) -> int:
    entry = find_entry(str(settings.entry), settings.root)
    symmetry = symmetry_of(entry, settings)
    _check_half_mode(entry, settings)
    torch.set_num_threads(settings.inference.threads or usable_cores())
    table = entry.particles()
    check_both_halves(table)
    if not table.has_poses().all():
        raise InvalidStarError(
            f"{entry.name}: rows without a pose; the protocol trains on and compares with all of them"
        )
    warnings: list[str] = []
    if settings.checkpoint:
        manifest = manifest_of(Path(settings.checkpoint))
        _check_proposer(manifest, settings)
        warnings = check_transfer(manifest, table, symmetry, allow_symmetry=settings.allow_symmetry)
    for warning in warnings:
        console.print(f"warning: {warning}", highlight=False, soft_wrap=True)
    _begin_or_go_on(entry, table, settings, symmetry)
    with progress_bars(console) as bars:
        run = _Run(entry, table, symmetry, settings, bars)
        checkpoint = Path(settings.checkpoint) if settings.checkpoint else run.trained(stop)
        manifest = manifest_of(checkpoint)
        stars = [run.predicted(checkpoint, half, stop) for half in HALVES]
        evaluation = run.evaluated(stars, manifest)
    facts = _facts(manifest, settings) | {"simulated": bool(stated_of(entry.folder))}
    _write(evaluation, entry, settings, facts, _made_by(manifest, entry, settings), warnings)
    console.print(evaluation_report(evaluation, entry.name, [*warnings, f"Half-sets: {facts['half_words']}."]))
    page = [settings.reporting.file or settings.output / REPORT_NAME] if settings.reporting.write else []
    metrics = [settings.output / METRICS_FILE] if settings.reporting.write else []
    say_written(console, [*page, *metrics, *stars, *([] if settings.checkpoint else [checkpoint])])
    return 0


@dataclass(frozen=True)
class _Run:
    """The stages, each skipped where its result is on disk."""

    entry: Entry
    table: ParticleTable
    symmetry: str
    settings: ProtocolCommand
    bars: Progress

    def trained(self, stop: StopRequest) -> Path:
        """Return the checkpoint's folder; a training that was stopped goes on from its last epoch."""
        folder, work = self.settings.output / "checkpoints", self.settings.output / WORK_FOLDER
        referenced = self.settings.proposer == "gallery"
        if done := sorted(folder.glob("ref-*" if referenced else "i2s-*")):
            return done[0]
        training = self.settings.training.model_copy(update={"symmetry": self.symmetry})
        if referenced:
            return self._referenced(training, folder, work, stop)
        published, _ = fit.fit_pair(
            self.table,
            StackReader(),
            training,
            self.settings.inference,
            work_folder=work,
            checkpoints_folder=folder,
            trained_on=self.entry.name,
            on_progress=training_progress(self.bars),
            should_stop=stop.asked,
        )
        return published

    def _referenced(self, training: TrainingSettings, folder: Path, work: Path, stop: StopRequest) -> Path:
        tasks = [self.bars.add_task(f"half {half}", total=None) for half in HALVES]

        def on_stage(half: int, stage: str) -> None:
            self.bars.update(tasks[half], description=f"half {half}, {stage}")
            if stop.asked():
                raise fit.TrainingStopped("stopped between two references; the next start makes them anew, in seconds")

        with fit.sole_trainer(work):
            published, _ = publish_references(
                self.table,
                StackReader(),
                training,
                matching_settings(self.settings),
                work_folder=work,
                checkpoints_folder=folder,
                trained_on=self.entry.name,
                calibrate=False,
                on_stage=on_stage,
            )
        return published

    def predicted(self, checkpoint: Path, half: int, stop: StopRequest) -> Path:
        """Return the star of a half-set's predictions, in the entry's own order."""
        output = self.settings.output / f"predictions_{half}.star"
        if output.exists():
            return output
        rows = np.flatnonzero(self.table.half_sets() == half)
        settings = self.settings
        proposer = open_proposer(checkpoint, settings.inference, matching_settings(settings), settings.half_mode)
        reader, posed, unposed = StackReader(), list[ParticleTable](), list[ParticleTable]()
        task = self.bars.add_task(f"half {half} inferred", total=len(rows))
        for start in range(0, len(rows), ROWS_AT_ONCE):
            if stop.asked():
                raise fit.TrainingStopped(f"inference of half {half} stopped on request; start it again to go on")
            part = self.table.select(rows[start : start + ROWS_AT_ONCE])
            for kept, found in zip((posed, unposed), posed_and_unposed(proposer, part, reader), strict=True):
                kept.extend([found] if len(found) else [])
            self.bars.advance(task, len(part))
        if unposed:
            write_star(unposed_path(output), joined(unposed))
        if not posed:
            raise InvalidStarError(f"{self.entry.name}: no image of half-set {half} is usable; nothing to evaluate")
        write_star(output, _with_merit(joined(posed)))
        return output

    def evaluated(self, stars: list[Path], manifest: Manifest) -> Evaluation:
        """Return the figures, of shifts too where references gave them.

        The truth's maps are kept under truth_maps/ and found again.
        """
        progress = StageBars(self.bars)
        engine = BuiltinEngine() if self.settings.reporting.maps and not why_no_maps(self.table) else None
        known = None
        if engine is not None:
            cache = self.settings.output / "truth_maps"
            known = truth_maps(self.table, self.symmetry, engine, cache=cache, on_progress=progress)
        return evaluate_poses(
            self.table,
            read_predictions(stars),
            symmetry=self.symmetry,
            prediction_type=PredictionType.SO3xR2 if isinstance(manifest, ReferenceManifest) else PredictionType.SO3,
            engine=engine,
            truth_maps=known,
            on_progress=progress,
        )


def _check_half_mode(entry: Entry, settings: ProtocolCommand) -> None:
    """Refuse poses of particles by the model that was trained on them."""
    if settings.half_mode == "cross_half":
        return
    if settings.checkpoint:
        manifest = manifest_of(Path(settings.checkpoint))
        if why := why_not_known_to_be_of_another_entry(manifest, entry.name):
            raise InvalidSettingsError(
                f"half_mode gold_standard with checkpoint {settings.checkpoint}: {why}, so each half's model may pose "
                f"the very particles of {entry.name} that it was trained on; use cross_half, or a checkpoint that "
                "`cesped-stream protocol` trained on another entry"
            )
    else:
        raise InvalidSettingsError(
            "half_mode gold_standard: each half's model would pose the very particles that it was trained on, and the "
            "errors would flatter it; use cross_half, or hold particles out: `cesped-stream replay ENTRY --protocol "
            "gold_standard --first-aligned N` trains on N and poses the others"
        )


def _check_proposer(manifest: Manifest, settings: ProtocolCommand) -> None:
    holds = "gallery" if isinstance(manifest, ReferenceManifest) else "network"
    if "proposer" in settings.model_fields_set and settings.proposer != holds:
        raise InvalidSettingsError(
            f"proposer {settings.proposer}: checkpoint {settings.checkpoint} is for proposer {holds}; leave it out"
        )


def _begin_or_go_on(entry: Entry, table: ParticleTable, settings: ProtocolCommand, symmetry: str) -> None:
    """Record what the folder is made with; InvalidSettingsError where it was begun with something else."""
    record = _record(entry, table, settings, symmetry)
    file = output_folder(settings.output) / RECORD_NAME
    if not file.exists():
        # A kill while the record was written leaves its temporary file, and nothing else has begun.
        if {path.name for path in settings.output.iterdir()} - {f".{RECORD_NAME}.tmp"}:
            raise InvalidSettingsError(
                f"output {settings.output}: not empty and not of this command; give another folder"
            )
        write_whole(file, json.dumps(record, indent=1).encode() + b"\n")
        return
    before = _former_record(file)
    before.setdefault("proposer", "network")  # older records know no other
    if changed := _changed(before["proposer"], record["proposer"], "proposer") or _changed(before, record):
        raise InvalidSettingsError(
            f"{file}: begun with {'; '.join(changed)}; go on with the same, or give another output folder"
        )


def _changed(before: Any, now: Any, key: str = "") -> list[str]:
    """Return what differs between two records, each with its dotted key and what it was and is."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = sorted({*before, *now})
        return [
            text for name in names for text in _changed(before.get(name), now.get(name), f"{key}.{name}".strip("."))
        ]
    if before == now:
        return []
    of_entry, _, name = key.partition(".")
    if of_entry in ("entry", "stacks"):
        return [f"another {name or 'set of stacks'}"]
    given = [value if isinstance(value, str | int | float | None) else "others" for value in (before, now)]
    return [f"{key} {given[0]!r}, now {given[1]!r}"]


def _former_record(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise InvalidSettingsError(f"{file}: damaged; what the folder was begun with is unknown, give another one")
    return record


def _record(entry: Entry, table: ParticleTable, settings: ProtocolCommand, symmetry: str) -> dict[str, Any]:
    given = manifest_of(Path(settings.checkpoint)) if settings.checkpoint else None
    referenced = isinstance(given, ReferenceManifest) or (given is None and settings.proposer == "gallery")
    record = {
        "proposer": "gallery" if referenced else "network",
        "entry": {star.name: hashlib.sha256(star.read_bytes()).hexdigest() for star in entry.stars},
        "stacks": _stacks(table),
        "symmetry": symmetry,
        "half_mode": settings.half_mode,
        "checkpoint": given.checkpoint_id if given else "",
        "training": None if given else settings.training.model_dump(mode="json"),
        "inference": settings.inference.model_dump(mode="json", exclude={"device", "threads"}),
    }
    if referenced:
        names = ("referencing", "gallery", "refinement")
        record |= {name: getattr(settings, name).model_dump(mode="json") for name in names}
    return record


def _stacks(table: ParticleTable) -> dict[str, list[int]]:
    """Return size and time of change (ns) of each stack: changed images are told without reading gigabytes."""
    stacks = [Path(unquote(text)) for text in dict.fromkeys(table.column(STACK_LABEL))]
    return {str(stack): [stack.stat().st_size, stack.stat().st_mtime_ns] for stack in stacks}


def _with_merit(table: ParticleTable) -> ParticleTable:
    """Return CESPED's prediction star: our confidence in rlnParticleFigureOfMerit, a picker's score beside it."""
    columns: dict[str, Any] = {MERIT_LABEL: table.column(CONFIDENCE)}
    if MERIT_LABEL in table:
        columns[FORMER_MERIT_LABEL] = table.column(MERIT_LABEL)
    return table.with_columns(columns)


def _facts(manifest: Manifest, settings: ProtocolCommand) -> dict[str, Any]:
    independence = "unknown" if settings.checkpoint else manifest.independence
    return {
        "half_mode": settings.half_mode,
        "half_independence": independence,
        "half_words": half_words({"half_mode": settings.half_mode, "half_independence": independence}),
        "alignment_limit_angstrom": _finest_angstrom(manifest),
        "checkpoint": manifest.checkpoint_id,
        "checkpoint_origin": manifest.origin,
        "trained_on": manifest.trained_on,
        "trained_for_symmetry": manifest.symmetry,
    }


def _finest_angstrom(manifest: Manifest) -> float:
    """The finest resolution that the poses were made from."""
    if isinstance(manifest, ReferenceManifest):
        return min(record.resolution_angstrom for record in manifest.halves.values())
    return 2 * manifest.network_pixel_size_angstrom


def _made_by(manifest: Manifest, entry: Entry, settings: ProtocolCommand) -> list[tuple[str, str]]:
    transfer = _transfer_words(manifest, entry) if settings.checkpoint else "this entry (section 2.5)"
    is_reference = isinstance(manifest, ReferenceManifest)
    return [
        ("entry", entry.name),
        ("references" if is_reference else "training", f"{transfer}: {trained_on(manifest)}"),
        ("made for symmetry" if is_reference else "trained for symmetry", manifest.symmetry),
        *(_reference_words(manifest) if isinstance(manifest, ReferenceManifest) else _network_words(manifest)),
        ("whose model poses a particle", settings.half_mode.replace("_", " ")),
    ]


def _network_words(manifest: CheckpointManifest) -> list[tuple[str, str]]:
    return [
        ("weights started from", manifest.origin),
        ("training ended by", manifest.stopped_by),
        *((f"half {half} steps", f"{record.steps:,}") for half, record in sorted(manifest.halves.items())),
        (
            "network",
            f"{manifest.preset}, {manifest.preprocess.image_size} px at {manifest.network_pixel_size_angstrom:.2f} Å",
        ),
    ]


def _reference_words(manifest: ReferenceManifest) -> list[tuple[str, str]]:
    return [
        ("references are of", manifest.origin),
        *(
            (f"half {half}", f"{record.num_training:,} particles, to {record.resolution_angstrom:.1f} Å")
            for half, record in sorted(manifest.halves.items())
        ),
    ]


def _transfer_words(manifest: Manifest, entry: Entry) -> str:
    if why := why_not_known_to_be_of_another_entry(manifest, entry.name):
        return f"not known to be of another entry ({why})"
    return "another entry (generalisation, section 3.3)"


def _write(
    evaluation: Evaluation,
    entry: Entry,
    settings: ProtocolCommand,
    facts: dict[str, Any],
    made_by: list[tuple[str, str]],
    warnings: list[str],
) -> None:
    if not settings.reporting.write:
        return
    context = {"target": entry.name, **facts, "warnings": warnings}
    write_evaluation(evaluation, settings.output, entry.name, context=context)
    what = "posed by a given checkpoint" if settings.checkpoint else "2-fold protocol"
    page = protocol_page(evaluation, f"{entry.name}: {what}", facts, made_by, warnings)
    write_whole(settings.reporting.file or settings.output / REPORT_NAME, page.encode())
