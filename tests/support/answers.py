"""Held-out answers whose chance of being right is known."""

import numpy as np

from cesped_stream.calibration.answers import Feature
from cesped_stream.calibration.calibrator import HeldOutAnswers


def held_out_answers(
    count: int,
    seed: int,
    *,
    claim: float = 3.0,
    offset: float = 0.0,
    quality: float = 0.6,
    groups: tuple[str, ...] = ("opticsGroup1",),
) -> tuple[HeldOutAnswers, np.ndarray]:
    """Return answers and their true probabilities `(n,)` of being within 5 degrees.

    `claim` is by how much the fused mass' log-odds overstate the true ones; `offset` moves the true ones down in every
    second optics group; `quality` is the mean log-odds.
    """
    rng = np.random.default_rng(seed)
    good = rng.normal(quality, 1.4, count)
    group = rng.integers(0, len(groups), count)
    chance = 1 / (1 + np.exp(-(good - offset * (group % 2))))
    right = rng.random(count) < chance
    features = {
        Feature.MASS: claim * good + claim + rng.normal(0, 0.8, count),
        Feature.MARGIN: claim * good + rng.normal(0, 1.5, count),
        Feature.ABOVE_NOISE: good + rng.normal(0, 1.5, count),
        Feature.AGREEMENT: -np.log1p(np.abs(rng.normal(0, 10, count)) * np.exp(-good / 2)),
    }
    names = [f"{seed}_{k:06d}@stack.mrcs" for k in range(count)]
    return HeldOutAnswers(
        particle_ids=names,
        features=features,
        errors_deg=np.where(right, rng.uniform(0, 5, count), rng.uniform(5.001, 120, count)),
        optics_groups=[groups[k] for k in group],
        micrographs=[f"mic_{k // 40:03d}.mrc" for k in range(count)],
    ), chance
