"""What is known of an entry: from the catalogue, and from its files where they are here."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cesped_stream.benchmark.catalogue import CATALOGUE, DEFAULT_ROOT, DEMO_NAME
from cesped_stream.benchmark.entry_check import read_symmetry
from cesped_stream.benchmark.entry_folder import (
    EntryState,
    bytes_in,
    entry_folder,
    entry_state,
    half_state,
    local_entries,
    mask_path,
    name_hint,
)
from cesped_stream.conventions import HALVES
from cesped_stream.errors import CespedStreamError, InvalidSettingsError
from cesped_stream.particles.star import iter_star
from cesped_stream.particles.table import ParticleTable

T = TypeVar("T", bound=float)

DEMO_COMPOSITION = "Simulated ribosome, embedded: made on first use"


@dataclass(frozen=True)
class EntryLine:
    """An entry as a list shows it: published ones first, then those of one's own."""

    name: str
    state: EntryState
    composition: str
    in_paper: str
    """"yes", "no", or "as 10647" for the entry that took the place of the paper's."""
    symmetry: str | None
    box_size: int | None
    num_particles: int | None
    records: tuple[str, str] | None
    """None for entries that are not published."""


@dataclass
class HalfInfo:
    """What a half-set's star says."""

    state: EntryState
    num_particles: int = 0
    num_with_poses: int = 0
    labels: tuple[str, ...] = ()
    optics_groups: int = 0
    box_sizes: tuple[int, ...] = ()
    """As data_optics states them; the stack's own is what `verify` compares."""
    pixel_sizes_angstrom: tuple[float, ...] = ()
    num_micrographs: int = 0
    defocus_range_angstrom: tuple[float, float] | None = None
    """Least and largest of rlnDefocusU and rlnDefocusV."""
    voltages_kv: tuple[float, ...] = ()


@dataclass
class EntryInfo:
    """Everything known of one entry."""

    line: EntryLine
    folder: Path
    bytes_on_disk: int
    symmetry: str | None
    """As info_0.json states it where it is here, else as the catalogue does."""
    has_mask: bool
    halves: dict[int, HalfInfo] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        own = {key: value for key, value in asdict(self).items() if key not in ("line", "folder")}
        return {**line_to_json(self.line), "folder": str(self.folder), **own}


def line_to_json(line: EntryLine) -> dict[str, Any]:
    """Return a line of the list as JSON can hold it."""
    return {**asdict(line), "state": str(line.state)}


def list_entries(root: Path = DEFAULT_ROOT) -> list[EntryLine]:
    """Return every published entry, DEMO, and the entries of one's own under `root`, with how much is on disk."""
    own = [name for name in local_entries(root) if name not in CATALOGUE and name != DEMO_NAME]
    return [_line(name, entry_folder(name, root)) for name in (*CATALOGUE, DEMO_NAME, *own)]


def entry_info(target: str, root: Path = DEFAULT_ROOT) -> EntryInfo:
    """Return all that is known of an entry, read from its stars where they are here (memory is bounded).

    Raises InvalidSettingsError for a name that is neither published nor under `root`, InvalidStarError for its files.
    """
    folder = entry_folder(target, root)
    state = entry_state(folder)
    if state is EntryState.ABSENT and target not in CATALOGUE and target != DEMO_NAME:
        raise InvalidSettingsError(f"{folder}: no such entry; {name_hint(target, root)}")
    line = _line(target, folder)
    halves = {half: _half_info(folder, half) for half in HALVES}
    return EntryInfo(line, folder, bytes_in(folder), line.symmetry, mask_path(folder).is_file(), halves)


def _line(name: str, folder: Path) -> EntryLine:
    state = entry_state(folder)
    symmetry = _stated_symmetry(folder)
    known = CATALOGUE.get(name)
    if known is None:
        composition = DEMO_COMPOSITION if name == DEMO_NAME else "own particles"
        return EntryLine(name, state, composition, "no", symmetry, None, None, None)
    return EntryLine(
        name,
        state,
        known.composition,
        known.in_paper_words,
        symmetry or known.symmetry,
        known.box_size,
        known.num_particles,
        known.records,
    )


def _stated_symmetry(folder: Path) -> str | None:
    try:
        return read_symmetry(folder / "info_0.json")
    except CespedStreamError:
        # Not there yet, or wrong: `verify` says which.
        return None


def _half_info(folder: Path, half: int) -> HalfInfo:
    info = HalfInfo(half_state(folder, half))
    star = folder / f"particles_{half}.star"
    if not star.is_file():
        return info
    micrographs: set[str] = set()
    for table in iter_star(star):
        _add_rows(info, table)
        micrographs.update(table.micrographs())
    info.num_micrographs = len(micrographs)
    return info


def _add_rows(info: HalfInfo, table: ParticleTable) -> None:
    info.num_particles += len(table)
    info.num_with_poses += int(table.has_poses().sum())
    info.labels = table.labels
    # A RELION 3.0 star has its optics in the rows: they may become more.
    info.optics_groups = max(info.optics_groups, len(table.optics))
    info.box_sizes = _union(info.box_sizes, (int(g.number("rlnImageSize", 0)) for g in table.optics))
    info.pixel_sizes_angstrom = _union(info.pixel_sizes_angstrom, (g.pixel_size_angstrom for g in table.optics))
    info.voltages_kv = _union(info.voltages_kv, (g.number("rlnVoltage", 0.0) for g in table.optics))
    for label in ("rlnDefocusU", "rlnDefocusV"):
        if label in table and len(table):
            values = table.numbers(label)
            low, high = info.defocus_range_angstrom or (float("inf"), float("-inf"))
            info.defocus_range_angstrom = (min(low, float(values.min())), max(high, float(values.max())))


def _union(known: tuple[T, ...], new: Iterable[T]) -> tuple[T, ...]:
    together: set[T] = {*known, *(value for value in new if value)}
    return tuple(sorted(together))
