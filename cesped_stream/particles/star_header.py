"""What stands before the first particle row of a star: the optics table and the particle labels.

RELION 3.1 and later write `data_optics` and `data_particles`; 3.0 one block of any name (`data_`, `data_images`).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from cesped_stream.errors import InvalidStarError
from cesped_stream.particles.star_lines import split_cells
from cesped_stream.particles.table import OPTICS_GROUP_LABEL, OpticsGroup

IMAGE_LABEL = "rlnImageName"
OPTICS_BLOCK = "optics"
_PARTICLES_BLOCK = "particles"
_ROW_BLOCKS = ("", "particles", "images", "micrographs", "movies", "coordinate_files")


@dataclass(frozen=True)
class StarHeader:
    """Labels of the particle rows, and the optics groups by their number; `optics` is None for RELION 3.0."""

    labels: tuple[str, ...]
    optics: Mapping[int, OpticsGroup] | None
    optics_follow: bool = False
    """data_optics stands after the rows; `optics` is empty until it was found."""

    def to_json(self) -> dict[str, object]:
        """Return the header as JSON can hold it; `from_json` gives it back."""
        groups = None
        if self.optics is not None:
            groups = [[number, [list(pair) for pair in group.values]] for number, group in self.optics.items()]
        return {"labels": list(self.labels), "optics": groups, "optics_follow": self.optics_follow}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> "StarHeader":
        """Return the header that `to_json` gave. Raises KeyError, TypeError or ValueError for anything else."""
        labels, groups = data["labels"], data["optics"]
        if not isinstance(labels, list) or not isinstance(groups, list | None):
            raise TypeError("labels and optics must be lists")
        if groups is None:
            return cls(tuple(map(str, labels)), None)
        optics = {int(number): OpticsGroup(tuple((str(a), str(b)) for a, b in pairs)) for number, pairs in groups}
        return cls(tuple(map(str, labels)), optics, bool(data.get("optics_follow", False)))


def is_block_line(line: bytes) -> bool:
    """Return whether the line opens a data block (a row may begin with a micrograph named data_...)."""
    return line.startswith(b"data_") and len(line.split()) == 1


@dataclass
class _Block:
    name: str
    in_loop: bool = False
    labels: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    rows: list[tuple[str, ...]] = field(default_factory=list)


@dataclass
class HeaderReader:
    """Reads lines up to and including the first particle row.

    `consumed` are the lines before that row, `first_row` the row's line, or None where the lines ended before.
    """

    where: str
    consumed: list[bytes] = field(default_factory=list)
    first_row: bytes | None = None
    names: list[str] = field(default_factory=list)
    last_line_blank: bool = False
    _block: _Block | None = None
    _optics: _Block | None = None

    def read(self, lines: Iterator[bytes]) -> StarHeader | None:
        """Return the header, or None where the lines end before the first particle row. Raises InvalidStarError."""
        for line in lines:
            text = line.strip()
            self.last_line_blank = not text
            if text and not text.startswith(b"#") and self._take(text):
                self.first_row = line
                return self._header()
            self.consumed.append(line)
        return None

    def empty_table(self) -> StarHeader | None:
        """Return the header of a star that ends, with an empty line, after the particle labels; else None."""
        block = self._block
        complete = self.last_line_blank and block is not None and IMAGE_LABEL in block.labels
        return self._header() if complete else None

    def _take(self, text: bytes) -> bool:
        """Note one line; True where it is the first particle row."""
        if is_block_line(text):
            self._open(text[5:].decode("utf-8", "replace"))
            return False
        block = self._block
        if block is None:
            raise InvalidStarError(f"{self.where}: {text[:40]!r} stands before any data_ block; is this a star file?")
        if text == b"loop_":
            block.in_loop = True
            return False
        if not block.rows and _is_label(text, block.in_loop):
            self._label(block, text)
            return False
        return self._row(block, text)

    def _open(self, name: str) -> None:
        self._block = _Block(name)
        self.names.append(name)
        if name == OPTICS_BLOCK:
            if self._optics is not None:
                raise InvalidStarError(f"{self.where}: two data_optics blocks; join stars with relion_star_handler")
            self._optics = self._block

    def _label(self, block: _Block, text: bytes) -> None:
        label, *values = split_cells(text, self.where)
        if label[1:] in block.labels:
            raise InvalidStarError(f"{self.where}: data_{block.name} names {label} twice")
        block.labels.append(label[1:])
        if not block.in_loop:
            block.texts.append(values[0] if values else "")

    def _row(self, block: _Block, text: bytes) -> bool:
        if not block.in_loop:
            raise InvalidStarError(f"{self.where}: data_{block.name}: {text[:40]!r} stands in no loop_")
        if block is self._optics:
            cells = split_cells(text, self.where)
            if len(cells) != len(block.labels):
                raise InvalidStarError(
                    f"{self.where}: data_optics row {len(block.rows) + 1} has {len(cells)} values for "
                    f"{len(block.labels)} labels"
                )
            block.rows.append(cells)
            return False
        if IMAGE_LABEL in block.labels:
            return True
        if block.name in _ROW_BLOCKS:
            raise InvalidStarError(
                f"{self.where}: data_{block.name} has no {IMAGE_LABEL}, so its rows are no particles; give the star "
                "of extracted particles"
            )
        return False

    def _header(self) -> StarHeader:
        assert self._block is not None
        labels = tuple(self._block.labels)
        if self._optics is None and OPTICS_GROUP_LABEL in labels:
            if self._block.name == _PARTICLES_BLOCK:
                return StarHeader(labels, {}, optics_follow=True)
            raise InvalidStarError(
                f"{self.where}: rows name an {OPTICS_GROUP_LABEL} but no data_optics stands before them; write the "
                "optics first, as RELION does"
            )
        return StarHeader(labels, None if self._optics is None else _optics_groups(self._optics, self.where))


def optics_of_lines(lines: Iterable[bytes], where: str) -> dict[int, OpticsGroup] | None:
    """Return the groups of a data_optics block by number, or None where it has no row yet. Raises InvalidStarError."""
    reader = HeaderReader(where)
    reader.read(iter(lines))
    block = reader._optics
    complete = block is not None and (block.rows if block.in_loop else block.texts)
    return _optics_groups(block, where) if block is not None and complete else None


def _is_label(text: bytes, in_loop: bool) -> bool:
    if not text.startswith(b"_"):
        return False
    rest = text.split(None, 1)[1:]
    return not in_loop or not rest or rest[0].startswith(b"#")


def _optics_groups(block: _Block, where: str) -> dict[int, OpticsGroup]:
    if OPTICS_GROUP_LABEL not in block.labels:
        raise InvalidStarError(f"{where}: data_optics has no {OPTICS_GROUP_LABEL}; it has {', '.join(block.labels)}")
    place = block.labels.index(OPTICS_GROUP_LABEL)
    groups: dict[int, OpticsGroup] = {}
    for cells in block.rows if block.in_loop else [tuple(block.texts)]:
        text = cells[place]
        if not text.isascii() or not text.isdigit() or int(text) in groups:
            raise InvalidStarError(f"{where}: data_optics: {OPTICS_GROUP_LABEL} is {text!r}; it must be a new number")
        pairs = tuple(pair for pair in zip(block.labels, cells, strict=True) if pair[0] != OPTICS_GROUP_LABEL)
        groups[int(text)] = OpticsGroup(pairs)
    return groups
