"""What may follow the particle rows of a star: tables of other things, or an optics table that comes late."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cesped_stream.errors import InvalidStarError
from cesped_stream.particles.star_header import IMAGE_LABEL, OPTICS_BLOCK, is_block_line, optics_of_lines
from cesped_stream.particles.table import OpticsGroup

_REMEDY = (
    "are these several stars in one file? RELION reads one of them only: join them with relion_star_handler --combine"
)


@dataclass
class LaterBlocks:
    """Reads the blocks after the rows; `number` is the line, from 1, of the first of them.

    Raises InvalidStarError, naming the line, where they hold particles again or another optics table.
    """

    where: str
    number: int
    optics_wanted: bool
    optics: Mapping[int, OpticsGroup] | None = None
    optics_open: bool = False
    """Nothing follows the optics table, not even an empty line: more groups may come."""
    _optics_lines: list[bytes] = field(default_factory=list)

    def read(self, first: bytes, lines: Iterator[bytes]) -> None:
        """Read to the end; `first` opens the first block."""
        name, opened = _name(first), self.number
        self._open(name, opened)
        for number, line in enumerate(lines, self.number + 1):
            text = line.strip()
            if is_block_line(text):
                name, opened = _name(text), number
                self._open(name, opened)
            elif name == OPTICS_BLOCK:
                self._optics_lines.append(line)
            elif text.split(None, 1)[:1] == [b"_" + IMAGE_LABEL.encode()]:
                raise InvalidStarError(
                    f"{self.where}: line {opened}: data_{name} holds particles again, after those before it; {_REMEDY}"
                )
        if self._optics_lines:
            self.optics = optics_of_lines(self._optics_lines, self.where)
            self.optics_open = name == OPTICS_BLOCK and bool(self._optics_lines[-1].strip())

    def _open(self, name: str, number: int) -> None:
        if name != OPTICS_BLOCK:
            return
        if not self.optics_wanted or self._optics_lines:
            raise InvalidStarError(f"{self.where}: line {number}: another data_optics after the particles; {_REMEDY}")
        self._optics_lines.append(b"data_optics")


def _name(line: bytes) -> str:
    return line.strip()[5:].decode("utf-8", "replace")
