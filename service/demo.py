"""Commands that stream an entry on this machine and tell what came of it: replay, demo, simulate."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cesped_stream.benchmark.compare import compare
from cesped_stream.benchmark.entries import Entry, open_entry
from cesped_stream.benchmark.examples import save_examples
from cesped_stream.benchmark.figure import save_figure
from cesped_stream.benchmark.plan import BatchRole, ReplayPlan, plan_replay
from cesped_stream.benchmark.replay import TRUTH_NAME, replay
from cesped_stream.benchmark.report import RunFacts, figure_data, summarise, summary_table, write_summary
from cesped_stream.benchmark.stream_realism import for_demo, for_replay, for_simulation
from cesped_stream.errors import InvalidSettingsError
from cesped_stream.export.star import export_star
from cesped_stream.imaging.entry import TRUTH_MAP, write_entry
from cesped_stream.imaging.maps import crop_map, read_map
from cesped_stream.imaging.molecule import embedded_ribosome, molecule_to_map
from cesped_stream.imaging.preprocess import Preprocessor
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.model.checkpoint import CheckpointManifest, read_manifest
from cesped_stream.particles.star import read_star
from cesped_stream.settings import RealismSettings

from .resolve import with_absolute_paths
from .session import SessionFolder
from .settings import LandingSettings, SessionSettings
from .stream_settings import DemoCommand, EntrySettings, ReplayCommand, SimulateCommand, StreamCommand
from .streaming import StreamProgress, StreamRecord, stream_entry

STATED_NAME = "simulated.json"
EMBEDDED_BOX_SIZE = 48
REAL_SNR = 0.15
REAL_SNR_PIXEL_SIZE_ANGSTROM = 8.0
"""About what a ribosome's images have, in its own circle, at 8 A/px: 0.05 at 1.5 A/px."""


@dataclass
class Stages:
    """Seconds that each named stage took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = time.monotonic() - start


def simulate_command(settings: SimulateCommand, console: Console) -> int:
    """Write a simulated entry; say what it is."""
    if any(settings.output.glob("particles_*")) and not (settings.output / STATED_NAME).exists():
        raise InvalidSettingsError(
            f"output: {settings.output} holds an entry that is not simulated; give another folder"
        )
    with _bars(console) as bars:
        stated = simulate(settings.simulate, settings.output, bars, for_simulation(settings.realism))
    console.print(f"{settings.output}: {stated}")
    return 0


def demo_command(settings: DemoCommand, console: Console) -> int:
    """Simulate the embedded entry, stream it, and tell what came of it."""
    stages = Stages()
    start = time.monotonic()
    _refuse_used_output(settings.output)
    in_images, in_labels = for_demo(settings.realism)
    folder = settings.output / "entry"
    with _bars(console) as bars:
        with stages.stage("simulate"):
            stated = simulate(settings.simulate, folder, bars, in_images)
        console.print(stated)
        _stream_and_report(open_entry(folder), settings, in_labels, console, bars, stages, start)
    return 0


def replay_command(settings: ReplayCommand, console: Console) -> int:
    """Stream any entry, and tell what came of it; without roles, land its files only."""
    stages = Stages()
    start = time.monotonic()
    _refuse_used_output(settings.output)
    entry = open_entry(settings.entry)
    realism = for_replay(settings.realism, entry.folder)
    if not settings.roles:
        plan = plan_replay(entry, settings.replay, realism, symmetry=settings.training.symmetry)
        with _bars(console) as bars:
            task = bars.add_task("landed", total=plan.num_particles)
            replay(
                plan,
                settings.output / "landing",
                settings.output / "truth",
                settings.replay,
                on_landed=lambda landed: bars.advance(task, landed.num_rows),
            )
        return 0
    with _bars(console) as bars:
        _stream_and_report(entry, settings, realism, console, bars, stages, start)
    return 0


def simulate(settings: EntrySettings, folder: Path, bars: Progress, realism: RealismSettings) -> str:
    """Write a simulated entry into `folder`; return in words what it is, which also lies there as simulated.json."""
    volume, pixel_size = _volume(settings)
    task = bars.add_task("simulated", total=settings.num_particles)
    write_entry(
        folder, volume, pixel_size, settings, realism=realism,
        on_progress=lambda done: bars.update(task, completed=done),
    )  # fmt: skip
    comparable = settings.map is None and pixel_size == REAL_SNR_PIXEL_SIZE_ANGSTROM
    easy = f"; an easy stream, real images have about {REAL_SNR:g}" if comparable and settings.snr > REAL_SNR else ""
    name = f"Simulated particles of {settings.map.name if settings.map else 'a ribosome (PDB 6ZU5)'}"
    stated = (
        f"box {volume.shape[0]}, {pixel_size:g} Å/px, SNR {settings.snr:g} in the particle circle after "
        f"the CTF at this pixel size{easy}"
    )
    sampling = {"box_size": volume.shape[0], "pixel_size_angstrom": pixel_size, "snr": settings.snr}
    if not realism.is_clean:
        stated += f"; a session with realism ({realism.preset} preset; {save_examples(folder).name} shows its picks)"
    words = {"name": name, "stated": stated, **sampling}
    (folder / STATED_NAME).write_text(json.dumps(words) + "\n")
    return f"{name}: {stated}"


def _volume(settings: EntrySettings) -> tuple[NDArray[np.float32], float]:
    if settings.map is None:
        pixel_size = settings.pixel_size_angstrom
        resolution = settings.resolution_angstrom or 2 * pixel_size
        box_size = settings.box_size or EMBEDDED_BOX_SIZE
        return molecule_to_map(*embedded_ribosome(), box_size, pixel_size, resolution), pixel_size
    volume, pixel_size = read_map(settings.map)
    box_size = settings.box_size or volume.shape[0]
    if box_size == volume.shape[0]:
        return volume, pixel_size
    if box_size > volume.shape[0]:
        raise InvalidSettingsError(f"simulate.box_size {box_size}: {settings.map} has {volume.shape[0]}; take no more")
    return crop_map(volume, box_size), pixel_size * volume.shape[0] / box_size


def _stream_and_report(
    entry: Entry,
    settings: StreamCommand,
    realism: RealismSettings,
    console: Console,
    bars: Progress,
    stages: Stages,
    start: float,
) -> None:
    plan = plan_replay(entry, settings.replay, realism, symmetry=settings.training.symmetry)
    session = session_settings(settings, symmetry_of(entry, settings))
    truth = settings.output / "truth"
    shown = _Bars(bars, plan)
    with stages.stage("stream"):
        record = stream_entry(
            plan, settings.replay, session, truth, on_progress=shown.update,
            deadline_seconds=60 * settings.deadline_minutes,
        )  # fmt: skip
    bars.stop()
    with stages.stage("report"):
        summary = report(entry, settings, session, record, stages, start)
    console.print(summary_table(summary))
    console.print(f"figure: {settings.output / 'figure.png'}   poses: {settings.output / 'poses.star'}")


def symmetry_of(entry: Entry, settings: StreamCommand) -> str:
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
        "half_mode": settings.half_mode,
        "min_aligned_per_half": settings.min_aligned_per_half,
        "checkpoint": settings.checkpoint,
        "landing": LandingSettings(
            folder=settings.output / "landing",
            aligned="aligned_*.star",
            scan_seconds=settings.scan_seconds,
            settle_seconds=settings.settle_seconds,
        ),
        "training": settings.training.model_copy(update={"symmetry": symmetry}),
        "inference": settings.inference,
        "service": settings.service,
    }
    return with_absolute_paths(SessionSettings(**values))


def report(
    entry: Entry, settings: StreamCommand, session: SessionSettings, record: StreamRecord, stages: Stages, start: float
) -> dict[str, Any]:
    """Export, compare with the truth, write poses.star, figure.png and summary.json; return the summary."""
    output = settings.output
    exported = [read_star(path) for path in export_star(SessionFolder.of(session).poses, output / "poses.star")]
    truth = read_star(output / "truth" / TRUTH_NAME)
    comparison = compare(exported, truth, session.training.symmetry)
    manifest = _manifest(record, session)
    stated = _stated(entry.folder)
    facts = _facts(settings, record, manifest, stages, start, stated)
    summary = summarise(comparison, facts)
    data = figure_data(
        comparison,
        summary,
        session.landing.folder,
        preprocessor=Preprocessor(manifest.preprocess, manifest.network_pixel_size_angstrom) if manifest else None,
        reference=_reference(entry.folder),
        timeline=record.timeline,
        title=f"{stated.get('name', entry.name)}, streamed",
    )
    save_figure(data, output / "figure.png")
    summary["total_seconds"] = time.monotonic() - start
    write_summary(summary, output / "summary.json")
    return summary


def _facts(
    settings: StreamCommand,
    record: StreamRecord,
    manifest: CheckpointManifest | None,
    stages: Stages,
    start: float,
    stated: dict[str, Any],
) -> RunFacts:
    status = record.status
    return RunFacts(
        half_mode=settings.half_mode,
        latency_p50_seconds=status.latency.p50_seconds,
        latency_p95_seconds=status.latency.p95_seconds,
        latency_with_model_p50_seconds=status.latency_with_model.p50_seconds,
        latency_with_model_p95_seconds=status.latency_with_model.p95_seconds,
        training_seconds=status.training.seconds if status.training else None,
        total_seconds=time.monotonic() - start,
        particles_per_second=record.particles_per_second,
        checkpoint_id=manifest.checkpoint_id if manifest else "",
        independence=manifest.independence if manifest else "unknown",
        origin=manifest.origin if manifest else "",
        stopped_by=manifest.stopped_by if manifest else "",
        peak_memory_gigabytes=record.peak_memory_gigabytes,
        stage_seconds=stages.seconds,
        entry=stated,
    )


class _Bars:
    """Progress of a stream: landed, each half's training, poses on disk."""

    def __init__(self, bars: Progress, plan: ReplayPlan) -> None:
        self._bars = bars
        self._landed = bars.add_task("landed", total=plan.num_particles)
        self._training = [bars.add_task(f"training half {half}", total=None) for half in (0, 1)]
        self._inferred = bars.add_task("inferred", total=plan.count(BatchRole.STREAMED))

    def update(self, progress: StreamProgress) -> None:
        self._bars.update(self._landed, completed=progress.landed)
        if progress.status is None:
            return
        self._bars.update(self._inferred, completed=progress.status.predicted + progress.status.unposed)
        training = progress.status.training
        if training is None:
            return
        for task, step in zip(self._training, training.half_steps, strict=False):
            self._bars.update(task, total=training.max_steps // len(self._training), completed=step)
        if training.seconds is not None:
            for task in self._training:
                # Training may end before its last step: at its time budget.
                self._bars.update(task, total=self._bars.tasks[task].completed)


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<22}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


def _refuse_used_output(output: Path) -> None:
    if output.exists() and any(output.iterdir()):
        raise InvalidSettingsError(f"output {output}: not empty; remove it or give another folder")


def _manifest(record: StreamRecord, session: SessionSettings) -> CheckpointManifest | None:
    in_use = record.status.checkpoint
    folder = in_use.folder if in_use else session.checkpoint
    return read_manifest(Path(folder)) if folder else None


def _stated(folder: Path) -> dict[str, Any]:
    file = folder / STATED_NAME
    return dict(json.loads(file.read_text())) if file.is_file() else {}


def _reference(folder: Path) -> MapProjector | None:
    file = folder / TRUTH_MAP
    return MapProjector(*read_map(file)) if file.is_file() else None
