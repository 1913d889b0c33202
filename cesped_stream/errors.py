"""Errors of the library, named by whether a retry can help.

A message says what, where, got and remedy: "stack.mrcs: 120 images, row 7 asks for 121; is the copy finished?"
"""


class CespedStreamError(Exception):
    """Anything wrong with data, files or settings that a user can act on."""


class TransientError(CespedStreamError):
    """May succeed when tried again: a file still being written, a mount away, a full disk."""


class NotSettledError(TransientError):
    """A star or stack is still being written: an open last line, fewer images than its rows ask for."""


class UnreachableFileError(TransientError):
    """A file cannot be opened now: missing, permission denied, vanished mount."""


class UnreachableHostError(TransientError):
    """A server cannot be reached, does not answer in time, or says that it is too busy."""


class BusyEntryError(TransientError):
    """Another process is at work on this folder now: an entry that is downloaded or made, an output."""


class FullDiskError(TransientError):
    """There is, or was while writing, not enough free disk."""


class PermanentError(CespedStreamError):
    """Stays wrong until someone changes the input."""


class InvalidStarError(PermanentError):
    """A star file that is not what RELION writes: columns, numbers or tables are wrong."""


class InvalidStackError(PermanentError):
    """A particle stack that cannot be read: header, mode, shape or size are wrong."""


class ForbiddenPathError(PermanentError):
    """A path that leaves the allowed roots, or is no regular file."""


class InvalidCheckpointError(PermanentError):
    """A checkpoint whose hash, contents or half-set are not what its manifest says or the caller may use."""


class InvalidSettingsError(PermanentError):
    """A setting that is unknown, out of range or has no effect."""


class InvalidRecordError(PermanentError):
    """A record on a server, or a file of it, that is not what its listing says."""


class InvalidEntryError(PermanentError):
    """An entry's folder whose files do not belong together, or that others' files stand in the way of."""


class ExternalProgramError(PermanentError):
    """Another program (RELION) could not be started, or ended with an error."""
