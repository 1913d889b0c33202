"""Each value of the CTF in one table: RELION takes the particle's, else its optics group's, and stars have either."""

import hashlib
from collections.abc import Sequence

from cesped_stream.errors import InvalidStarError
from cesped_stream.particles.table import CTF_OF_OPTICS, CTF_OF_PARTICLES, OpticsGroup

_RELIONS_DEFAULTS = {"rlnPhaseShift": "0.000000", "rlnCtfBfactor": "0.000000", "rlnCtfScalefactor": "1.000000"}


def ctf_in_its_place(
    where: str, columns: dict[str, Sequence[str]], optics: tuple[OpticsGroup, ...], index: list[int]
) -> tuple[tuple[OpticsGroup, ...], list[int]]:
    """Bring defocus, phase shift, B-factor and scale of the optics groups into `columns` where these lack them, and
    voltage, Cs and contrast of the rows into the groups, which may become more.

    Readers, joined stars and RELION then find each value where they look for it. Raises InvalidStarError where a
    defocus is in some of the groups only.
    """
    for label in CTF_OF_PARTICLES:
        if label not in columns and any(group.text(label) is not None for group in optics):
            texts = [_text(where, group, label) for group in optics]
            columns[label] = [texts[k] for k in index]
    labels = [label for label in CTF_OF_OPTICS if label in columns]
    if not labels:
        return optics, index
    place: dict[OpticsGroup, int] = {}
    known: dict[tuple[object, ...], int] = {}
    moved = []
    for own in zip(index, *(columns.pop(label) for label in labels), strict=True):
        if own not in known:
            group = _with_values(optics[own[0]], dict(zip(labels, own[1:], strict=True)))
            known[own] = place.setdefault(group, len(place))
        moved.append(known[own])
    return tuple(place) or optics, moved


def _text(where: str, group: OpticsGroup, label: str) -> str:
    text = group.text(label)
    if text is None:
        text = _RELIONS_DEFAULTS.get(label)
    if text is None:
        raise InvalidStarError(f"{where}: data_optics, group {group.name!r} has no {label}, nor have the rows; add it")
    return text


def _with_values(group: OpticsGroup, values: dict[str, str]) -> OpticsGroup:
    """Return the group with these values; it keeps its name where they are those that it has."""
    other = {a: b for a, b in values.items() if (own := group.text(a)) is None or float(own) != float(b)}
    if not other:
        return group
    digest = hashlib.sha256(repr(sorted(other.items())).encode()).hexdigest()[:8]
    named = {"rlnOpticsGroupName": f"{group.name}_{digest}"}
    return OpticsGroup(tuple((dict(group.values) | named | other).items()))
