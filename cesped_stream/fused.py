"""Network and gallery asked about the same images, read once; what they say pooled, then refined."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from cesped_stream.calibration.answers import Proposer, fuse_answers
from cesped_stream.calibration.fusion_fit import FusionFit
from cesped_stream.gallery.search import Proposals
from cesped_stream.imaging.band_rows import UsableImages
from cesped_stream.imaging.preprocess import Preprocessor
from cesped_stream.inference import Predictor
from cesped_stream.matching import ROWS_AT_ONCE, Compared, Float64, MatchedPoses, Modes, ReferenceMatcher, gallery_modes
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.table import ParticleTable
from cesped_stream.settings import FusionSettings
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.distribution import SparseDistribution
from cesped_stream.so3.grids import grid_step_deg, pose_rotations
from cesped_stream.so3.symmetry import group_rotations

NEAR_IN_GRID_STEPS: Final = 2.0
"""A fused mode has the shift of the gallery's nearest rotation within so many of its grid steps."""
_NO_ROTATION: Final = -2.0

Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FusedPoses:
    """Poses of n rows by both; NaN where there is no usable image."""

    matched: MatchedPoses
    """Its proposals are the pooled ones."""
    network_rotation: Float64
    """`(n, 3, 3)`: the network's own best pose."""
    gallery_rotation: Float64
    """`(n, 3, 3)`: the gallery's."""
    apart_deg: Float64
    """`(n,)`: angle between the two, under the group."""


@dataclass(frozen=True, eq=False)
class _Asked:
    compared: Compared
    network: SparseDistribution | None
    """Of the rows with a usable image; None where there are none."""


class FusedMatcher:
    """Gives particles poses by one half-set's network and reference together.

    Without a `fit` the gallery's proposals are refined as they are. A row's result depends on no other row.
    """

    def __init__(
        self,
        matcher: ReferenceMatcher,
        predictor: Predictor,
        model_half: int,
        settings: FusionSettings,
        fit: FusionFit | None,
    ) -> None:
        self.matcher = matcher
        self.fit = fit
        self._predictor = predictor
        self._model_half = model_half
        self._settings = settings
        manifest = predictor.manifest
        self._preprocessor = Preprocessor(manifest.preprocess, manifest.network_pixel_size_angstrom)
        self._group = group_rotations(matcher.reference.symmetry)

    def match(self, table: ParticleTable, reader: StackReader) -> FusedPoses:
        """Return the poses of a table's rows, in their order; raises what `ReferenceMatcher.match` does."""
        n = len(table)
        matched = MatchedPoses.empty(n, self.matcher.gallery.settings.num_modes)
        network, gallery = np.full((n, 3, 3), np.nan), np.full((n, 3, 3), np.nan)
        for start in range(0, n, ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, n))
            asked = self._ask(table.select(rows), reader)
            found, proposals = asked.compared.rows, asked.compared.proposals
            if asked.network is None or proposals is None:
                matched.flag[rows], matched.digest[rows] = found.flag, found.digest
                continue
            self.matcher.put_refined(matched, rows, asked.compared, self._modes(asked.network, proposals))
            used = rows[found.index]
            network[used], gallery[used] = _likeliest(asked.network), _likeliest(proposals.distribution)
        apart = np.full(n, np.nan)
        known = np.isfinite(network).all(axis=(1, 2))
        apart[known] = angular_error_deg(network[known], gallery[known], self._group)
        return FusedPoses(matched, network, gallery, apart)

    def distributions(
        self, table: ParticleTable, reader: StackReader
    ) -> tuple[Int64, dict[Proposer, SparseDistribution]]:
        """Return which rows have a usable image, and what each proposer says of these; of a few thousand rows at most.

        Raises what `match` does.
        """
        used, found = [], []
        for start in range(0, len(table), ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, len(table)))
            asked = self._ask(table.select(rows), reader)
            if asked.network is not None and asked.compared.proposals is not None:
                used.append(rows[asked.compared.rows.index])
                found.append((asked.network, asked.compared.proposals.distribution))
        if not used:
            return np.empty(0, np.int64), {}
        network, gallery = zip(*found, strict=True)
        return np.concatenate(used), {Proposer.NETWORK: _joined(network), Proposer.GALLERY: _joined(gallery)}

    def _ask(self, table: ParticleTable, reader: StackReader) -> _Asked:
        size = self._preprocessor.settings.image_size
        inputs = torch.zeros(len(table), 1, size, size, device=self._predictor.device)
        ctf = table.ctf_parameters()

        def see(part: UsableImages) -> None:
            images = part.images.to(self._predictor.device)
            inputs[torch.from_numpy(part.index)] = self._preprocessor(images, ctf.select(part.index))

        compared = self.matcher.compare(table, reader, on_images=see)
        usable = compared.rows.index
        if not len(usable):
            return _Asked(compared, None)
        halves = np.full(len(usable), self._model_half)
        keep = self._settings.network_keep
        return _Asked(compared, self._predictor.distribution(inputs[torch.from_numpy(usable)], halves, keep))

    def _modes(self, network: SparseDistribution, proposals: Proposals) -> Modes:
        if self.fit is None:
            return gallery_modes(proposals)
        both = {Proposer.NETWORK: network, Proposer.GALLERY: proposals.distribution}
        answers = fuse_answers(
            both,
            self.fit,
            self.matcher.reference.symmetry,
            k=self.matcher.gallery.settings.num_modes,
            keep=self._settings.keep,
        )
        return Modes(answers.rotation, shifts_near(answers.rotation, proposals, self._group), answers.probability)


def shifts_near(rotations: Float64, proposals: Proposals, group: Float64) -> Float64:
    """Return shifts `(n, k, 2)` for poses `(n, k, 3, 3)`: the gallery's at its rotation nearest under the group.

    Where none of its rotations is within `NEAR_IN_GRID_STEPS`, the shift of its best one.
    """
    distribution = proposals.distribution
    n, k = rotations.shape[:2]
    kept = distribution.rotations().reshape(n, -1, 9).transpose(0, 2, 1)
    traces = np.full((n, k, kept.shape[2]), _NO_ROTATION)
    for mate in group:
        traces = np.maximum(traces, np.matmul((mate @ rotations).reshape(n, k, 9), kept))
    traces = np.where(np.isneginf(distribution.log_weights)[:, None], _NO_ROTATION, traces)
    nearest = traces.argmax(axis=2)
    near_deg = NEAR_IN_GRID_STEPS * grid_step_deg(distribution.grid_order)
    is_near = traces.max(axis=2) >= 1 + 2 * np.cos(np.deg2rad(near_deg))
    column = np.where(is_near, nearest, 0)
    return np.take_along_axis(proposals.shifts_angstrom.astype(np.float64), column[:, :, None], 1)


def _likeliest(distribution: SparseDistribution) -> Float64:
    return pose_rotations(distribution.indices[:, 0], distribution.grid_order).reshape(-1, 3, 3)


def _joined(parts: tuple[SparseDistribution, ...]) -> SparseDistribution:
    first = parts[0]
    return SparseDistribution(
        first.grid_order,
        first.asymmetric_unit,
        np.concatenate([part.indices for part in parts]),
        np.concatenate([part.log_weights for part in parts]),
    )
