"""From rows of a star to poses by a reference: read, propose on the grid, refine; in bounded memory, deterministic."""

import logging
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from cesped_stream.errors import PermanentError
from cesped_stream.gallery.search import ProjectionGallery, Proposals
from cesped_stream.imaging.band import BandImages, centred_slices
from cesped_stream.imaging.band_rows import BandRows, UsableImages, read_band_images
from cesped_stream.imaging.noise_model import NoiseModel, NoiseScores, fit_noise, noise_images, optics_key
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.imaging.reference import Reference
from cesped_stream.particles.stacks import DIGEST_BYTES, StackReader
from cesped_stream.particles.table import ParticleTable, thinned
from cesped_stream.reconstruction.agreement import log_likelihoods
from cesped_stream.refinement.matching import RefinedPoses, Refiner
from cesped_stream.refinement.particle_score import expected_gains, particle_scores
from cesped_stream.settings import GallerySettings, RefinementSettings
from cesped_stream.so3.grids import grid_step_deg

logger = logging.getLogger(__name__)

ROWS_AT_ONCE: Final = 512
LEAST_ROWS_FOR_NOISE: Final = 20
LEARNING_ROWS: Final = 1000
NOISE_SAMPLE: Final = 64
LEAST_STD: Final = 0.05
HARDEST_GAIN: Final = 8.0
"""In natural logarithms: about that of the number of poses that are told apart."""
LEAST_GAIN: Final = 1e-12
"""Of a map without density, which no image resembles."""

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class MatchedPoses:
    """Poses of n rows by one reference; NaN where `flag` is not 0 (no usable image)."""

    rotation: Float64
    """`(n, 3, 3)`, image xyz to map xyz: refined."""
    shift_angstrom: Float64
    """`(n, 2)` (x, y) that centre the images: refined."""
    gallery_rotation: Float64
    """`(n, k, 3, 3)`: the proposals that were refined, distinct, best first: the gallery's, or pooled ones."""
    gallery_shift_angstrom: Float64
    """`(n, k, 2)`."""
    gallery_weight: Float64
    """`(n, k)`: posterior mass around each."""
    proposal: NDArray[np.int64]
    """`(n,)`: which of them the pose comes from; -1 where there is none."""
    log_likelihood: Float64
    """`(n,)`: of the refined pose over noise alone."""
    runner_up: Float64
    """`(n,)`: the same of the best end of any other proposal; -inf where none was refined."""
    particle_score: Float64
    """`(n,)`: log-likelihood ratio of a particle at the pose and an image without one (`particle_scores`)."""
    above_noise: Float64
    """`(n,)`: how far `particle_score` is above what noise reaches, in standard deviations (`NoiseScores.above`).

    Noise has 0 at most, whatever the CTF, other junk mostly less. NaN without `NoiseScores`, or with old ones."""
    angle_clipped: NDArray[np.bool_]
    """`(n,)`: the refinement ended at the edge of its angles."""
    shift_clipped: NDArray[np.bool_]
    """`(n,)`: at the edge of its shifts, or it began beyond the range that the gallery searches whole."""
    flag: NDArray[np.uint8]
    """`(n,)`, `particles.flags.ImageFlag`."""
    digest: NDArray[np.uint8]
    """`(n, 16)`: blake2b of each image's bytes in its file."""

    def __len__(self) -> int:
        return len(self.flag)

    @classmethod
    def empty(cls, n: int, k: int) -> "MatchedPoses":
        """Return n rows without a pose, flag 0."""
        return cls(
            rotation=np.full((n, 3, 3), np.nan),
            shift_angstrom=np.full((n, 2), np.nan),
            gallery_rotation=np.full((n, k, 3, 3), np.nan),
            gallery_shift_angstrom=np.full((n, k, 2), np.nan),
            gallery_weight=np.zeros((n, k)),
            proposal=np.full(n, -1, np.int64),
            log_likelihood=np.full(n, np.nan),
            runner_up=np.full(n, np.nan),
            particle_score=np.full(n, np.nan),
            above_noise=np.full(n, np.nan),
            angle_clipped=np.zeros(n, np.bool_),
            shift_clipped=np.zeros(n, np.bool_),
            flag=np.zeros(n, np.uint8),
            digest=np.zeros((n, DIGEST_BYTES), np.uint8),
        )


@dataclass(frozen=True, eq=False)
class Modes:
    """Poses that refinement starts from, of n particles."""

    rotations: Float64
    """`(n, k, 3, 3)`: distinct, best first."""
    shifts_angstrom: Float64
    """`(n, k, 2)`."""
    weights: NDArray[np.float32]
    """`(n, k)`: probability mass around each."""


def gallery_modes(proposals: Proposals) -> Modes:
    """Return the gallery's own proposals as they are."""
    return Modes(proposals.mode_rotations, proposals.mode_shifts_angstrom, proposals.mode_weights)


@dataclass(frozen=True, eq=False)
class Compared:
    """Rows of a table that were read and compared with the gallery."""

    rows: BandRows
    groups: Int64
    """`(usable,)`: rows in the noise model of those with a usable image."""
    proposals: Proposals | None
    """Of the same; None where there are none."""


class ReferenceMatcher:
    """Gives particles of one half-set poses by that half's reference: gallery, then refinement of its modes.

    Never scores a particle that is in the reference, nor one of another half-set than `scored_half`, by default the
    reference's own. A given map has no noise model: `learn_noise` before the first
    use.
    """

    def __init__(
        self,
        reference: Reference,
        gallery: GallerySettings,
        refinement: RefinementSettings,
        *,
        scored_half: int | None = None,
        background_radius_angstrom: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.reference = reference
        self.noise = reference.noise
        self._device = torch.device(device)
        self._scored_half = scored_half
        self._background_radius_angstrom = background_radius_angstrom
        self._shift_prior = reference.shift_prior if gallery.shift_prior else None
        self.gallery = ProjectionGallery(reference, gallery, device=device)
        self.refiner = Refiner(
            reference,
            refinement,
            proposal_step_deg=grid_step_deg(gallery.grid_order),
            proposal_shift_step_angstrom=self.gallery.shift_step_angstrom,
            shift_prior=self._shift_prior,
            device=device,
        )
        self.of_noise = reference.of_noise

    def match(self, table: ParticleTable, reader: StackReader) -> MatchedPoses:
        """Return the poses of a table's rows, in their order; a row's result depends on no other row.

        PermanentError where a row is part of the reference or of the other half-set, or where there is no noise model;
        else what reading raises.
        """
        poses = MatchedPoses.empty(len(table), self.gallery.settings.num_modes)
        for start in range(0, len(table), ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, len(table)))
            compared = self.compare(table.select(rows), reader)
            if compared.proposals is None:
                poses.flag[rows], poses.digest[rows] = compared.rows.flag, compared.rows.digest
            else:
                self.put_refined(poses, rows, compared, gallery_modes(compared.proposals))
        return poses

    def compare(
        self,
        table: ParticleTable,
        reader: StackReader,
        *,
        on_images: Callable[[UsableImages], None] = lambda images: None,
    ) -> Compared:
        """Read rows, all at once, and compare them with the gallery; `on_images` is shown their raw images.

        Raises what `match` does.
        """
        self.reference.check_holds_none_of(table, self._scored_half)
        noise = self._known_noise()
        found = self._read(table, reader, on_images)
        groups = noise.rows_of(table)[found.index]
        proposals = self.gallery.propose(found.images[0], noise, groups) if len(found.index) else None
        return Compared(found, groups, proposals)

    def put_refined(self, poses: MatchedPoses, rows: Int64, compared: Compared, modes: Modes) -> None:
        """Refine the usable ones of compared rows, at least one, from `modes`; write the result to `poses[rows]`."""
        used, images, noise = rows[compared.rows.index], compared.rows.images[1], self._known_noise()
        refined = self._refined(images, noise, compared.groups, modes)
        poses.flag[rows], poses.digest[rows] = compared.rows.flag, compared.rows.digest
        poses.gallery_rotation[used], poses.gallery_shift_angstrom[used] = modes.rotations, modes.shifts_angstrom
        poses.gallery_weight[used] = modes.weights
        self._put_refined(poses, used, refined, self._score(refined, images, noise, compared.groups))
        begun = modes.shifts_angstrom[np.arange(len(used)), refined.proposal]
        poses.shift_clipped[used] |= np.hypot(*begun.T) > self.gallery.shift_range_angstrom

    def scoring(self, half_set: int) -> "ReferenceMatcher":
        """Return the same matcher for particles of `half_set`, whichever the reference's own is."""
        other = copy(self)
        other._scored_half = half_set
        return other

    def refine(self, table: ParticleTable, reader: StackReader) -> MatchedPoses:
        """Return the poses that refinement alone makes of the rows' own; with true poses the limit that noise sets.

        There is one proposal a row, its own pose. Raises what `match` does.
        """
        self.reference.check_holds_none_of(table, self._scored_half)
        noise = self._known_noise()
        poses = MatchedPoses.empty(len(table), 1)
        rotations, shifts = table.rotations(), table.shifts_angstrom()
        for start in range(0, len(table), ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, len(table)))
            part = table.select(rows)
            found = self._read(part, reader)
            poses.flag[rows], poses.digest[rows] = found.flag, found.digest
            used = rows[found.index]
            if not len(used):
                continue
            groups = noise.rows_of(part)[found.index]
            start_rotations, start_shifts = rotations[used, None], shifts[used, None]
            refined = self.refiner.refine(found.images[1], noise, groups, start_rotations, start_shifts)
            poses.gallery_rotation[used], poses.gallery_shift_angstrom[used] = start_rotations, start_shifts
            poses.gallery_weight[used] = 1.0
            self._put_refined(poses, used, refined, self._score(refined, found.images[1], noise, groups))
        return poses

    def own_log_likelihoods(self, table: ParticleTable, reader: StackReader) -> Float64:
        """Return how much likelier each row's image `(n,)` is at the row's own pose than as noise, as a logarithm.

        All images must be usable. Raises what `match` does.
        """
        self.reference.check_holds_none_of(table, self._scored_half)
        return log_likelihoods(
            table,
            np.ones(len(table), np.int64),
            [self.reference.volume],
            self.reference.pixel_size_angstrom,
            self.refiner.band.limit_angstrom,
            self._known_noise(),
            reader,
            background_radius_angstrom=self._background_radius_angstrom,
            device=str(self._device),
        )

    def measure_noise(self, table: ParticleTable, reader: StackReader, *, seed: int = 0) -> NoiseScores:
        """Find what noise reaches, for `above_noise` of all later matches; return it.

        The best of all poses scores highest where the signal is weak: at none there is nothing to fit, and a strong one
        is missed. So it is measured for a signal that a right pose would gain `HARDEST_GAIN` by, and holds for all
        CTFs. At most `NOISE_SAMPLE` rows are taken, spread evenly; of their images only the CTF counts. PermanentError
        where none is usable.
        """
        noise = self._known_noise()
        sample = table.select(thinned(len(table), NOISE_SAMPLE))
        found = self._read(sample, reader)
        if not len(found.index):
            raise PermanentError(
                f"{table.source or 'particles'}: no usable image, so no CTF to give noise; wait for more"
            )
        groups = noise.rows_of(sample)[found.index]
        finest = min(found.images, key=lambda images: images.band.limit_angstrom)
        nothing = noise_images(finest, noise, groups, seed=seed)
        own = tuple(nothing.within(images.band.limit_angstrom) for images in found.images)
        hardest = self._hardest(own[1], noise, groups)
        modes = gallery_modes(self.gallery.propose(own[0], hardest, groups))
        score = self._score(self._refined(own[1], hardest, groups, modes), own[1], hardest, groups)
        self.of_noise = NoiseScores(float(score.mean()), max(float(score.std()), LEAST_STD), hardest=True)
        return self.of_noise

    def _hardest(self, images: BandImages, noise: NoiseModel, groups: Int64) -> NoiseModel:
        """The noise with signals of such a scale that images of each group gain `HARDEST_GAIN` by it on average."""
        gains = expected_gains(self.refiner.mean_power, images, noise, groups)
        of_groups = np.full(len(noise.scale), gains.mean())
        for group in np.unique(groups):
            of_groups[group] = gains[groups == group].mean()
        return replace(noise, scale=(HARDEST_GAIN / of_groups.clip(LEAST_GAIN)) ** 0.5)

    def over_inverted(self, table: ParticleTable, reader: StackReader) -> Float64:
        """Return how much likelier each usable image is by its best view than the same image of inverted contrast is by
        its own best one `(n,)`, as a logarithm: 0 on average where the reference is nothing of the images.
        """
        noise, found = self._known_noise(), self._read(table, reader)
        if not len(found.index):
            return np.zeros(0)
        images, groups = found.images[0], noise.rows_of(table)[found.index]
        both = (images, replace(images, matched=-images.matched))
        own, inverted = (self.gallery.propose(part, noise, groups).log_likelihood for part in both)
        return own - inverted

    def learn_noise(self, table: ParticleTable, reader: StackReader) -> NoiseModel:
        """Fit the noise model to particles without known poses, at most `LEARNING_ROWS` of them; return it.

        Their poses are found by plain correlation, the model fitted, the poses refined with it, and the model fitted
        again. For a given map, or when a session brings optics groups that its aligned rows had not. The particles must
        not be in the reference. PermanentError where fewer than `LEAST_ROWS_FOR_NOISE` have a usable image.
        """
        self.reference.check_holds_none_of(table, self._scored_half)
        table = table.select(thinned(len(table), LEARNING_ROWS))
        found = self._read(table, reader)
        if len(found.index) < LEAST_ROWS_FOR_NOISE:
            raise PermanentError(
                f"{table.source or 'particles'}: {len(found.index)} usable images, a noise model needs "
                f"{LEAST_ROWS_FOR_NOISE}; wait for more"
            )
        settings = self.gallery.settings.model_copy(update={"score": "correlation"})
        plain = ProjectionGallery(self.reference, settings, device=self._device)
        flat = NoiseModel((), np.ones(1), np.ones((1, 1)), np.ones(1))
        proposals = plain.propose(found.images[0], flat, np.zeros(len(found.index), np.int64))
        rows, images = table.select(found.index), found.images[1]
        poses, moves = proposals.mode_rotations, proposals.mode_shifts_angstrom
        rough = self._fitted(images, rows, poses[:, 0], moves[:, 0])
        refined = self.refiner.refine(images, rough, rough.rows_of(rows), poses, moves, weights=proposals.mode_weights)
        self.noise = self._fitted(images, rows, refined.rotations, refined.shifts_angstrom)
        logger.info("noise model fitted", extra={"num_particles": len(found.index), "groups": len(self.noise.keys)})
        return self.noise

    def _refined(self, images: BandImages, noise: NoiseModel, groups: Int64, modes: Modes) -> RefinedPoses:
        return self.refiner.refine(images, noise, groups, modes.rotations, modes.shifts_angstrom, weights=modes.weights)

    def _score(self, refined: RefinedPoses, images: BandImages, noise: NoiseModel, groups: Int64) -> Float64:
        shifts = refined.shifts_angstrom
        likelihood = self.refiner.log_likelihoods_at(images, noise, groups, refined.rotations, shifts)
        return particle_scores(likelihood, shifts, images, noise, groups, self._shift_prior)

    def _put_refined(self, poses: MatchedPoses, rows: Int64, refined: RefinedPoses, score: Float64) -> None:
        poses.rotation[rows], poses.shift_angstrom[rows] = refined.rotations, refined.shifts_angstrom
        poses.proposal[rows], poses.log_likelihood[rows] = refined.proposal, refined.log_likelihood
        poses.angle_clipped[rows], poses.shift_clipped[rows] = refined.angle_clipped, refined.shift_clipped
        others = refined.proposal_log_likelihood.copy()
        others[np.arange(len(others)), refined.proposal] = -np.inf
        poses.runner_up[rows] = others.max(axis=1)
        poses.particle_score[rows] = score
        if self.of_noise is not None and self.of_noise.hardest:
            poses.above_noise[rows] = self.of_noise.above(score)

    def _fitted(self, images: BandImages, table: ParticleTable, rotations: Float64, shifts: Float64) -> NoiseModel:
        projector = MapProjector(
            self.reference.volume, self.reference.pixel_size_angstrom, device=images.matched.device
        )
        slices = centred_slices(projector, images.band, rotations, shifts)
        present, group = np.unique(table.optics_index, return_inverse=True)
        return fit_noise(images, slices, group, [optics_key(table.optics[k]) for k in present])

    def _read(
        self,
        table: ParticleTable,
        reader: StackReader,
        on_images: Callable[[UsableImages], None] = lambda images: None,
    ) -> BandRows:
        return read_band_images(
            table,
            [self.gallery.band, self.refiner.band],
            reader,
            background_radius_angstrom=self._background_radius_angstrom,
            device=self._device,
            on_images=on_images,
        )

    def _known_noise(self) -> NoiseModel:
        if self.noise is None:
            raise PermanentError("the reference is a given map and has no noise model; call learn_noise first")
        return self.noise
