"""`cesped-stream replay`: an entry lands as a stream, is answered, and what came of it is told. `demo` runs it too."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from cesped_stream.benchmark.beside import Run, read_run
from cesped_stream.benchmark.compare import Comparison, compare
from cesped_stream.benchmark.entries import Entry, find_entry
from cesped_stream.benchmark.evaluation_files import METRICS_FILE
from cesped_stream.benchmark.figure import save_figure
from cesped_stream.benchmark.output_folder import output_folder
from cesped_stream.benchmark.plan import BatchRole, ReplayPlan, plan_replay
from cesped_stream.benchmark.pose_ways import inferred_rows, proposers_of
from cesped_stream.benchmark.predictions import PredictionType, read_predictions
from cesped_stream.benchmark.replay import LOG_NAME, TRUTH_NAME
from cesped_stream.benchmark.replay import replay as land_plan
from cesped_stream.benchmark.report import (
    RunFacts,
    figure_data,
    half_words,
    summarise,
    summary_table,
    write_summary,
)
from cesped_stream.benchmark.stream_realism import for_replay, in_session_order
from cesped_stream.benchmark.stream_report import (
    StreamMeasures,
    measure_stream,
    stream_latencies,
    streamed,
)
from cesped_stream.benchmark.stream_times import Latency, StreamTimes, first_pose_seconds, stream_times
from cesped_stream.errors import InvalidSettingsError
from cesped_stream.export.star import export_star
from cesped_stream.fused_pair import FusedManifest
from cesped_stream.imaging.entry import TRUTH_MAP
from cesped_stream.imaging.maps import read_map
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.particles.star import read_star
from cesped_stream.particles.table import ParticleTable
from cesped_stream.reconstruction.engine import BuiltinEngine
from cesped_stream.reference_pair import ReferenceManifest
from cesped_stream.settings import RealismSettings

from .commit_times import committed_at
from .given_map import check_before_start
from .independence import independence_of_rows
from .models_in_use import ModelsInUse, models_in_use
from .pose_figures import pose_errors, sureness_of
from .resolve import with_absolute_paths
from .session import SessionFolder
from .settings import LandingSettings, PosingSettings, SessionSettings
from .stream_outcome import REPORT_NAME, StageBars, StreamStatement, contained_words, stated_of, write_outcome
from .stream_progress import Stages, StreamBars, progress_bars
from .stream_settings import ProtocolCommand, ReplayCommand, StreamCommand
from .streaming import StreamRecord, stream_entry
from .without_effect import of_session

PUBLISHED_MARK = "model published"


def replay_command(settings: ReplayCommand, console: Console) -> int:
    """Stream any entry, and tell what came of it; without roles, land its files only."""
    stages = Stages()
    start = time.monotonic()
    refuse_used_output(settings.output)
    entry = find_entry(str(settings.entry), settings.root)
    with progress_bars(console) as bars:
        realism = for_replay(settings.realism, entry.folder)
        if settings.roles:
            stream_and_report(entry, settings, realism, console, bars, stages, start)
        else:
            _land_only(entry, settings, realism, bars)
    return 0


def stream_and_report(
    entry: Entry,
    settings: StreamCommand,
    realism: RealismSettings,
    console: Console,
    bars: Progress,
    stages: Stages,
    start: float,
) -> None:
    """Stream an entry into a session on this machine, and write and print what came of it."""
    settings = settings.model_copy(update={"replay": in_session_order(settings.replay, entry.folder)})
    output_folder(report_file(settings).parent)
    beside = tuple(read_run(folder) for folder in settings.reporting.beside)  # what is wrong there is said first
    session = session_settings(settings, symmetry_of(entry, settings))
    check_before_start(session)
    for said in of_session(session):
        console.print(said, soft_wrap=True, highlight=False)
    plan = plan_replay(entry, settings.replay, realism, symmetry=session.training.symmetry)
    truth = settings.output / "truth"
    statement = _statement(entry, plan, settings, realism, session.training.symmetry)
    statement.write(truth)
    shown = StreamBars(bars, plan)
    with stages.stage("stream"):
        record = stream_entry(
            plan, settings.replay, session, truth, on_progress=shown.update,
            deadline_seconds=60 * settings.deadline_minutes,
        )  # fmt: skip
    bars.stop()
    with stages.stage("report"):
        summary = _Outcome(entry, settings, session, record, statement, beside).write(stages, start, console)
    console.print(summary_table(summary))
    told = [report_file(settings), settings.output / METRICS_FILE] if settings.reporting.write else []
    files = [*told, *(settings.output / name for name in ("poses.star", "summary.json", "figure.png"))]
    say_written(console, files)


def say_written(console: Console, files: Sequence[Path]) -> None:
    """Name the files that a command leaves; the first is the one to open."""
    console.print(f"open {files[0]}", highlight=False, markup=False, soft_wrap=True)
    for file in files[1:]:
        console.print(f"     {file}", highlight=False, markup=False, soft_wrap=True)


def report_file(settings: StreamCommand) -> Path:
    """Return where the page goes."""
    return settings.reporting.file or settings.output / REPORT_NAME


def _land_only(entry: Entry, settings: ReplayCommand, realism: RealismSettings, bars: Progress) -> None:
    settings = settings.model_copy(update={"replay": in_session_order(settings.replay, entry.folder)})
    symmetry = symmetry_of(entry, settings)
    plan = plan_replay(entry, settings.replay, realism, symmetry=symmetry)
    truth = settings.output / "truth"
    _statement(entry, plan, settings, realism, symmetry).write(truth)
    task = bars.add_task("landed", total=plan.num_particles)
    landing = settings.output / "landing"
    land_plan(plan, landing, truth, settings.replay, on_landed=lambda landed: bars.advance(task, landed.num_rows))


def _statement(
    entry: Entry, plan: ReplayPlan, settings: StreamCommand, realism: RealismSettings, symmetry: str
) -> StreamStatement:
    replay = settings.replay.model_dump(mode="json")
    words = contained_words(entry, replay, plan.count(BatchRole.STREAMED), realism)
    return StreamStatement(entry.name, symmetry, words, replay)


def symmetry_of(entry: Entry, settings: StreamCommand | ProtocolCommand) -> str:
    """Return the entry's stated symmetry, else `training.symmetry`; InvalidSettingsError where they differ."""
    given = settings.training.symmetry
    if entry.symmetry is None:
        return given
    if "symmetry" in settings.training.model_fields_set and given != entry.symmetry:
        raise InvalidSettingsError(f"training.symmetry {given}: {entry.folder} states {entry.symmetry}; leave it out")
    return entry.symmetry


def session_settings(settings: StreamCommand, symmetry: str) -> SessionSettings:
    """Return the settings of the session that answers a stream, all paths absolute."""
    values: dict[str, Any] = {
        "session": settings.output / "session",
        "proposer": settings.proposer,
        "half_mode": settings.half_mode,
        "min_aligned_per_half": settings.min_aligned_per_half,
        "checkpoint": settings.checkpoint,
        "reference": settings.reference,
        "noise_rows_per_half": settings.noise_rows_per_half,
        "landing": LandingSettings(
            folder=settings.output / "landing",
            aligned="aligned_*.star",
            scan_seconds=settings.scan_seconds,
            settle_seconds=settings.settle_seconds,
        ),
        "training": settings.training.model_copy(update={"symmetry": symmetry}),
        **{name: getattr(settings, name) for name in PosingSettings.model_fields},
        "service": settings.service,
    }
    return with_absolute_paths(SessionSettings(**values))


@dataclass(frozen=True)
class _Outcome:
    """Exports, compares with the truth and writes poses.star, figure.png, summary.json, metrics.json and the page."""

    entry: Entry
    settings: StreamCommand
    session: SessionSettings
    record: StreamRecord
    statement: StreamStatement
    beside: tuple[Run, ...]

    def write(self, stages: Stages, start: float, console: Console) -> dict[str, Any]:
        """Write all of it; return the summary."""
        output = self.settings.output
        files = export_star(SessionFolder.of(self.session).poses, output / "poses.star")
        truth = read_star(output / "truth" / TRUTH_NAME)
        exported = [read_star(path) for path in files]
        comparison = compare(exported, truth, self.session.training.symmetry)
        models = models_in_use(self.record.status.checkpoint, self.session)
        stated = stated_of(self.entry.folder)
        times = self._times(truth)
        rows = inferred_rows(comparison, exported)
        facts = replace(
            _facts(self.settings, self.record, models, stages, start, stated, self._latencies(times, truth)),
            proposer=proposers_of(rows),
            first_pose_seconds=first_pose_seconds(times, truth),
            independence=independence_of_rows(exported, self.session),
            pose_errors=pose_errors(comparison, rows, self.session, self.record.status.checkpoint),
            sureness=sureness_of(output / "poses.star", truth, self.session, models.within_deg),
        )
        wanted = self.settings.reporting.write
        measures = self._measure(truth, comparison, models, facts, times, console) if wanted else None
        if measures is not None and measures.evaluation is not None:
            comparison = replace(comparison, metrics=measures.evaluation.poses)
        summary = summarise(comparison, facts)
        data = figure_data(
            comparison,
            summary,
            self.session.landing.folder,
            preprocessor=models.preprocessor,
            reference=_reference(self.entry.folder),
            timeline=self.record.timeline,
            title=self._title(stated),
        )
        save_figure(data, output / "figure.png")
        if measures is not None:
            self._write_page(measures, times, truth, self._title(stated))
        summary["total_seconds"] = time.monotonic() - start
        write_summary(summary, output / "summary.json")
        return summary

    def _title(self, stated: dict[str, Any]) -> str:
        return f"{stated.get('name', self.entry.name)}, streamed"

    def _measure(
        self,
        truth: ParticleTable,
        comparison: Comparison,
        models: ModelsInUse,
        facts: RunFacts,
        times: StreamTimes,
        console: Console,
    ) -> StreamMeasures:
        with progress_bars(console) as bars:
            return measure_stream(
                read_predictions([self.settings.output / "poses.star"]),
                truth,
                comparison.counts,
                comparison.symmetry,
                landing=self.session.landing.folder,
                engine=BuiltinEngine() if self.settings.reporting.maps else None,
                times=times,
                model_seconds=_model_seconds(self.record),
                points=self.settings.reporting.points,
                prediction_type=PredictionType.SO3xR2
                if isinstance(models.manifest, ReferenceManifest | FusedManifest)
                else PredictionType.SO3,
                facts=self._stream_facts(comparison, models, facts),
                within_deg=models.within_deg,
                on_progress=StageBars(bars),
            )

    def _stream_facts(self, comparison: Comparison, models: ModelsInUse, facts: RunFacts) -> dict[str, Any]:
        summary = summarise(comparison, facts)
        keys = ("checkpoint", "checkpoint_origin", "training_seconds", "training_stopped_by", "particles_per_second")
        return {
            "entry": self.statement.entry,
            "contained": list(self.statement.contained),
            "complete": True,
            "half_mode": facts.half_mode,
            "half_independence": facts.independence,
            "half_words": half_words(summary),
            "alignment_limit_angstrom": models.finest_angstrom,
            "maps_are_of": "streamed particles only",
            "made_by": {key: summary[key] for key in (*keys, "peak_memory_gigabytes", "symmetry")}
            | {"trained_on": models.manifest.trained_on if models.manifest else None},
            "pose_ways": dict(facts.pose_errors),
            "replay": dict(self.statement.replay),
        }

    def _latencies(self, times: StreamTimes, truth: ParticleTable) -> tuple[Latency | None, Latency | None]:
        """What the page tells too: of streamed particles, from their batch's last byte. (The session's own status
        counts from when it first saw a file, and every batch.)"""
        return stream_latencies(times, streamed(truth), _model_seconds(self.record))[:2]

    def _times(self, truth: ParticleTable) -> StreamTimes:
        committed = committed_at(SessionFolder.of(self.session))
        return stream_times(self.settings.output / "truth" / LOG_NAME, truth, committed)

    def _write_page(self, measures: StreamMeasures, times: StreamTimes, truth: ParticleTable, title: str) -> None:
        output = self.settings.output
        write_outcome(
            measures,
            report_file(self.settings),
            title,
            metrics_folder=output,
            times=times,
            truth=truth,
            timeline=self.record.timeline,
            model_seconds=_model_seconds(self.record),
            gallery=output / "figure.png",
            beside=self.beside,
        )


def _model_seconds(record: StreamRecord) -> float | None:
    return next((seconds for seconds, text in record.timeline.marks if text == PUBLISHED_MARK), None)


def _facts(
    settings: StreamCommand,
    record: StreamRecord,
    models: ModelsInUse,
    stages: Stages,
    start: float,
    stated: dict[str, Any],
    latencies: tuple[Latency | None, Latency | None],
) -> RunFacts:
    status, manifest, (every, with_model) = record.status, models.manifest, latencies
    return RunFacts(
        half_mode=settings.half_mode,
        latency_p50_seconds=every.p50_seconds if every else None,
        latency_p95_seconds=every.p95_seconds if every else None,
        latency_with_model_p50_seconds=with_model.p50_seconds if with_model else None,
        latency_with_model_p95_seconds=with_model.p95_seconds if with_model else None,
        training_seconds=status.training.seconds if status.training else None,
        total_seconds=time.monotonic() - start,
        particles_per_second=record.particles_per_second,
        checkpoint_id=manifest.checkpoint_id if manifest else "",
        independence=manifest.independence if manifest else "unknown",
        origin=manifest.origin if manifest else "",
        stopped_by=models.network.stopped_by if models.network else "",
        peak_memory_gigabytes=record.peak_memory_gigabytes,
        stage_seconds=stages.seconds,
        entry=stated,
    )


def refuse_used_output(output: Path) -> None:
    """Make the output folder; InvalidSettingsError where it holds anything, else as `output_folder`."""
    if any(output_folder(output).iterdir()):
        raise InvalidSettingsError(f"output {output}: not empty; remove it or give another folder")


def _reference(folder: Path) -> MapProjector | None:
    file = folder / TRUTH_MAP
    return MapProjector(*read_map(file)) if file.is_file() else None
