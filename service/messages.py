"""What the roles say to each other: frozen headers as JSON, pose arrays as raw frames beside them.

A multipart message is [header JSON, frame, frame, ...]. The header states each frame's name, dtype and shape and the
reader checks them. Pixels never travel: messages name files and rows.
"""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

PROTOCOL_VERSION: Literal[4] = 4

# What SQLite, a log line and the status can hold: a peer's larger value is refused at the boundary.
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
MAX_NAME = 128
"""A host's name has up to 64 characters, and `worker-` before it."""
Name = Annotated[str, Field(max_length=MAX_NAME)]
Incarnation = Annotated[str, Field(max_length=64)]
State = Annotated[str, Field(max_length=200)]
Text = Annotated[str, Field(max_length=4000)]


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    version: Literal[4] = PROTOCOL_VERSION


class FrameHeader(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    dtype: Literal["<f8", "<f4", "<i8", "<i4", "|u1", "|i1"]
    shape: tuple[int, ...]


class Hello(Message):
    """First message of a role after connecting. `incarnation` is new at every process start."""

    kind: Literal["hello"] = "hello"
    role: Literal["worker", "trainer"]
    name: Name
    incarnation: Incarnation
    pid: Int64
    device: State


class Welcome(Message):
    """What the session is; a role whose own settings say otherwise must not work for it."""

    kind: Literal["welcome"] = "welcome"
    session: str
    heartbeat_seconds: float
    half_mode: str
    inference_sha256: str
    """Of the inference settings, see `settings.inference_sha256`."""


class Ready(Message):
    """A worker asks for a lease, or the trainer for work. The rate (0: unknown) is the worker's own measured one."""

    kind: Literal["ready"] = "ready"
    incarnation: Incarnation
    particles_per_second: float = Field(0.0, ge=0, le=1e9)


class Heartbeat(Message):
    """Sent from a thread with its own socket. `progress` rises only when work was made progress on."""

    kind: Literal["heartbeat"] = "heartbeat"
    incarnation: Incarnation
    role: Literal["worker", "trainer"]
    name: Name
    state: State
    progress: Int64


class Idle(Message):
    """No work now; ask again after this many seconds."""

    kind: Literal["idle"] = "idle"
    retry_seconds: float


class Lease(Message):
    """Rows [first_row, first_row + num_rows) of a batch file (an immutable RELION 3.1 star in the session folder)."""

    kind: Literal["lease"] = "lease"
    lease_id: Int64
    batch_id: Int64
    batch_star: str
    first_row: Int64
    num_rows: Int64
    half_sets: str = Field(pattern=r"^[01]+$")
    """Half-set of each of the rows, as the ledger has it now: the file has the one that each row landed with."""
    checkpoint: str
    """Folder of the checkpoint to use."""
    checkpoint_id: str
    expires_seconds: float


class Result(Message):
    """Poses of one lease. Frames, all with first dimension num_rows:

    `euler_deg` <f8 (n, 3); `confidence` <f8 (n,); `top_euler_deg` <f8 (n, k, 3); `top_probability` <f8 (n, k);
    `flag` |u1 (n,) (0 posed, else `particles.flags`); `digest` |u1 (n, 16); `shift_angstrom` <f8 (n, 2), NaN in every
    row where the proposer gives no shifts; `calibrated` |u1 (n,) (1: confidence is a probability of being right);
    `above_noise` <f8 (n,), `network_euler_deg`, `gallery_euler_deg` <f8 (n, 3) and `apart_deg` <f8 (n,), NaN where
    nothing of the kind was asked; `clipped` |u1 (n,) (`particles.flags.Clipped`).
    """

    kind: Literal["result"] = "result"
    incarnation: Incarnation
    lease_id: Int64
    checkpoint_id: str
    proposer: str = Field(pattern=r"^[A-Za-z0-9_.+-]{1,64}$")
    compute_seconds: float
    frames: tuple[FrameHeader, ...]


class Failure(Message):
    """A lease or training that could not be done. `retry_can_help` follows the error's class."""

    kind: Literal["failure"] = "failure"
    incarnation: Incarnation
    lease_id: Int64
    error: Text
    message: Text
    retry_can_help: bool
    worker_at_fault: bool = False
    """The worker's device, memory or copy of the checkpoint is to blame, not the rows."""
    row: Int64 = -1
    """Row within the batch that is to blame, or -1."""


class Ack(Message):
    """The result is committed (or was before), or it is refused: a late result of a lease that was given back."""

    kind: Literal["ack"] = "ack"
    lease_id: Int64
    accepted: bool
    reason: str = ""


TrainingSource = Literal["aligned", "map", "poses"]
ALIGNED: Final = "aligned"
MAP: Final = "map"
POSES: Final = "poses"


class TrainingOrder(Message):
    """Train, or make references, on these rows: an immutable RELION 3.1 star in the session folder, both halves
    together."""

    kind: Literal["training_order"] = "training_order"
    training_id: Int64
    aligned_star: str
    work_folder: str
    """Where resume points and the finished checkpoint are written, inside the session's checkpoints folder."""
    source: TrainingSource = "aligned"
    """What the rows are: aligned ones; particles that only tell the noise beside the map `reference`; aligned and
    predicted ones, of which references are made anew."""
    reference: str = ""
    """The session's copy of a given map."""
    halves_given: bool = True
    """Every aligned row came with its rlnRandomSubset, of one refinement; else the half-sets are not independent."""
    num_aligned: Int64 = 0
    num_refined: Int64 = 0
    """How many of the rows are aligned ones, and of these how many have a pose that RELION refined from a prediction of
    this program."""


class TrainingProgress(Message):
    kind: Literal["training_progress"] = "training_progress"
    incarnation: Incarnation
    training_id: Int64
    step: Int64
    max_steps: Int64
    half_steps: tuple[Int64, ...] = Field((), max_length=2)
    """Of half-sets 0 and 1; `step` is their sum, `max_steps` what both have to do."""
    validation_error_deg: tuple[float, ...] = Field((), max_length=2)
    stage: State = ""
    """What is being made that is not counted in steps: "reference of half 0, confidence of half 1"."""


class TrainingDone(Message):
    """A published checkpoint folder (already fsynced and renamed into place).

    Where it is not `complete` the order goes on: this one gives poses until a later one of the same order comes.
    """

    kind: Literal["training_done"] = "training_done"
    incarnation: Incarnation
    training_id: Int64
    checkpoint_id: str
    checkpoint: str
    seconds: float
    complete: bool = True


class Goodbye(Message):
    kind: Literal["goodbye"] = "goodbye"
    incarnation: Incarnation


class HelloAgain(Message):
    """The coordinator does not know this incarnation (it was restarted, or gave the role up): say hello again."""

    kind: Literal["hello_again"] = "hello_again"


class Refused(Message):
    """The coordinator does not work with this role, and a repeat would not change that: it ends, saying why."""

    kind: Literal["refused"] = "refused"
    reason: Text


ControlAction = Literal["status", "reinfer", "requeue", "train", "drain", "stop"]


class Control(Message):
    """A request of the command line. `argument`: the checkpoint id or folder of a reinfer ("": the one in use), the
    batch number or star path of a requeue ("": everything that is quarantined), else unused."""

    kind: Literal["control"] = "control"
    action: ControlAction
    argument: str = ""


class ControlReply(Message):
    """What became of a Control: `text` in words; `status` is the SessionStatus as JSON where that was asked for."""

    kind: Literal["control_reply"] = "control_reply"
    action: ControlAction
    ok: bool
    text: str = ""
    status: str = ""


AnyMessage = Annotated[
    Hello
    | Welcome
    | Ready
    | Heartbeat
    | Idle
    | Lease
    | Result
    | Failure
    | Ack
    | TrainingOrder
    | TrainingProgress
    | TrainingDone
    | Goodbye
    | HelloAgain
    | Refused
    | Control
    | ControlReply,
    Field(discriminator="kind"),
]
MESSAGE: TypeAdapter[AnyMessage] = TypeAdapter(AnyMessage)
