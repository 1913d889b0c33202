"""The files below the landing folder, with the linked folders that may be followed and those that are only told."""

import os
import stat
from pathlib import Path
from typing import Final, NamedTuple

from cesped_stream.particles.landing import DONE_SUFFIX

from .restless import Signature
from .settings import LandingSettings

STACK_SUFFIXES: Final = (".mrcs", ".mrc")
MOST_LOOKED_AT: Final = 2000
"""Names in a linked folder that is not followed, at which the search for a star in it ends."""
SESSION_MARKS: Final = frozenset({"session.toml", "batches", "poses"})
"""Names in the folder of a session, of this one or another: what it wrote is no input."""
LINK_LOOK_SECONDS: Final = 60.0


class LandedFile(NamedTuple):
    """How a file looks now."""

    signature: Signature
    changed_ns: int
    """When it, or its name, was changed; in the clock that wrote its other time, and compared with that only."""


class LandingTree:
    """Lists stars, stacks and markers; hidden names are somebody's temporaries, and a session's folder has no inputs.

    A link to a folder of the landing folder is passed over: what it leads to is listed at its own place (RELION's job
    aliases). One that leads elsewhere is followed where that lies under the allowed roots, each folder once, so that
    links cannot form a ring; else it is told where stars lie in it.
    """

    def __init__(self, settings: LandingSettings, *, without: str = "") -> None:
        self._root = os.path.abspath(settings.folder)
        self._without = without
        self._allowed = tuple(settings.allowed_roots)
        self._stars_behind: dict[str, tuple[float, str]] = {}
        self.problem = ""
        self.linked_folders: tuple[str, ...] = ()

    def files(self, now: float) -> dict[str, LandedFile]:
        """Return every regular file that matters, by its path; a file that vanishes meanwhile is passed over."""
        walk = _Walk(self._root, tuple(map(os.path.realpath, self._allowed)), self._without)
        walk.folder(self._root)
        files, closed = walk.files, walk.closed
        self.problem = closed[0] + (f" (and {len(closed) - 1} more)" if len(closed) > 1 else "") if closed else ""
        told = [(link, target, self._star_in(target, now)) for link, target in walk.not_followed]
        self.linked_folders = tuple(
            f"{link}: a link to the folder {target}, which is not looked into and has stars ({star}); name {target} in "
            "landing.allowed_roots, beside the landing folder, or move it here"
            for link, target, star in told
            if star
        )
        return files

    def _star_in(self, folder: str, now: float) -> str:
        """Return a star that lies in a folder, "" where none is found soon; looked for once a minute."""
        known = self._stars_behind.get(folder)
        if known is None or now - known[0] >= LINK_LOOK_SECONDS:
            known = self._stars_behind[folder] = (now, _star_below(folder))
        return known[1]


class _Walk:
    """One walk through the landing folder."""

    def __init__(self, start: str, allowed: tuple[str, ...], without: str) -> None:
        self._start = start
        self._root = os.path.realpath(start)
        self._allowed = allowed
        self._without = without
        self._linked: set[tuple[int, int]] = set()
        self.files: dict[str, LandedFile] = {}
        self.closed: list[str] = []
        """Folders that cannot be listed, and names that cannot be used, with the reason."""
        self.not_followed: list[tuple[str, str]] = []

    def folder(self, folder: str, *, is_linked: bool = False) -> None:
        """Add what lies in a folder and below it."""
        try:
            if is_linked and self._was_here(folder):
                return
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self.closed.insert(0, f"{folder}: {error.strerror}; waiting for it to come back")
            return
        if folder != self._start and {entry.name for entry in found} >= SESSION_MARKS:
            return
        for entry in found:
            if entry.name.startswith(".") or entry.path == self._without:
                continue
            try:
                entry.name.encode()
                if entry.is_dir(follow_symlinks=False):
                    self.folder(entry.path, is_linked=is_linked)
                elif entry.name.endswith((".star", DONE_SUFFIX, *STACK_SUFFIXES)):
                    status = entry.stat()
                    if stat.S_ISREG(status.st_mode):
                        signature = (status.st_ino, status.st_size, status.st_mtime_ns)
                        self.files[entry.path] = LandedFile(signature, status.st_ctime_ns)
                elif entry.is_symlink() and entry.is_dir():
                    self._linked_folder(entry.path)
            except FileNotFoundError:
                continue
            except (OSError, UnicodeEncodeError) as error:
                # A ring of links, a name that is no UTF-8: one odd entry is told and stops nothing else.
                why = getattr(error, "strerror", None) or error
                self.closed.append(f"{entry.path!a}: passed over: {why}; rename or remove it")

    def _linked_folder(self, link: str) -> None:
        target = os.path.realpath(link)
        if _is_under(target, self._root):
            return
        if not any(_is_under(target, allowed) for allowed in self._allowed):
            self.not_followed.append((link, target))
        elif not _is_under(self._root, target):
            self.folder(link, is_linked=True)

    def _was_here(self, folder: str) -> bool:
        status = os.stat(folder)
        place = (status.st_dev, status.st_ino)
        if place in self._linked:
            return True
        self._linked.add(place)
        return False


def _is_under(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def _star_below(folder: str) -> str:
    """Return a star among the first names below a folder, links not followed; "" where there is none."""
    waiting, looked_at = [folder], 0
    while waiting and looked_at < MOST_LOOKED_AT:
        try:
            with os.scandir(waiting.pop(0)) as entries:
                for entry in entries:
                    looked_at += 1
                    if entry.name.endswith(".star") and not entry.name.startswith("."):
                        return str(Path(entry.path).relative_to(folder))
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    if looked_at >= MOST_LOOKED_AT:
                        break
        except OSError:
            continue
    return ""
