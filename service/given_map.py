"""The map that a session starts from: looked at before anything runs, kept in the session folder, ordered once."""

import hashlib
import logging
from pathlib import Path

from cesped_stream.durable import Step, write_whole
from cesped_stream.errors import InvalidSettingsError
from cesped_stream.imaging.map_files import read_map

from .ledger import Ledger
from .messages import MAP
from .session import SessionFolder
from .settings import SessionSettings

logger = logging.getLogger(__name__)

FACT = "given map"
"""Of the ledger: sha256 of the map that the session keeps."""
LEAST_EXTENT_IN_LOWPASSES = 3.0


def check_sources(settings: SessionSettings) -> None:
    """Raise InvalidSettingsError where the settings of what references are made of contradict each other."""
    if settings.reference is not None and settings.proposer == "network":
        raise InvalidSettingsError(f"reference {settings.reference}: of no use to proposer network; take gallery")
    if settings.reference is not None and settings.checkpoint:
        raise InvalidSettingsError(
            f"reference {settings.reference}: checkpoint {settings.checkpoint} gives the first poses; leave out one"
        )
    if settings.referencing.rebuild_rows == 0:
        return
    if settings.proposer != "gallery":
        raise InvalidSettingsError(
            f"referencing.rebuild_rows {settings.referencing.rebuild_rows}: only with proposer gallery, "
            f"got {settings.proposer}; leave it out"
        )
    if settings.half_mode != "gold_standard":
        raise InvalidSettingsError(
            f"referencing.rebuild_rows {settings.referencing.rebuild_rows}: with {settings.half_mode} the poses of a "
            "half-set come from the other's reference, and rebuilding would mix them; take gold_standard"
        )


def check_map(path: Path, lowpass_angstrom: float) -> None:
    """Raise where a file is no map that particles can be compared with: UnreachableFileError, InvalidStackError (not
    MRC, not cubic, no pixel size, NaN), InvalidSettingsError (one density everywhere, too small for its low-pass)."""
    volume, pixel_size = read_map(path)
    if float(volume.min()) == float(volume.max()):
        raise InvalidSettingsError(f"reference {path}: the same density in every voxel; give the particle's map")
    extent = volume.shape[0] * pixel_size
    if extent < LEAST_EXTENT_IN_LOWPASSES * lowpass_angstrom:
        raise InvalidSettingsError(
            f"reference {path}: {volume.shape[0]} voxels of {pixel_size:g} A are {extent:g} A, which a low-pass at "
            f"referencing.map_lowpass_angstrom {lowpass_angstrom:g} empties; is the pixel size in its header right?"
        )


def check_before_start(settings: SessionSettings) -> None:
    """Raise what `check_sources` and `check_map` raise; a session that keeps its map needs the file no more."""
    check_sources(settings)
    if settings.reference is not None and (settings.reference.exists() or not _any_kept(SessionFolder.of(settings))):
        check_map(settings.reference, settings.referencing.map_lowpass_angstrom)


def adopt(settings: SessionSettings, folder: SessionFolder, ledger: Ledger, *, step: Step) -> None:
    """Keep the settings' map in the session folder: what is ordered once is the same after any restart.

    Where the file is gone the kept one counts. InvalidSettingsError where it is another map than the one that a
    reference was ordered of; else what `check_map` raises. An order of it that was given up is made again.
    """
    path = settings.reference
    if path is None:
        return
    _try_again(ledger)
    kept = ledger.fact(FACT)
    try:
        content = path.read_bytes()
    except OSError:
        if kept and folder.given_map(kept).exists():
            logger.warning("the given map is gone, its copy is used", extra={"map": str(path)})
            return
        content = b""
    found = hashlib.sha256(content).hexdigest()
    if found == kept and _is_whole(folder.given_map(kept), kept):
        return
    if kept not in ("", found) and was_ordered(ledger, kept):
        raise InvalidSettingsError(
            f"reference {path}: not the map that this session's reference was made of (sha256 {found[:12]}.., was "
            f"{kept[:12]}..); give that one, leave the setting out, or begin a new session"
        )
    check_map(path, settings.referencing.map_lowpass_angstrom)
    write_whole(folder.given_map(found), content, step=step)
    with ledger.transaction("map given"):
        ledger.remember(FACT, found)


def was_ordered(ledger: Ledger, sha256: str) -> bool:
    """Return whether a reference was ordered of this map, and not given up."""
    count = "SELECT count(*) FROM trainings WHERE source = ? AND reference = ? AND state != 'failed'"
    return ledger.scalar(count, (MAP, sha256)) > 0


def was_tried(ledger: Ledger, sha256: str) -> bool:
    """Return whether a reference was ordered of this map, whatever came of it."""
    return ledger.scalar("SELECT count(*) FROM trainings WHERE source = ? AND reference = ?", (MAP, sha256)) > 0


def _try_again(ledger: Ledger) -> None:
    """Let what was given up count as never tried: its cause may be gone by this start."""
    with ledger.transaction("given map tried again"):
        ledger.execute("UPDATE trainings SET reference = '' WHERE source = ? AND state = 'failed'", (MAP,))


def _any_kept(folder: SessionFolder) -> bool:
    return any(folder.state.glob(folder.given_map("*").name))


def _is_whole(path: Path, sha256: str) -> bool:
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == sha256
    except OSError:
        return False
