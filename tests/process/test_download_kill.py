"""A download that is killed at any moment goes on where it ended, and without a network it says so."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from samples.record_server import Archive, Handler, half_files, serving

from .conftest import wait_until

NUM_KILLS = 5


def download(url: str, root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cesped_stream_service", "entries", "download", "TEST", "--server", url]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"CESPED_STREAM_ROOT": str(root), "OMP_NUM_THREADS": "1"},
    )


def served(archive: Archive, count: int) -> bool:
    return sum(archive.sent.values()) >= count


def test_sigkill_at_many_bytes_costs_no_piece_that_was_checked(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    records = {
        "10998049": half_files(source, 0, num_images=400, box=64, piece=1_000_000),
        "10998591": half_files(source, 1, num_images=20, box=64, piece=None),
    }
    total = sum(len(data) for record in records.values() for data in record.values())
    with serving(Archive(records)) as archive:
        limit = 0

        def stall_at_limit(handler: Handler, name: str, data: bytes) -> bool:
            """Serve until `limit` bytes have gone out in all, then leave the client waiting on an open connection."""
            if limit == 0 or name == "listing":
                return False
            asked = handler.headers.get("Range", "bytes=0-")
            first = int(asked.removeprefix("bytes=").removesuffix("-"))
            sent = sum(archive.sent.values())
            if sent + len(data) - first <= limit:
                return False
            handler.send_response(206 if first else 200)
            if first:
                handler.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            handler.send_header("Content-Length", str(len(data) - first))
            handler.end_headers()
            part = data[first : first + max(0, limit - sent)]
            handler.wfile.write(part)
            handler.wfile.flush()
            archive.sent[name] += len(part)
            handler.rfile.read(1)
            return True

        archive.answer = stall_at_limit
        root = tmp_path / "root"
        for kill in range(1, NUM_KILLS + 1):
            limit = wanted = sum(archive.sent.values()) + total // (NUM_KILLS + 2) + 1013 * kill
            process = download(archive.base_url, root)
            try:
                wait_until(partial(served, archive, wanted), f"{wanted} bytes served")
            finally:
                process.kill()
                process.communicate()
            assert not (root / "TEST" / "particles_0.mrcs").exists()
        limit = 0
        process = download(archive.base_url, root)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        for name in ("particles_0.mrcs", "particles_1.mrcs", "particles_0.star", "particles_1.star"):
            assert (root / "TEST" / name).read_bytes() == (source / name).read_bytes()
        # What a kill can cost is what the sockets and the write buffer still held, not a piece.
        assert sum(archive.sent.values()) < total + NUM_KILLS * 400_000


def test_two_downloads_at_once_are_one_and_a_refusal(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    records = {"10998049": half_files(source, 0), "10998591": half_files(source, 1)}
    with serving(Archive(records)) as archive:
        waiting: list[bool] = []

        def wait_for_second(handler: Handler, name: str, data: bytes) -> bool:
            if name == "particles_0.star" and not waiting:
                waiting.append(True)
                handler.rfile.read(1)
                return True
            return False

        archive.answer = wait_for_second
        first = download(archive.base_url, tmp_path / "root")
        try:
            wait_until(lambda: waiting, "the first download has begun")
            second = download(archive.base_url, tmp_path / "root")
            _, errors = second.communicate(timeout=60)
            assert second.returncode == 75
            assert f"process {first.pid} is at work on it" in " ".join(errors.split())
        finally:
            first.kill()
            first.communicate()


def test_without_a_network_it_is_one_sentence_and_a_later_try_may_help(tmp_path: Path) -> None:
    process = download("http://127.0.0.1:9", tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    (line,) = [line for line in errors.splitlines() if line.strip()]
    assert line.startswith("cesped-stream: error: 127.0.0.1:9 cannot be reached (connection refused); is this machine")
