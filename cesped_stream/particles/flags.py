"""Why an image gets no pose, and what a pose's search met."""

from enum import IntEnum, IntFlag


class ImageFlag(IntEnum):
    """One per image; everything but OK keeps the row and withholds the pose."""

    OK = 0
    NAN = 1
    INF = 2
    CONSTANT = 3
    UNREADABLE = 4
    IN_REFERENCE = 5
    """The particle is part of the reference that would score it; nothing is wrong with its image."""

    @property
    def status(self) -> str:
        """The text of `cestreamStatus`: "nan", "inf", "constant", "unreadable", "in_reference"; "ok" is in no star."""
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
