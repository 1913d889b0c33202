"""Waiting for a session to end after `stop`, and saying what it waits for."""

import time
from collections.abc import Callable

from .request import last_status
from .session import SessionFolder, is_held
from .settings import SessionSettings
from .show import counts_line

POLL_SECONDS = 0.2


def wait_for_end(
    settings: SessionSettings,
    say: Callable[[str], object],
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return when no coordinator holds the session any more; say what it waits for when that changes, and the end.

    Whoever waits may leave at any time, and the coordinator may be killed: its lock ends with its process.
    """
    folder, told = SessionFolder.of(settings), ""
    while is_held(folder):
        status = last_status(settings)
        words = ", ".join(status.waits_for) if status is not None and status.state == "draining" else ""
        if words and words != told:
            say(f"waits for {words}")
        told = words or told
        sleep(POLL_SECONDS)
    status = last_status(settings)
    counts = f": {counts_line(status)}" if status is not None else ""
    say(f"stopped{counts}; `cesped-stream run --settings {settings.session}/session.toml` goes on from here")
