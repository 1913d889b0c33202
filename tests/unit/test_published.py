"""Published checkpoints of any kind: whole or absent, listed by their manifest, nothing outside their folder."""

import hashlib
import json
import os
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from cesped_stream import published
from cesped_stream.errors import InvalidCheckpointError, UnreachableFileError
from cesped_stream.published import (
    MANIFEST_NAME,
    FileRecord,
    PublishedManifest,
    check_files,
    path_inside,
    publish_files,
    read_listing,
    read_published,
)
from cesped_stream_service.training_gate import verify_checkpoint

INNER = {"network/half_0.safetensors": b"net 0", "references/deep/half_1.mrc": b"ref 1", "beside.json": b"{}"}


class NestedManifest(PublishedManifest):
    """A kind whose files lie in folders inside."""

    manifest_kind: ClassVar[str] = "nested"
    id_prefix: ClassVar[str] = "nst"

    kind: Literal["nested"] = "nested"
    halves: dict[int, FileRecord]
    files: dict[str, str]
    said_later: str = ""


class YoungerManifest(NestedManifest):
    """The same kind, whose newest field older checkpoints do not have."""

    unsaid_if_empty: ClassVar[frozenset[str]] = frozenset({"said_later"})


def nested(files: dict[str, bytes] = INNER, **changes: object) -> NestedManifest:
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    fields = {"halves": {half: FileRecord() for half in (0, 1)}, "files": hashes, **changes}
    return NestedManifest(**fields).with_id()  # type: ignore[arg-type]


def publish(folder: Path, manifest: NestedManifest | None = None) -> Path:
    manifest = manifest or nested()
    return publish_files(folder, manifest.checkpoint_id, {**INNER, MANIFEST_NAME: manifest.file_bytes()})


@pytest.mark.parametrize(
    ("halves", "resolution", "error"),
    [
        ({"resolution_angstrom": 12.5, "median_error_deg": 3.0, "num_training": 4}, (12.5, 12.5), (3.0, 3.0)),
        ({"resolution_angstrom": 20.0, "median_error_deg": None}, (20.0, 20.0), ()),
        ({"steps": 5}, (), ()),
    ],
)
def test_a_listing_of_any_kind_tells_how_good_the_checkpoint_is_where_its_manifest_does(
    tmp_path: Path, halves: dict[str, object], resolution: tuple[float, ...], error: tuple[float, ...]
) -> None:
    manifest = {"kind": "any", "checkpoint_id": "any-1", "halves": {"0": halves, "1": halves}}
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(manifest))
    listing = read_listing(tmp_path)
    assert (listing.resolution_angstrom(), listing.median_error_deg()) == (resolution, error)


def test_what_one_half_alone_tells_is_not_told_of_both(tmp_path: Path) -> None:
    manifest = {"checkpoint_id": "any-1", "halves": {"0": {"median_error_deg": 3.0}, "1": {}}}
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(manifest))
    assert read_listing(tmp_path).median_error_deg() == ()


def test_files_in_folders_inside_are_published_read_and_verified(tmp_path: Path) -> None:
    folder = publish(tmp_path)
    manifest = read_published(folder, NestedManifest)
    assert manifest == nested() and manifest.checkpoint_id == folder.name
    check_files(folder, manifest.files.items())
    assert {name: (folder / name).read_bytes() for name in INNER} == INNER
    assert read_listing(folder).names_and_hashes() == set(manifest.files.items())
    assert verify_checkpoint(folder).checkpoint_id == folder.name
    assert os.listdir(tmp_path) == [folder.name]


@pytest.mark.parametrize("name", INNER)
def test_a_changed_byte_in_a_folder_inside_is_noticed(tmp_path: Path, name: str) -> None:
    folder = publish(tmp_path)
    (folder / name).write_bytes(b"other")
    with pytest.raises(InvalidCheckpointError, match="its sha256"):
        verify_checkpoint(folder)
    (folder / name).unlink()
    with pytest.raises(UnreachableFileError, match="copy the checkpoint again"):
        check_files(folder, nested().files.items())
    with pytest.raises(InvalidCheckpointError, match="incomplete"):
        verify_checkpoint(folder)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../beside.json", "network/../../x", "/etc/passwd", "a//b", "./a", "a\0b"]
)
def test_a_name_that_leaves_the_folder_is_neither_written_nor_read(tmp_path: Path, name: str) -> None:
    manifest = nested(files={"beside.json": b"{}", name: b"out"})
    with pytest.raises(InvalidCheckpointError, match="not a file inside the folder"):
        publish_files(tmp_path, "nst-1", {name: b"out"})
    folder = publish(tmp_path, manifest)
    with pytest.raises(InvalidCheckpointError, match="not a file inside the folder"):
        verify_checkpoint(folder)


def test_a_link_out_of_the_folder_is_not_followed_one_within_it_is(tmp_path: Path) -> None:
    folder = publish(tmp_path / "checkpoints")
    (tmp_path / "elsewhere").write_bytes(INNER["beside.json"])
    (folder / "beside.json").unlink()
    (folder / "beside.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidCheckpointError, match="a link out of the checkpoint"):
        verify_checkpoint(folder)
    (folder / "copy.json").write_bytes(INNER["beside.json"])
    (folder / "beside.json").unlink()
    (folder / "beside.json").symlink_to("copy.json")
    (tmp_path / "link").symlink_to(folder)
    assert verify_checkpoint(tmp_path / "link").checkpoint_id == folder.name
    assert path_inside(tmp_path / "link", "network/x") == tmp_path / "link" / "network" / "x"


def test_every_folder_of_a_publication_is_on_disk_before_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(published, "fsync_folder", lambda folder: synced.append(folder.name))
    rename = published.rename_durably

    def noted(source: Path, target: Path) -> None:
        synced.append("renamed")
        rename(source, target)

    monkeypatch.setattr(published, "rename_durably", noted)
    folder = publish(tmp_path)
    assert synced[0] == "deep" and synced[-2:] == [f".{folder.name}.tmp", "renamed"]
    assert set(synced[1:-2]) == {"network", "references"}


def test_another_kind_and_an_edited_manifest_are_refused(tmp_path: Path) -> None:
    class OtherManifest(NestedManifest):
        manifest_kind: ClassVar[str] = "network"

    folder = publish(tmp_path)
    with pytest.raises(InvalidCheckpointError, match="holds kind 'nested', not 'network'"):
        read_published(folder, OtherManifest)
    edited = nested().model_copy(update={"said_later": "new"})
    (folder / MANIFEST_NAME).write_bytes(edited.file_bytes())
    with pytest.raises(InvalidCheckpointError, match="it was edited"):
        read_published(folder, NestedManifest)


def test_a_half_without_a_file_is_refused_where_nothing_else_is_listed(tmp_path: Path) -> None:
    folder = publish(tmp_path, nested(files={}))
    with pytest.raises(InvalidCheckpointError, match="not a file inside"):
        verify_checkpoint(folder)


def test_one_half_is_no_checkpoint(tmp_path: Path) -> None:
    folder = publish(tmp_path, nested(halves={0: FileRecord()}))
    with pytest.raises(InvalidCheckpointError, match=r"holds half-sets \[0\], not 0 and 1"):
        read_listing(folder)


def test_a_field_that_is_younger_than_the_kind_changes_no_older_id() -> None:
    fields = {"halves": {half: FileRecord() for half in (0, 1)}, "files": {}}
    younger = YoungerManifest(**fields)  # type: ignore[arg-type]
    assert younger.content_id() != NestedManifest(**fields).content_id()  # type: ignore[arg-type]
    assert younger.model_copy(update={"said_later": "x"}).content_id() != younger.content_id()
