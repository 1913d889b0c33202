"""Why an image gets no pose, and what a pose's search met."""

from collections import Counter
from collections.abc import Sequence
from enum import IntEnum, IntFlag

import numpy as np
from numpy.typing import NDArray


class ImageFlag(IntEnum):
    """One per image; everything but OK keeps the row and withholds the pose."""

    OK = 0
    NAN = 1
    INF = 2
    CONSTANT = 3
    UNREADABLE = 4
    IN_REFERENCE = 5
    """The particle is part of the reference that would score it; nothing is wrong with its image."""
    NO_CTF = 6
    """No CTF can be computed of its row: a value is no number, the voltage is not above 0, the contrast above 1."""
    FAILED = 7
    """Its computation ended with an error, which the program says beside it."""

    @property
    def status(self) -> str:
        """The text of `cestreamStatus`: "nan", "inf", "no_ctf" and so on; "ok" is in no star."""
        return self.name.lower()


class Clipped(IntFlag):
    """Which searches of a refinement ended at their edge: the pose may lie beyond."""

    NO = 0
    ANGLE = 1
    SHIFT = 2
    BOTH = 3

    @property
    def text(self) -> str:
        """What `cestreamClipped` says: "no", "angle", "shift" or "both"."""
        return str(self.name).lower()


def flags_in_words(flags: NDArray[np.uint8], images: Sequence[str]) -> str:
    """Return how many rows are flagged as what, and the first one's image name: "" where none is."""
    flagged = np.flatnonzero(flags)
    if not len(flagged):
        return ""
    counts = Counter(ImageFlag(int(flag)).status for flag in flags[flagged])
    kinds = ", ".join(f"{many} {status}" for status, many in sorted(counts.items()))
    return f"{len(flagged)} of {len(flags)} rows are not used ({kinds}), the first is {images[flagged[0]]}"
