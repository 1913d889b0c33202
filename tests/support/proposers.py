"""Proposers whose errors and claims are known: they draw a centre about the truth and claim a width of their own."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from cesped_stream.so3.distribution import SparseDistribution, sparse_distribution
from cesped_stream.so3.fusion import to_unit
from cesped_stream.so3.grids import pose_grid
from cesped_stream.so3.symmetry import group_rotations


@dataclass(frozen=True)
class FakeProposer:
    """Errs by `sigma_deg`, or anywhere with chance `outliers`, and claims `claimed_deg`."""

    sigma_deg: float
    claimed_deg: float
    outliers: float = 0.0
    order: int = 2
    keep: int = 60
    in_unit: bool = False

    def propose(self, truth: np.ndarray, symmetry: str, seed: int) -> SparseDistribution:
        """Return what it says of particles with these true poses `(n, 3, 3)`."""
        rng, n = np.random.default_rng(seed), len(truth)
        turn = Rotation.from_rotvec(rng.normal(size=(n, 3)) * np.deg2rad(self.sigma_deg)).as_matrix()
        anywhere = Rotation.random(n, random_state=rng).as_matrix()
        centre = np.where((rng.random(n) < self.outliers)[:, None, None], anywhere, turn @ truth)
        full = about(centre, self.claimed_deg, self.order, symmetry, self.keep * len(group_rotations(symmetry)))
        return to_unit(full, symmetry, self.order) if self.in_unit else full


def about(centre: np.ndarray, width_deg: float, order: int, symmetry: str, keep: int) -> SparseDistribution:
    """Return distributions exp(cos t / width**2) of the angle t to centres `(n, 3, 3)` or their nearest mates."""
    grid = torch.from_numpy(pose_grid(order).reshape(-1, 9)).float()
    traces = torch.full((len(centre), len(grid)), -1.0)
    for mate in group_rotations(symmetry):
        traces = torch.maximum(traces, torch.from_numpy((mate @ centre).reshape(-1, 9)).float() @ grid.T)
    logits = (traces - 1) / 2 / np.deg2rad(width_deg) ** 2
    return sparse_distribution(logits, order, keep)


def random_rotations(count: int, seed: int) -> np.ndarray:
    return Rotation.random(count, random_state=np.random.default_rng(seed)).as_matrix()
