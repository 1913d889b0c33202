"""A landing folder, a session and roles without processes: deterministic fakes around the real coordinator core."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from cesped_stream.particles.flags import ImageFlag
from cesped_stream.particles.identities import particle_digests
from cesped_stream.particles.reference_members import ReferenceMembers
from cesped_stream.particles.stacks import StackReader, parse_image_name, write_stack
from cesped_stream.particles.star import read_star
from cesped_stream.particles.table import ParticleTable
from cesped_stream_service.coordinator import Coordinator, Outgoing
from cesped_stream_service.messages import (
    Ack,
    AnyMessage,
    Heartbeat,
    Hello,
    HelloAgain,
    Lease,
    Ready,
    Result,
    TrainingDone,
    TrainingOrder,
)
from cesped_stream_service.settings import SessionSettings

BOX = 8
KINDS = {"i2s-": "network", "ref-": "reference", "fus-": "fused"}
PROPOSERS = {"i2s-": "image2sphere", "ref-": "gallery+refinement", "fus-": "network+gallery+refinement"}


class Killed(BaseException):
    """What a kill -9 looks like from inside: nothing after it runs, nothing catches it."""


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class KillAt:
    """Raises Killed at the given step; counts and names all steps."""

    at: int = -1
    count: int = 0
    names: list[str] = field(default_factory=list)

    def __call__(self, name: str) -> None:
        self.count += 1
        self.names.append(name)
        if self.count == self.at:
            raise Killed(name)


class Bench:
    """Lands files and opens coordinators on them."""

    def __init__(self, root: Path, **changes: Any) -> None:
        self.root = root
        self.landing = root / "landing"
        self.landing.mkdir(parents=True)
        self.clock = Clock()
        service = {"batch_rows": 7, "commit_seconds": 0.0, "shard_rows": 11, "free_disk_megabytes": 0}
        landing = {"folder": self.landing, "scan_seconds": 0.5, "settle_seconds": 1.0, "stack_timeout_seconds": 60.0}
        top = {"proposer": "network", "min_aligned_per_half": 3, "aligned_quiet_seconds": 2.0}
        self.settings = SessionSettings(
            session=root / "session",
            landing=landing | changes.pop("landing", {}),
            service=service | changes.pop("service", {}),
            inference={"batch_size": 4} | changes.pop("inference", {}),
            **(top | changes),
        )

    @property
    def session(self) -> Path:
        return self.settings.session

    def open(self, step: Callable[[str], None] = lambda name: None) -> Coordinator:
        return Coordinator(self.settings, now=self.clock, step=step, watch_events=False)

    def land(self, name: str, num: int, *, aligned: bool = False, **star: Any) -> None:
        """Write `<name>.mrcs` and `<name>.star`."""
        self.land_stack(name, num, seed=star.pop("seed", name), flagged=star.pop("flagged", ()))
        self.land_star(name, range(1, num + 1), aligned=aligned, **star)

    def land_stack(self, name: str, num: int, *, seed: str = "", flagged: Sequence[int] = ()) -> None:
        images = np.random.default_rng(_number(seed or name)).normal(size=(num, BOX, BOX)).astype(np.float32)
        for index in flagged:
            images[index] = 0.0
        write_stack(self.landing / f"{name}.mrcs", images, 2.0)

    def land_star(self, name: str, indices: Sequence[int], **star: Any) -> None:
        (self.landing / f"{name}.star").write_text(star_text(name, indices, **star))


def star_text(
    name: str,
    indices: Sequence[int],
    *,
    aligned: bool = False,
    stack: str = "",
    optics: str = "A",
    voltage: float = 300.0,
    defocus: float = 10000.0,
    extra: Sequence[str] = (),
    halves: str = "odd and even",
) -> str:
    """Return a RELION 3.1 star of some images of one stack; `extra` are more column labels, with fixed values.

    `halves`: "odd and even" images are subsets 2 and 1, "swapped" the other way round, "" without rlnRandomSubset.
    """
    pose = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"] if aligned else []
    ctf = ["rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"]
    subset = ["rlnRandomSubset"] if halves else []
    labels = ["rlnImageName", "rlnMicrographName", *ctf, *pose, *subset, *extra, "rlnOpticsGroup"]
    head = "\n".join(f"_{label} #{k + 1}" for k, label in enumerate(labels))
    rows = []
    for i in indices:
        angles = [f"{i * 7 % 180:.3f}", f"{10 + i * 3 % 150:.3f}", f"{i % 180:.3f}"] if aligned else []
        cells = [f"{i:06d}@{stack or name}.mrcs", f"mic_{name}.mrc", f"{defocus:.2f}", f"{defocus - 100:.2f}", "12.0"]
        half = [str(1 + (i + (halves == "swapped")) % 2)] if halves else []
        rows.append(" ".join([*cells, *angles, *half, *(f"{k + 0.5}" for k in range(len(extra))), "1"]))
    return (
        "\ndata_optics\n\nloop_\n_rlnOpticsGroupName #1\n_rlnOpticsGroup #2\n_rlnVoltage #3\n"
        "_rlnSphericalAberration #4\n_rlnAmplitudeContrast #5\n_rlnImagePixelSize #6\n_rlnImageSize #7\n"
        f"{optics} 1 {voltage} 2.7 0.1 2.0 {BOX}\n\n"
        f"\ndata_particles\n\nloop_\n{head}\n" + "\n".join(rows) + "\n\n"
    )


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])


def fake_checkpoint(folder: Path, checkpoint_id: str = "i2s-000000000001") -> Path:
    """Write what the coordinator checks of a published checkpoint, and nothing else."""
    folder = folder / checkpoint_id
    folder.mkdir(parents=True, exist_ok=True)
    halves = {}
    for half in ("0", "1"):
        data = f"{checkpoint_id} half {half}".encode()
        (folder / f"half_{half}.safetensors").write_bytes(data)
        halves[half] = {"file": f"half_{half}.safetensors", "sha256": hashlib.sha256(data).hexdigest()}
    manifest = {"kind": KINDS[checkpoint_id[:4]], "checkpoint_id": checkpoint_id, "halves": halves}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def fake_references(
    folder: Path, checkpoint_id: str, made_of: ParticleTable | None = None, independence: str = "independent"
) -> Path:
    """Write what the coordinator checks of a checkpoint of references, and which particles are in them."""
    folder = fake_checkpoint(folder, checkpoint_id)
    manifest = json.loads((folder / "manifest.json").read_text()) | {"independence": independence}
    files = {}
    for half in (0, 1):
        rows = made_of.select(np.flatnonzero(made_of.half_sets() == half)) if made_of is not None else None
        members = np.sort(particle_digests(rows)) if rows is not None else np.empty(0, np.uint64)
        (folder / f"reference_{half}.members").write_bytes(members.astype("<u8").tobytes())
        files[f"reference_{half}.members"] = hashlib.sha256(members.astype("<u8").tobytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest | {"files": files}))
    return folder


def result_of(lease: Lease, incarnation: str, reader: StackReader) -> tuple[Result, dict[str, NDArray[Any]]]:
    """Return poses that depend on the image's name, pixels and the checkpoint only; constant images are flagged."""
    table = read_star(Path(lease.batch_star)).select(range(lease.first_row, lease.first_row + lease.num_rows))
    table = table.with_half_sets([int(digit) for digit in lease.half_sets])
    n = len(table)
    shifts = np.zeros((n, 2)) if lease.checkpoint_id.startswith(("ref-", "fus-")) else None
    euler, top, flag, digest = np.zeros((n, 3)), np.zeros((n, 2, 4)), np.zeros(n, np.uint8), np.zeros((n, 16), np.uint8)
    for k, (image, stack) in enumerate(zip(table.column("rlnImageName"), table.column("cestreamStack"), strict=True)):
        pixels, found = reader.read(Path(unquote(stack)), [parse_image_name(image)[0]])
        digest[k] = found[0]
        flag[k] = ImageFlag.CONSTANT if np.ptp(pixels) == 0 else ImageFlag.OK
        rng = np.random.default_rng(_number(f"{image} {lease.checkpoint_id} {found[0].tobytes().hex()}"))
        euler[k], top[k] = rng.uniform(0, 170, 3), rng.uniform(0, 1, (2, 4))
        if shifts is not None:
            shifts[k] = rng.uniform(-9, 9, 2)
    flag[ReferenceMembers.of(Path(lease.checkpoint)).among(table, "gold_standard")] = ImageFlag.IN_REFERENCE
    digest[flag == ImageFlag.IN_REFERENCE] = 0
    euler[flag > 0] = np.nan
    frames = {
        "euler_deg": euler,
        "confidence": np.linspace(0.1, 0.9, 10)[np.arange(n) % 1 + 4],
        "top_euler_deg": top[:, :, :3] * 100,
        "top_probability": top[:, :, 3],
        "flag": flag,
        "digest": digest,
        "shift_angstrom": np.full((n, 2), np.nan) if shifts is None else shifts,
        "calibrated": np.zeros(n, np.uint8),
        "above_noise": np.full(n, np.nan),
        "network_euler_deg": np.full((n, 3), np.nan),
        "gallery_euler_deg": np.full((n, 3), np.nan),
        "apart_deg": np.full(n, np.nan),
        "clipped": np.zeros(n, np.uint8),
    }
    result = Result(
        incarnation=incarnation,
        lease_id=lease.lease_id,
        checkpoint_id=lease.checkpoint_id,
        proposer=PROPOSERS[lease.checkpoint_id[:4]],
        compute_seconds=0.01,
        frames=(),
    )
    return result, frames


class FakeWorker:
    """Says hello, asks, answers each lease at its next turn, and keeps what it was told."""

    def __init__(self, name: str = "worker 1", incarnation: str = "w1") -> None:
        self.peer = f"peer of {incarnation}".encode()
        self.name, self.incarnation = name, incarnation
        self.lease: Lease | None = None
        self.acks: list[Ack] = []
        self.rows_done = 0
        self._reader = StackReader()
        self._waiting = False
        self._greeted = False

    def turn(self, core: Coordinator) -> None:
        beat = Heartbeat(incarnation=self.incarnation, role="worker", name=self.name, state="idle", progress=0)
        self.hear(core.handle(self.peer + b" heart", beat, {}))
        if not self._greeted:
            hello = Hello(role="worker", name=self.name, incarnation=self.incarnation, pid=1, device="cpu")
            core.handle(self.peer, hello, {})
            self._greeted = True
        if self.lease is not None:
            result, frames = result_of(self.lease, self.incarnation, self._reader)
            self.rows_done += self.lease.num_rows
            self._waiting = True
            self.hear(core.handle(self.peer, result, frames))
        elif not self._waiting:
            self.hear(core.handle(self.peer, Ready(incarnation=self.incarnation), {}))

    def hear(self, messages: list[Outgoing]) -> None:
        for out in messages:
            if not out.peer.startswith(self.peer):
                continue
            if isinstance(out.message, Lease):
                self.lease = out.message
            elif isinstance(out.message, Ack):
                self.acks.append(out.message)
                self.lease, self._waiting = None, False
            elif isinstance(out.message, HelloAgain):
                self._greeted = False


class FakeTrainer:
    """Publishes a fake checkpoint as soon as it is ordered to train; where there is a `first_id`, that at once, and the
    other one `turns_between` turns later."""

    def __init__(
        self,
        checkpoints: Path,
        checkpoint_id: str = "i2s-000000000001",
        *,
        first_id: str = "",
        turns_between: int = 4,
    ) -> None:
        self.peer, self.incarnation = b"trainer", "t1"
        self.orders: list[TrainingOrder] = []
        self.acks: list[Ack] = []
        self._checkpoints, self._id, self._first_id = checkpoints, checkpoint_id, first_id
        self._turns_between, self._turns_left = turns_between, 0

    def id_of(self, order: TrainingOrder) -> str:
        """Return what the checkpoint of an order is called."""
        del order
        return self._id

    def made(self, order: TrainingOrder, checkpoint_id: str) -> Path:
        """Write an order's checkpoint."""
        del order
        return fake_checkpoint(self._checkpoints, checkpoint_id)

    def turn(self, core: Coordinator) -> None:
        core.handle(self.peer, Hello(role="trainer", name="trainer", incarnation="t1", pid=2, device="cpu"), {})
        if self._turns_left:
            self._turns_left -= 1
            if not self._turns_left:
                self.publish(core, self.orders[-1], self._id)
            return
        for out in core.handle(self.peer, Ready(incarnation="t1"), {}):
            if isinstance(out.message, TrainingOrder):
                self.orders.append(out.message)
                if self._first_id:
                    self._turns_left = self._turns_between
                    self.publish(core, out.message, self._first_id, complete=False)
                else:
                    self.publish(core, out.message, self.id_of(out.message))

    def publish(self, core: Coordinator, order: TrainingOrder, checkpoint_id: str, *, complete: bool = True) -> None:
        """Write a checkpoint and tell of it."""
        done = TrainingDone(
            incarnation="t1",
            training_id=order.training_id,
            checkpoint_id=checkpoint_id,
            checkpoint=str(self.made(order, checkpoint_id)),
            seconds=1.0,
            complete=complete,
        )
        self.acks += [o.message for o in core.handle(self.peer, done, {}) if isinstance(o.message, Ack)]

    def hear(self, messages: list[Outgoing]) -> None:
        del messages


class FakeReferenceTrainer(FakeTrainer):
    """Publishes references that are made of an order's rows, each order's under an id of its own."""

    def id_of(self, order: TrainingOrder) -> str:
        """Return an id that names source and number of the order."""
        return f"ref-{order.source}-{order.training_id}"

    def made(self, order: TrainingOrder, checkpoint_id: str) -> Path:
        """Write references of the order's rows; a given map's hold none and are shared."""
        is_map = order.source == "map"
        made_of = None if is_map else read_star(Path(order.aligned_star))
        independence = "shared_reference" if is_map else "independent"
        return fake_references(self._checkpoints, checkpoint_id, made_of, independence)


def turn(core: Coordinator, clock: Clock, roles: Sequence[FakeWorker | FakeTrainer], seconds: float = 0.6) -> None:
    """Let everybody act once."""
    clock.now += seconds
    said = core.tick()
    for role in roles:
        role.hear(said)
        role.turn(core)


def is_done(core: Coordinator, landed: int) -> bool:
    status = core.status()
    return (
        status.landed == landed
        and not (status.pending or status.leased or status.reinfer_shards_left)
        and status.stars_waiting == 0
    )


def run_until(core: Coordinator, clock: Clock, roles: Sequence[FakeWorker | FakeTrainer], landed: int) -> None:
    """Take turns until every landed row is committed; a hundred turns are a failure."""
    for _ in range(100):
        turn(core, clock, roles)
        if is_done(core, landed):
            return
    raise AssertionError(f"not done after 100 turns: {core.status()}")


def crash(core: Coordinator) -> None:
    """Let go of what the kernel would take from a killed process; nothing is flushed or finished."""
    if core._work is not None:
        core._work.ledger.close()
    core._lock.release()


def tell(core: Coordinator, peer: bytes, message: AnyMessage) -> list[AnyMessage]:
    return [out.message for out in core.handle(peer, message, {})]
