"""SIGTERM and SIGHUP as an exception, for a program's main: what is open is closed, what was started is ended."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise SystemExit (128 + number) here at the first SIGTERM or SIGHUP; later ones do not disturb the cleaning up.

    A signal that is ignored already (nohup) or answered by another handler stays so; the handlers before are put back
    at the end. Does nothing outside the main thread. For programs: the library's functions install no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    handler = _Once()
    for number in ours:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


class _Once:
    def __init__(self) -> None:
        self._ending = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        del frame
        if not self._ending:
            self._ending = True
            raise SystemExit(128 + number)
