"""Rows whose stacks are complete become batches: immutable stars first, then one ledger transaction."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

import numpy as np

from cesped_stream.conventions import HALVES, SUBSET_LABEL
from cesped_stream.durable import Step, write_whole
from cesped_stream.particles.aligned_rows import are_poses
from cesped_stream.particles.declared import REFINED_CTF_LABELS, DeclaredValues, Difference
from cesped_stream.particles.own_columns import OWN_LABELS
from cesped_stream.particles.own_rows import PoseSource, pose_sources
from cesped_stream.particles.stacks import STACK_LABEL, StackReader
from cesped_stream.particles.star import star_bytes
from cesped_stream.particles.table import OpticsGroup, ParticleTable

from .finished import BatchTables, joined
from .ledger import BY_HASH, CONSENSUS, FROM_OWN, GIVEN, HALF, PREDICT, DeclaredRows, Ledger, StarRecord
from .session import SessionFolder, boot_id
from .settings import SessionSettings
from .watcher import LandedStar, Watcher, signature_of

OTHER_COLUMNS, OTHER_PIXELS = "declared columns", "pixels"
OTHER_CTF, OTHER_POSE = "aligned row's declared columns", "aligned row's pose"
"""What conflicts. The last two are of aligned rows that are not used, and name their counters too: one contradicts what
its particle landed with, or its star gives the particle two poses."""
REFINED_CTF, NOT_NEWEST = "refined CTF", "newer consensus not taken"
"""What is news and no conflict, noted once for each particle and star; names of counters too."""
NEWS = (REFINED_CTF, NOT_NEWEST)
KEPT_TABLES = 8

Identity = tuple[str, int]
"""(resolved stack, index from 0): what a particle is."""


@dataclass(frozen=True)
class Part:
    """Rows of a star; `numbers` are their places in it, from 0."""

    table: ParticleTable
    numbers: tuple[int, ...]
    since: float
    aligned: bool

    def select(self, places: Sequence[int]) -> "Part":
        return replace(self, table=self.table.select(places), numbers=tuple(self.numbers[k] for k in places))


@dataclass(frozen=True)
class ReadyRows:
    """Rows whose images are all on disk, with their identities."""

    part: Part
    identities: tuple[Identity, ...]


@dataclass(frozen=True)
class AcceptedRows:
    batch_id: int
    num_rows: int
    kind: str


@dataclass(frozen=True)
class _Row:
    """A row of a table, with its table's values, and the star that it is of; `star_id` 0 is a new star in hand."""

    table: ParticleTable
    values: DeclaredValues
    place: int
    star_id: int
    by_hash: bool


@dataclass(frozen=True)
class _First:
    """What a particle was accepted with, and its half-set now; `row` is None where it is in the ledger."""

    kind: str
    declared: bytes
    half: int
    by_hash: bool
    star_id: int
    row: _Row | None = None


@dataclass
class _Draft:
    """What one transaction will add. A particle has one row in `new` of GIVEN or PREDICT, or is in the ledger; what
    comes later with a consensus pose of it is a row of CONSENSUS."""

    new: dict[str, list[tuple[ReadyRows, int]]] = field(default_factory=lambda: {GIVEN: [], PREDICT: [], CONSENSUS: []})
    place: dict[Identity, tuple[int, int]] = field(default_factory=dict)
    """Batch and row with which each particle landed."""
    first: dict[Identity, _First] = field(default_factory=dict)
    returned: dict[Identity, list[_Row]] = field(default_factory=dict)
    """Rows of `new[CONSENSUS]`."""
    kept_ctf: dict[Identity, _Row] = field(default_factory=dict)
    """Particles whose refined CTF is not taken, with the row whose CTF they keep."""
    duplicates: int = 0
    own: int = 0
    """Rows with a pose that a session predicted."""
    conflicts: list[tuple[Identity, str]] = field(default_factory=list)
    suspects: dict[str, list[tuple[Identity, tuple[int, int]]]] = field(default_factory=dict)
    verified: list[tuple[str, tuple[int, int, int]]] = field(default_factory=list)


class Acceptance:
    """Decides what is new, what is a duplicate, what is a newer consensus and what conflicts."""

    def __init__(
        self,
        settings: SessionSettings,
        folder: SessionFolder,
        ledger: Ledger,
        tables: BatchTables,
        watcher: Watcher,
        has_model: Callable[[], bool],
        *,
        step: Step,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._ledger = ledger
        self._tables = tables
        self._watcher = watcher
        self._has_model = has_model
        self._step = step
        self._boot = boot_id()
        self._kept: OrderedDict[int, tuple[ParticleTable, DeclaredValues, DeclaredRows]] = OrderedDict()
        self._named: dict[Path, set[Identity]] = {}

    def is_aligned(self, star: Path, table: ParticleTable) -> bool:
        """Return whether the star's rows with angles are given poses: it matches `aligned`, or its tilt varies. Poses
        that a session predicted are never given ones."""
        if self._settings.landing.aligned:
            return self._watcher.is_named_aligned(star)
        return are_poses(table.select(np.flatnonzero(pose_sources(table) != PoseSource.OWN)))

    def begin(self, star: Path) -> None:
        """Note that a star is read from here on: which particles it names is looked at anew."""
        self._named.pop(star, None)

    def take(
        self, record: StarRecord, star: LandedStar, ready: list[ReadyRows], rescan: bool, now: float
    ) -> tuple[list[AcceptedRows], StarRecord]:
        """Make the ready rows durable and return their batches and the star's new record."""
        draft = _Draft()
        for rows in ready:
            self._sort_out(rows, record, star.path, rescan, draft)
        self._compare_pixels(draft)
        landed = max([star.landed, *(self._watcher.since(Path(s), now) for s in _stacks(ready))])
        next_id = self._ledger.scalar("SELECT max(batch_id) FROM batches") + 1
        batches: list[_NewBatch] = []
        for kind, new in draft.new.items():
            for start in range(0, len(new), self._settings.service.batch_rows):
                batch = _new_batch(next_id, kind, new[start : start + self._settings.service.batch_rows], draft)
                write_whole(self._folder.batch_star(next_id), star_bytes(batch.table), step=self._step)
                if kind != CONSENSUS:
                    draft.place.update({identity: (next_id, k) for k, identity in enumerate(batch.identities)})
                batches.append(batch)
                next_id += 1
        read = max([record.rows_read, *(number + 1 for rows in ready for number in rows.part.numbers)])
        record = replace(record, rows_read=read)
        with self._ledger.transaction("rows accepted"):
            record = self._note_star(record)
            for batch in batches:
                self._note_batch(batch, record.star_id, landed, draft)
            self._note_rest(draft, star, ready)
        return [AcceptedRows(batch.batch_id, len(batch.table), batch.kind) for batch in batches], record

    def _sort_out(self, rows: ReadyRows, record: StarRecord, star: Path, rescan: bool, draft: _Draft) -> None:
        table = rows.part.table
        values = DeclaredValues.of(table)
        declared, halves = values.hashes(), values.half_sets.tolist()
        sources = pose_sources(table)
        posed = table.has_poses() & rows.part.aligned
        given = posed & (sources != PoseSource.OWN)
        draft.own += int((table.has_poses() & (sources == PoseSource.OWN)).sum())
        by_hash = not values.has_subset
        known_stacks = {stack: self._ledger.known_stack(stack) for stack in _stacks([rows])}
        changed = {s for s, known in known_stacks.items() if known and known[1] != signature_of(Path(s))}
        named = self._named.setdefault(star, set()) if given.any() else set()
        for k, identity in enumerate(rows.identities):
            known = known_stacks[identity[0]]
            row = _Row(table, values, k, record.star_id, by_hash)
            is_reread = rescan or rows.part.numbers[k] < record.rows_read
            if identity not in draft.first and not self._look_up(identity, known[0] if known else 0, draft):
                kind = GIVEN if given[k] else PREDICT
                draft.first[identity] = _First(kind, declared[k], halves[k], by_hash, record.star_id, row)
                draft.new[kind].append((rows, k))
            else:
                first = draft.first[identity]
                if identity[0] in changed and identity in draft.place:
                    draft.suspects.setdefault(identity[0], []).append((identity, draft.place[identity]))
                if given[k]:
                    is_second = identity in named or not is_reread
                    self._returned(rows, identity, row, draft, is_second=is_second, is_reread=is_reread)
                else:
                    same_star = record.star_id and first.star_id == record.star_id
                    draft.duplicates += not (same_star and is_reread)
                    if first.declared != declared[k] and self._difference(identity, row, draft) != Difference.NONE:
                        draft.conflicts.append((identity, OTHER_COLUMNS))
            if given[k]:
                named.add(identity)

    def _returned(
        self, rows: ReadyRows, identity: Identity, row: _Row, draft: _Draft, *, is_second: bool, is_reread: bool
    ) -> None:
        """Take a consensus pose of a known particle, unless it is known too or contradicts what landed.

        `is_second`: where this star has given a pose of the particle before, this is another one, not a newer one.
        """
        before = self._consensus_of(identity, draft)
        by_this_star = [other for other in before if other.star_id == row.star_id]
        if any(_is_same(other, row) for other in by_this_star):
            draft.duplicates += not is_reread
        elif by_this_star and is_second:
            draft.conflicts.append((identity, OTHER_POSE))
        elif before and _is_same(before[-1], row):
            draft.duplicates += 1
        elif (difference := self._difference(identity, row, draft)) == Difference.CONTRADICTION:
            draft.conflicts.append((identity, OTHER_CTF))
        elif before and self._settings.landing.consensus == "first" and (row.by_hash or not before[-1].by_hash):
            draft.conflicts.append((identity, NOT_NEWEST))
        else:
            if difference == Difference.REFINED_CTF:
                draft.conflicts.append((identity, REFINED_CTF))
                if self._settings.landing.refined_ctf == "keep":
                    draft.kept_ctf[identity] = self._first_row(identity, draft)
            draft.returned.setdefault(identity, []).append(row)
            draft.new[CONSENSUS].append((rows, row.place))

    def _look_up(self, identity: Identity, stack_id: int, draft: _Draft) -> bool:
        """Note in the draft what the ledger knows of a particle; return whether it knows it."""
        place = self._ledger.find_particle(stack_id, identity[1]) if stack_id else None
        if place is None:
            return False
        batch_id, row = draft.place[identity] = place
        batch = self._declared(batch_id)
        declared, byte = batch.declared[8 * row : 8 * row + 8], batch.halves[row]
        draft.first[identity] = _First(batch.kind, declared, byte & HALF, bool(byte & BY_HASH), batch.star_id)
        return True

    def _first_row(self, identity: Identity, draft: _Draft) -> _Row:
        """Return the row with which a particle landed."""
        return draft.first[identity].row or self._row(*draft.place[identity])

    def _difference(self, identity: Identity, row: _Row, draft: _Draft) -> Difference:
        first = self._first_row(identity, draft)
        return first.values.difference(first.place, row.values, row.place)

    def _consensus_of(self, identity: Identity, draft: _Draft) -> list[_Row]:
        """Return the consensus rows that are known of a particle, the oldest first."""
        found = []
        if draft.first[identity].kind == GIVEN:
            found.append(self._first_row(identity, draft))
        if identity in draft.place:
            aligned = self._ledger.execute(
                "SELECT aligned_batch, aligned_row FROM consensus WHERE batch_id = ? AND batch_row = ?"
                " ORDER BY aligned_batch",
                draft.place[identity],
            ).fetchall()
            found += [self._row(int(batch_id), int(place)) for batch_id, place in aligned]
        return found + draft.returned.get(identity, [])

    def _declared(self, batch_id: int) -> DeclaredRows:
        return self._of_batch(batch_id)[2]

    def _row(self, batch_id: int, place: int) -> _Row:
        table, values, batch = self._of_batch(batch_id)
        return _Row(table, values, place, batch.star_id, bool(batch.halves[place] & BY_HASH))

    def _of_batch(self, batch_id: int) -> tuple[ParticleTable, DeclaredValues, DeclaredRows]:
        if batch_id not in self._kept:
            table = self._tables[batch_id]
            self._kept[batch_id] = table, DeclaredValues.of(table), self._ledger.declared(batch_id)
            while len(self._kept) > KEPT_TABLES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(batch_id)
        return self._kept[batch_id]

    def forget(self) -> None:
        """Read everything again when it is asked for: half-sets have changed."""
        self._kept.clear()

    def _compare_pixels(self, draft: _Draft) -> None:
        """Where a stack's file changed after its particles were accepted, compare the pixels that are known."""
        if not draft.suspects:
            return
        reader = StackReader(max_open_files=2)
        for stack, rows in draft.suspects.items():
            before = len(draft.conflicts)
            for identity, (batch_id, row) in rows:
                digest = self._ledger.digests(batch_id).get(row)
                if digest is None:
                    continue
                _, found = reader.read(Path(stack), np.array([identity[1]], np.int64))
                if found[0].tobytes() != digest:
                    draft.conflicts.append((identity, OTHER_PIXELS))
            if len(draft.conflicts) == before:
                draft.verified.append((stack, signature_of(Path(stack))))
        others = {identity for identity, what in draft.conflicts if what == OTHER_PIXELS}
        kept = [(rows, k) for rows, k in draft.new[CONSENSUS] if rows.identities[k] not in others]
        draft.new[CONSENSUS] = kept
        draft.conflicts = [(who, what) for who, what in draft.conflicts if who not in others or what not in NEWS]

    def _note_star(self, record: StarRecord) -> StarRecord:
        self._ledger.put_star(record)
        noted = self._ledger.star(record.path)
        assert noted is not None
        return noted

    def _note_batch(self, batch: "_NewBatch", star_id: int, landed: float, draft: _Draft) -> None:
        many = (
            [0, 0]
            if batch.kind == CONSENSUS
            else [sum(byte & HALF == half for byte in batch.halves) for half in HALVES]
        )
        self._ledger.execute(
            "INSERT INTO batches VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, x'')",
            (
                batch.batch_id,
                star_id,
                len(batch.table),
                batch.kind,
                *many,
                landed,
                self._boot,
                int(self._has_model()),
                int(batch.kind == CONSENSUS),
                batch.declared,
                batch.halves,
            ),
        )
        if batch.kind == CONSENSUS:
            self._ledger.executemany(
                "INSERT INTO consensus VALUES(?, ?, ?, ?, 0)",
                [(*draft.place[identity], batch.batch_id, k) for k, identity in enumerate(batch.identities)],
            )
            return
        stack_ids = {
            stack: self._ledger.stack_id(stack, signature_of(Path(stack)))
            for stack in sorted({stack for stack, _ in batch.identities})
        }
        self._ledger.executemany(
            "INSERT INTO particles VALUES(?, ?, ?, ?)",
            [(stack_ids[stack], index, batch.batch_id, k) for k, (stack, index) in enumerate(batch.identities)],
        )

    def _note_rest(self, draft: _Draft, star: LandedStar, ready: list[ReadyRows]) -> None:
        if draft.duplicates:
            self._ledger.count("duplicates", draft.duplicates)
        if draft.own:
            name = own_rows_fact(star.path)
            is_start = any(rows.part.numbers[0] == 0 for rows in ready)
            before = 0 if is_start else int(self._ledger.fact(name) or 0)
            self._ledger.remember(name, str(before + draft.own))
        for identity, what in draft.conflicts:
            noted = self._ledger.execute(
                "INSERT OR IGNORE INTO conflicts VALUES(?, ?, ?, ?)", (*draft.place[identity], what, str(star.path))
            )
            if noted.rowcount:
                self._ledger.count(what)
        for stack, signature in draft.verified:
            self._ledger.execute(
                "UPDATE stacks SET inode = ?, size = ?, mtime_ns = ? WHERE path = ?", (*signature, stack)
            )


OWN_ROWS = "own predictions in "
"""Begins the names of facts: how many rows of a star have a pose that a session predicted."""


def own_rows_fact(star: Path) -> str:
    """Return the name of the fact that counts a star's rows with predicted poses."""
    return f"{OWN_ROWS}{star}"


@dataclass(frozen=True)
class _NewBatch:
    batch_id: int
    kind: str
    table: ParticleTable
    identities: list[Identity]
    declared: bytes
    halves: bytes


def _is_same(known: _Row, row: _Row) -> bool:
    """Return whether a consensus row says nothing that a known one does not: pose, CTF and half-set."""
    if not known.values.is_same_pose(known.place, row.values, row.place):
        return False
    if known.values.difference(known.place, row.values, row.place) != Difference.NONE:
        return False
    return row.by_hash or (not known.by_hash and known.values.half_sets[known.place] == row.values.half_sets[row.place])


def _stacks(ready: list[ReadyRows]) -> list[str]:
    return sorted({stack for rows in ready for stack, _ in rows.identities})


def _new_batch(batch_id: int, kind: str, new: list[tuple[ReadyRows, int]], draft: _Draft) -> _NewBatch:
    """Return rows as a batch. A consensus row without rlnRandomSubset gets its particle's half-set."""
    tables, identities, declared, halves = [], [], [], []
    places: dict[int, tuple[ReadyRows, list[int]]] = {}
    for rows, k in new:
        places.setdefault(id(rows), (rows, []))[1].append(k)
    for rows, picked in places.values():
        table = rows.part.table.select(picked)
        chosen = [rows.identities[k] for k in picked]
        hashes, subsets = DeclaredValues.of(table).hashes(), table.half_sets().tolist()
        by_hash = SUBSET_LABEL not in table
        if by_hash and kind == CONSENSUS:
            subsets = [draft.first[identity].half for identity in chosen]
        refined = pose_sources(table) == PoseSource.REFINED_FROM_OWN
        halves += [half | BY_HASH * by_hash | FROM_OWN * bool(own) for half, own in zip(subsets, refined, strict=True)]
        table = table.without(OWN_LABELS).with_half_sets(subsets)
        if kind == CONSENSUS:
            table = _with_kept_ctf(table, chosen, draft.kept_ctf)
        tables.append(table.with_columns({STACK_LABEL: [quote(stack) for stack, _ in chosen]}))
        identities.extend(chosen)
        declared.extend(hashes)
    table = joined(tables)
    table = replace(table, optics=tuple(map(_named, table.optics)))
    return _NewBatch(batch_id, kind, table, identities, b"".join(declared), bytes(halves))


def _with_kept_ctf(table: ParticleTable, identities: list[Identity], kept: dict[Identity, _Row]) -> ParticleTable:
    """Return consensus rows with the CTF that their particles landed with, where a refined one is not taken."""
    columns: dict[str, Sequence[str]] = {}
    for label in REFINED_CTF_LABELS:
        if label in table:
            cells = table.column(label)
            for k, identity in enumerate(identities):
                if (row := kept.get(identity)) is not None and label in row.table:
                    cells[k] = row.table.column(label)[row.place]
            columns[label] = cells
    return table.with_columns(columns) if kept else table


def _named(group: OpticsGroup) -> OpticsGroup:
    """Return the group with a name; one that has none is named by its content, in whatever star it stands."""
    if group.text("rlnOpticsGroupName") is not None:
        return group
    digest = hashlib.sha256(json.dumps(sorted(group.values)).encode()).hexdigest()[:8]
    return OpticsGroup((("rlnOpticsGroupName", f"optics_{digest}"), *group.values))
