"""What came of a stream, written down: poses.star, summary.json, figure.png, metrics.json, report.html."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from cesped_stream.benchmark.beside import Run
from cesped_stream.benchmark.entries import Entry
from cesped_stream.benchmark.evaluation_files import BLOCK, METRICS_FILE, metrics_bytes
from cesped_stream.benchmark.figure import Timeline
from cesped_stream.benchmark.stream_page import stream_page
from cesped_stream.benchmark.stream_report import StreamMeasures, streamed
from cesped_stream.benchmark.stream_times import StreamTimes
from cesped_stream.durable import write_whole
from cesped_stream.errors import InvalidStarError, UnreachableFileError
from cesped_stream.imaging.junk import REALISM_NAME
from cesped_stream.particles.table import ParticleTable
from cesped_stream.settings import RealismSettings

STREAM_NAME = "stream.json"
"""In a replay's truth folder: what streamed, in words and settings, so that other tools' stars can be scored."""
REPORT_NAME = "report.html"
STATED_NAME = "simulated.json"


@dataclass(frozen=True)
class StreamStatement:
    """What streamed, as truth/stream.json holds it."""

    entry: str
    symmetry: str
    contained: tuple[str, ...]
    """In words, a paragraph each."""
    replay: Mapping[str, Any]

    def write(self, truth: Path) -> None:
        """Write it into a replay's truth folder."""
        truth.mkdir(parents=True, exist_ok=True)
        content = {
            "entry": self.entry,
            "symmetry": self.symmetry,
            "contained": list(self.contained),
            "replay": dict(self.replay),
        }
        write_whole(truth / STREAM_NAME, json.dumps(content, indent=1).encode() + b"\n")

    @classmethod
    def read(cls, truth: Path) -> "StreamStatement":
        """Return what a replay wrote. UnreachableFileError where the folder is no replay's truth."""
        file = truth / STREAM_NAME
        try:
            content = json.loads(file.read_text())
            return cls(content["entry"], content["symmetry"], tuple(content["contained"]), content["replay"])
        except OSError as error:
            raise UnreachableFileError(f"{file}: {error.strerror}; give the output folder of a replay") from None
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidStarError(f"{file}: {error!r}; it was edited or cut, replay again") from None


def stated_of(folder: Path) -> dict[str, Any]:
    """Return what a simulated entry states of itself; {} where it states nothing."""
    file = folder / STATED_NAME
    return dict(json.loads(file.read_text())) if file.is_file() else {}


def contained_words(
    entry: Entry, replay: Mapping[str, Any], streamed: int, realism: RealismSettings
) -> tuple[str, ...]:
    """Return in words what streamed: the entry's own statement, what it contains that sessions do, how it landed."""
    stated = stated_of(entry.folder)
    own = f"{stated.get('name', entry.name)}: {stated['stated']}." if stated.get("stated") else f"Entry {entry.name}."
    rate = float(replay["rate"])
    pace = f"at {rate:g} particles a second" if rate else "as fast as the disk took them"
    order = (
        "in the recorded order" if replay["order"] == "recorded" else f"in an order drawn with seed {replay['seed']}"
    )
    how = f"{streamed:,} particles streamed {pace}, {replay['batch_rows']} to a star, micrographs {order}."
    return (own, *_realism_words(entry, realism), how)


def _realism_words(entry: Entry, realism: RealismSettings) -> list[str]:
    """What a simulation or this replay put in that real sessions contain; recorded images are what they are."""
    file = entry.folder / REALISM_NAME
    in_images = RealismSettings.model_validate(json.loads(file.read_text())["settings"]) if file.is_file() else None
    said = []
    for where, settings in (("Simulated images", in_images), ("This stream", realism)):
        if settings is not None and not settings.is_clean:
            said.append(f"{where}: preset {settings.preset}, {_unlike_clean(settings)}.")
    simulated = (entry.folder / STATED_NAME).is_file()
    if not said and simulated:
        said.append(
            "Preset clean: no junk, no neighbours, white noise, no drift, exact labels. Real sessions are harder."
        )
    return said


def _unlike_clean(settings: RealismSettings) -> str:
    clean = RealismSettings().model_dump(mode="json")
    found = settings.model_dump(mode="json", exclude={"preset"})
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in found.items() if value != clean[key])


def write_outcome(
    measures: StreamMeasures,
    page: Path,
    title: str,
    *,
    metrics_folder: Path,
    times: StreamTimes | None = None,
    truth: ParticleTable | None = None,
    timeline: Timeline | None = None,
    model_seconds: float | None = None,
    gallery: Path | None = None,
    beside: Sequence[Run] = (),
) -> list[Path]:
    """Write metrics.json and the page; `times` are of the rows of `truth`, `beside` other runs that it shows."""
    metrics_folder.mkdir(parents=True, exist_ok=True)
    page.parent.mkdir(parents=True, exist_ok=True)
    metrics = metrics_folder / METRICS_FILE
    context = {"stream": measures.to_json()}
    if measures.evaluation is None:
        content = json.dumps({BLOCK: context}, indent=1).encode() + b"\n"
    else:
        content = metrics_bytes(measures.evaluation, context)
    write_whole(metrics, content)
    latencies: list[float] = []
    if times is not None and truth is not None:
        latencies = times.latencies_seconds()[streamed(truth)].tolist()
    text = stream_page(
        measures,
        title,
        timeline=timeline,
        latencies_seconds=latencies,
        model_seconds=model_seconds,
        gallery=gallery.read_bytes() if gallery is not None and gallery.is_file() else None,
        beside=(Run("this run", json.loads(content)), *beside) if beside else (),
    )
    write_whole(page, text.encode())
    return [metrics, page]


class StageBars:
    """Progress of a measurement: one bar for each thing that is made."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what[:44], total=total)
        self._bars.update(self._tasks[what], completed=done, total=total)
