"""When training starts, on which rows, and whether the checkpoint that comes back may be used. No torch here."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cesped_stream.durable import Step, write_whole
from cesped_stream.errors import InvalidCheckpointError, UnreachableFileError
from cesped_stream.particles.stacks import STACK_LABEL, parse_image_name
from cesped_stream.particles.star import star_bytes
from cesped_stream.particles.table import ParticleTable
from cesped_stream.published import NETWORK_KIND, check_files, read_listing

from .consensus import ADOPTIONS, NEWER_THAN_REFERENCES, OTHER_SPLIT, TRAINING_REQUESTED
from .finished import BatchTables, joined
from .ledger import ALIGNED_KINDS, BY_HASH, CONSENSUS, FORMER_SPLIT, FROM_OWN, Ledger
from .messages import ALIGNED, MAP, POSES, TrainingOrder
from .reference_orders import Frozen, MapOrders, RebuildOrders
from .session import SessionFolder
from .settings import SessionSettings
from .training_waits import TrainingWaits

ORDERED, DONE, FAILED = "ordered", "done", "failed"


@dataclass(frozen=True)
class VerifiedCheckpoint:
    checkpoint_id: str
    folder: Path
    independence: str = "unknown"
    """Of its half-sets, as its manifest says: independent, shared_reference or unknown."""
    kind: str = NETWORK_KIND
    doubts: tuple[str, ...] = ()
    """What speaks against its references, as its manifest says."""
    resolution_angstrom: tuple[float, ...] = ()
    median_error_deg: tuple[float, ...] = ()
    """Of half-sets 0 and 1, as its manifest says: `Listing`."""


def verify_checkpoint(folder: Path) -> VerifiedCheckpoint:
    """Return the id of a published checkpoint whose files are all there with the hashes of its manifest.

    Raises InvalidCheckpointError. The tensors themselves are checked by whoever loads them.
    """
    try:
        listing = read_listing(folder)
        check_files(folder, listing.names_and_hashes())
    except UnreachableFileError as error:
        raise InvalidCheckpointError(f"{error}; the checkpoint is incomplete") from None
    return VerifiedCheckpoint(
        listing.checkpoint_id,
        folder,
        listing.independence,
        listing.kind,
        listing.doubts,
        listing.resolution_angstrom(),
        listing.median_error_deg(),
    )


class TrainingGate:
    """Counts aligned rows per half, freezes them once, and keeps the order until a checkpoint comes back."""

    def __init__(
        self, settings: SessionSettings, folder: SessionFolder, ledger: Ledger, tables: BatchTables, *, step: Step
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._ledger = ledger
        self._tables = tables
        self._step = step
        self.map_orders = MapOrders(settings, ledger, tables)
        self.rebuild_orders = RebuildOrders(settings, folder, ledger, tables)
        self.waits = TrainingWaits(settings, folder, ledger, tables, self.map_orders)
        self._last_row_at: float | None = None
        self._flagged: tuple[object, dict[int, int]] = (None, {})
        self.marker_seen = any(star.aligned and Path(star.path + ".done").exists() for star in ledger.stars())

    @property
    def requested(self) -> bool:
        """Training was asked for: no waiting for the quiet period, and a second one is allowed."""
        return bool(self._ledger.fact(TRAINING_REQUESTED))

    def request(self) -> None:
        """Ask for a training on all aligned rows so far; remembered until it is ordered."""
        with self._ledger.transaction("training requested"):
            self._ledger.remember(TRAINING_REQUESTED, "yes")

    def aligned_per_half(self) -> tuple[int, int]:
        """Return how many rows there are to train on or to make references of, late ones included."""
        return self._rows_per_half(ALIGNED_KINDS)

    def references_per_half(self) -> tuple[int, int]:
        """Return how many of them came for particles that were known already."""
        return self._rows_per_half((CONSENSUS, CONSENSUS))

    def _rows_per_half(self, kinds: tuple[str, str]) -> tuple[int, int]:
        row = self._ledger.execute(
            "SELECT coalesce(sum(half_0), 0), coalesce(sum(half_1), 0) FROM batches WHERE kind IN (?, ?)", kinds
        ).fetchone()
        return int(row[0]), int(row[1])

    def rows_landed(self, now: float) -> None:
        """Note new aligned rows: the quiet period begins again."""
        self._last_row_at = now
        self.marker_seen = False

    def start_if_due(self, now: float) -> bool:
        """Freeze the rows of an order and give it, when one is due: on aligned rows first, then of a given map, then of
        predicted rows; return whether it did. One order at a time."""
        if self._ledger.scalar("SELECT count(*) FROM trainings WHERE state = ?", (ORDERED,)):
            return False
        if self._aligned_are_due(now):
            aligned = self._aligned()
            frozen: Frozen | None = Frozen(
                joined([table for _, table in aligned]), [batch_id for batch_id, _ in aligned]
            )
        elif self.rebuild_orders.is_due():
            frozen = self.rebuild_orders.frozen(self._aligned)
        else:
            frozen = self.map_orders.frozen()
        if frozen is not None:
            self._freeze(frozen)
        return frozen is not None

    def _aligned_are_due(self, now: float) -> bool:
        """Return whether aligned rows are enough and quiet, and were not trained on or are asked for again."""
        trainings = self._ledger.scalar("SELECT count(*) FROM trainings WHERE source = ?", (ALIGNED,))
        if (trainings or self._settings.checkpoint) and not self.requested:
            return False
        if min(self.aligned_per_half()) < self._settings.min_aligned_per_half:
            return False
        if self._last_row_at is None:
            self._last_row_at = now
        quiet = now - self._last_row_at >= self._settings.aligned_quiet_seconds
        return quiet or self.marker_seen or self.requested

    def quiet_seconds_left(self, now: float) -> float:
        """Return for how long no aligned row must land from now on before an order on enough of them is given."""
        if self.marker_seen or self.requested:
            return 0.0
        since = now if self._last_row_at is None else self._last_row_at
        return max(0.0, since + self._settings.aligned_quiet_seconds - now)

    def _aligned(self) -> list[tuple[int, ParticleTable]]:
        """Return the aligned batches with those of their rows that count, each particle's newest."""
        rows = self._ledger.execute(
            "SELECT batch_id FROM batches WHERE kind IN (?, ?) AND half_0 + half_1 > 0 ORDER BY batch_id", ALIGNED_KINDS
        )
        batch_ids = [int(row[0]) for row in rows.fetchall()]
        return [(b, self._tables[b].select(self._ledger.declared(b).live_rows())) for b in batch_ids]

    def aligned_is_open(self) -> bool:
        """Return whether a training on aligned rows is asked for, or is going on."""
        ordered = "SELECT count(*) FROM trainings WHERE source = ? AND state = ?"
        return self.requested or self._ledger.scalar(ordered, (ALIGNED, ORDERED)) > 0

    def rows_with(self, flag: int) -> int:
        """Return how many of the aligned rows that count have a flag of `batches.halves`."""
        batches = self._ledger.scalar("SELECT count(*) FROM batches WHERE kind IN (?, ?)", ALIGNED_KINDS)
        key = batches, self.aligned_per_half(), self._ledger.counter(ADOPTIONS)
        if self._flagged[0] != key:
            counts = dict.fromkeys((BY_HASH, FROM_OWN, FORMER_SPLIT), 0)
            rows = self._ledger.execute(
                "SELECT batch_id FROM batches WHERE kind IN (?, ?) AND half_0 + half_1 > 0", ALIGNED_KINDS
            )
            for (batch_id,) in rows.fetchall():
                batch = self._ledger.declared(batch_id)
                for row in batch.live_rows():
                    for known in counts:
                        counts[known] += batch.halves[row] & known > 0
            self._flagged = key, counts
        return self._flagged[1][flag]

    def _freeze(self, frozen: Frozen) -> None:
        training_id = self._ledger.scalar("SELECT max(training_id) FROM trainings") + 1
        table = in_identity_order(frozen.table)
        write_whole(self._folder.training_star(training_id), star_bytes(table), step=self._step)
        unknown = self.rows_with(BY_HASH) + self.rows_with(FORMER_SPLIT)
        of_aligned = (sum(self.aligned_per_half()), unknown, self.rows_with(FROM_OWN))
        many = (0, 0, 0) if frozen.source == MAP else of_aligned
        with self._ledger.transaction("training ordered"):
            self._ledger.execute(
                "INSERT INTO trainings VALUES(?, ?, ?, '', '', NULL, '', ?, ?, ?, ?, ?)",
                (training_id, ORDERED, len(table), frozen.source, frozen.reference, *many),
            )
            self._ledger.executemany(
                "INSERT INTO training_batches VALUES(?, ?)", [(training_id, batch_id) for batch_id in frozen.batch_ids]
            )
            if frozen.source == ALIGNED:
                for counter in (NEWER_THAN_REFERENCES, OTHER_SPLIT):
                    self._ledger.count(counter, -self._ledger.counter(counter))
                self._ledger.remember(TRAINING_REQUESTED, "")
            elif frozen.source == POSES:
                self.rebuild_orders.start_counting()

    def order(self) -> TrainingOrder | None:
        """Return the training that waits for a trainer (again after a trainer died), or None."""
        row = self._ledger.execute(
            "SELECT training_id, source, reference, num_aligned, num_unknown, num_refined FROM trainings"
            " WHERE state = ? ORDER BY training_id DESC",
            (ORDERED,),
        ).fetchone()
        if row is None:
            return None
        training_id, source, sha256, num_aligned, num_unknown, num_refined = row
        return TrainingOrder(
            training_id=training_id,
            aligned_star=str(self._folder.training_star(training_id)),
            work_folder=str(self._folder.training_work(training_id)),
            source=source,
            reference=str(self._folder.given_map(sha256)) if source == MAP else "",
            halves_given=not num_unknown,
            num_aligned=num_aligned,
            num_refined=num_refined,
        )

    def state_of(self, training_id: int) -> str:
        row = self._ledger.execute("SELECT state FROM trainings WHERE training_id = ?", (training_id,)).fetchone()
        return str(row[0]) if row else ""

    def published_so_far(self, training_id: int) -> str:
        """Return the id of the checkpoint that an order has brought, "" before the first."""
        row = self._ledger.execute(
            "SELECT checkpoint_id FROM trainings WHERE training_id = ?", (training_id,)
        ).fetchone()
        return str(row[0]) if row else ""

    def go_on_with(self, training_id: int, checkpoint: VerifiedCheckpoint) -> None:
        """Note a verified checkpoint as the one in use until the order's last one comes; the order stays open."""
        with self._ledger.transaction("training goes on"):
            self._ledger.execute(
                "UPDATE trainings SET checkpoint_id = ?, folder = ? WHERE training_id = ?",
                (checkpoint.checkpoint_id, str(checkpoint.folder), training_id),
            )
            self._ledger.remember("checkpoint", str(checkpoint.folder))

    def finish(self, training_id: int, checkpoint: VerifiedCheckpoint, seconds: float) -> None:
        """Note a verified checkpoint as the training's and as the one in use."""
        with self._ledger.transaction("training done"):
            self._ledger.execute(
                "UPDATE trainings SET state = ?, checkpoint_id = ?, folder = ?, seconds = ? WHERE training_id = ?",
                (DONE, checkpoint.checkpoint_id, str(checkpoint.folder), seconds, training_id),
            )
            self._ledger.remember("checkpoint", str(checkpoint.folder))

    def problem(self) -> str:
        """Return why the last training was given up, "" where it was not."""
        row = self._ledger.execute(
            "SELECT problem FROM trainings WHERE state = ? AND training_id = (SELECT max(training_id) FROM trainings)",
            (FAILED,),
        ).fetchone()
        return str(row[0]) if row else ""

    def give_up(self, training_id: int, problem: str) -> None:
        """Note that a training failed for good; `retrain` orders another one."""
        with self._ledger.transaction("training failed"):
            self._ledger.execute(
                "UPDATE trainings SET state = ?, problem = ? WHERE training_id = ?", (FAILED, problem, training_id)
            )


def in_identity_order(table: ParticleTable) -> ParticleTable:
    """Return the rows sorted by (stack, index): the same rows give the same file whatever their order of arrival."""
    stacks = table.column(STACK_LABEL)
    indices = [parse_image_name(name)[0] for name in table.column("rlnImageName")]
    order = sorted(range(len(table)), key=lambda i: (stacks[i], indices[i]))
    return table.select(np.array(order, np.int64))
