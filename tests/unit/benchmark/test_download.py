"""A published entry arrives whole or not at all, whatever the server and the line do; a real server on loopback."""

import json
import os
import shutil
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pytest
from samples.record_server import Archive, Handler, half_files, serving, table_of

from cesped_stream.benchmark import download_entry as downloading
from cesped_stream.benchmark.catalogue import MASK_RECORD
from cesped_stream.benchmark.download import RecordServer, RetryPolicy
from cesped_stream.benchmark.download_entry import download_entry, download_mask
from cesped_stream.benchmark.entries import find_entry, open_entry
from cesped_stream.benchmark.entry_folder import EntryState, entry_lock, entry_state
from cesped_stream.benchmark.fetch import fetch, part_path
from cesped_stream.benchmark.records import Assembly, RecordFile, record_files
from cesped_stream.benchmark.verify_entry import verify_entry
from cesped_stream.errors import (
    BusyEntryError,
    FullDiskError,
    InvalidEntryError,
    InvalidRecordError,
    InvalidSettingsError,
    UnreachableFileError,
    UnreachableHostError,
)
from cesped_stream.particles.star import star_bytes

HALF_0, HALF_1 = "10998049", "10998591"


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    source = tmp_path / "source"
    source.mkdir()
    records = {HALF_0: half_files(source, 0), HALF_1: half_files(source, 1, piece=None)}
    with serving(Archive(records)) as archive:
        yield archive


def server(archive: Archive, waits: list[float] | None = None, **policy: float) -> RecordServer:
    kept: list[float] = [] if waits is None else waits
    return RecordServer(archive.base_url, RetryPolicy(wait=kept.append, read_seconds=20.0, **policy))  # type: ignore[arg-type]


def assert_whole(folder: Path, source: Path) -> None:
    for name in ("particles_0.star", "particles_0.mrcs", "particles_1.star", "particles_1.mrcs"):
        assert (folder / name).read_bytes() == (source / name).read_bytes(), name
    assert not list(folder.glob(".*part*"))


def test_pieces_are_joined_by_number_and_the_marker_is_cespeds(archive: Archive, tmp_path: Path) -> None:
    assert list(archive.records[HALF_0])[3:5] == ["particles_0.mrcs.chunk_1", "particles_0.mrcs.chunk_2"]
    done = download_entry("TEST", tmp_path, server=server(archive))
    assert [check.num_rows for check in done.checks] == [6, 6]
    assert_whole(tmp_path / "TEST", tmp_path / "source")
    size = (tmp_path / "source" / "particles_0.mrcs").stat().st_size
    assert (tmp_path / "TEST" / f"SUCCESSFUL_DOWNLOAD_{HALF_0}.txt").read_text() == f"{HALF_0}\n{size}\n"
    assert len(find_entry("TEST", tmp_path).particles()) == 12


def test_more_than_ten_pieces_are_joined_in_the_order_of_their_numbers(archive: Archive, tmp_path: Path) -> None:
    archive.records[HALF_0] = half_files(tmp_path / "source", 0, piece=500)
    names = [name for name in archive.records[HALF_0] if "chunk" in name]
    assert names.index("particles_0.mrcs.chunk_10") < names.index("particles_0.mrcs.chunk_2")
    download_entry("TEST", tmp_path, half_sets=(0,), server=server(archive))
    data = (tmp_path / "TEST" / "particles_0.mrcs").read_bytes()
    assert data == (tmp_path / "source" / "particles_0.mrcs").read_bytes()


def test_a_complete_entry_is_not_asked_for_again(archive: Archive, tmp_path: Path) -> None:
    download_entry("TEST", tmp_path, server=server(archive))
    archive.requests.clear()
    assert download_entry("TEST", tmp_path, server=server(archive)).checks == ()
    assert not archive.requests


@pytest.mark.parametrize("ignore_ranges", [False, True])
def test_cut_connections_are_taken_up_where_they_ended(archive: Archive, tmp_path: Path, ignore_ranges: bool) -> None:
    archive.ignore_ranges = ignore_ranges
    archive.cut_after = 700
    if ignore_ranges:
        # A server that ignores ranges and always cuts at one place gives nothing new; it has to get further.
        def further(handler: Handler, name: str, data: bytes) -> bool:
            archive.cut_after = 700 * archive.requests[name]
            return False

        archive.answer = further
    waits: list[float] = []
    download_entry("TEST", tmp_path, server=server(archive, waits))
    assert_whole(tmp_path / "TEST", tmp_path / "source")
    assert len(waits) > 10
    assert all(0.5 <= wait <= 1.0 for wait in waits), "each connection brought something, so no wait grows"


def test_a_server_that_brings_nothing_new_is_given_up_with_growing_waits(archive: Archive, tmp_path: Path) -> None:
    archive.ignore_ranges, archive.cut_after = True, 200
    waits: list[float] = []
    with pytest.raises(UnreachableHostError, match=r"particles_0\.star.*8 times in a row"):
        download_entry("TEST", tmp_path, server=server(archive, waits))
    assert len(waits) == 7
    for k, wait in enumerate(waits):
        longest = min(60.0, 2.0**k)
        assert 0.5 * longest <= wait <= longest


def test_an_answer_without_a_length_that_ends_early_is_a_cut(archive: Archive, tmp_path: Path) -> None:
    def early(handler: Handler, name: str, data: bytes) -> bool:
        if archive.requests[name] > 1 or name == "listing":
            return False
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2])
        handler.close_connection = True
        return True

    archive.answer = early
    download_entry("TEST", tmp_path, server=server(archive))
    assert_whole(tmp_path / "TEST", tmp_path / "source")


def test_answers_that_end_before_they_begin_are_counted_as_failures(archive: Archive, tmp_path: Path) -> None:
    def empty(handler: Handler, name: str, data: bytes) -> bool:
        if name == "listing" or archive.requests[name] > 20:
            return False
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        return True

    archive.answer = empty
    with pytest.raises(UnreachableHostError, match="connection cut, 8 times in a row"):
        download_entry("TEST", tmp_path, server=server(archive))


def test_a_piece_with_wrong_bytes_is_fetched_again(archive: Archive, tmp_path: Path) -> None:
    def once_wrong(handler: Handler, name: str, data: bytes) -> bool:
        if name != "particles_0.mrcs.chunk_2" or archive.requests[name] > 1:
            return False
        handler.serve(name, data[:-1] + bytes([data[-1] ^ 1]))
        return True

    archive.answer = once_wrong
    download_entry("TEST", tmp_path, server=server(archive))
    assert_whole(tmp_path / "TEST", tmp_path / "source")
    assert archive.requests["particles_0.mrcs.chunk_2"] == 2
    assert archive.requests["particles_0.mrcs.chunk_1"] == 1, "a good piece is fetched once"


def test_a_piece_that_stays_wrong_ends_it_without_a_stack(archive: Archive, tmp_path: Path) -> None:
    def wrong(handler: Handler, name: str, data: bytes) -> bool:
        if name == "particles_0.mrcs.chunk_2":
            handler.serve(name, bytes(len(data)))
        return name == "particles_0.mrcs.chunk_2"

    archive.answer = wrong
    with pytest.raises(InvalidRecordError, match=r"chunk_2: md5 [0-9a-f]{32} after 3 tries"):
        download_entry("TEST", tmp_path, server=server(archive))
    assert archive.requests["particles_0.mrcs.chunk_2"] == 3
    assert not (tmp_path / "TEST" / "particles_0.mrcs").exists()
    assert entry_state(tmp_path / "TEST") is EntryState.PARTIAL
    with pytest.raises(UnreachableFileError, match="entries download TEST"):
        find_entry("TEST", tmp_path)


class Killed(BaseException):
    """Stands for SIGKILL at a byte: nothing of ours handles it."""


def test_a_kill_at_any_byte_is_resumed_and_checked_pieces_are_not_fetched_again(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(1000)
    pieces = tuple(piece_of(data[first : first + 300], k) for k, first in enumerate(range(0, 1000, 300)))
    whole = Assembly("particles_0.mrcs", pieces)

    def bytes_until(limit: int | None, asked: list[tuple[str, int]]) -> Iterator[bytes]:
        def read(file: RecordFile, offset: int) -> Iterator[bytes]:
            asked.append((file.name, offset))
            first = 300 * int(file.name[-1])
            for k in range(first + offset, first + file.size):
                if limit is not None and k >= limit:
                    raise Killed
                yield data[k : k + 1]

        return read  # type: ignore[return-value]

    for limit in range(0, 1000, 37):
        folder = tmp_path / str(limit)
        folder.mkdir()
        with pytest.raises(Killed):
            fetch(whole, folder, bytes_until(limit, []))  # type: ignore[arg-type]
        asked: list[tuple[str, int]] = []
        path = fetch(whole, folder, bytes_until(None, asked))  # type: ignore[arg-type]
        assert path.read_bytes() == data
        first = limit // 300
        rest = [(f"chunk_{k}", limit % 300 if k == first else 0) for k in range(first, 4)]
        assert asked == rest, "it goes on at the byte, and asks for nothing twice"


def piece_of(data: bytes, number: int) -> RecordFile:
    from hashlib import md5

    return RecordFile(f"chunk_{number}", len(data), md5(data).hexdigest(), ("http://127.0.0.1:9/x",))


def test_damage_to_a_part_between_two_calls_is_found(archive: Archive, tmp_path: Path) -> None:
    archive.answer = lambda handler, name, data: name.endswith("chunk_2") and bool(handler.respond(404, b"") or True)
    with pytest.raises(InvalidRecordError, match="404"):
        download_entry("TEST", tmp_path, half_sets=(0,), server=server(archive))
    part = part_path(tmp_path / "TEST", "particles_0.mrcs")
    assert part.stat().st_size == 3000, "two pieces, checked"
    with part.open("ab") as stream:
        stream.write(b"these bytes are not the third piece's")
    archive.answer = None
    download_entry("TEST", tmp_path, half_sets=(0,), server=server(archive))
    data = (tmp_path / "TEST" / "particles_0.mrcs").read_bytes()
    assert data == (tmp_path / "source" / "particles_0.mrcs").read_bytes()


def test_too_many_requests_waits_as_long_as_the_server_asks(archive: Archive, tmp_path: Path) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    asks = {1: (429, "17"), 2: (503, date)}

    def busy(handler: Handler, name: str, data: bytes) -> bool:
        code, after = asks.get(archive.requests[name], (0, ""))
        if code and name == "particles_0.star":
            handler.respond(code, b"", {"Retry-After": after})
            return True
        return False

    archive.answer = busy
    waits: list[float] = []
    download_entry("TEST", tmp_path, server=server(archive, waits))
    assert waits[0] == 17.0
    assert 80 < waits[1] <= 100


def test_a_server_that_asks_for_an_hour_is_not_waited_for(archive: Archive, tmp_path: Path) -> None:
    def busy(handler: Handler, name: str, data: bytes) -> bool:
        handler.respond(429, b"", {"Retry-After": "3600"})
        return True

    archive.answer = busy
    waits: list[float] = []
    with pytest.raises(UnreachableHostError, match="wait 3600 s"):
        download_entry("TEST", tmp_path, server=server(archive, waits))
    assert waits == []


def test_other_refusals_end_it_at_once(archive: Archive, tmp_path: Path) -> None:
    def refuse(handler: Handler, name: str, data: bytes) -> bool:
        if name == "listing":
            return False
        handler.respond(403, b"")
        return True

    archive.answer = refuse
    waits: list[float] = []
    with pytest.raises(InvalidRecordError, match="answers 403 Forbidden"):
        download_entry("TEST", tmp_path, server=server(archive, waits))
    assert waits == []
    del archive.records[HALF_0]
    with pytest.raises(InvalidRecordError, match="404 Not Found; was the record withdrawn"):
        download_entry("TEST", tmp_path, server=server(archive, waits))
    assert waits == []


def test_a_file_without_its_own_link_is_found_at_the_second_address(archive: Archive, tmp_path: Path) -> None:
    archive.own_links = False
    download_entry("TEST", tmp_path, server=server(archive))
    assert_whole(tmp_path / "TEST", tmp_path / "source")


def test_without_a_network_it_is_one_sentence_soon(tmp_path: Path) -> None:
    waits: list[float] = []
    nobody = RecordServer("http://127.0.0.1:9", RetryPolicy(wait=waits.append))
    with pytest.raises(UnreachableHostError) as caught:
        download_entry("TEST", tmp_path, server=nobody)
    assert str(caught.value).startswith("127.0.0.1:9 cannot be reached (connection refused); is this machine online")
    assert len(waits) == 2
    assert not (tmp_path / "TEST").exists()


def test_memory_is_bounded_by_the_piece_that_is_read_at_a_time(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    files = half_files(source, 0, num_images=1300, box=80, piece=12_000_000)
    with serving(Archive({HALF_0: files})) as archive:
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            read = sum(len(chunk) for file in server(archive).files(HALF_0) for chunk in server(archive).read(file))
            assembly = Assembly("x", tuple(f for f in server(archive).files(HALF_0) if "chunk" in f.name))
            fetch(assembly, tmp_path, server(archive).read)
            peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
    assert read > 33e6
    assert assembly.size > 33e6
    # The server's slices of 12 MB, which it holds itself, are not copied for a request without a range.
    assert peak < 8e6


def test_free_disk_is_looked_at_before_the_first_byte(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(downloading.shutil, "disk_usage", lambda path: usage._replace(free=downloading.SPARE_BYTES))
    with pytest.raises(FullDiskError, match="give another root"):
        download_entry("TEST", tmp_path, server=server(archive))
    assert set(archive.requests) == {"listing"}


def test_a_second_download_of_an_entry_is_refused(archive: Archive, tmp_path: Path) -> None:
    with (
        entry_lock("TEST", tmp_path),
        pytest.raises(BusyEntryError, match=rf"process {os.getpid()} is at work"),
    ):
        download_entry("TEST", tmp_path, server=server(archive))
    download_entry("TEST", tmp_path, server=server(archive))


def test_a_star_that_asks_for_more_images_than_there_are_gets_no_name(archive: Archive, tmp_path: Path) -> None:
    archive.records[HALF_0]["particles_0.star"] = star_bytes(table_of(0, 7, 16, "particles_0.mrcs"))
    with pytest.raises(InvalidEntryError, match=r"6 images, .* row 7 asks for 7"):
        download_entry("TEST", tmp_path, server=server(archive))
    assert not (tmp_path / "TEST" / "particles_0.star").exists()
    assert not list((tmp_path / "TEST").glob("SUCC*"))


def test_a_star_of_another_box_gets_no_name(archive: Archive, tmp_path: Path) -> None:
    archive.records[HALF_0]["particles_0.star"] = star_bytes(table_of(0, 6, 32, "particles_0.mrcs"))
    with pytest.raises(InvalidEntryError, match=r"says 32 px, .* has 16"):
        download_entry("TEST", tmp_path, server=server(archive))


def test_a_foreign_file_in_the_way_is_named_and_left(archive: Archive, tmp_path: Path) -> None:
    folder = tmp_path / "TEST"
    folder.mkdir()
    (folder / "particles_0.mrcs").write_bytes(b"half of a download of another program")
    with pytest.raises(InvalidEntryError, match=r"particles_0\.mrcs: is there and is not the record's"):
        download_entry("TEST", tmp_path, server=server(archive))
    assert (folder / "particles_0.mrcs").read_bytes().startswith(b"half of")


def test_whole_files_without_a_marker_are_taken_as_they_are(archive: Archive, tmp_path: Path) -> None:
    folder = tmp_path / "TEST"
    folder.mkdir()
    for name in ("particles_0.mrcs", "particles_0.star"):
        shutil.copy(tmp_path / "source" / name, folder / name)
    download_entry("TEST", tmp_path, server=server(archive))
    assert_whole(folder, tmp_path / "source")
    assert not any(name.startswith("particles_0.mrcs") for name in archive.requests)


def test_a_stack_that_was_removed_comes_again_and_nothing_else(archive: Archive, tmp_path: Path) -> None:
    download_entry("TEST", tmp_path, server=server(archive))
    (tmp_path / "TEST" / "particles_1.mrcs").unlink()
    archive.requests.clear()
    download_entry("TEST", tmp_path, server=server(archive))
    assert_whole(tmp_path / "TEST", tmp_path / "source")
    assert archive.requests == {"listing": 1, "particles_1.mrcs": 1}


def test_an_entry_of_stars_only_links_the_stacks_it_needs(archive: Archive, tmp_path: Path) -> None:
    stacks = {0: "8387534", 1: "8390711"}
    for half, (record, stars) in enumerate(zip(stacks.values(), ("11092025", "11092048"), strict=True)):
        files = half_files(tmp_path / "source", half)
        archive.records[record] = files
        some = table_of(half, 6, 16, f"particles_{half}.mrcs").select([4, 1])
        archive.records[stars] = {
            f"particles_{half}.star": star_bytes(some),
            f"info_{half}.json": b'{"symmetry": "D2"}',
        }
    done = download_entry("consensus_10648", tmp_path, server=server(archive))
    table = find_entry("consensus_10648", tmp_path).particles()
    assert table.column("rlnImageName") == [f"{k:06d}@particles_{half}.mrcs" for half in (0, 1) for k in (5, 2)]
    assert (done.folder / "particles_0.mrcs").readlink() == Path("../10648/particles_0.mrcs")
    assert entry_state(tmp_path / "10648") is EntryState.COMPLETE
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "10648", tmp_path / "elsewhere")
    shutil.move(tmp_path / "consensus_10648", tmp_path / "elsewhere")
    assert len(find_entry("consensus_10648", tmp_path / "elsewhere").particles()) == 4, "the root can move"


def test_a_mask_comes_under_its_entrys_name(archive: Archive, tmp_path: Path) -> None:
    archive.records[MASK_RECORD] = {"11120_mask.mrc": b"mask of 11120", "10166_mask.mrc": b"other"}
    path = download_mask("TEST", tmp_path, server=server(archive))
    assert path == tmp_path / "TEST" / "TEST_mask.mrc"
    assert path.read_bytes() == b"mask of 11120"
    archive.requests.clear()
    download_mask("TEST", tmp_path, server=server(archive))
    assert not archive.requests
    with pytest.raises(InvalidRecordError, match=r"no 10374_mask\.mrc in it"):
        download_mask("10374", tmp_path, server=server(archive))


def test_checksums_find_one_changed_byte(archive: Archive, tmp_path: Path) -> None:
    download_entry("TEST", tmp_path, server=server(archive))
    report = verify_entry(open_entry(tmp_path / "TEST"), server=server(archive), images=True)
    assert (report.ok, report.checksums_compared) == (True, 6)
    stack = tmp_path / "TEST" / "particles_0.mrcs"
    data = bytearray(stack.read_bytes())
    data[4000] ^= 1
    stack.write_bytes(data)
    report = verify_entry(open_entry(tmp_path / "TEST"), server=server(archive))
    assert (report.ok, report.checksums_compared) == (False, 5)
    assert "particles_0.mrcs.chunk_2 has md5" in report.findings[0].text


def test_an_unknown_name_is_told_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingsError, match=r"'10647' is no published entry; .* published as 10648"):
        download_entry("10647", tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"key": "../../etc/passwd"}, "no plain file name"),
        ({"size": "12"}, "is no number of bytes"),
        ({"checksum": "sha1:00"}, "no md5"),
    ],
)
def test_a_listing_that_cannot_be_trusted_is_refused(change: dict[str, str], words: str) -> None:
    file = {"key": "particles_0.star", "size": 1, "checksum": f"md5:{'0' * 32}", **change}
    with pytest.raises(InvalidRecordError, match=words):
        record_files({"files": [file]}, "1", "http://127.0.0.1")


def test_both_wordings_of_a_listing_are_read() -> None:
    old = {"files": [{"filename": "a.star", "filesize": 3, "checksum": "0" * 32}]}
    new = {"files": {"entries": {"a.star": {"key": "a.star", "size": 3, "checksum": f"md5:{'0' * 32}"}}}}
    expected = (RecordFile("a.star", 3, "0" * 32, ("http://h/records/7/files/a.star",)),)
    assert record_files(old, "7", "http://h") == record_files(json.loads(json.dumps(new)), "7", "http://h") == expected


@pytest.mark.parametrize("kind", ["nested", "circle"])
def test_listing_nested_without_end_or_redirecting_to_itself_is_no_record(archive: Archive, kind: str) -> None:
    def answer(handler: Handler, name: str, data: bytes) -> bool:
        if kind == "nested":
            handler.respond(200, b"[" * 200_000)
        else:
            handler.respond(302, b"", {"Location": f"{archive.base_url}/api/records/{HALF_0}"})
        return True

    archive.answer = answer
    waits: list[float] = []
    with server(archive, waits) as records, pytest.raises(InvalidRecordError):
        records.files(HALF_0)
    assert waits == []
