"""`cesped-stream bench proposers`: its options, and what it does. torch is imported when it runs."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cesped_stream.durable import write_whole
from cesped_stream.errors import InvalidSettingsError

from .help_pages import add_help
from .stream_words import Word, add_words

if TYPE_CHECKING:
    from rich.progress import Progress

    from cesped_stream.benchmark.entries import Entry
    from cesped_stream.benchmark.ways_stream import LandedRows
    from cesped_stream.settings import RealismSettings

    from .stream_settings import ProposersCommand

SETTINGS_NAME, FIGURES_NAME = "settings.json", "figures.json"
TEXT = "which way of making poses wins on an entry: network, gallery, refined or not, beside what noise allows"
WORDS = (
    Word("--snr", "simulate.snr", "of the simulated entry", "SNR"),
    Word("--symmetry", "simulate.symmetry", "of the simulated entry's map", "NAME"),
    Word("--steps", "training.max_steps", "training steps of each half's network", "N"),
    Word("--minutes", "training.max_minutes", "training ends then at the latest", "N"),
    Word("--threads", "inference.threads", "CPU threads; more than one trains both halves at once", "N"),
)


def add_bench_proposers(bench: Any, *, with_options: bool) -> None:
    """Add `proposers` to the benchmarks; its settings as options only where they are wanted."""
    parser = bench.add_parser("proposers", help=TEXT, description=f"{TEXT[0].upper()}{TEXT[1:]}.", add_help=False)
    add_help(parser, "bench proposers")
    parser.set_defaults(_command=bench_proposers_command)
    if not with_options:
        return
    from .cli import SettingsArguments
    from .stream_settings import ProposersCommand

    parser.add_argument("--settings", dest="_settings", type=Path, metavar="FILE", help="TOML file of settings")
    parser.add_argument("--json", dest="_json", action="store_true", help="one JSON object instead of the table")
    parser.set_defaults(_options=SettingsArguments(parser, ProposersCommand))
    add_words(parser, WORDS)


def bench_proposers_command(arguments: argparse.Namespace) -> int:
    """Measure and print; the figures are kept as figures.json in the output folder."""
    import torch
    from rich.console import Console

    from cesped_stream.benchmark.bench_proposers import bench_proposers, figures_table
    from cesped_stream.benchmark.output_folder import output_folder
    from cesped_stream.benchmark.pose_answers import AnsweringWays

    from .cli import settings_from
    from .process import StopRequest, usable_cores
    from .stream_settings import ProposersCommand
    from .tools import progress_bars, training_progress
    from .worker import matching_settings

    settings = settings_from(arguments, ProposersCommand)
    given = _given_entry(settings)
    torch.set_num_threads(settings.inference.threads or usable_cores())
    stop = StopRequest().install()
    _keep_settings(settings, output_folder(settings.output))
    with progress_bars(Console(stderr=True)) as bars:
        rows = _landed(settings, given, bars)
        training = settings.training.model_copy(update={"symmetry": rows.symmetry})
        ways = AnsweringWays(
            rows,
            settings.output,
            training,
            settings.inference,
            matching_settings(settings),
            network_radius_deg=settings.network_radius_deg,
        )
        stages = bars.add_task("", total=None)
        figures = bench_proposers(
            ways,
            on_stage=lambda stage: bars.update(stages, description=stage),
            on_progress=training_progress(bars),
            should_stop=stop.asked,
        )
    write_whole(settings.output / FIGURES_NAME, figures.model_dump_json(indent=1).encode() + b"\n")
    print(json.dumps(figures.model_dump()) if arguments._json else figures_table(figures))
    return 0


def _given_entry(settings: "ProposersCommand") -> "Entry | None":
    """Return the entry that the settings name; what `find_entry` raises, InvalidSettingsError for too small a one."""
    from cesped_stream.benchmark.entries import find_entry

    if settings.entry is None:
        return None
    entry = find_entry(str(settings.entry), settings.root)
    has = len(entry.particles())
    if has <= settings.aligned:
        raise InvalidSettingsError(
            f"{entry.name}: {has} particles, of which --aligned {settings.aligned} leaves none to stream; give less"
        )
    return entry


def _keep_settings(settings: "ProposersCommand", folder: Path) -> None:
    """Write down what is measured; InvalidSettingsError where the folder holds another measurement."""
    file = folder / SETTINGS_NAME
    said = settings.model_dump(mode="json", exclude={"output": True, "inference": {"threads", "device"}})
    if not file.is_file():
        write_whole(file, json.dumps(said, indent=1).encode() + b"\n")
        return
    before = json.loads(file.read_text())
    other = sorted(key for key in {*said, *before} if said.get(key) != before.get(key))
    if other:
        raise InvalidSettingsError(
            f"output {folder}: holds a measurement with other settings ({', '.join(other)}); give another folder"
        )


def _landed(settings: "ProposersCommand", given: "Entry | None", bars: "Progress") -> "LandedRows":
    """Land the given entry's rows, or those of one that is simulated."""
    from cesped_stream.benchmark.plan import plan_replay
    from cesped_stream.benchmark.replay_settings import ReplaySettings
    from cesped_stream.benchmark.stream_realism import for_replay, in_session_order
    from cesped_stream.benchmark.ways_stream import land_rows

    if given is None:
        entry, realism = _simulated(settings, bars)
    else:
        entry, realism = given, for_replay(settings.realism, given.folder)
    symmetry = entry.symmetry or settings.training.symmetry
    total = settings.aligned + settings.streamed
    replay = ReplaySettings(first_aligned=settings.aligned, limit=total, batch_rows=500, seed=settings.seed)
    replay = in_session_order(replay, entry.folder)
    plan = plan_replay(entry, replay, realism, symmetry=symmetry)
    task = bars.add_task("landed", total=plan.num_particles)
    return land_rows(
        plan, settings.output, replay, symmetry, on_landed=lambda landed: bars.advance(task, landed.num_rows)
    )


def _simulated(settings: "ProposersCommand", bars: "Progress") -> "tuple[Entry, RealismSettings]":
    """Return the simulated entry, which is as large as the stream, and what is left to its replay of realism."""
    from cesped_stream.benchmark.entries import open_entry
    from cesped_stream.benchmark.stream_realism import for_demo

    from .demo import simulate

    in_images, in_labels = for_demo(settings.realism)
    folder = settings.output / "entry"
    if not all((folder / f"particles_{half}.star").is_file() for half in (0, 1)):
        size = {"num_particles": settings.aligned + settings.streamed, "seed": settings.seed}
        simulate(settings.simulate.model_copy(update=size), folder, bars, in_images)
    return open_entry(folder), in_labels
