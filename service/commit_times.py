"""When each particle's pose was on disk, from a session's own log and batch stars; read only."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cesped_stream.particles.stacks import parse_image_name
from cesped_stream.particles.star import read_star

from .committing import COMMITTED_EVENT
from .session import SessionFolder

ImageKey = tuple[int, str]


def committed_at(session: SessionFolder) -> dict[ImageKey, float]:
    """Return, by landed image, the monotonic clock's reading when its first pose was on disk.

    A particle whose line the log no longer has (it keeps 50 MB), or whose commit a kill cut off from it, is not there.
    """
    found: dict[ImageKey, float] = {}
    names: dict[int, list[str]] = {}
    for event in _events(session):
        batch = int(event["batch_id"])
        if batch not in names:
            names[batch] = read_star(session.batch_star(batch)).column("rlnImageName")
        first = int(event["first_row"])
        for name in names[batch][first : first + int(event["num_rows"])]:
            key = parse_image_name(name)
            seconds = float(event["monotonic_seconds"])
            found[key] = min(seconds, found.get(key, seconds))
    return found


def _events(session: SessionFolder) -> Iterator[dict[str, Any]]:
    for file in sorted((session.root / "logs").glob("coordinator.jsonl*")):
        yield from _events_of(file)


def _events_of(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(errors="replace") as lines:
        for line in lines:
            if COMMITTED_EVENT not in line:
                continue
            try:
                event = json.loads(line)
            except ValueError:  # cut by a kill
                continue
            if event.get("event") == COMMITTED_EVENT:
                yield event
