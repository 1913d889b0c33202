"""Streamed rows of a session whose confidence is their true chance of being right, beside their truth."""

import numpy as np
from scipy.spatial.transform import Rotation

from cesped_stream.benchmark.sureness import Sureness, how_sure
from cesped_stream.conventions import rotation_to_euler_deg
from cesped_stream.particles.table import OpticsGroup, ParticleTable

NUMBER = 3000
ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
OPTICS = OpticsGroup((("rlnOpticsGroupName", "a"), ("rlnImagePixelSize", "4.0")))


def table(rotations: np.ndarray, **columns: list[str]) -> ParticleTable:
    angles = rotation_to_euler_deg(rotations)
    names = [f"{k + 1:06d}@s.mrcs" for k in range(len(rotations))]
    rows = [
        (names[k], *(f"{a:.6f}" for a in angles[k]), *(v[k] for v in columns.values())) for k in range(len(rotations))
    ]
    return ParticleTable(("rlnImageName", *ANGLES, *columns), rows, (OPTICS,), np.zeros(len(rows), np.int64))


class SureRows:
    """Rows whose confidence is their true chance of lying 2 degrees off, not 40. A fifth is junk, where asked."""

    def __init__(self, kind: list[str] | None = None, *, junk: bool = True) -> None:
        rng = np.random.default_rng(4)
        rotations = Rotation.random(NUMBER, random_state=rng).as_matrix()
        self.junk = rng.random(NUMBER) < (0.2 if junk else 0)
        self.confidence = np.where(self.junk, rng.beta(1, 4, NUMBER), rng.beta(3, 1, NUMBER)).round(6)
        self.right = (rng.random(NUMBER) < self.confidence) & ~self.junk
        turns = Rotation.from_rotvec(np.deg2rad(np.where(self.right, 2.0, 40.0))[:, None] * [[0, 1, 0]]).as_matrix()
        self.above = np.where(self.junk, rng.normal(0, 1, NUMBER), rng.normal(6, 2, NUMBER))
        names = {"cestreamKind": ["ice" if j else "particle" for j in self.junk]} if junk else {}
        self.truth = table(rotations, **names)
        self.rows = table(
            rotations @ turns,
            cestreamStatus=["predicted"] * NUMBER,
            cestreamProposer=["gallery+refinement"] * NUMBER,
            cestreamConfidence=[f"{c:.6f}" for c in self.confidence],
            cestreamConfidenceKind=kind or ["calibrated"] * NUMBER,
            cestreamAboveNoise=[f"{a:.4f}" for a in self.above],
            cestreamClipped=["shift", "no", "no", "no"] * (NUMBER // 4),
        )

    def measured(self) -> Sureness:
        found = how_sure(self.rows, self.truth, "C1")
        assert found is not None
        return found
