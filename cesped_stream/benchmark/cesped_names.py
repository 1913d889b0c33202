"""`ParticlesDataset` under the names that `cesped`'s data set has for the same: code written for it goes on working."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from cesped_stream.benchmark.dataset_source import add_half, local_halves, usable_halves
from cesped_stream.benchmark.saved_predictions import AnglesFormat


class PoseTaker(Protocol):
    """What takes predicted poses and saves them."""

    def update_poses(
        self, ids: Sequence[str], angles: Any, shifts: Any, confidence: Any, angles_format: AnglesFormat
    ) -> None:
        """Write predictions over the poses of the particles `ids`."""

    def save_poses(self, path: str | os.PathLike[str], *, overwrite: bool) -> None:
        """Write the star with its updates."""


class CespedNames:
    """`cesped`'s names of what a data set does."""

    def updateMd(
        self: PoseTaker,
        ids: Sequence[str],
        angles: Any = None,
        shifts: Any = None,
        confidence: Any = None,
        angles_format: AnglesFormat = "rotmat",
        shifts_format: Literal["Angst"] = "Angst",
    ) -> None:
        """`update_poses` under `cesped`'s name."""
        if shifts_format != "Angst":
            raise ValueError(f"shifts_format {shifts_format!r}; it can only be Angst")
        self.update_poses(ids, angles, shifts, confidence, angles_format)

    def saveMd(self: PoseTaker, fname: str | os.PathLike[str], overwrite: bool = True) -> None:
        """`save_poses` under `cesped`'s name."""
        self.save_poses(fname, overwrite=overwrite)

    @classmethod
    def getCESPEDEntries(cls) -> list[tuple[str, int]]:
        """`published_entries` under `cesped`'s name, DEMO first where there is no network to download them by."""
        return usable_halves()

    @classmethod
    def getLocallyAvailableEntries(cls, benchmarkDir: str | os.PathLike[str] | None = None) -> list[tuple[str, int]]:
        """`local_entries` under `cesped`'s name."""
        return local_halves(benchmarkDir)

    @classmethod
    def addNewEntryLocally(
        cls,
        starFname: str | os.PathLike[str],
        particlesRootDir: str | os.PathLike[str],
        newTargetName: str | os.PathLike[str],
        halfset: Literal[0, 1],
        symmetry: str,
        benchmarkDir: str | os.PathLike[str] | None = None,
    ) -> None:
        """`add_entry` for one half-set under `cesped`'s name: the images are copied, as there."""
        add_half(Path(starFname), Path(particlesRootDir), os.fspath(newTargetName), halfset, symmetry, benchmarkDir)
