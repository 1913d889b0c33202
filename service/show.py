"""A session's status for people: rich tables."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cesped_stream.calibration.drift import DriftState

from .independence import INDEPENDENT, SHARED, UNKNOWN
from .pose_status import pose_words
from .status import CheckpointStatus, LatencyStatus, RoleStatus, SessionState, SessionStatus, TrainingStatus

SOURCE_WORDS = {"aligned": "rows", "map": "rows beside a given map", "poses": "aligned and predicted rows"}
HALVES_WORDS = {
    INDEPENDENT: "independent",
    SHARED: f"share one map ({SHARED})",
    UNKNOWN: "of unknown independence (training.alignment tells it)",
}
STATE_STYLE = {
    SessionState.INFERRING: "green",
    SessionState.UP_TO_DATE: "green",
    SessionState.TRAINING: "cyan",
    SessionState.PAUSED: "bold red",
    SessionState.STOPPED: "dim",
}


def status_view(status: SessionStatus, *, running: bool) -> RenderableType:
    """Return what `status` and the live view show."""
    title = Text.assemble(
        ("session ", "dim"), status.session, "  ", (str(status.state), STATE_STYLE.get(status.state, "yellow"))
    )
    if status.quarantined_stars:
        title.append(f", {status.quarantined_stars} stars set aside")
    parts: list[RenderableType] = [title, _particles(status), _work(status, running=running)]
    if not running:
        again = f"no coordinator runs; this is the last status written. cesped-stream run --settings {status.session}"
        parts.insert(1, Text(f"{again}/session.toml starts it again", "bold yellow"))
    elif status.roles:
        parts.append(_roles(status.roles))
    else:
        parts.append(Text("no worker or trainer is connected", "dim"))
    if status.refused_rows:
        title.append(f", {status.refused_rows:,} rows refused")
    parts += [Text(f"! {problem}", "red") for problem in status.problems]
    parts += [Text(note, "dim") for note in status.notes]
    return Group(*parts)


def status_line(status: SessionStatus) -> str:
    """Return one plain line: for logs and terminals without a live view."""
    line = f"{status.state}: {counts_line(status)}"
    if status.refused_rows:
        line += f", {status.refused_rows} rows refused ({status.first_refusal})"
    if status.training is not None and status.state is SessionState.TRAINING:
        line += f"; {_training_words(status.training)}"
    if status.waits_for:
        line += f"; waits for {', '.join(status.waits_for)}"
    return line


def counts_line(status: SessionStatus) -> str:
    """Return in one line how many particles there are of each kind."""
    line = f"{status.landed} landed, {status.posed} posed, {status.pending} pending"
    if status.unposed or status.quarantined:
        line += f", {status.unposed} unposed, {status.quarantined} quarantined"
    if status.quarantined_stars:
        line += f", {status.quarantined_stars} stars set aside"
    return line


def _particles(status: SessionStatus) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=True, header_style="dim")
    always = {
        "landed": status.landed,
        "given": status.given,
        "predicted": status.predicted,
        "pending": status.pending,
        "leased": status.leased,
    }
    where_there_are_any = {
        "unposed": status.unposed,
        "quarantined": status.quarantined,
        "no stack yet": status.waiting_for_stack,
        "refused": status.refused_rows,
        "duplicates": status.duplicates,
        "conflicts": status.conflicts,
    }
    columns = always | {name: count for name, count in where_there_are_any.items() if count}
    for name in columns:
        table.add_column(name, justify="right")
    table.add_row(*(f"{count:,}" for count in columns.values()))
    return table


def _work(status: SessionStatus, *, running: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="dim")
    table.add_column()
    if status.waits_for and running:
        table.add_row("waits for", ", ".join(status.waits_for))
    table.add_row("rates", f"{status.landed_per_second:.1f} landed/s, {status.posed_per_second:.1f} posed/s")
    table.add_row("latency", f"{_latency(status.latency)}; while a model existed {_latency(status.latency_with_model)}")
    aligned = f"{status.aligned_per_half[0]} + {status.aligned_per_half[1]} of {status.min_aligned_per_half} a half"
    if any(status.references_per_half):
        aligned += f", {status.references_per_half[0]} + {status.references_per_half[1]} of known particles"
    table.add_row("aligned", f"{aligned} ({status.half_mode}, proposer {status.proposer})")
    if status.training is not None:
        table.add_row("training", _training_words(status.training))
    for name, words in _checkpoint(status.checkpoint).items():
        table.add_row(name, words)
    for name, words in pose_words(status.poses).items():
        table.add_row(name, words)
    shards = f"{status.shards} sealed"
    table.add_row("shards", shards + (f", {status.reinfer_shards_left} to redo" if status.reinfer_shards_left else ""))
    table.add_row("stars", f"{status.stars}, {status.stars_waiting} waiting, {status.quarantined_stars} quarantined")
    return table


def _checkpoint(checkpoint: CheckpointStatus | None) -> dict[str, str]:
    """Return the lines of the status that tell what gives poses and how good it is, by name."""
    if checkpoint is None:
        return {"checkpoint": "none yet"}
    halves = HALVES_WORDS.get(checkpoint.independence, checkpoint.independence)
    used = f"{checkpoint.checkpoint_id}, {checkpoint.rows:,} rows, half-sets {halves}"
    if checkpoint.calibration != "none":
        stale = checkpoint.calibration == DriftState.STALE
        used += ", calibration stale" if stale else ", confidence calibrated"
    words = {"checkpoint": used}
    quality = []
    if checkpoint.resolution_angstrom:
        each = " / ".join(f"{resolution:.1f}" for resolution in checkpoint.resolution_angstrom)
        quality.append(f"references at {each} A")
    if checkpoint.median_error_deg:
        each = " / ".join(f"{error:.1f}" for error in checkpoint.median_error_deg)
        quality.append(f"median error {each} deg on aligned rows held out of it")
    return words | ({"quality": ", ".join(quality) + " (half-set 1 / 2)"} if quality else {})


def _training_words(training: TrainingStatus) -> str:
    steps = f", step {training.step} of {training.max_steps}" if training.max_steps else ""
    steps = f", {training.stage}" if training.stage else steps
    words = f"{training.state}{steps}, {training.num_rows:,} {SOURCE_WORDS[training.source]}"
    if training.validation_error_deg:
        words += ", validation " + " / ".join(f"{error:.1f}" for error in training.validation_error_deg) + " deg"
    return words if training.seconds is None else f"{words}, {training.seconds:.0f} s"


def _latency(latency: LatencyStatus) -> str:
    if latency.p50_seconds is None or latency.p95_seconds is None:
        return "not known yet"
    return f"p50 {latency.p50_seconds:.1f} s, p95 {latency.p95_seconds:.1f} s ({latency.num_rows:,} rows)"


def _roles(roles: tuple[RoleStatus, ...]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("role", "name", "pid", "device", "state", "says", "particles/s", "leased", "heard"):
        table.add_column(column)
    for role in roles:
        table.add_row(
            role.role,
            role.name,
            str(role.pid),
            role.device,
            str(role.state),
            role.says,
            f"{role.particles_per_second:.1f}" if role.role == "worker" else "",
            str(role.leased_rows) if role.role == "worker" else "",
            f"{role.seconds_since_heard:.1f} s ago",
        )
    return table
