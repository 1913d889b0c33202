"""Names of point groups, as RELION's --sym takes them: the one rule of which are known and what is said of the rest."""

import re
from typing import Final

from cesped_stream.errors import InvalidSettingsError

_KNOWN: Final = re.compile(r"[CD][1-9][0-9]{0,2}|T|O|I[1-4]?")
_MIRRORED: Final = re.compile(r"(?:(C[1-9][0-9]{0,2}|D[1-9][0-9]{0,2})[VH]|([TO])[DH]|(I)[1-5]?H|C([IS]))")
"""RELION's other names: groups with mirror planes or inversion; captured is the group of their rotations."""

KNOWN_TEXT: Final = (
    "C1 (none), Cn (n-fold about z: C4), Dn (D2), T, O, I (icosahedral, RELION's I2) or I1 to I4, as RELION's --sym"
)


def point_group_name(said: str) -> str:
    """Return RELION's name of a point group of rotations, in capitals; small letters and outer spaces are RELION's or
    a shell's. InvalidSettingsError says of any other what it is, or what may be meant."""
    name = said.strip().upper()
    if _KNOWN.fullmatch(name):
        return name
    raise InvalidSettingsError(f"{said!r} {_why_not(name)}; give {KNOWN_TEXT}")


def _why_not(name: str) -> str:
    if mirrored := _MIRRORED.fullmatch(name):
        of_rotations = mirrored[1] or mirrored[2] or mirrored[3] or "C1"
        return f"has mirror planes or inversion, which no protein has: did you mean {of_rotations}?"
    if re.fullmatch(r"[1-9][0-9]{0,2}", name):
        return f"is a number: did you mean C{name}, or D{name}?"
    if re.fullmatch(r"[CD]0*", name):
        return f"has no order: no symmetry is C1, a two-fold axis {name[0]}2"
    if re.fullmatch(r"[CD][0-9]+", name):
        return "has an order that is not from 1 to 999"
    if name.startswith("I") and name[1:].isdigit():
        return "is no icosahedral setting that RELION turns maps to"
    return "is no point group"
