"""`cesped-stream entries ...`: what there is, and how it gets here. Nothing heavy is imported before a command runs."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cesped_stream.benchmark.catalogue import DEFAULT_ROOT, DEMO_NAME

if TYPE_CHECKING:
    from rich.console import Console

    from cesped_stream.benchmark.add_entry import AddedEntry
    from cesped_stream.benchmark.entry_info import EntryInfo, EntryLine, HalfInfo
    from cesped_stream.benchmark.verify_entry import EntryReport

OnProgress = Callable[[str, int, int], None]

SERVER_HELP = "server of the records, or a mirror with the same layout; default: https://zenodo.org"
_LIST_TITLES = ("entry", "on disk", "in paper", "sym.", "box", "particles", "what")
DESCRIPTION = """\
Entries of the CESPED benchmark, and your own particles as entries.

  cesped-stream entries list
  cesped-stream entries download TEST          a small one, to try
  cesped-stream entries add mine --star run_data.star --symmetry C2

Entries lie under the root: --root, or CESPED_STREAM_ROOT in the environment.
"""


def entries_parser(commands: Any) -> Any:
    """Add `entries` to the commands; return its subparsers, for commands of other modules."""
    parser = commands.add_parser(
        "entries", help="list, download, add, check and merge benchmark entries", description=DESCRIPTION
    )
    entries = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listed = _command(entries, "list", "published and local entries", _list)
    listed.add_argument("--json", dest="_json", action="store_true", help="as JSON")
    _add_download(entries)
    _add_add(entries)
    _add_verify(entries)
    _targeted(entries, "merge", "write both half-sets of an entry as one star, particles_merged.star", _merge)
    info = _targeted(entries, "info", "everything known of an entry, published and on disk", _info)
    info.add_argument("--json", dest="_json", action="store_true", help="as JSON")
    return entries


def benchmark_root(arguments: argparse.Namespace) -> Path:
    """Return the folder of entries: --root, CESPED_STREAM_ROOT, the default, strongest first; `~` expanded."""
    from .resolve import resolve
    from .settings import BenchmarkSettings

    given = {} if arguments._root is None else {"root": arguments._root}
    return resolve(BenchmarkSettings, given).root.expanduser()


def add_root_argument(parser: argparse.ArgumentParser) -> None:
    """Give a command the option that `benchmark_root` reads."""
    parser.add_argument(
        "--root",
        dest="_root",
        type=Path,
        default=None,
        metavar="FOLDER",
        help=f"folder of entries; default: {DEFAULT_ROOT}",
    )


def _command(
    entries: Any, name: str, text: str, command: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = entries.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(_command=command)
    add_root_argument(parser)
    return parser


def _targeted(
    entries: Any, name: str, text: str, command: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    parser = _command(entries, name, text, command)
    parser.add_argument("_target", metavar="TARGET", help="an entry's name")
    return parser


def _add_download(entries: Any) -> None:
    parser = _targeted(
        entries, "download", "fetch a published entry; goes on where an earlier call ended, however it ended", _download
    )
    parser.add_argument("--half", dest="_half", type=int, choices=(0, 1), help="one half-set only; default: both")
    parser.add_argument("--mask", dest="_mask", action="store_true", help="the authors' mask as well")
    parser.add_argument("--server", dest="_server", default="", metavar="URL", help=SERVER_HELP)


def _add_add(entries: Any) -> None:
    parser = _targeted(entries, "add", "own aligned particles as an entry that cesped reads too", _add)
    parser.add_argument("--star", dest="_star", type=Path, metavar="STAR", help="one star, split by rlnRandomSubset")
    for half in (0, 1):
        parser.add_argument(
            f"--half{half}",
            dest=f"_half{half}",
            type=Path,
            metavar="STAR",
            help=f"or two stars: that of half-set {half}",
        )
    parser.add_argument(
        "--symmetry", dest="_symmetry", required=True, metavar="NAME", help="point group as in RELION: C1, D2, O, ..."
    )
    parser.add_argument(
        "--image-root", dest="_image_root", type=Path, metavar="FOLDER",
        help="folder that rlnImageName is relative to (the RELION project); default: the star's, or a parent of it",
    )  # fmt: skip
    parser.add_argument(
        "--allow-own-predictions",
        dest="_allow_own_predictions",
        action="store_true",
        help="take rows whose pose this program predicted; they are no truth to measure by",
    )
    parser.add_argument("--copy", dest="_copy", action="store_true", help="copy the images; default: link the stacks")


def _add_verify(entries: Any) -> None:
    parser = _targeted(entries, "verify", "check an entry on disk; exit code 2 where something is wrong", _verify)
    parser.add_argument(
        "--images", dest="_images", action="store_true", help="read every image: NaN, constants, pixels"
    )
    parser.add_argument(
        "--checksums", dest="_checksums", action="store_true", help="compare every byte's md5 with the record (network)"
    )
    parser.add_argument("--server", dest="_server", default="", metavar="URL", help=SERVER_HELP)
    parser.add_argument("--json", dest="_json", action="store_true", help="the report as JSON")


def _list(arguments: argparse.Namespace) -> int:
    from cesped_stream.benchmark.entry_info import line_to_json, list_entries

    lines = list_entries(benchmark_root(arguments))
    if arguments._json:
        print(json.dumps([line_to_json(line) for line in lines], indent=1))
        return 0
    rows = [_LIST_TITLES, *map(_list_row, lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    console = _console()
    for row in rows:
        text = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        console.print(text.rstrip(), no_wrap=True, overflow="ellipsis")
    return 0


def _list_row(line: "EntryLine") -> tuple[str, ...]:
    count = "" if line.num_particles is None else f"{line.num_particles:,}"
    box_size = str(line.box_size or "")
    return (line.name, str(line.state), line.in_paper, line.symmetry or "", box_size, count, line.composition)


def _download(arguments: argparse.Namespace) -> int:
    root = benchmark_root(arguments)
    console = _console()
    if arguments._target == DEMO_NAME:
        from cesped_stream.benchmark.demo_entry import make_demo_entry

        with console.status("simulating"):
            folder = make_demo_entry(root)
        console.print(f"{folder}: simulated here, nothing to download", soft_wrap=True)
    else:
        _download_published(arguments, root, console)
    _say_python(arguments._target, root, console)
    return 0


def _download_published(arguments: argparse.Namespace, root: Path, console: "Console") -> None:
    from cesped_stream.benchmark.download import ZENODO, RecordServer
    from cesped_stream.benchmark.download_entry import download_entry, download_mask

    half_sets = (0, 1) if arguments._half is None else (arguments._half,)
    with RecordServer(arguments._server or ZENODO) as server:
        with _byte_bars() as on_progress:
            done = download_entry(arguments._target, root, half_sets=half_sets, server=server, on_progress=on_progress)
        mask = download_mask(arguments._target, root, server=server) if arguments._mask else None
    for check in done.checks:
        console.print(f"half-set {check.half_set}: {check.num_rows:,} particles, checked")
        for finding in check.findings:
            console.print(f"  {finding.severity}: {finding.text}", soft_wrap=True)
    words = "downloaded" if done.checks else "is complete, nothing to download"
    console.print(f"{done.folder}: {words}", soft_wrap=True)
    if mask is not None:
        console.print(f"{mask}: mask", soft_wrap=True)


def _say_python(target: str, root: Path, console: "Console") -> None:
    """Say how to go on in two lines of Python."""
    where = "" if root == DEFAULT_ROOT.expanduser() else f", benchmarkDir={str(root)!r}"
    console.print("\ngo on in Python:\n  from cesped_stream import ParticlesDataset")
    console.print(f"  dataset = ParticlesDataset({target!r}, halfset=0{where})", soft_wrap=True)


def _add(arguments: argparse.Namespace) -> int:
    root = benchmark_root(arguments)
    with _bars() as on_progress:
        added = _added(arguments, root, partial(on_progress, "images copied"))
    console = _console()
    for half, count in sorted(added.num_particles.items()):
        console.print(f"half-set {half}: {count:,} particles")
    for warning in added.warnings:
        console.print(f"warning: {warning}", soft_wrap=True)
    console.print(f"{added.folder}: added {'by copy' if arguments._copy else 'by links'}", soft_wrap=True)
    return 0


def _added(arguments: argparse.Namespace, root: Path, on_progress: Callable[[int, int], None]) -> "AddedEntry":
    from cesped_stream.benchmark.add_entry import NewEntry, add_entry_of_one_star, add_entry_of_two_stars
    from cesped_stream.errors import InvalidSettingsError

    star, halves = arguments._star, (arguments._half0, arguments._half1)
    new = NewEntry(
        arguments._target,
        arguments._symmetry,
        arguments._image_root,
        root,
        copy=arguments._copy,
        allow_own_predictions=arguments._allow_own_predictions,
        on_progress=on_progress,
    )
    if star is not None and halves == (None, None):
        return add_entry_of_one_star(star, new)
    if star is None and None not in halves:
        return add_entry_of_two_stars(halves, new)
    raise InvalidSettingsError("give either --star, or both --half0 and --half1")


def _verify(arguments: argparse.Namespace) -> int:
    from cesped_stream.benchmark.entries import find_entry, open_entry
    from cesped_stream.benchmark.verify_entry import verify_entry

    from .cli import ERROR_EXIT_CODE

    folder = benchmark_root(arguments) / arguments._target
    # A published entry that is not whole is verified too: what is wrong with it is the question.
    entry = open_entry(folder) if folder.is_dir() else find_entry(arguments._target, folder.parent)
    with _bars() as on_progress:
        if arguments._checksums:
            from cesped_stream.benchmark.download import ZENODO, RecordServer

            with RecordServer(arguments._server or ZENODO) as server:
                report = verify_entry(entry, images=arguments._images, server=server, on_progress=on_progress)
        else:
            report = verify_entry(entry, images=arguments._images, on_progress=on_progress)
    if arguments._json:
        print(json.dumps(report.to_json(), indent=1))
    else:
        _show_report(report)
    return 0 if report.ok else ERROR_EXIT_CODE


def _show_report(report: "EntryReport") -> None:
    console = _console()
    for half in report.halves:
        boxes = ", ".join(map(str, sorted(half.box_sizes)))
        console.print(f"half-set {half.half_set}: {half.num_rows:,} rows, {half.num_images:,} images, box {boxes}")
    if report.images is not None:
        seen = report.images
        console.print(
            f"pixels of {seen.num_images:,} images: mean {seen.mean:.4g}, std {seen.std:.4g}, from {seen.least:.4g} to "
            f"{seen.largest:.4g}", soft_wrap=True,
        )  # fmt: skip
    if report.checksums_compared:
        console.print(f"{report.checksums_compared} files have the record's md5")
    for finding in report.all_findings():
        console.print(f"{finding.severity}: {finding.text}", soft_wrap=True)
    console.print(f"{report.folder}: {'good' if report.ok else 'NOT usable'}", soft_wrap=True)


def _merge(arguments: argparse.Namespace) -> int:
    from cesped_stream.benchmark.entries import find_entry
    from cesped_stream.benchmark.merge_entry import merge_entry

    def say_left_out(path: Path, labels: tuple[str, ...]) -> None:
        print(f"{path.name}: without {', '.join(labels)}: only one half-set has that", file=sys.stderr)

    entry = find_entry(arguments._target, benchmark_root(arguments))
    print(merge_entry(entry, on_left_out=say_left_out))
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from cesped_stream.benchmark.entry_info import entry_info

    info = entry_info(arguments._target, benchmark_root(arguments))
    if arguments._json:
        print(json.dumps(info.to_json(), indent=1))
        return 0
    console = _console()
    for words in _info_words(info):
        console.print(words, soft_wrap=True)
    return 0


def _info_words(info: "EntryInfo") -> Iterator[str]:
    line = info.line
    yield f"{line.name}: {line.composition}"
    yield f"in the paper: {line.in_paper}"
    if line.records is not None:
        yield f"records: {' and '.join(line.records)} (half-set 0 and 1)"
    yield f"symmetry: {info.symmetry or 'stated by info_0.json once it is here'}"
    if line.num_particles is not None:
        yield f"published: {line.num_particles:,} particles of {line.box_size} px"
    yield f"on disk: {line.state}, {info.bytes_on_disk / 1e6:,.1f} MB in {info.folder}"
    yield f"mask: {'here' if info.has_mask else 'not here'}"
    for half, of_half in info.halves.items():
        yield f"half-set {half}: {of_half.state}"
        yield from _half_words(of_half)


def _half_words(half: "HalfInfo") -> Iterator[str]:
    if not half.num_particles:
        return
    posed = f"{half.num_with_poses:,} with poses"
    yield f"  {half.num_particles:,} particles, {posed}, {half.num_micrographs:,} micrographs"
    boxes, pixels = ", ".join(map(str, half.box_sizes)), ", ".join(f"{size:g}" for size in half.pixel_sizes_angstrom)
    voltages = ", ".join(f"{voltage:g}" for voltage in half.voltages_kv)
    yield f"  box {boxes or 'not stated'}; {pixels} A/px; {voltages or '?'} kV; optics groups: {half.optics_groups}"
    if half.defocus_range_angstrom is not None:
        yield "  defocus {:,.0f} to {:,.0f} A".format(*half.defocus_range_angstrom)
    yield f"  columns: {' '.join(half.labels)}"


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False, markup=False)


@contextmanager
def _byte_bars() -> Iterator[OnProgress]:
    """Bars with bytes, rate and time left."""
    from rich.progress import DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

    with _bars(DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()) as on_progress:
        yield on_progress


@contextmanager
def _bars(*columns: Any) -> Iterator[OnProgress]:
    """Bars on stderr, one for each thing named; how much of it is done, where no other columns are given."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    tasks: dict[str, Any] = {}
    columns = columns or (TaskProgressColumn(), TimeElapsedColumn())
    with Progress(TextColumn("{task.description}"), BarColumn(30), *columns, console=Console(stderr=True)) as bars:

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=done, total=total)

        yield on_progress
