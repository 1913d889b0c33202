"""Why an image gets no pose."""

from enum import IntEnum


class ImageFlag(IntEnum):
    """One per image; everything but OK keeps the row and withholds the pose."""

    OK = 0
    NAN = 1
    INF = 2
    CONSTANT = 3
    UNREADABLE = 4

    @property
    def status(self) -> str:
        """The text of `cestreamStatus`: "nan", "inf", "constant", "unreadable"; "ok" is never written to a star."""
        return self.name.lower()
