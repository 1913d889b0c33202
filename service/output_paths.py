"""Where a session's export may be written: not over the session's own files, and not where it would land as input."""

import os
from pathlib import Path

from cesped_stream.errors import CespedStreamError, InvalidSettingsError
from cesped_stream.particles.own_columns import STATUS
from cesped_stream.particles.star import iter_star

from .inputs import InputRule
from .session import SessionFolder
from .settings import SessionSettings

STAR = ".star"


def check_export_path(output: Path, settings: SessionSettings, *, force: bool = False) -> None:
    """Raise InvalidSettingsError where an export to `output` would harm the session, saying which path to give instead.

    Inside the session folder an export may stand beside its folders only. A star inside the landing folder, where the
    session would read it, is written with `force` only, and never over one that landed.
    """
    session = SessionFolder.of(settings)
    for place in _places(output):
        if _is_own(place, session):
            raise InvalidSettingsError(
                f"output: {output} lies among the session's own files; give {session.root / 'export.star'}, or a path "
                "outside of the session"
            )
    if not is_watched(output, settings):
        return
    if not force:
        raise InvalidSettingsError(
            f"output: {output} lies in the landing folder {settings.landing.folder}, where the session would read it "
            f"as a star that landed; give {session.root / 'export.star'}, another path outside of it, or --force"
        )
    if output.exists() and not _is_export(output):
        raise InvalidSettingsError(f"output: {output} is a star that landed; give a path where none stands")


def is_watched(path: Path, settings: SessionSettings) -> bool:
    """Return whether a star at this path would be read by the session as one that landed, links followed or not."""
    if path.suffix != STAR:
        return False
    return any(_lands(place, settings) for place in _places(path))


def _lands(place: Path, settings: SessionSettings) -> bool:
    root = SessionFolder.of(settings).root
    for folder in _places(settings.landing.folder):
        if not place.is_relative_to(folder) or any(place.is_relative_to(own) for own in _places(root)):
            continue
        if any(part.startswith(".") for part in place.relative_to(folder).parts):
            continue
        if InputRule(settings.landing).left_by_name(place) is None:
            return True
    return False


def _is_own(place: Path, session: SessionFolder) -> bool:
    if any(place.is_relative_to(ledger) for ledger in _places(session.ledger_folder)):
        return True
    for root in _places(session.root):
        if place.is_relative_to(root):
            return len(place.relative_to(root).parts) != 1 or place.suffix != STAR
    return False


def _is_export(star: Path) -> bool:
    try:
        return STATUS in next(iter_star(star, rows_per_table=1))
    except (CespedStreamError, StopIteration):
        return False


def _places(path: Path) -> tuple[Path, Path]:
    """The path as it was given, made absolute, and with its folder's links followed."""
    absolute = Path(os.path.abspath(path))
    return absolute, Path(os.path.realpath(absolute.parent)) / absolute.name
