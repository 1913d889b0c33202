"""What a record on a server lists, and how an entry's files are made of it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cesped_stream.errors import InvalidRecordError

MAX_FILE_BYTES: Final = 1 << 50
"""More than any server keeps in one file."""

_FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_MD5: Final = re.compile(r"md5:([0-9a-f]{32})")


@dataclass(frozen=True)
class RecordFile:
    """One file of a record: `urls` are tried in order."""

    name: str
    size: int
    md5: str
    urls: tuple[str, ...]


@dataclass(frozen=True)
class Assembly:
    """A file of an entry and the pieces, in order, that it is made of."""

    name: str
    pieces: tuple[RecordFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all pieces together."""
        return sum(piece.size for piece in self.pieces)


@dataclass(frozen=True)
class HalfFiles:
    """What a record holds of one half-set; `stack` is None where its images are another entry's."""

    star: Assembly
    info: Assembly
    stack: Assembly | None

    def assemblies(self) -> tuple[Assembly, ...]:
        """Return the files in the order in which they are fetched: the small ones first."""
        small = (self.info, self.star)
        return small if self.stack is None else (*small, self.stack)


def record_files(listing: Mapping[str, Any], record: str, base_url: str) -> tuple[RecordFile, ...]:
    """Return the files that `<base_url>/api/records/<record>` lists (Zenodo's layout, in its older and newer words).

    Each has its own link first and `<base_url>/records/<record>/files/<name>` as the second. InvalidRecordError for a
    listing without files, a name that is a path, a size that is none, or a checksum that is no md5.
    """
    where = f"record {record} of {base_url}"
    files = listing.get("files")
    if isinstance(files, Mapping):
        files = files.get("entries")
    if isinstance(files, Mapping):
        files = list(files.values())
    if not isinstance(files, Sequence) or isinstance(files, str) or not files:
        raise InvalidRecordError(f"{where}: its listing has no files; was it withdrawn?")
    return tuple(_record_file(file, where, f"{base_url}/records/{record}/files") for file in files)


def _record_file(file: Any, where: str, folder_url: str) -> RecordFile:
    if not isinstance(file, Mapping):
        raise InvalidRecordError(f"{where}: its listing has {str(file)[:80]!r} where a file belongs")
    name = str(file.get("key", file.get("filename")))
    size = file.get("size", file.get("filesize"))
    checksum = str(file.get("checksum"))
    if not _FILE_NAME.fullmatch(name):
        raise InvalidRecordError(f"{where}: {name[:200]!r} is no plain file name")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_FILE_BYTES:
        raise InvalidRecordError(f"{where}, {name}: size {str(size)[:80]} is no number of bytes")
    # Before 2023 the layout gave the digest alone.
    match = _MD5.fullmatch(checksum if ":" in checksum else f"md5:{checksum}")
    if match is None:
        raise InvalidRecordError(f"{where}, {name}: checksum {checksum[:80]!r} is no md5; it cannot be checked")
    links = file.get("links")
    own = links.get("self") if isinstance(links, Mapping) else None
    urls = (own,) if isinstance(own, str) and own.lower().startswith(("http://", "https://")) else ()
    return RecordFile(name, size, match[1], tuple(dict.fromkeys((*urls, f"{folder_url}/{name}"))))


def half_files(files: Sequence[RecordFile], half_set: int, where: str) -> HalfFiles:
    """Return how a half-set's star, info and stack are made of a record's files; others are passed over.

    A stack is one file, or pieces `particles_<h>.mrcs.chunk_<k>` joined in the order of the number k. Raises
    InvalidRecordError where star or info are missing or a piece is.
    """
    named = {file.name: file for file in files}
    star, info, stack = (f"particles_{half_set}.star", f"info_{half_set}.json", f"particles_{half_set}.mrcs")
    missing = [name for name in (star, info) if name not in named]
    if missing:
        raise InvalidRecordError(f"{where}: no {' and no '.join(missing)} in it; it has {', '.join(sorted(named))}")
    pieces = _stack_pieces(named, stack, where)
    return HalfFiles(
        Assembly(star, (named[star],)), Assembly(info, (named[info],)), Assembly(stack, pieces) if pieces else None
    )


def _stack_pieces(named: Mapping[str, RecordFile], stack: str, where: str) -> tuple[RecordFile, ...]:
    chunk = re.compile(re.escape(stack) + r"\.chunk_([0-9]{1,6})")
    chunks = {int(match[1]): file for name, file in named.items() if (match := chunk.fullmatch(name))}
    if stack in named and chunks:
        raise InvalidRecordError(f"{where}: has {stack} both whole and in {len(chunks)} pieces; which is it?")
    if stack in named:
        return (named[stack],)
    numbers = sorted(chunks)
    if numbers and (numbers[0] > 1 or numbers[-1] - numbers[0] + 1 != len(numbers)):
        raise InvalidRecordError(f"{where}: pieces of {stack} are numbered {numbers}; one is missing")
    return tuple(chunks[number] for number in numbers)
