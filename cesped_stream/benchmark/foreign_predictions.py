"""Predictions whose image names are those of a truth, and which are another entry's all the same."""

import re
from pathlib import PurePosixPath
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cesped_stream.errors import InvalidStarError
from cesped_stream.particles.table import ParticleTable

MICROGRAPH_LABEL: Final = "rlnMicrographName"
DEFOCUS_LABEL: Final = "rlnDefocusU"
IDENTITY_LABELS: Final = (MICROGRAPH_LABEL, DEFOCUS_LABEL)
"""What a prediction may carry along of the particle that it is of; a star without them is not compared."""
MAX_DEFOCUS_CHANGE_ANGSTROM: Final = 1000.0
"""CTF refinement moves most particles by some hundred; particles of two entries lie thousands apart."""

_IMPORT_NUMBER: Final = re.compile(r"^\d{15,}_")


def check_same_particles(truth: ParticleTable, predicted: ParticleTable) -> None:
    """Raise InvalidStarError where row k of `predicted` is not the particle of row k of `truth`.

    Stacks of two entries often have one name (`particles_0.mrcs`). Compared is what both tables have: the micrographs,
    by file name, which may all have been given other names but not be mixed among each other; and the defocus, which
    may have been refined: it is another's where more than half of the rows are more than 1000 A off. The pixel size is
    not compared: predictions may come from a rescaled copy of the images.
    """
    others = _of_other_micrographs(truth, predicted) | _of_other_defocus(truth, predicted)
    if count := int(others.sum()):
        row = int(np.flatnonzero(others)[0])
        raise InvalidStarError(
            f"{predicted.source or 'predictions'}: {count:,} of {len(truth):,} rows are of another micrograph or "
            f"defocus than the images of that name have in {truth.source or 'the truth'}: {_words(predicted, row)} "
            f"where the truth has {_words(truth, row)}; predictions of another entry?"
        )


def _of_other_micrographs(truth: ParticleTable, predicted: ParticleTable) -> NDArray[np.bool_]:
    same = np.zeros(len(truth), np.bool_)
    if MICROGRAPH_LABEL not in truth or MICROGRAPH_LABEL not in predicted:
        return same
    pairs = list(zip(_micrographs(truth), _micrographs(predicted), strict=True))
    other = np.array([ours != theirs for ours, theirs in pairs], np.bool_)
    distinct = set(pairs)
    renamed = len(distinct) == len({ours for ours, _ in distinct}) == len({theirs for _, theirs in distinct})
    return same if renamed else other


def _of_other_defocus(truth: ParticleTable, predicted: ParticleTable) -> NDArray[np.bool_]:
    none = np.zeros(len(truth), np.bool_)
    if DEFOCUS_LABEL not in truth or DEFOCUS_LABEL not in predicted:
        return none
    ours, theirs = truth.numbers(DEFOCUS_LABEL), predicted.numbers(DEFOCUS_LABEL)
    known = np.isfinite(ours) & np.isfinite(theirs) & (ours != 0) & (theirs != 0)
    off = known & (np.abs(ours - theirs) > MAX_DEFOCUS_CHANGE_ANGSTROM)
    return off if 2 * off.sum() > known.sum() else none


def _micrographs(table: ParticleTable) -> list[str]:
    """Return the micrographs' file names without ending, and without the number that cryoSPARC's import puts there."""
    names = table.column(MICROGRAPH_LABEL)
    plain = {name: _IMPORT_NUMBER.sub("", PurePosixPath(name).stem) for name in set(names)}
    return [plain[name] for name in names]


def _words(table: ParticleTable, row: int) -> str:
    return ", ".join(f"{label} {table.column(label)[row]}" for label in IDENTITY_LABELS if label in table)
