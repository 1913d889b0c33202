"""An entry on disk, checked: stars against stacks, the images themselves, and the bytes against the record."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from cesped_stream.benchmark.catalogue import CATALOGUE
from cesped_stream.benchmark.entries import Entry, stack_path
from cesped_stream.benchmark.entry_check import Finding, HalfCheck, Severity, check_half
from cesped_stream.benchmark.entry_folder import EntryState, half_state
from cesped_stream.benchmark.fetch import is_same_file
from cesped_stream.benchmark.records import half_files
from cesped_stream.conventions import HALVES
from cesped_stream.errors import InvalidEntryError
from cesped_stream.particles.stacks import STACK_LABEL, StackReader, parse_image_name

if TYPE_CHECKING:
    from cesped_stream.benchmark.download import RecordServer

IMAGES_AT_ONCE = 256

OnProgress = Callable[[str, int, int], None]
"""Called with what is being looked at, how much of it is done, and how much it is: images or bytes."""


@dataclass(frozen=True)
class ImageStatistics:
    """Pixels of an entry's images that are numbers, and images that are no images."""

    num_images: int
    num_not_finite: int
    """Images with a NaN or an infinity in them."""
    num_constant: int
    mean: float
    """Of the finite images, and so below."""
    std: float
    least: float
    largest: float


@dataclass(frozen=True)
class EntryReport:
    """What a verification found; `ok` is False where there is an error."""

    name: str
    folder: Path
    halves: tuple[HalfCheck, ...]
    findings: tuple[Finding, ...]
    """Of the entry as a whole, of its images and checksums; each half-set has its own."""
    images: ImageStatistics | None = None
    checksums_compared: int = 0
    """Files whose every byte is the record's."""

    def all_findings(self) -> list[Finding]:
        """Return the findings of the half-sets and of the whole."""
        return [*(finding for half in self.halves for finding in half.findings), *self.findings]

    @property
    def ok(self) -> bool:
        """Whether no finding, of the entry or of a half-set, is an error."""
        return all(finding.severity is not Severity.ERROR for finding in self.all_findings())

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON can hold it."""
        halves = [
            asdict(half)
            | {"box_sizes": sorted(half.box_sizes), "pixel_sizes_angstrom": sorted(half.pixel_sizes_angstrom)}
            for half in self.halves
        ]
        return asdict(self) | {"folder": str(self.folder), "halves": halves, "ok": self.ok}


def verify_entry(
    entry: Entry,
    *,
    images: bool = False,
    server: "RecordServer | None" = None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> EntryReport:
    """Check an entry of two half-sets in CESPED's layout; what is wrong with it is in the report, not raised.

    Always: each star against its stacks, and its info. `images`: every image is read, for NaN, constants and the
    statistics of the pixels. `server`: the files' md5 are compared with the published record's. Raises
    InvalidEntryError for an entry that is not in that layout, and the server's errors.
    """
    if len(entry.stars) != len(HALVES):
        raise InvalidEntryError(f"{entry.folder}: is one star; particles_0.star and particles_1.star can be verified")
    halves = tuple(_checked(entry, half) for half in HALVES)
    findings = list(_of_markers(entry))
    statistics, compared = None, 0
    if images and all(half.ok for half in halves):
        statistics = _image_statistics(entry, on_progress)
        findings += _of_images(statistics)
    if server is not None:
        wrong, compared = _compared(entry, server, on_progress)
        findings += wrong
    return EntryReport(entry.name, entry.folder, halves, tuple(findings), statistics, compared)


def _checked(entry: Entry, half: int) -> HalfCheck:
    star = entry.stars[half]
    with StackReader() as reader:
        return check_half(star, star.with_name(f"info_{half}.json"), lambda name: stack_path(name, star), half, reader)


def _of_markers(entry: Entry) -> list[Finding]:
    return [
        Finding(Severity.ERROR, f"half-set {half}: no marker of a finished download; `entries download` goes on")
        for half in HALVES
        if entry.folder.name in CATALOGUE and half_state(entry.folder, half) is not EntryState.COMPLETE
    ]


def _image_statistics(entry: Entry, on_progress: OnProgress) -> ImageStatistics:
    table = entry.particles()
    rows_of: dict[str, list[int]] = {}
    for stack, name in zip(table.column(STACK_LABEL), table.column("rlnImageName"), strict=True):
        rows_of.setdefault(stack, []).append(parse_image_name(name)[0])
    scan = _Scan()
    with StackReader() as reader:
        for stack, unsorted in rows_of.items():
            indices = sorted(unsorted)
            for first in range(0, len(indices), IMAGES_AT_ONCE):
                scan.add(reader.read(Path(unquote(stack)), indices[first : first + IMAGES_AT_ONCE])[0])
                on_progress("images", scan.num_images, len(table))
    return scan.statistics()


class _Scan:
    """Sums over images seen so far, in float64."""

    def __init__(self) -> None:
        self.num_images = 0
        self._not_finite = self._constant = self._pixels = 0
        self._sum = self._sum_of_squares = 0.0
        self._least, self._largest = np.inf, -np.inf

    def add(self, images: NDArray[np.float32]) -> None:
        finite = np.isfinite(images).all((1, 2))
        kept = images[finite]
        self.num_images += len(images)
        self._not_finite += len(images) - len(kept)
        if len(kept) == 0:
            return
        low, high = kept.min((1, 2)), kept.max((1, 2))
        self._constant += int((low == high).sum())
        self._least, self._largest = min(self._least, float(low.min())), max(self._largest, float(high.max()))
        self._pixels += kept.size
        self._sum += float(kept.sum(dtype=np.float64))
        self._sum_of_squares += float(np.square(kept, dtype=np.float64).sum())

    def statistics(self) -> ImageStatistics:
        pixels = max(1, self._pixels)
        mean = self._sum / pixels
        std = max(0.0, self._sum_of_squares / pixels - mean**2) ** 0.5
        counts = (self.num_images, self._not_finite, self._constant)
        return ImageStatistics(*counts, mean, std, float(self._least), float(self._largest))


def _of_images(statistics: ImageStatistics) -> list[Finding]:
    counts = {"not finite": statistics.num_not_finite, "constant": statistics.num_constant}
    return [
        Finding(Severity.WARNING, f"{count:,} of {statistics.num_images:,} images are {what}; they get no pose")
        for what, count in counts.items()
        if count
    ]


def _compared(entry: Entry, server: "RecordServer", on_progress: OnProgress) -> tuple[list[Finding], int]:
    """Compare each file with its record, links left out: they are another entry's files."""
    known = CATALOGUE.get(entry.folder.name)
    if known is None:
        return [Finding(Severity.NOTE, f"{entry.name} is not published: there are no checksums to compare with")], 0
    wrong, compared = [], 0
    for half, record in zip(HALVES, known.records, strict=True):
        plan = half_files(server.files(record), half, f"record {record} of {server.base_url}")
        for file in plan.assemblies():
            path = entry.folder / file.name
            report = partial(_report, on_progress, file.name, file.size)
            different = is_same_file(path, file, on_bytes=report) if path.is_file() else "is not there"
            if different is None:
                compared += 1
            else:
                wrong.append(Finding(Severity.ERROR, f"{file.name}: {different}; remove it and download again"))
    return wrong, compared


def _report(on_progress: OnProgress, what: str, total: int, done: int) -> None:
    on_progress(what, done, total)
