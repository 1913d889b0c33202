"""What a session would take of a landing folder and what it would leave, and why, before anything starts.

The same rules as the coordinator's: names by `InputRule`, kinds by `star_kind`, rows by the reader, stacks by
`StackCheck`. Nothing is written.
"""

from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cesped_stream.errors import CespedStreamError
from cesped_stream.particles.own_rows import PoseSource, pose_sources
from cesped_stream.particles.star import iter_star
from cesped_stream.particles.star_kind import StarKind, star_kind
from cesped_stream.particles.table import ParticleTable

from .accepting import Part
from .inputs import InputRule
from .landing_tree import LandingTree
from .settings import LandingSettings
from .stack_check import StackCheck, Verdict
from .watcher import LandedStar

HALVES_GIVEN: Final = "rlnRandomSubset"


class StarVerdict(StrEnum):
    """What would become of a star; LEFT ones hold no particles or are left for their name."""

    TAKEN = "taken"
    PARTLY = "taken in part"
    REFUSED = "refused"
    LEFT = "left"


@dataclass(frozen=True)
class StarFinding:
    """One star, with counts of rows."""

    path: str
    verdict: StarVerdict
    why: str = ""
    """Why it is left, or its first problem."""
    rows: int = 0
    aligned: int = 0
    own: int = 0
    """Rows whose pose is a prediction of this program: particles, never aligned ones."""
    halves_given: bool = False
    half_sets: tuple[int, int] = (0, 0)
    stacks: int = 0
    stacks_found: int = 0
    refused: int = 0
    waiting: int = 0
    """Rows whose image is not there yet."""
    boxes: tuple[int, ...] = ()


@dataclass(frozen=True)
class LandingFindings:
    """What a session would do with a landing folder."""

    folder: str
    stars: tuple[StarFinding, ...]
    particles: int
    """Different ones with their image: the same stack and index is the same particle, in whatever star."""
    aligned_per_half: tuple[int, int]
    warnings: tuple[str, ...]
    verdict: str

    def of(self, *verdicts: StarVerdict) -> list[StarFinding]:
        """Return the stars with one of these verdicts."""
        return [star for star in self.stars if star.verdict in verdicts]

    @property
    def left(self) -> Counter[str]:
        """Number of stars that are left, by what they are."""
        return Counter(star.why for star in self.of(StarVerdict.LEFT))

    @property
    def is_well(self) -> bool:
        """Particles would be taken, and no star or row would be refused."""
        return bool(self.particles) and not self.of(StarVerdict.REFUSED, StarVerdict.PARTLY)


class _SettledNow:
    """Takes every stack as it is now."""

    def stack_is_settled(self, stack: Path, now: float) -> bool:
        del now
        return stack.is_file()


@dataclass
class _Totals:
    particles: "array[int]" = field(default_factory=lambda: array("q"))
    """Hashes of the particles' identities, of this process only."""
    aligned: tuple["array[int]", "array[int]"] = field(default_factory=lambda: (array("q"), array("q")))


def examine_landing(
    settings: LandingSettings, *, min_aligned_per_half: int = 1000, on_star: Callable[[int], None] = lambda many: None
) -> LandingFindings:
    """Return what a session with these settings would take and leave; `on_star` is told how many stars are done."""
    tree, rule = LandingTree(settings), InputRule(settings)
    check = StackCheck(settings, _SettledNow())
    totals, stars = _Totals(), []
    for name in tree.files(0.0):
        if not name.endswith(".star"):
            continue
        left = rule.left_by_name(name)
        stars.append(StarFinding(name, StarVerdict.LEFT, left) if left else _look_into(Path(name), rule, check, totals))
        on_star(len(stars))
    halves = (_distinct(totals.aligned[0]), _distinct(totals.aligned[1]))
    findings = LandingFindings(
        str(settings.folder), tuple(stars), _distinct(totals.particles), halves, tuple(_warnings(stars, tree)), ""
    )
    return replace(findings, verdict=_verdict(findings, min_aligned_per_half))


def _look_into(path: Path, rule: InputRule, check: StackCheck, totals: _Totals) -> StarFinding:
    finding = StarFinding(str(path), StarVerdict.TAKEN)
    try:
        kind = star_kind(path)
        if kind is not StarKind.PARTICLES:
            return replace(finding, verdict=StarVerdict.LEFT, why=str(kind))
        reading = _StarReading(path, rule, check, totals)
        for table in iter_star(path):
            reading.read(table)
    except (CespedStreamError, ValueError) as error:
        return replace(finding, verdict=StarVerdict.REFUSED, why=str(error))
    return reading.finding()


class _StarReading:
    """Adds up the tables of one star."""

    def __init__(self, path: Path, rule: InputRule, check: StackCheck, totals: _Totals) -> None:
        self._star = LandedStar(path, (0, 0, 0), 0.0, True)
        self._rule = rule
        self._check = check
        self._totals = totals
        self._stacks: dict[str, bool] = {}
        self._boxes: set[int] = set()
        self._is_aligned = rule.is_named_aligned(path)
        self._found = StarFinding(str(path), StarVerdict.TAKEN)

    def read(self, table: ParticleTable) -> None:
        """Judge the rows of one table."""
        table.ctf_parameters()
        part = Part(table, tuple(range(table.first_row, table.first_row + len(table))), 0.0, False)
        verdict = self._check.judge(part, self._star, 0.0)
        sources = pose_sources(table)
        aligned = self._aligned(table, sources)
        halves = table.half_sets()
        for place, identity in verdict.identities.items():
            self._totals.particles.append(hash(identity))
            if aligned[place]:
                self._totals.aligned[halves[place]].append(hash(identity))
        self._note_stacks(table, verdict)
        found, subsets = self._found, np.bincount(halves, minlength=2)
        self._found = replace(
            found,
            rows=found.rows + len(table),
            aligned=found.aligned + int(aligned.sum()),
            own=found.own + int((sources == PoseSource.OWN).sum()),
            halves_given=HALVES_GIVEN in table,
            half_sets=(found.half_sets[0] + int(subsets[0]), found.half_sets[1] + int(subsets[1])),
            refused=found.refused + len(verdict.refused),
            waiting=found.waiting + len(verdict.waiting),
            why=found.why or _first_problem(part, verdict),
        )

    def _aligned(self, table: ParticleTable, sources: NDArray[np.int8]) -> NDArray[np.bool_]:
        posed = table.has_poses() & (sources != PoseSource.OWN)
        if not self._rule.names_aligned and not self._is_aligned and posed.any():
            self._is_aligned = len(np.unique(table.numbers("rlnAngleTilt")[posed])) > 1
        return posed if self._is_aligned else np.zeros(len(table), np.bool_)

    def _note_stacks(self, table: ParticleTable, verdict: Verdict) -> None:
        names = [image.rpartition("@")[2] for image in table.column("rlnImageName")]
        for place in verdict.identities:
            self._stacks[names[place]] = True
        for name in names:
            self._stacks.setdefault(name, False)
        self._boxes.update(verdict.box_sizes.values())

    def finding(self) -> StarFinding:
        """Return what there is to say of the star."""
        found, lost = self._found, self._found.refused + self._found.waiting
        verdict = StarVerdict.TAKEN if not lost else StarVerdict.REFUSED if lost == found.rows else StarVerdict.PARTLY
        return replace(
            found,
            verdict=verdict,
            stacks=len(self._stacks),
            stacks_found=sum(self._stacks.values()),
            boxes=tuple(sorted(self._boxes)),
        )


def _first_problem(part: Part, verdict: Verdict) -> str:
    problems: list[tuple[int, str]] = sorted(verdict.refused + verdict.waiting)
    return f"row {part.numbers[problems[0][0]] + 1}: {problems[0][1]}" if problems else ""


def _distinct(hashes: "array[int]") -> int:
    return len(np.unique(np.frombuffer(hashes, np.int64))) if hashes else 0


def _warnings(stars: list[StarFinding], tree: LandingTree) -> list[str]:
    """Return what a microscopist should know of stars that would be taken."""
    warnings = [*tree.linked_folders, *([tree.problem] if tree.problem else [])]
    taken = [star for star in stars if star.verdict in (StarVerdict.TAKEN, StarVerdict.PARTLY) and star.rows]
    boxes: dict[tuple[int, ...], StarFinding] = {}
    for star in taken:
        boxes.setdefault(star.boxes, star)
    if len(boxes) > 1:
        such = ", ".join(f"{star.path} ({'/'.join(map(str, box))} px)" for box, star in list(boxes.items())[:3])
        warnings.append(
            f"particles of {len(boxes)} box sizes: {such}; where one is extracted again from the same micrographs, the "
            "same particle counts twice: name the stars to take in landing.inputs"
        )
    for star in taken:
        if star.halves_given and min(star.half_sets) == 0 and star.rows > 1:
            warnings.append(
                f"{star.path}: {HALVES_GIVEN} has one value in all {star.rows:,} rows, so one half-set gets nothing; "
                "drop the column, or give both"
            )
        if star.own:
            warnings.append(f"{star.path}: {star.own:,} rows have poses by cesped-stream: particles, not aligned ones")
        if star.aligned and not star.halves_given:
            warnings.append(
                f"{star.path}: aligned rows without {HALVES_GIVEN}, so how independent its half-sets are is unknown"
            )
    return warnings


def _verdict(findings: LandingFindings, least: int) -> str:
    taken = findings.of(StarVerdict.TAKEN, StarVerdict.PARTLY)
    bad = [star for star in findings.stars if star.verdict in (StarVerdict.REFUSED, StarVerdict.PARTLY)]
    if not findings.particles:
        if bad:
            return (
                f"nothing would be taken: {_stars(len(bad))} refused or waiting; the first: {bad[0].path}: {bad[0].why}"
            )
        return (
            f"nothing would be taken: no star with particles (rlnImageName) is in {findings.folder} yet; "
            f"{_stars(len(findings.stars))} of other things"
        )
    text = f"{findings.particles:,} particles of {_stars(len(taken))} would be taken"
    if bad:
        lost = sum(star.refused + star.waiting for star in bad)
        whole = len(findings.of(StarVerdict.REFUSED))
        text += f", {lost:,} rows are refused or wait for their stack"
        text += f", {_stars(whole)} as a whole" if whole else ""
    halves = findings.aligned_per_half
    if not any(halves):
        return (
            f"{text}; none is aligned: they get poses when aligned rows land (a Refine3D's run_data.star), or from "
            "a map given with --reference"
        )
    counts = f"{halves[0]:,} + {halves[1]:,} aligned a half-set, min_aligned_per_half is {least:,}"
    if min(halves) < least:
        return f"{text}; {counts}: references wait for more aligned rows, or for a lower min_aligned_per_half"
    return f"{text}; {counts}: references can be made at once"


def _stars(many: int) -> str:
    return "1 star" if many == 1 else f"{many:,} stars"
