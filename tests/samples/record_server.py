"""A real HTTP server on loopback in the layout of a record archive, that misbehaves as asked."""

import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from cesped_stream.particles.stacks import write_stack
from cesped_stream.particles.star import write_star
from cesped_stream.particles.table import OpticsGroup, ParticleTable

Answer = Callable[["Handler", str, bytes], bool]
"""Called with handler, file name and data before a file is served; True: it has answered itself."""


@dataclass
class Archive:
    """Records that the server serves, and what was asked of it."""

    records: dict[str, dict[str, bytes]] = field(default_factory=dict)
    ignore_ranges: bool = False
    cut_after: int | None = None
    """Bytes of a body after which every connection is cut."""
    own_links: bool = True
    answer: Answer | None = None
    requests: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    """Bytes of bodies by file."""
    base_url: str = ""

    def listing(self, record: str) -> bytes:
        files = []
        for name, data in self.records[record].items():
            checksum = f"md5:{md5(data).hexdigest()}"
            file: dict[str, object] = {"key": name, "size": len(data), "checksum": checksum}
            if self.own_links:
                file["links"] = {"self": f"{self.base_url}/api/records/{record}/files/{name}/content"}
            files.append(file)
        return json.dumps({"id": record, "files": files}).encode()


class Handler(BaseHTTPRequestHandler):
    archive: Archive

    def do_GET(self) -> None:
        archive = self.archive
        if match := re.fullmatch(r"/api/records/([0-9]+)", self.path):
            archive.requests["listing"] += 1
            if match[1] not in archive.records:
                self.respond(404, b"{}")
            elif archive.answer is None or not archive.answer(self, "listing", b""):
                self.respond(200, archive.listing(match[1]))
            return
        match = re.fullmatch(r"(?:/api)?/records/([0-9]+)/files/([^/]+)(?:/content)?", self.path)
        data = archive.records.get(match[1], {}).get(match[2]) if match else None
        if match is None or data is None:
            self.respond(404, b"no such file")
            return
        archive.requests[match[2]] += 1
        if archive.answer is None or not archive.answer(self, match[2], data):
            self.serve(match[2], data)

    def serve(self, name: str, data: bytes) -> None:
        """Send a file, or its part that the request's range names."""
        asked = re.fullmatch(r"bytes=([0-9]+)-", self.headers.get("Range", ""))
        if asked is None or self.archive.ignore_ranges:
            self.respond(200, data, name=name)
        elif int(asked[1]) >= len(data):
            self.respond(416, b"")
        else:
            first = int(asked[1])
            self.respond(206, data[first:], {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}, name)

    def respond(self, code: int, body: bytes, headers: dict[str, str] | None = None, name: str = "") -> None:
        """Send an answer; cut the connection where the archive says so."""
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        cut = self.archive.cut_after if name else None
        part = body if cut is None else body[:cut]
        for first in range(0, len(part), 1 << 16):
            self.wfile.write(part[first : first + (1 << 16)])
            self.archive.sent[name] += len(part[first : first + (1 << 16)])
        if len(part) < len(body):
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def handle(self) -> None:
        # The client may leave at any byte: that is what these tests are about.
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def finish(self) -> None:
        try:
            super().finish()
        except (BrokenPipeError, ConnectionResetError, OSError):
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(archive: Archive) -> Iterator[Archive]:
    """Serve the archive on 127.0.0.1 while the context lasts."""
    handler = type("ArchiveHandler", (Handler,), {"archive": archive})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    archive.base_url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield archive
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def half_files(
    folder: Path, half: int, *, num_images: int = 6, box: int = 16, piece: int | None = 1500
) -> dict[str, bytes]:
    """Return the files of a record of one half-set: star, info, and the stack whole (piece None) or in pieces."""
    rng = np.random.default_rng(half)
    stack = folder / f"particles_{half}.mrcs"
    write_stack(stack, rng.standard_normal((num_images, box, box)).astype(np.float32), 1.5)
    star = folder / f"particles_{half}.star"
    write_star(star, table_of(half, num_images, box, stack.name))
    data = stack.read_bytes()
    files = {star.name: star.read_bytes(), f"info_{half}.json": b'{"symmetry": "C1"}\n'}
    if piece is None:
        return {**files, stack.name: data}
    pieces = {
        f"{stack.name}.chunk_{k}": data[first : first + piece] for k, first in enumerate(range(0, len(data), piece))
    }
    # Listed in the order of their names: 0, 1, 10, 2, ...
    return {**files, **dict(sorted(pieces.items()))}


def table_of(half: int, num_rows: int, box: int, stack: str) -> ParticleTable:
    """Return rows with poses and CTF that name consecutive images of a stack."""
    optics = OpticsGroup(
        (
            *(("rlnOpticsGroupName", "og1"), ("rlnVoltage", "300.0"), ("rlnSphericalAberration", "2.7")),
            *(("rlnAmplitudeContrast", "0.1"), ("rlnImagePixelSize", "1.5"), ("rlnImageSize", str(box))),
            ("rlnImageDimensionality", "2"),
        )
    )
    labels = (
        *("rlnImageName", "rlnMicrographName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst"),
        *("rlnOriginYAngst", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnRandomSubset"),
    )
    rows = [
        (
            *(f"{k + 1:06d}@{stack}", f"mic{k % 3}.mrc", f"{10.5 + 7 * k}", f"{20.25 + 5 * k}", f"{-30.5 + 3 * k}"),
            *(f"{0.5 * k}", f"{-0.25 * k}", f"{12000 + 10 * k}.0", f"{12000 + 10 * k}.0", "0.0", str(half + 1)),
        )
        for k in range(num_rows)
    ]
    return ParticleTable(labels, rows, (optics,), np.zeros(num_rows, np.int64))
