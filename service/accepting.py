"""Rows whose stacks are complete become batches: immutable stars first, then one ledger transaction."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

import numpy as np

from cesped_stream.conventions import half_set_to_random_subset
from cesped_stream.durable import Step, write_whole
from cesped_stream.particles.aligned_rows import are_poses
from cesped_stream.particles.stacks import STACK_LABEL, StackReader
from cesped_stream.particles.star import star_bytes
from cesped_stream.particles.table import OpticsGroup, ParticleTable

from .finished import joined
from .ledger import GIVEN, PREDICT, REFERENCE, DeclaredRows, Ledger, StarRecord
from .session import SessionFolder, boot_id
from .settings import SessionSettings
from .watcher import LandedStar, Watcher, signature_of

_DECLARED_NUMBERS = {
    "rlnDefocusU": 0.0,
    "rlnDefocusV": 0.0,
    "rlnDefocusAngle": 0.0,
    "rlnPhaseShift": 0.0,
    "rlnCtfBfactor": 0.0,
    "rlnCtfScalefactor": 1.0,
}
_DECLARED_OPTICS = {
    "rlnVoltage": 0.0,
    "rlnSphericalAberration": 0.0,
    "rlnAmplitudeContrast": 0.0,
    "rlnImagePixelSize": 0.0,
    "rlnCtfDataAreCtfPremultiplied": 0.0,
    "rlnCtfDataArePhaseFlipped": 0.0,
}

OTHER_COLUMNS, OTHER_PIXELS = "declared columns", "pixels"
OTHER_CTF, OTHER_HALF = "aligned row's declared columns", "aligned row's half-set"
"""What conflicts; the last two are of aligned rows that would have been references, and name their counters too."""

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
class _First:
    """What a particle was accepted with; `star_id` 0 is the star in hand, before it has an id."""

    kind: str
    declared: bytes
    half: int
    star_id: int


@dataclass
class _Draft:
    """What one transaction will add. A particle has one row in `new` of GIVEN or PREDICT, or is in the ledger; a
    PREDICT particle may have one more row, of REFERENCE."""

    new: dict[str, list[tuple[ReadyRows, int]]] = field(default_factory=lambda: {GIVEN: [], PREDICT: [], REFERENCE: []})
    place: dict[Identity, tuple[int, int]] = field(default_factory=dict)
    """Batch and row of each particle; not of its reference."""
    first: dict[Identity, _First] = field(default_factory=dict)
    references: set[Identity] = field(default_factory=set)
    duplicates: int = 0
    conflicts: list[tuple[Identity, str]] = field(default_factory=list)
    suspects: dict[str, list[tuple[Identity, tuple[int, int]]]] = field(default_factory=dict)
    verified: list[tuple[str, tuple[int, int, int]]] = field(default_factory=list)


class Acceptance:
    """Decides what is new, what is a duplicate and what conflicts; the first row of an identity wins."""

    def __init__(
        self,
        settings: SessionSettings,
        folder: SessionFolder,
        ledger: Ledger,
        watcher: Watcher,
        has_model: Callable[[], bool],
        *,
        step: Step,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._ledger = ledger
        self._watcher = watcher
        self._has_model = has_model
        self._step = step
        self._boot = boot_id()

    def is_aligned(self, star: Path, table: ParticleTable) -> bool:
        """Return whether the star's rows with angles are given poses: it matches `aligned`, or its tilt varies."""
        if self._settings.landing.aligned:
            return self._watcher.is_named_aligned(star)
        return are_poses(table)

    def take(
        self, record: StarRecord, star: LandedStar, ready: list[ReadyRows], rescan: bool, now: float
    ) -> tuple[list[AcceptedRows], StarRecord]:
        """Make the ready rows durable and return their batches and the star's new record."""
        draft = _Draft()
        for rows in ready:
            self._sort_out(rows, record, rescan, draft)
        self._compare_pixels(draft)
        landed = max([star.landed, *(self._watcher.since(Path(s), now) for s in _stacks(ready))])
        next_id = self._ledger.scalar("SELECT max(batch_id) FROM batches") + 1
        batches: list[tuple[AcceptedRows, ParticleTable, list[Identity]]] = []
        for kind, new in draft.new.items():
            for start in range(0, len(new), self._settings.service.batch_rows):
                table, identities = _batch_table(new[start : start + self._settings.service.batch_rows], draft.first)
                write_whole(self._folder.batch_star(next_id), star_bytes(table), step=self._step)
                if kind != REFERENCE:
                    draft.place.update({identity: (next_id, k) for k, identity in enumerate(identities)})
                batches.append((AcceptedRows(next_id, len(table), kind), table, identities))
                next_id += 1
        read = max([record.rows_read, *(number + 1 for rows in ready for number in rows.part.numbers)])
        record = replace(record, rows_read=read)
        with self._ledger.transaction("rows accepted"):
            record = self._note_star(record)
            for accepted, table, identities in batches:
                self._note_batch(accepted, table, identities, record.star_id, landed, draft)
            self._note_rest(draft, star)
        return [accepted for accepted, _, _ in batches], record

    def _sort_out(self, rows: ReadyRows, record: StarRecord, rescan: bool, draft: _Draft) -> None:
        table = rows.part.table
        declared, halves = declared_hashes(table), table.half_sets().tolist()
        given = table.has_poses() & rows.part.aligned
        known_stacks = {stack: self._ledger.known_stack(stack) for stack in _stacks([rows])}
        changed = {s for s, known in known_stacks.items() if known and known[1] != signature_of(Path(s))}
        batches: dict[int, DeclaredRows] = {}
        for k, identity in enumerate(rows.identities):
            known = known_stacks[identity[0]]
            stack_id = known[0] if known else 0
            if identity not in draft.first and not self._look_up(identity, stack_id, batches, draft):
                kind = GIVEN if given[k] else PREDICT
                draft.first[identity] = _First(kind, declared[k], halves[k], 0)
                draft.new[kind].append((rows, k))
                continue
            first = draft.first[identity]
            if identity[0] in changed and identity in draft.place:
                draft.suspects.setdefault(identity[0], []).append((identity, draft.place[identity]))
            star_id = first.star_id
            if given[k] and first.kind == PREDICT and identity not in draft.references:
                star_id = self._ledger.star_of_reference(stack_id, identity[1])
                if not star_id:
                    half = halves[k] if "rlnRandomSubset" in table else first.half
                    self._refer(rows, k, _First(REFERENCE, declared[k], half, 0), draft)
                    continue
            same_star = record.star_id and star_id == record.star_id
            if not (same_star and (rescan or rows.part.numbers[k] < record.rows_read)):
                draft.duplicates += 1
            if first.declared != declared[k]:
                draft.conflicts.append((identity, OTHER_COLUMNS))

    def _look_up(self, identity: Identity, stack_id: int, batches: dict[int, DeclaredRows], draft: _Draft) -> bool:
        """Note in the draft what the ledger knows of a particle; return whether it knows it."""
        place = self._ledger.find_particle(stack_id, identity[1]) if stack_id else None
        if place is None:
            return False
        batch_id, row = draft.place[identity] = place
        if batch_id not in batches:
            batches[batch_id] = self._ledger.declared(batch_id)
        batch = batches[batch_id]
        declared = batch.declared[8 * row : 8 * row + 8]
        draft.first[identity] = _First(batch.kind, declared, batch.halves[row], batch.star_id)
        return True

    def _refer(self, rows: ReadyRows, k: int, row: _First, draft: _Draft) -> None:
        """Train on an aligned row of a particle that landed before without a pose, unless it contradicts it."""
        identity = rows.identities[k]
        first = draft.first[identity]
        if row.declared != first.declared:
            draft.conflicts.append((identity, OTHER_CTF))
        elif row.half != first.half:
            draft.conflicts.append((identity, OTHER_HALF))
        else:
            draft.references.add(identity)
            draft.new[REFERENCE].append((rows, k))

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
        kept = [(rows, k) for rows, k in draft.new[REFERENCE] if rows.identities[k] not in others]
        draft.new[REFERENCE] = kept

    def _note_star(self, record: StarRecord) -> StarRecord:
        self._ledger.put_star(record)
        noted = self._ledger.star(record.path)
        assert noted is not None
        return noted

    def _note_batch(
        self,
        accepted: AcceptedRows,
        table: ParticleTable,
        identities: list[Identity],
        star_id: int,
        landed: float,
        draft: _Draft,
    ) -> None:
        halves = bytes(draft.first[identity].half for identity in identities)
        self._ledger.execute(
            "INSERT INTO batches VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                accepted.batch_id,
                star_id,
                len(table),
                accepted.kind,
                halves.count(0),
                halves.count(1),
                landed,
                self._boot,
                int(self._has_model()),
                int(accepted.kind == REFERENCE),
                b"".join(draft.first[identity].declared for identity in identities),
                halves,
            ),
        )
        stack_ids = {
            stack: self._ledger.stack_id(stack, signature_of(Path(stack)))
            for stack in sorted({stack for stack, _ in identities})
        }
        particles = "reference_particles" if accepted.kind == REFERENCE else "particles"
        self._ledger.executemany(
            f"INSERT INTO {particles} VALUES(?, ?, ?, ?)",
            [(stack_ids[stack], index, accepted.batch_id, k) for k, (stack, index) in enumerate(identities)],
        )

    def _note_rest(self, draft: _Draft, star: LandedStar) -> None:
        if draft.duplicates:
            self._ledger.count("duplicates", draft.duplicates)
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


def _stacks(ready: list[ReadyRows]) -> list[str]:
    return sorted({stack for rows in ready for stack, _ in rows.identities})


def _batch_table(
    new: list[tuple[ReadyRows, int]], first: dict[Identity, _First]
) -> tuple[ParticleTable, list[Identity]]:
    tables, identities = [], []
    places: dict[int, tuple[ReadyRows, list[int]]] = {}
    for rows, k in new:
        places.setdefault(id(rows), (rows, []))[1].append(k)
    for rows, picked in places.values():
        table = rows.part.table.select(picked)
        chosen = [rows.identities[k] for k in picked]
        half = [str(half_set_to_random_subset(first[identity].half)) for identity in chosen]
        stacks = [quote(stack) for stack, _ in chosen]
        tables.append(table.with_columns({"rlnRandomSubset": half, STACK_LABEL: stacks}))
        identities.extend(chosen)
    table = joined(tables)
    return replace(table, optics=tuple(map(_named, table.optics))), identities


def _named(group: OpticsGroup) -> OpticsGroup:
    """Return the group with a name; one that has none is named by its content, in whatever star it stands."""
    if group.text("rlnOpticsGroupName") is not None:
        return group
    digest = hashlib.sha256(json.dumps(sorted(group.values)).encode()).hexdigest()[:8]
    return OpticsGroup((("rlnOpticsGroupName", f"optics_{digest}"), *group.values))


def declared_hashes(table: ParticleTable) -> list[bytes]:
    """Return 8 bytes a row over what declares a particle: micrograph, CTF and optics, as numbers and not as text."""
    optics = [
        tuple(group.number(label, default) for label, default in _DECLARED_OPTICS.items()) for group in table.optics
    ]
    numbers = np.stack([table.numbers(label, default) for label, default in _DECLARED_NUMBERS.items()], axis=1)
    names = table.column("rlnMicrographName") if "rlnMicrographName" in table else [""] * len(table)
    rows = zip(names, numbers.tolist(), table.optics_index.tolist(), strict=True)
    return [
        hashlib.blake2b(json.dumps([name, row, optics[k]]).encode(), digest_size=8).digest() for name, row, k in rows
    ]
