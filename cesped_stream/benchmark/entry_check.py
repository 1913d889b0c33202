"""Whether the star, stack and info of a half-set belong together."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cesped_stream.errors import CespedStreamError, InvalidEntryError, InvalidSettingsError, InvalidStarError
from cesped_stream.particles.stacks import StackHeader, StackReader, check_names_of_one_stack, parse_image_name
from cesped_stream.particles.star import iter_star
from cesped_stream.particles.table import ParticleTable
from cesped_stream.point_group import point_group_name

StackOf = Callable[[str], Path]
"""Gives the file of a stack by the name that a star has for it; CespedStreamError where it cannot be used."""

_MOST_FINDINGS = 20


class Severity(StrEnum):
    """What a finding means: `error`: unusable; `warning`: look at it; `note`: worth knowing."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One thing that was found, in a sentence."""

    severity: Severity
    text: str


@dataclass
class HalfCheck:
    """What a check of one half-set counted and found."""

    half_set: int
    num_rows: int = 0
    num_with_poses: int = 0
    num_images: int = 0
    box_sizes: set[int] = field(default_factory=set)
    pixel_sizes_angstrom: set[float] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no finding is an error."""
        return not self.errors

    @property
    def errors(self) -> list[str]:
        """The texts of the findings that are errors."""
        return [finding.text for finding in self.findings if finding.severity is Severity.ERROR]

    def found(self, severity: Severity, text: str) -> None:
        """Keep a finding: the same text once, and no more of one severity than someone would read."""
        finding = Finding(severity, text)
        same = sum(known.severity is severity for known in self.findings)
        if finding not in self.findings and same < _MOST_FINDINGS:
            self.findings.append(finding)

    def raise_errors(self) -> None:
        """Raise InvalidEntryError with the first error and how many more there are."""
        if self.errors:
            more = f" (and {len(self.errors) - 1} more)" if len(self.errors) > 1 else ""
            raise InvalidEntryError(f"{self.errors[0]}{more}")


def check_half(star: Path, info: Path, stack_of: StackOf, half_set: int, reader: StackReader) -> HalfCheck:
    """Check a half-set's star against its stacks, and its info file; memory does not grow with the rows but for one
    byte an image.

    Errors: a star or info that cannot be read; a row whose image is not there, stands twice, or is of another box
    than its optics group says; a stack of another size than its header says. Warnings: no poses, another pixel size in
    the stack's header, rows of the other half-set. Notes: images that no row names. Nothing is raised for the data.
    """
    check = HalfCheck(half_set)
    _check_info(info, check)
    rows = _Rows(check, stack_of, reader)
    try:
        for table in iter_star(star):
            rows.add(table)
    except CespedStreamError as error:
        check.found(Severity.ERROR, str(error))
    rows.finish()
    return check


def read_symmetry(info: Path) -> str:
    """Return the point group that an info file states; InvalidStarError where it states none."""
    try:
        symmetry = point_group_name(str(json.loads(info.read_bytes())["symmetry"]))
    except OSError as error:
        raise InvalidStarError(f'{info}: {error.strerror}; it should read {{"symmetry": "C1"}}') from None
    except InvalidSettingsError as error:
        raise InvalidStarError(f"{info}: symmetry: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidStarError(f'{info}: {error!r}; it should read {{"symmetry": "C1"}}') from None
    return symmetry


def _check_info(info: Path, check: HalfCheck) -> None:
    try:
        read_symmetry(info)
    except InvalidStarError as error:
        check.found(Severity.ERROR, str(error))


@dataclass
class _Stack:
    path: Path
    header: StackHeader
    named: NDArray[np.bool_]


class _Rows:
    """Rows so far against the stacks that they name."""

    def __init__(self, check: HalfCheck, stack_of: StackOf, reader: StackReader) -> None:
        self._check = check
        self._stack_of = stack_of
        self._reader = reader
        self._stacks: dict[str, _Stack | None] = {}

    def add(self, table: ParticleTable) -> None:
        check = self._check
        check.num_rows += len(table)
        check.num_with_poses += int(table.has_poses().sum())
        check.pixel_sizes_angstrom.update(group.pixel_size_angstrom for group in table.optics)
        texts = table.column("rlnImageName")
        names = [parse_image_name(text) for text in texts]
        rows_of: dict[str, list[int]] = {}
        for row, (_, name) in enumerate(names):
            rows_of.setdefault(name, []).append(row)
        for name, rows in rows_of.items():
            stack = self._opened(name)
            if stack is not None:
                self._check_names(stack, (texts[row] for row in rows))
                index = np.array([names[row][0] for row in rows], np.int64)
                self._check_images(table, np.array(rows, np.int64), index, stack)
        self._check_subset(table)

    def finish(self) -> None:
        check = self._check
        stacks = [stack for stack in self._stacks.values() if stack is not None]
        check.num_images = sum(stack.header.num_images for stack in stacks)
        if check.num_rows == 0 and not check.errors:
            check.found(Severity.ERROR, f"half-set {check.half_set}: no rows")
        if check.num_with_poses < check.num_rows:
            without = check.num_rows - check.num_with_poses
            check.found(
                Severity.WARNING,
                f"half-set {check.half_set}: {without:,} of {check.num_rows:,} rows have no pose; rlnAngle* are needed",
            )
        unnamed = sum(int((~stack.named).sum()) for stack in stacks)
        if unnamed:
            check.found(
                Severity.NOTE, f"half-set {check.half_set}: {unnamed:,} of {check.num_images:,} images are in no row"
            )

    def _opened(self, name: str) -> _Stack | None:
        if name not in self._stacks:
            self._stacks[name] = None
            try:
                path = self._stack_of(name)
                header = self._reader.header(path)
            except CespedStreamError as error:
                self._check.found(Severity.ERROR, str(error))
                return None
            self._stacks[name] = _Stack(path, header, np.zeros(header.num_images, np.bool_))
            self._check.box_sizes.add(header.box_size)
            if header.file_size != header.expected_size:
                self._check.found(
                    Severity.ERROR,
                    f"{path}: {header.file_size:,} bytes, its header means {header.expected_size:,} "
                    f"({header.num_images:,} images of {header.box_size} px); is the copy finished?",
                )
        return self._stacks[name]

    def _check_names(self, stack: _Stack, texts: Iterable[str]) -> None:
        try:
            check_names_of_one_stack(stack.path, stack.header.num_images, texts)
        except CespedStreamError as error:
            self._check.found(Severity.ERROR, str(error))

    def _check_images(
        self, table: ParticleTable, rows: NDArray[np.int64], index: NDArray[np.int64], stack: _Stack
    ) -> None:
        header, where = stack.header, table.source
        if index.max() >= header.num_images:
            first = int(np.argmax(index >= header.num_images))
            self._check.found(
                Severity.ERROR,
                f"{stack.path}: {header.num_images:,} images, {where} row {table.first_row + int(rows[first]) + 1} "
                f"asks for {int(index[first]) + 1:,}",
            )
        inside = index[index < header.num_images]
        seen, counts = np.unique(inside, return_counts=True)
        twice = seen[stack.named[seen] | (counts > 1)]
        if len(twice):
            self._check.found(Severity.ERROR, f"{where}: image {int(twice[0]) + 1} of {stack.path.name} stands twice")
        stack.named[seen] = True
        for k in np.unique(table.optics_index[rows]):
            self._check_optics(table, int(k), stack)

    def _check_optics(self, table: ParticleTable, k: int, stack: _Stack) -> None:
        group, header = table.optics[k], stack.header
        box = group.number("rlnImageSize", header.box_size)
        if box != header.box_size:
            self._check.found(
                Severity.ERROR,
                f"{table.source}: optics group {group.name!r} says {box:g} px, {stack.path.name} has {header.box_size}",
            )
        stated, pixel = group.pixel_size_angstrom, header.pixel_size_angstrom
        if pixel and abs(pixel / stated - 1) > 0.01:
            self._check.found(
                Severity.WARNING,
                f"{stack.path.name}: {pixel:.4g} A/px in its header, {stated:.4g} in the star, which counts",
            )

    def _check_subset(self, table: ParticleTable) -> None:
        if "rlnRandomSubset" not in table:
            return
        others = int((table.half_sets() != self._check.half_set).sum())
        if others:
            self._check.found(
                Severity.WARNING,
                f"{table.source}: rows of the other half-set, by their rlnRandomSubset",
            )
