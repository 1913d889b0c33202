"""The session folder: its layout, the lock that keeps a second daemon out, and the disk under it."""

import fcntl
import json
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from cesped_stream.durable import fsync_folder
from cesped_stream.errors import InvalidSettingsError, TransientError

from .settings import SessionSettings

NETWORK_FILE_SYSTEMS = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb", "smbfs", "smb2", "smb3", "ncpfs", "afs", "ceph", "lustre", "gpfs", "beegfs"),
        *("ocfs2", "gfs2", "panfs", "pvfs2", "orangefs", "wekafs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph"),
        *("fuse.s3fs", "fuse.rclone", "fuse.lustre", "fuse.juicefs"),
    }
)


class SessionBusyError(TransientError):
    """Another coordinator runs on this session."""


@dataclass(frozen=True)
class SessionFolder:
    """Paths of one session; `ledger_folder` may lie on another (local) disk."""

    root: Path
    ledger_folder: Path

    @classmethod
    def of(cls, settings: SessionSettings) -> "SessionFolder":
        root = Path(os.path.abspath(settings.session))
        ledger = settings.ledger_folder
        return cls(root, Path(os.path.abspath(ledger)) if ledger is not None else root / "state")

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def batches(self) -> Path:
        return self.root / "batches"

    @property
    def poses(self) -> Path:
        return self.root / "poses"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    @property
    def ledger(self) -> Path:
        return self.ledger_folder / "ledger.sqlite"

    @property
    def status(self) -> Path:
        return self.state / "status.json"

    @property
    def lock(self) -> Path:
        return self.state / "coordinator.lock"

    def create(self) -> None:
        """Make the folders that are missing; readable by the owner's group as the umask says."""
        for folder in (self.state, self.ledger_folder, self.batches, self.poses, self.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)
        self.quarantine.mkdir(exist_ok=True)
        for folder in (self.root.parent, self.root, self.ledger_folder):
            fsync_folder(folder)

    def batch_star(self, batch_id: int) -> Path:
        return self.batches / f"batch_{batch_id:06d}.star"

    def training_star(self, training_id: int) -> Path:
        return self.batches / f"training_{training_id:06d}.star"

    def given_map(self, sha256: str) -> Path:
        """Return where the session keeps the map that it was given, named by its content."""
        return self.state / f"given_map_{sha256[:16]}.mrc"

    def training_work(self, training_id: int) -> Path:
        return self.checkpoints / f"training_{training_id:06d}.work"

    def free_megabytes(self) -> float:
        """Return the free disk under the session or under the ledger, whichever is less."""
        return min(shutil.disk_usage(folder).free for folder in (self.root, self.ledger_folder)) / 1e6


class SessionLock:
    """Held from construction to `release`, or to the end of the process however it ends."""

    def __init__(self, folder: SessionFolder) -> None:
        path = folder.lock
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._descriptor, 4096)
            os.close(self._descriptor)
            raise SessionBusyError(f"{folder.root}: {_holder_in_words(holder)}; stop it first") from None
        self.note()

    def note(self, endpoint: str = "") -> None:
        """Write who holds the lock and where it listens, for who is refused and for who wants to ask it."""
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "endpoint": endpoint}
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(holder).encode(), 0)

    def release(self) -> None:
        os.close(self._descriptor)


def refuse_landing_inside(settings: SessionSettings) -> None:
    """Raise InvalidSettingsError where the session folder holds the landing folder: its own files would land."""
    folder = SessionFolder.of(settings)
    if Path(os.path.abspath(settings.landing.folder)).is_relative_to(folder.root):
        raise InvalidSettingsError(
            f"landing.folder {settings.landing.folder}: lies in the session folder {folder.root}; "
            "choose another session folder"
        )


def is_held(folder: SessionFolder) -> bool:
    """Return whether a process holds the session's lock now: a coordinator runs on it, or is starting."""
    try:
        descriptor = os.open(folder.lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def noted_endpoint(folder: SessionFolder) -> str:
    """Return where the session's last coordinator listens or listened, "" where that is not known."""
    try:
        return str(json.loads(folder.lock.read_bytes())["endpoint"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _holder_in_words(text: bytes) -> str:
    try:
        holder = json.loads(text)
        return f"the coordinator with pid {holder['pid']} on host {holder['host']} already runs here"
    except (ValueError, KeyError, TypeError):
        return "another coordinator is just starting here"


def refuse_network_file_system(folder: Path, mounts: str | None = None) -> None:
    """Raise InvalidSettingsError where `folder` lies on a file system on which SQLite's WAL is not safe.

    `mounts` is the text of /proc/mounts (read here by default).
    """
    text = Path("/proc/mounts").read_text() if mounts is None else mounts
    real = os.path.realpath(folder)
    best, kind = "", ""
    for line in text.splitlines():
        fields = line.split(" ")
        point = fields[1].encode().decode("unicode_escape")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[2]
    if kind.lower() in NETWORK_FILE_SYSTEMS:
        raise InvalidSettingsError(
            f"ledger_folder {folder}: lies on {best}, a {kind} network file system, where SQLite may lose commits; "
            "set ledger_folder to a local disk"
        )


def boot_id() -> str:
    """Return this boot's id: monotonic times of different boots are not comparable."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
