"""What a session is doing, in one frozen model: `status.json`, the status command and the demo's progress read it."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class SessionState(StrEnum):
    """State of the session as a whole."""

    WAITING_FOR_ROWS = "waiting for rows"
    COLLECTING_ALIGNED = "collecting aligned rows"
    COLLECTING_ROWS = "collecting rows to learn the noise from"
    TRAINING = "training"
    INFERRING = "inferring"
    UP_TO_DATE = "up to date"
    PAUSED = "paused"
    DRAINING = "draining"
    STOPPED = "stopped"


class RoleState(StrEnum):
    """State of one worker or trainer, as the coordinator sees it."""

    IDLE = "idle"
    WORKING = "working"
    SILENT = "silent"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RoleStatus(_Part):
    role: str
    name: str
    incarnation: str
    pid: int
    device: str
    state: RoleState
    says: str
    """The state that its heartbeat names."""
    seconds_since_heard: float
    progress: int
    particles_per_second: float
    leased_rows: int


class LatencyStatus(_Part):
    """Seconds from a row's last byte (star or stack) to its pose on disk; None while there is no such row."""

    num_rows: int
    p50_seconds: float | None
    p95_seconds: float | None


class CheckpointStatus(_Part):
    checkpoint_id: str
    folder: str
    rows: int
    """Rows whose committed pose came from it."""
    calibration: str = "none"
    """Of its confidence: "none", or "too_few", "steady", "stale": how the latest ones compare with those of the fit."""
    independence: str = "unknown"
    """Of its half-sets: independent, shared_reference or unknown."""
    resolution_angstrom: tuple[float, ...] = ()
    """Of half-set 0's and 1's reference; empty where it holds none."""
    median_error_deg: tuple[float, ...] = ()
    """Of half-set 0 and 1, on aligned particles that it was not made of; empty where that was not measured."""


class ConfidenceStatus(_Part):
    """Of the rows whose `cestreamConfidence` is of one kind."""

    kind: str
    """"calibrated": the probability of being right; "mass": a rank only."""
    num_rows: int
    median: float
    """To 0.005."""
    share_at_least_half: float | None
    """Share of rows that are more likely right than wrong; None where the kind is no probability."""


class PosesStatus(_Part):
    """What the predicted poses on disk say of themselves; exact at any moment, whatever was killed."""

    by_proposer: dict[str, int]
    """Rows by what made their pose."""
    confidence: tuple[ConfidenceStatus, ...]
    num_refined: int
    num_clipped_angle: int
    num_clipped_shift: int
    """Refined rows whose search of angles, of shifts, ended at its edge; a row may be in both."""
    num_against_noise: int
    num_like_noise: int
    """Rows that tell how far their image fits above noise, and those of them that noise may equal: junk, or
    too little signal."""


class TrainingStatus(_Part):
    training_id: int
    state: str
    num_rows: int
    step: int
    max_steps: int
    half_steps: tuple[int, ...]
    """Of half-sets 0 and 1; `step` is their sum, `max_steps` what both have to do."""
    stage: str = ""
    """What is being made that is not counted in steps; empty where nothing is."""
    validation_error_deg: tuple[float, ...]
    seconds: float | None
    checkpoint_id: str
    source: str = "aligned"
    """What it is of: aligned rows, a given map, or poses that were predicted."""


class SessionStatus(_Part):
    """Counts are particles unless the name says otherwise.

    landed = posed + unposed + pending + leased + quarantined.
    """

    session: str
    pid: int
    host: str
    state: SessionState
    landed: int
    posed: int
    """Rows with a pose on disk, given and predicted."""
    given: int
    predicted: int
    unposed: int
    """Flagged images: on disk in unposed.star."""
    pending: int
    leased: int
    waiting_for_stack: int
    """Rows of a settled star whose stack is not complete: not yet in the ledger, and no part of landed."""
    quarantined: int
    refused_rows: int
    """Rows that were refused or whose stack never came: each in a reason file, and no part of landed."""
    first_refusal: str = ""
    """Star, row and reason of one of them."""
    quarantined_stars: int
    duplicates: int
    conflicts: int
    likely_copies: int
    refused_results: int
    stars: int
    stars_waiting: int
    stars_passed_over: int
    """Stars of RELION's iterations in the landing folder that `landing.aligned` does not name: never read."""
    stars_left: dict[str, int] = {}
    """Stars that are no inputs, by what they are: without particles, or left for their name."""
    aligned_per_half: tuple[int, int]
    """Rows to train on, references included."""
    references_per_half: tuple[int, int]
    """Those of them whose particles landed before without poses: no part of landed."""
    min_aligned_per_half: int
    half_mode: str
    proposer: str
    """What the session's aligned rows become: network, gallery or both."""
    training: TrainingStatus | None
    checkpoint: CheckpointStatus | None
    poses: PosesStatus
    reinfer_shards_left: int
    shards: int
    landed_per_second: float
    posed_per_second: float
    latency: LatencyStatus
    latency_with_model: LatencyStatus
    roles: tuple[RoleStatus, ...]
    waits_for: tuple[str, ...] = ()
    """What the session cannot go on without: rows, a time without new ones, stacks, a role."""
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    """What is as it should be and still good to know."""

    def ended(self) -> "SessionStatus":
        """Return the status once nothing runs: what was leased is to be done again."""
        pending = self.pending + self.leased
        told = {"state": SessionState.STOPPED, "pending": pending, "leased": 0, "roles": (), "waits_for": ()}
        return self.model_copy(update=told)
