"""Published checkpoints of any kind: a folder that appears whole, and a manifest that says what each file must be.

A folder is named by its content and never changes. What it holds is its manifest's `kind`; a manifest that says none is
of networks. A manifest lists files as `halves: {half: {file, sha256}}` and as `files: {name: sha256}`; a name may lie
in a folder inside. No torch here: whoever only hands checkpoints on can verify them.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import ClassVar, Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cesped_stream.conventions import HALVES
from cesped_stream.durable import fsync_folder, rename_durably, write_whole
from cesped_stream.errors import InvalidCheckpointError, UnreachableFileError

MANIFEST_NAME: Final = "manifest.json"
NETWORK_KIND: Final = "network"
REFERENCE_KIND: Final = "reference"

NameAndHash = tuple[str, str]
"""A file's name, relative to the checkpoint's folder with "/" between folders, and its sha256 in hexadecimal."""


def package_version() -> str:
    """Return this package's version, as manifests state it."""
    try:
        return version("cesped-stream")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"


class FileRecord(BaseModel):
    """One half-set's file; both empty until the checkpoint is published, or where `files` alone lists what there is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str = ""
    sha256: str = ""


class PublishedManifest(BaseModel):
    """What the manifests of all kinds have. No clock time: equal content gives equal bytes and id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest_kind: ClassVar[str]
    """What its folder holds. A class other than the networks' also has a field `kind` that says so."""
    id_prefix: ClassVar[str]
    unsaid_if_empty: ClassVar[frozenset[str]] = frozenset()
    """Fields younger than the kind: empty ones are no part of the id, so that older checkpoints keep theirs."""

    checkpoint_id: str = ""
    """Set by `with_id`: the prefix and 12 hexadecimal digits of the hash of everything else here."""
    halves: Mapping[int, FileRecord]

    def content_id(self) -> str:
        """Return the id that this manifest's contents have."""
        unsaid = {name for name in self.unsaid_if_empty if not getattr(self, name)}
        content = self.model_dump(mode="json", exclude={"checkpoint_id"} | unsaid)
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        return f"{self.id_prefix}-{hashlib.sha256(canonical).hexdigest()[:12]}"

    def with_id(self) -> Self:
        """Return the manifest that names its own content."""
        return self.model_copy(update={"checkpoint_id": self.content_id()})

    def file_bytes(self) -> bytes:
        """Return the content of `manifest.json`."""
        return self.model_dump_json(indent=1).encode() + b"\n"


class Listing(BaseModel):
    """What a manifest of any kind says of its folder; what only one kind has is passed over."""

    class _Record(FileRecord):
        model_config = ConfigDict(extra="ignore")

        resolution_angstrom: float | None = None
        """Of its reference, where the kind has one."""
        median_error_deg: float | None = None
        """Of its poses of aligned particles that it was not made of, where there were any."""

    kind: str = NETWORK_KIND
    checkpoint_id: str = Field(min_length=1)
    independence: str = "unknown"
    """Of its half-sets: independent, shared_reference or unknown."""
    doubts: tuple[str, ...] = ()
    """What speaks against it, a sentence each."""
    halves: dict[int, _Record]
    files: dict[str, str] = Field(default_factory=dict)

    def resolution_angstrom(self) -> tuple[float, ...]:
        """Return that of half-set 0's and 1's reference; nothing where the kind has none."""
        return self._of_halves("resolution_angstrom")

    def median_error_deg(self) -> tuple[float, ...]:
        """Return half-set 0's and 1's on held-out particles; nothing where that was not measured of both."""
        return self._of_halves("median_error_deg")

    def _of_halves(self, name: str) -> tuple[float, ...]:
        found = [getattr(self.halves[half], name) for half in sorted(self.halves)]
        return () if None in found else tuple(found)

    def names_and_hashes(self) -> set[NameAndHash]:
        """Return all files that the manifest lists."""
        of_halves = {(record.file, record.sha256) for record in self.halves.values()}
        return (of_halves - {("", "")} if self.files else of_halves) | set(self.files.items())


P = TypeVar("P", bound=PublishedManifest)
M = TypeVar("M", bound=BaseModel)


def read_published(folder: Path, manifest_class: type[P]) -> P:
    """Return a checkpoint folder's manifest, which must be of the class's kind and name its own content.

    UnreachableFileError where it cannot be read, InvalidCheckpointError where it is not what it says it is.
    """
    path = folder / MANIFEST_NAME
    content = _manifest_bytes(path)
    if (kind := _listing(path, content).kind) != manifest_class.manifest_kind:
        raise InvalidCheckpointError(f"{path}: holds kind {kind!r}, not {manifest_class.manifest_kind!r}; name another")
    manifest = _validated(path, content, manifest_class)
    if manifest.checkpoint_id != (content_id := manifest.content_id()):
        raise InvalidCheckpointError(
            f"{path}: names itself {manifest.checkpoint_id}, its contents are {content_id}; it was edited"
        )
    return manifest


def read_listing(folder: Path) -> Listing:
    """Return what a checkpoint of any kind says that its folder holds; raises as `read_published` does."""
    path = folder / MANIFEST_NAME
    return _listing(path, _manifest_bytes(path))


def check_files(folder: Path, expected: Iterable[NameAndHash]) -> None:
    """Read each file and compare its sha256 with the one given for it.

    UnreachableFileError where one cannot be read; InvalidCheckpointError where one differs or a name leaves the folder.
    """
    for name, sha256 in sorted(expected):
        path = path_inside(folder, name)
        try:
            with open(path, "rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise UnreachableFileError(
                f"{path}: cannot be read ({error.strerror}); copy the checkpoint again"
            ) from error
        if found != sha256:
            raise InvalidCheckpointError(
                f"{path}: its sha256 is {found}, the manifest says {sha256}; copy the checkpoint again"
            )


def path_inside(folder: Path, name: str) -> Path:
    """Return the path of a file that a manifest names: below its folder, also where links lead.

    InvalidCheckpointError for an empty or absolute name, "." or ".." in it, and links that leave the folder.
    """
    parts = PurePosixPath(name).parts
    if not parts or name != "/".join(parts) or ".." in parts or "\0" in name:
        raise InvalidCheckpointError(f"{folder}: names {name!r}, not a file inside the folder; publish it again")
    path = folder.joinpath(*parts)
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise InvalidCheckpointError(f"{path}: a link out of the checkpoint; copy the checkpoint with its files")
    return path


def publish_files(checkpoints_folder: Path, checkpoint_id: str, files: Mapping[str, bytes | Path]) -> Path:
    """Write a checkpoint's files (name: content), in their order, into a folder that appears whole; return it.

    A content that is a path is a file of another checkpoint: a hard link to it, or a copy where there can be none. A
    name may have folders in it. Durable when it returns. The id stands for the content: a folder that is there already
    is left as it is. InvalidCheckpointError for a name that leaves the folder.
    """
    folder = checkpoints_folder / checkpoint_id
    checkpoints_folder.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        return folder
    temporary = checkpoints_folder / f".{checkpoint_id}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # of a publication that was killed
    temporary.mkdir()
    paths = {path_inside(temporary, name): content for name, content in files.items()}
    for path, content in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            write_whole(path, content)
        else:
            _link_or_copy(content, path)
    folders = {parent for path in paths for parent in path.parents if parent.is_relative_to(temporary)} | {temporary}
    for inner in sorted(folders, key=lambda path: -len(path.parts)):
        fsync_folder(inner)
    rename_durably(temporary, folder)
    return folder


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        write_whole(target, source.read_bytes())


def _manifest_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreachableFileError(f"{path}: cannot be read ({error.strerror}); is it a checkpoint?") from error


def _listing(path: Path, content: bytes) -> Listing:
    listing = _validated(path, content, Listing)
    if set(listing.halves) != set(HALVES):
        raise InvalidCheckpointError(f"{path}: holds half-sets {sorted(listing.halves)}, not 0 and 1; train both")
    return listing


def _validated(path: Path, content: bytes, model: type[M]) -> M:
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise InvalidCheckpointError(f"{path}: {where}: {first['msg']}; publish the checkpoint again") from error
