"""Which stars below the landing folder are inputs, by their names: what is left is never opened. docs/landing.md."""

import fnmatch
import os
import re
from enum import StrEnum
from pathlib import Path

from .settings import LandingSettings

INTERMEDIATE_STAR = re.compile(r"_it\d{3}(_half[12])?_data\.star$")
"""What RELION writes after each iteration of a refinement or classification: poses on their way."""
TRASH = "Trash"
"""Where RELION puts the jobs that were deleted."""


class LeftByName(StrEnum):
    """Why a star is left without a look at its content; the value names it in a sentence."""

    INTERMEDIATE = "of RELION's iterations"
    TRASH = "in RELION's Trash"
    NOT_NAMED = "not named by landing.inputs"


class InputRule:
    """Sorts stars by their path as it is, or below the landing folder."""

    def __init__(self, settings: LandingSettings) -> None:
        self._root = os.path.abspath(settings.folder)
        self._aligned = settings.aligned
        self._inputs = settings.inputs

    def is_named_aligned(self, star: Path | str) -> bool:
        """Return whether the setting `aligned` matches a star's path."""
        return self._matches(star, self._aligned)

    @property
    def names_aligned(self) -> bool:
        """The setting `aligned` says which stars are aligned, not their angles."""
        return bool(self._aligned)

    def left_by_name(self, star: Path | str) -> LeftByName | None:
        """Return why a star is left, None for one that is looked into."""
        name = str(star)
        if self.is_named_aligned(name):
            return None
        if INTERMEDIATE_STAR.search(name):
            return LeftByName.INTERMEDIATE
        if TRASH in os.path.relpath(name, self._root).split(os.sep)[:-1]:
            return LeftByName.TRASH
        if self._inputs and not self._matches(name, self._inputs):
            return LeftByName.NOT_NAMED
        return None

    def _matches(self, star: Path | str, pattern: str) -> bool:
        if not pattern:
            return False
        return any(fnmatch.fnmatchcase(name, pattern) for name in (os.path.relpath(star, self._root), str(star)))
