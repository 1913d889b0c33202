"""Poses of particles that landed without one and came back in an aligned star: what their references are made of."""

import numpy as np

from cesped_stream.conventions import ANGLE_LABELS, SHIFT_LABELS
from cesped_stream.particles.stacks import STACK_LABEL, parse_image_name
from cesped_stream.particles.star import read_star
from cesped_stream.particles.table import ParticleTable

from .finished import FORMER_POSE_LABELS
from .ledger import Ledger
from .messages import ALIGNED
from .session import SessionFolder

Key = tuple[str, int]


class AlignedPoses:
    """Reads the stars that references were ordered with, keeping the last one in memory."""

    def __init__(self, ledger: Ledger, folder: SessionFolder) -> None:
        self._ledger = ledger
        self._folder = folder
        self._read: tuple[int, ParticleTable, dict[Key, int]] | None = None

    def of(self, table: ParticleTable) -> ParticleTable | None:
        """Return the rows with their particles' aligned poses; None where one of them is in no order's aligned star."""
        rows = self._ledger.execute(
            "SELECT training_id FROM trainings WHERE source = ? ORDER BY training_id DESC", (ALIGNED,)
        ).fetchall()
        keys = _keys(table)
        for (training_id,) in rows:
            aligned, places = self._star(int(training_id))
            if all(key in places for key in keys):
                return _posed(table, aligned.select(np.array([places[key] for key in keys], np.int64)))
        return None

    def _star(self, training_id: int) -> tuple[ParticleTable, dict[Key, int]]:
        if self._read is None or self._read[0] != training_id:
            aligned = read_star(self._folder.training_star(training_id))
            self._read = training_id, aligned, {key: place for place, key in enumerate(_keys(aligned))}
        return self._read[1:]


def _keys(table: ParticleTable) -> list[Key]:
    names = (parse_image_name(name)[0] for name in table.column("rlnImageName"))
    return list(zip(table.column(STACK_LABEL), names, strict=True))


def _posed(table: ParticleTable, aligned: ParticleTable) -> ParticleTable:
    labels = (*ANGLE_LABELS, *SHIFT_LABELS, *FORMER_POSE_LABELS)
    return table.with_columns({label: aligned.column(label) for label in labels if label in aligned})
