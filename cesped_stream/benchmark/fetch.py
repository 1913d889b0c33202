"""Files put together on disk from pieces that come over an unreliable line: resumed at the byte, checked by md5."""

import json
import os
from collections.abc import Callable, Iterator
from hashlib import md5
from pathlib import Path
from typing import BinaryIO, Final

from cesped_stream.benchmark.entry_folder import disk_errors
from cesped_stream.benchmark.records import Assembly, RecordFile
from cesped_stream.durable import write_whole
from cesped_stream.errors import InvalidRecordError

ReadFrom = Callable[[RecordFile, int], Iterator[bytes]]
"""Gives a file's bytes from an offset to its end, in order, however often it has to ask again."""

OnBytes = Callable[[int], None]
"""Called with the bytes of an assembly that are on disk; less than before where a piece was wrong."""

MAX_TRIES: Final = 3
_READ_BYTES: Final = 1 << 20


def part_path(folder: Path, name: str) -> Path:
    """Return where a file's bytes are kept until it is whole and checked."""
    return folder / f".{name}.part"


def journal_path(folder: Path, name: str) -> Path:
    """Return where it is noted which pieces of a part have the right md5."""
    return folder / f".{name}.part.json"


def bytes_on_disk(folder: Path, assembly: Assembly) -> int:
    """Return how many bytes of an assembly need not be fetched again, unchecked."""
    for path in (folder / assembly.name, part_path(folder, assembly.name)):
        if path.is_file():
            return min(path.stat().st_size, assembly.size)
    return 0


def fetch(
    assembly: Assembly,
    folder: Path,
    read_from: ReadFrom,
    *,
    on_bytes: OnBytes = lambda done: None,
    max_tries: int = MAX_TRIES,
) -> Path:
    """Fetch an assembly's pieces into its part file, each at its place; return the part once every md5 is right.

    Bytes that lie there from a call before, killed at any instant, are kept: checked pieces are noted in a journal,
    the piece in hand is hashed again from the disk. No second copy of a piece is ever held. A piece with another md5
    is fetched again from its start, `max_tries` times in all, then InvalidRecordError. FullDiskError where the disk is
    full, UnreachableFileError for any other failure of it; whatever `read_from` raises goes through.
    """
    path = part_path(folder, assembly.name)
    with disk_errors(path), open(path, "r+b" if path.exists() else "w+b") as part:
        checked = _checked_pieces(assembly, folder, os.fstat(part.fileno()).st_size)
        offset = sum(piece.size for piece in assembly.pieces[:checked])
        on_bytes(offset)
        for number, piece in enumerate(assembly.pieces[checked:], checked + 1):
            _fetch_piece(piece, part, offset, read_from, on_bytes, max_tries)
            os.fsync(part.fileno())
            _note(assembly, folder, number)
            offset += piece.size
        part.truncate(offset)
    return path


def is_same_file(path: Path, assembly: Assembly, *, on_bytes: OnBytes = lambda done: None) -> str | None:
    """Return None where the file's size and the md5 of each of its pieces are as listed, else which one is not."""
    with disk_errors(path), open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size != assembly.size:
            return f"{size:,} bytes, the record says {assembly.size:,}"
        done = 0
        for piece in assembly.pieces:
            found = _md5_of(stream, piece.size)
            if found != piece.md5:
                return f"{piece.name} has md5 {found}, the record says {piece.md5}"
            done += piece.size
            on_bytes(done)
    return None


def forget_journal(folder: Path, name: str) -> None:
    """Remove the note on a part that has its final name."""
    journal_path(folder, name).unlink(missing_ok=True)


def _fetch_piece(
    piece: RecordFile, part: BinaryIO, offset: int, read_from: ReadFrom, on_bytes: OnBytes, max_tries: int
) -> None:
    have = min(max(0, os.fstat(part.fileno()).st_size - offset), piece.size)
    for _ in range(max_tries):
        part.seek(offset)
        digest = md5(usedforsecurity=False)
        for block in _blocks(part, have):
            digest.update(block)
        part.truncate(offset + have)
        part.seek(offset + have)
        on_bytes(offset + have)
        for chunk in read_from(piece, have):
            part.write(chunk)
            digest.update(chunk)
            have += len(chunk)
            on_bytes(offset + have)
        part.flush()
        if digest.hexdigest() == piece.md5:
            return
        have = 0
    part.truncate(offset)
    raise InvalidRecordError(
        f"{piece.name}: md5 {digest.hexdigest()} after {max_tries} tries, the record says {piece.md5}; what the server "
        "sends is damaged, try another day or another network"
    )


def _checked_pieces(assembly: Assembly, folder: Path, size: int) -> int:
    """Return how many pieces the journal says are right, as far as part and record still have them."""
    try:
        noted = json.loads(journal_path(folder, assembly.name).read_bytes())["md5"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    checked, end = 0, 0
    for piece, digest in zip(assembly.pieces, noted, strict=False):
        end += piece.size
        if digest != piece.md5 or end > size:
            break
        checked += 1
    return checked


def _note(assembly: Assembly, folder: Path, checked: int) -> None:
    noted = {"md5": [piece.md5 for piece in assembly.pieces[:checked]]}
    write_whole(journal_path(folder, assembly.name), json.dumps(noted).encode())


def _md5_of(stream: BinaryIO, size: int) -> str:
    digest = md5(usedforsecurity=False)
    for block in _blocks(stream, size):
        digest.update(block)
    return digest.hexdigest()


def _blocks(stream: BinaryIO, size: int) -> Iterator[bytes]:
    while size and (block := stream.read(min(size, _READ_BYTES))):
        yield block
        size -= len(block)
