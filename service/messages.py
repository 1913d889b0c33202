"""What the roles say to each other: frozen headers as JSON, pose arrays as raw frames beside them.

A multipart message is [header JSON, frame, frame, ...]. The header states each frame's name, dtype and shape and the
reader checks them. Pixels never travel: messages name files and rows.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

PROTOCOL_VERSION: Literal[1] = 1


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    version: Literal[1] = PROTOCOL_VERSION


class FrameHeader(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    dtype: Literal["<f8", "<f4", "<i8", "<i4", "|u1", "|i1"]
    shape: tuple[int, ...]


class Hello(Message):
    """First message of a role after connecting. `incarnation` is new at every process start."""

    kind: Literal["hello"] = "hello"
    role: Literal["worker", "trainer"]
    name: str
    incarnation: str
    pid: int
    device: str


class Welcome(Message):
    kind: Literal["welcome"] = "welcome"
    session: str
    heartbeat_seconds: float


class Ready(Message):
    """A worker asks for a lease, or the trainer for work. The rate (0: unknown) is the worker's own measured one."""

    kind: Literal["ready"] = "ready"
    incarnation: str
    particles_per_second: float = 0.0


class Heartbeat(Message):
    """Sent from a thread with its own socket. `progress` rises only when work was made progress on."""

    kind: Literal["heartbeat"] = "heartbeat"
    incarnation: str
    role: Literal["worker", "trainer"]
    name: str
    state: str
    progress: int


class Idle(Message):
    """No work now; ask again after this many seconds."""

    kind: Literal["idle"] = "idle"
    retry_seconds: float


class Lease(Message):
    """Rows [first_row, first_row + num_rows) of a batch file (an immutable RELION 3.1 star in the session folder)."""

    kind: Literal["lease"] = "lease"
    lease_id: int
    batch_id: int
    batch_star: str
    first_row: int
    num_rows: int
    checkpoint: str
    """Folder of the checkpoint to use."""
    checkpoint_id: str
    expires_seconds: float


class Result(Message):
    """Poses of one lease. Frames, all with first dimension num_rows:

    `euler_deg` <f8 (n, 3); `confidence` <f8 (n,); `top_euler_deg` <f8 (n, k, 3); `top_probability` <f8 (n, k);
    `flag` |u1 (n,) (0 posed, else `particles.flags`); `digest` |u1 (n, 16).
    """

    kind: Literal["result"] = "result"
    incarnation: str
    lease_id: int
    checkpoint_id: str
    proposer: str
    compute_seconds: float
    frames: tuple[FrameHeader, ...]


class Failure(Message):
    """A lease or training that could not be done. `retry_can_help` follows the error's class."""

    kind: Literal["failure"] = "failure"
    incarnation: str
    lease_id: int
    error: str
    message: str
    retry_can_help: bool
    row: int = -1
    """Row within the batch that is to blame, or -1."""


class Ack(Message):
    """The result is committed (or was before), or it is refused: a late result of a lease that was given back."""

    kind: Literal["ack"] = "ack"
    lease_id: int
    accepted: bool
    reason: str = ""


class TrainingOrder(Message):
    """Fine-tune on these rows: an immutable RELION 3.1 star in the session folder, both halves together."""

    kind: Literal["training_order"] = "training_order"
    training_id: int
    aligned_star: str
    work_folder: str
    """Where resume points and the finished checkpoint are written, inside the session's checkpoints folder."""


class TrainingProgress(Message):
    kind: Literal["training_progress"] = "training_progress"
    incarnation: str
    training_id: int
    step: int
    max_steps: int
    half_steps: tuple[int, ...] = ()
    """Of half-sets 0 and 1; `step` is their sum, `max_steps` what both have to do."""
    validation_error_deg: tuple[float, ...] = ()


class TrainingDone(Message):
    """A published checkpoint folder (already fsynced and renamed into place)."""

    kind: Literal["training_done"] = "training_done"
    incarnation: str
    training_id: int
    checkpoint_id: str
    checkpoint: str
    seconds: float


class Goodbye(Message):
    kind: Literal["goodbye"] = "goodbye"
    incarnation: str


class HelloAgain(Message):
    """The coordinator does not know this incarnation (it was restarted, or gave the role up): say hello again."""

    kind: Literal["hello_again"] = "hello_again"


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
    | Control
    | ControlReply,
    Field(discriminator="kind"),
]
MESSAGE: TypeAdapter[AnyMessage] = TypeAdapter(AnyMessage)
