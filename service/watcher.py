"""What lies in the landing folder: polling is the truth, file events only make the next scan come sooner."""

import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cesped_stream.errors import UnreachableFileError
from cesped_stream.particles.landing import DONE_SUFFIX, FileSignature, Settled, SettleTracker

from .inputs import InputRule, LeftByName
from .landing_tree import LandedFile, LandingTree
from .restless import LONG_SETTLE_TIMES, RestlessStar, RestlessStars, Signature
from .settings import LandingSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LandedStar:
    """A star file that is complete, or one that never stands still."""

    path: Path
    signature: Signature
    landed: float
    """Monotonic time at which its present size was first seen."""
    done: bool
    """A `.done` marker lies beside it."""

    @cached_property
    def signature_text(self) -> str:
        """The signature as the ledger keeps it."""
        return json.dumps(self.signature)

    @cached_property
    def name(self) -> str:
        """The path as text."""
        return str(self.path)


class Watcher:
    """Scans the landing folder and knows since when each star and stack has had its present size."""

    def __init__(self, settings: LandingSettings, *, without: Path | None = None) -> None:
        """`without` is a folder that is not looked into: the session's own, where it lies in the landing folder."""
        self._rule = InputRule(settings)
        self._tree = LandingTree(settings, without=str(without) if without is not None else "")
        self._settle = SettleTracker(settings.settle_seconds)
        self._settle_seconds = settings.settle_seconds
        self._long_seconds = LONG_SETTLE_TIMES * max(settings.settle_seconds, settings.scan_seconds)
        self._since: dict[str, tuple[Signature, float]] = {}
        self._settled: set[str] = set()
        self._left_by_name: dict[str, LeftByName | None] = {}
        self._stars: dict[str, LandedStar] = {}
        self._restless = RestlessStars()
        self._renamed: set[str] = set()
        self._renamed_lock = threading.Lock()
        self.stars_unsettled = 0
        self.left: Counter[LeftByName] = Counter()
        """Stars that their names keep from being inputs."""
        self.changing: list[LandedStar] = []
        """Stars that have not settled for longer than a settle time: what two looks at them agree on can be read."""

    def is_named_aligned(self, star: Path) -> bool:
        """Return whether the setting `aligned` matches the star's path, as it is or below the landing folder."""
        return self._rule.is_named_aligned(star)

    @property
    def stars_passed_over(self) -> int:
        """Stars of RELION's iterations that `aligned` does not name."""
        return self.left[LeftByName.INTERMEDIATE]

    @property
    def problem(self) -> str:
        """What the last scan could not look at, "" where it saw everything."""
        return self._tree.problem

    @property
    def linked_folders(self) -> tuple[str, ...]:
        """What is told of linked folders with stars in them that are not looked into."""
        return self._tree.linked_folders

    def note_renamed(self, path: str) -> None:
        """Take note that a file was renamed to this path: whoever did that had written it. From any thread."""
        with self._renamed_lock:
            self._renamed.add(os.path.abspath(path))

    def scan(self, now: float) -> list[LandedStar]:
        """Look at every file once; return the complete stars, in the order in which they landed.

        A folder that cannot be listed is a `problem`, not an empty folder: what is known stays known.
        """
        with self._renamed_lock:
            renamed, self._renamed = self._renamed, set()
        files = self._tree.files(now)
        self.stars_unsettled = 0
        self.left.clear()
        self.changing, landed = [], []
        unsettled = set()
        for name, file in files.items():
            if name.endswith(DONE_SUFFIX):
                continue
            is_star = name.endswith(".star")
            if is_star and (left := self._why_left(name)) is not None:
                self.left[left] += 1
                continue
            before = self._since.get(name)
            whole = is_star and (name in renamed or _is_whole(file, before))
            done = name + DONE_SUFFIX in files
            settled = self.observe(name, file.signature, now, whole=whole, done=done)
            if not is_star:
                continue
            star = self._star(name, file.signature, done=done)
            if settled:
                landed.append(star)
                continue
            unsettled.add(name)
            self._restless.saw(name, before[0] if before else None, file.signature, now)
            if self._restless.seconds(name, now) >= self._settle_seconds:
                self.changing.append(star)
        self.stars_unsettled = len(unsettled)
        self._restless.keep(unsettled)
        return sorted(landed, key=lambda star: (star.landed, star.name))

    def _star(self, name: str, signature: Signature, *, done: bool) -> LandedStar:
        """Return the star as it was returned before, where it looks the same: there may be many thousands."""
        star = self._stars.get(name)
        if star is None or star.signature != signature or star.done != done:
            star = self._stars[name] = LandedStar(Path(name), signature, self._since[name][1], done)
        return star

    def _why_left(self, name: str) -> LeftByName | None:
        if name not in self._left_by_name:
            self._left_by_name[name] = self._rule.left_by_name(name)
        return self._left_by_name[name]

    def restless(self, now: float) -> list[RestlessStar]:
        """Return the stars that have not settled for ten settle times, the longest first."""
        return self._restless.older_than(self._long_seconds, now)

    def observe(self, name: str, signature: Signature, now: float, *, whole: bool = False, done: bool = False) -> bool:
        """Note how a file looks now; return whether it is settled: by its age, or `done` or `whole` whatever that."""
        known = self._since.get(name)
        if known is None or known[0] != signature:
            self._since[name] = (signature, now)
            self._settled.discard(name)
        if whole:
            self._settled.add(name)
        if name not in self._settled:
            look = self._settle.observe_as(name, FileSignature(*signature), now, done=done)
            if isinstance(look, Settled):
                self._settled.add(name)
        return name in self._settled

    def stack_is_settled(self, stack: Path, now: float) -> bool:
        """Look at a stack (it may lie outside the landing folder); False also where it is missing."""
        try:
            done = stack.with_name(stack.name + DONE_SUFFIX).exists()
            return self.observe(str(stack), signature_of(stack), now, done=done)
        except UnreachableFileError:
            return False

    def since(self, path: Path, now: float) -> float:
        """Return the monotonic time at which the file's present size was first seen; `now` where it never was."""
        known = self._since.get(str(path))
        return known[1] if known is not None else now


def _is_whole(file: LandedFile, before: tuple[Signature, float] | None) -> bool:
    """Return whether a star was complete when it came to its name.

    A write sets both of a file's times; a rename, or whatever a copy sets at its end (rsync, cp -p), only the time of
    change. Where another file had the name before, this one came in its place. An inode's number alone proves nothing
    where it is the same: file systems give that of a replaced file to the next one. Should a writer still be at work
    after all, its whole lines are rows all the same, and what follows the last one waits.
    """
    signature = file.signature
    if before is not None and before[0] == signature:
        return False
    return file.changed_ns > signature[2] or (before is not None and before[0][0] != signature[0])


def signature_of(path: Path) -> Signature:
    """Return (inode, size, mtime_ns), symlinks followed. Raises UnreachableFileError."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise UnreachableFileError(f"{path}: {error.strerror}; is the mount there?") from None
    return found.st_ino, found.st_size, found.st_mtime_ns


class FileEvents:
    """Hints that something changed below the landing folder, from watchdog where that works."""

    def __init__(self, folder: Path, on_renamed: Callable[[str], None] = lambda path: None) -> None:
        """`on_renamed` is told, in another thread, each path that a file was renamed to."""
        self._changed = threading.Event()
        self._observer = None
        try:
            from watchdog.events import FileSystemEvent, FileSystemEventHandler
            from watchdog.observers import Observer

            changed = self._changed

            class Handler(FileSystemEventHandler):
                def on_any_event(self, event: FileSystemEvent) -> None:
                    if event.event_type == "moved":
                        on_renamed(os.fsdecode(event.dest_path))
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
