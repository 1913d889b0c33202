"""What lies in the landing folder: polling is the truth, file events only make the next scan come sooner."""

import fnmatch
import logging
import os
import re
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cesped_stream.errors import UnreachableFileError
from cesped_stream.particles.landing import DONE_SUFFIX, Settled, SettleTracker

from .settings import LandingSettings

logger = logging.getLogger(__name__)

STACK_SUFFIXES = (".mrcs", ".mrc")

INTERMEDIATE_STAR = re.compile(r"_it\d{3}(_half[12])?_data\.star$")
"""What RELION writes after each iteration of a refinement or classification: poses on their way."""

Signature = tuple[int, int, int]
"""(inode, size, mtime_ns): equal twice means unchanged. Never compared with a clock."""


@dataclass(frozen=True)
class LandedStar:
    """A star file that is settled."""

    path: Path
    signature: Signature
    landed: float
    """Monotonic time at which its present size was first seen."""
    done: bool
    """A `.done` marker lies beside it."""


class Watcher:
    """Scans the landing folder and knows since when each star and stack has had its present size."""

    def __init__(self, settings: LandingSettings, *, without: Path | None = None) -> None:
        """`without` is a folder that is not looked into: the session's own, where it lies in the landing folder."""
        self._root = Path(os.path.abspath(settings.folder))
        self._aligned = settings.aligned
        self._without = str(without) if without is not None else ""
        self._settle = SettleTracker(settings.settle_seconds)
        self._since: dict[str, tuple[Signature, float]] = {}
        self._settled: set[str] = set()
        self.stars_unsettled = 0
        self.stars_passed_over = 0
        """Stars of RELION's iterations that `aligned` does not name."""
        self.problem = ""

    def is_named_aligned(self, star: Path) -> bool:
        """Return whether the setting `aligned` matches the star's path, as it is or below the landing folder."""
        names = (os.path.relpath(star, self._root), str(star))
        return any(fnmatch.fnmatchcase(name, self._aligned) for name in names)

    def scan(self, now: float) -> list[LandedStar]:
        """Look at every file once; return the settled stars, in the order in which they landed.

        A folder that cannot be listed is a `problem`, not an empty folder: what is known stays known.
        """
        closed: list[str] = []
        files = dict(_files_below(str(self._root), self._without, closed))
        self.problem = closed[0] + (f" (and {len(closed) - 1} more)" if len(closed) > 1 else "") if closed else ""
        self.stars_unsettled = self.stars_passed_over = 0
        landed = []
        for name, signature in files.items():
            if name.endswith(DONE_SUFFIX):
                continue
            if INTERMEDIATE_STAR.search(name) and not self.is_named_aligned(Path(name)):
                self.stars_passed_over += 1
                continue
            settled = self.observe(name, signature, now)
            if name.endswith(".star"):
                done = name + DONE_SUFFIX in files
                if settled:
                    landed.append(LandedStar(Path(name), signature, self._since[name][1], done))
                else:
                    self.stars_unsettled += 1
        return sorted(landed, key=lambda star: (star.landed, str(star.path)))

    def observe(self, name: str, signature: Signature, now: float) -> bool:
        """Note how a file looks now; return whether it is settled."""
        known = self._since.get(name)
        if known is None or known[0] != signature:
            self._since[name] = (signature, now)
            self._settled.discard(name)
        if name not in self._settled and isinstance(self._settle.observe(Path(name), now), Settled):
            self._settled.add(name)
        return name in self._settled

    def stack_is_settled(self, stack: Path, now: float) -> bool:
        """Look at a stack (it may lie outside the landing folder); False also where it is missing."""
        try:
            return self.observe(str(stack), signature_of(stack), now)
        except UnreachableFileError:
            return False

    def since(self, path: Path, now: float) -> float:
        """Return the monotonic time at which the file's present size was first seen; `now` where it never was."""
        known = self._since.get(str(path))
        return known[1] if known is not None else now


def signature_of(path: Path) -> Signature:
    """Return (inode, size, mtime_ns), symlinks followed. Raises UnreachableFileError."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise UnreachableFileError(f"{path}: {error.strerror}; is the mount there?") from None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _files_below(folder: str, without: str, closed: list[str]) -> Iterator[tuple[str, Signature]]:
    """Yield regular stars, stacks and markers; hidden names are somebody's temporaries. Links to folders are not
    followed (they could form a ring); a file that vanishes meanwhile is passed over. Folders that cannot be listed,
    and names that cannot be used, are added to `closed` with the reason."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        closed.insert(0, f"{folder}: {error.strerror}; waiting for it to come back")
        return
    for entry in found:
        if entry.name.startswith(".") or entry.path == without:
            continue
        try:
            entry.name.encode()
            if entry.is_dir(follow_symlinks=False):
                yield from _files_below(entry.path, without, closed)
            elif entry.name.endswith((".star", DONE_SUFFIX, *STACK_SUFFIXES)):
                status = entry.stat()
                if stat.S_ISREG(status.st_mode):
                    yield entry.path, (status.st_ino, status.st_size, status.st_mtime_ns)
        except FileNotFoundError:
            continue
        except (OSError, UnicodeEncodeError) as error:
            # A ring of links, a name that is no UTF-8: one odd entry is told and stops nothing else.
            why = getattr(error, "strerror", None) or error
            closed.append(f"{entry.path!a}: passed over: {why}; rename or remove it")


class FileEvents:
    """Hints that something changed below the landing folder, from watchdog where that works."""

    def __init__(self, folder: Path) -> None:
        self._changed = threading.Event()
        self._observer = None
        try:
            from watchdog.events import FileSystemEvent, FileSystemEventHandler
            from watchdog.observers import Observer

            changed = self._changed

            class Handler(FileSystemEventHandler):
                def on_any_event(self, event: FileSystemEvent) -> None:
                    if event.event_type not in ("opened", "closed_no_write"):
                        changed.set()

            observer = Observer()
            observer.daemon = True
            observer.schedule(Handler(), str(folder), recursive=True)
            observer.start()
            self._observer = observer
        except OSError as error:
            logger.warning("no file events, polling only", extra={"folder": str(folder), "why": str(error)})

    def take(self) -> bool:
        """Return whether anything changed since the last call."""
        changed = self._changed.is_set()
        self._changed.clear()
        return changed

    def close(self) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(timeout=5.0)
