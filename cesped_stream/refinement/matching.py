"""Projection matching around proposed poses: rotation below the grid's step, shift below the pixel."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from cesped_stream.imaging.band import Band, BandImages, exact_product, times_real, unit_phases
from cesped_stream.imaging.noise_model import NoiseModel, whitened_weights
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.imaging.reference import Reference
from cesped_stream.imaging.shift_prior import ShiftPrior
from cesped_stream.imaging.simulate import random_rotations
from cesped_stream.refinement.particle_score import pose_log_likelihoods
from cesped_stream.refinement.peak import quadratic_peak
from cesped_stream.settings import RefinementSettings

SHIFT_STEPS_PER_LIMIT: Final = 5.0
FIRST_RADIUS_STEPS: Final = 2
LATER_SHIFT_REACH: Final = 2
CLIPPED_SHARE: Final = 0.9
DISPLACEMENTS_PER_LIMIT: Final = 5.34
"""Resolution at which half of a coefficient is left, over the displacement: 2 pi / sqrt(2 ln 2)."""
_SAMPLE_VIEWS: Final = 64

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RefinedPoses:
    """Refined poses of n particles."""

    rotations: Float64
    """`(n, 3, 3)`, image xyz to map xyz."""
    shifts_angstrom: Float64
    """`(n, 2)` (x, y) that centre the images."""
    log_likelihood: Float64
    """`(n,)`: over that of noise alone, within the refinement's band."""
    proposal: Int64
    """`(n,)`: which proposal it comes from."""
    proposal_log_likelihood: Float64
    """`(n, k)`: around each proposal, for the margin between them; -inf where it was not searched."""
    angle_clipped: NDArray[np.bool_]
    """`(n,)`: ended at the edge of the angles searched around its proposal; it may belong further away."""
    shift_clipped: NDArray[np.bool_]
    """`(n,)`: its best shift was at the edge of the shifts searched."""


@dataclass(frozen=True, eq=False)
class _Stage:
    """One search: turns around each pose on a cubic lattice, and which coefficients it compares."""

    offsets: Float64
    """`(c, 3)` rotation vectors in the image's frame, radians; the middle one first."""
    members: Tensor
    """Coefficients of the band that are compared, ascending."""
    envelope: Tensor
    """`(members,)`: what the lattice step leaves of a coefficient."""
    shifts_angstrom: Float64
    """`(side^2, 2)` about each pose's own shift, y slow."""
    phases: Tensor
    """`(2 members, side^2)` float32."""
    frequencies: Float64
    """`(members, 2)`."""


class Refiner:
    """Refines proposals against one half-set's reference, in stages of halved steps until they support its resolution.

    A step resolves a coefficient only if density moves less than its wavelength between neighbours; stages of wide
    steps therefore compare coarse coefficients only, and hold what they cannot resolve against no pose. Candidates are
    turns exp(w) in the image's frame on a lattice of rotation vectors w: as even at the poles as elsewhere. All of a
    particle's numbers are its own.
    """

    def __init__(
        self,
        reference: Reference,
        settings: RefinementSettings,
        *,
        proposal_step_deg: float,
        proposal_shift_step_angstrom: float,
        shift_prior: ShiftPrior | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """`proposal_step_deg` and `proposal_shift_step_angstrom` are the steps of the grid that proposals lie on.

        `shift_prior` weighs proposals of different shifts.
        """
        self._shift_prior = shift_prior
        self.settings = settings
        self.reference = reference
        self.device = torch.device(device)
        extent = reference.volume.shape[0] * reference.pixel_size_angstrom
        self.band = Band(extent, min(max(settings.limit_angstrom, reference.resolution_angstrom), extent / 2))
        self.radius_deg = settings.radius_deg or proposal_step_deg
        self._shift_range = settings.shift_range_angstrom or 1.5 * proposal_shift_step_angstrom
        self._projector = MapProjector(reference.volume, reference.pixel_size_angstrom, device=self.device)
        self.mean_power = self._mean_power()
        """`(m,)`: mean of |S|^2 over views in each coefficient's shell of `band`."""
        self._stages = self._planned()

    @property
    def num_stages(self) -> int:
        """How many searches there are."""
        return len(self._stages)

    def log_likelihoods_at(
        self, images: BandImages, noise: NoiseModel, rows: Int64, rotations: Float64, shifts_angstrom: Float64
    ) -> Float64:
        """Return how much likelier images in `band` are at poses `(n, 3, 3)`, `(n, 2)` than as noise, `(n,)`.

        Of the poses themselves, each by itself (`pose_log_likelihoods`). What `refine` gives is of the lattice that it
        searched, and less where the signal is strong: steps blur coefficients that stand far above the noise.
        """
        slices = self._slices(rotations, self.band.frequencies_per_angstrom)
        return pose_log_likelihoods(slices, self.mean_power, shifts_angstrom, images, noise, rows)

    def refine(
        self,
        images: BandImages,
        noise: NoiseModel,
        rows: Int64,
        rotations: Float64,
        shifts_angstrom: Float64,
        *,
        weights: ArrayLike | None = None,
    ) -> RefinedPoses:
        """Return refined poses of images in this refiner's `band`; `rows` `(n,)` are their rows in `noise`.

        `rotations` `(n, k, 3, 3)` and `shifts_angstrom` `(n, k, 2)` are proposals, best first. The first `num_modes`
        are searched, but for those whose posterior mass `weights` `(n, k)` is below `least_weight` of the first one's.
        Memory is bounded by `memory_mib`. ValueError for another band, or no images.
        """
        if images.band != self.band:
            raise ValueError(f"images are in {images.band}, the refiner in {self.band}")
        if len(images) == 0:
            raise ValueError("no images; refine at least one")
        particle, proposal = np.nonzero(self._searched(rotations.shape[:2], weights))
        size, parts = self._batch_size(), []
        for start in range(0, len(particle), size):
            who, which = particle[start : start + size], proposal[start : start + size]
            missing = size - len(who)
            found = self._refine_batch(
                images.select(torch.from_numpy(who).to(self.device)).padded(size),
                noise,
                np.pad(rows[who], (0, missing)),
                np.concatenate([rotations[who, which], np.tile(np.eye(3), (missing, 1, 1))]),
                np.concatenate([shifts_angstrom[who, which], np.zeros((missing, 2))]),
            )
            parts.append([values[: len(who)] for values in found])
        poses, moves, score, clipped, at_edge = (np.concatenate(part) for part in zip(*parts, strict=True))
        each = np.full(rotations.shape[:2], -np.inf)
        each[particle, proposal] = score
        item = np.zeros(each.shape, np.int64)
        item[particle, proposal] = np.arange(len(particle))
        weighed = each.copy()
        if self._shift_prior is not None:
            weighed[particle, proposal] += self._shift_prior.log_density_at(moves)
        best = weighed.argmax(1)
        chosen = item[np.arange(len(images)), best]
        return RefinedPoses(
            poses[chosen], moves[chosen], score[chosen], best, each, clipped[chosen] > 0, at_edge[chosen] > 0
        )

    def _searched(self, shape: tuple[int, ...], weights: ArrayLike | None) -> NDArray[np.bool_]:
        """Which proposals `(n, k)` are searched: always the first."""
        searched = np.zeros(shape, np.bool_)
        searched[:, : self.settings.num_modes] = True
        if weights is not None:
            mass = np.asarray(weights, np.float64)
            searched &= mass >= self.settings.least_weight * mass[:, :1]
        searched[:, 0] = True
        return searched

    def _batch_size(self) -> int:
        largest = max(len(stage.offsets) * len(stage.members) for stage in self._stages)
        return max(1, min(self.settings.batch_size, self.settings.memory_mib * 2**20 // (32 * largest)))

    def _mean_power(self) -> Tensor:
        """Mean of |S|^2 of views spread over all directions in each coefficient's shell, `(m,)`."""
        views = random_rotations(_SAMPLE_VIEWS, np.random.default_rng(0))
        slices = self._slices(views, self.band.frequencies_per_angstrom)
        shells = torch.from_numpy(self.band.shells).to(self.device)
        count = int(shells.max()) + 1
        power = (slices.real.square() + slices.imag.square()).mean(0)
        sums = torch.zeros(count, device=self.device).index_add_(0, shells, power)
        return (sums / torch.bincount(shells, minlength=count).clamp(min=1))[shells]

    def _planned(self) -> list[_Stage]:
        """Stages whose step halves, at least `stages` of them, until the last one supports the band's limit."""
        radius = self.reference.rms_radius_angstrom()
        step = np.deg2rad(self.radius_deg) / FIRST_RADIUS_STEPS
        stages: list[_Stage] = []
        supported = np.inf
        # neighbours on the last lattice, a whole step apart, agree in half of the finest coefficients: a parabola fits
        while len(stages) < self.settings.stages or (2 * supported > self.band.limit_angstrom and len(stages) < 8):
            # a point in a cubic cell of side h is h / 2 from its middle, root mean square
            displacement = (2 / 9) ** 0.5 * step / 2 * radius
            supported = DISPLACEMENTS_PER_LIMIT * displacement
            stages.append(self._stage(step, displacement, max(supported, self.band.limit_angstrom), first=not stages))
            step /= 2
        return stages

    def _stage(self, step: float, displacement: float, limit_angstrom: float, *, first: bool) -> _Stage:
        lengths = np.hypot(*self.band.frequencies_per_angstrom.T)
        members = np.flatnonzero(lengths <= 1 / limit_angstrom + 1e-9)
        if len(members) == 0:
            members = np.flatnonzero(self.band.shells == 1)
        frequencies = self.band.frequencies_per_angstrom[members]
        shift_step = limit_angstrom / SHIFT_STEPS_PER_LIMIT
        reach = max(2, int(np.ceil(self._shift_range / shift_step))) if first else LATER_SHIFT_REACH
        axis = np.arange(-reach, reach + 1) * shift_step
        shifts = np.stack(np.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
        # moved = (C y) exp(-2 pi i f.s): its product with S is Re and Im apart
        angle = 2 * np.pi * shifts @ frequencies.T
        phases = np.concatenate([np.cos(angle), np.sin(angle)], 1).T.astype(np.float32)
        return _Stage(
            offsets=_lattice(FIRST_RADIUS_STEPS**2 if first else 2) * step,
            members=torch.from_numpy(members).to(self.device),
            envelope=torch.from_numpy(
                np.exp(-2 * np.pi**2 * lengths[members] ** 2 * displacement**2).astype(np.float32)
            ).to(self.device),
            shifts_angstrom=shifts,
            phases=torch.from_numpy(np.ascontiguousarray(phases)).to(self.device),
            frequencies=frequencies,
        )

    def _slices(self, rotations: Float64, frequencies: Float64) -> Tensor:
        slices = self._projector.slices_at(rotations, frequencies)
        return slices.mul_(self._projector.pixel_size_angstrom / self.band.extent_angstrom)

    def _refine_batch(
        self, images: BandImages, noise: NoiseModel, rows: Int64, rotations: Float64, shifts: Float64
    ) -> list[Float64]:
        """Refine poses `(n, 3, 3)`, `(n, 2)`; return them, scores, and 1 where angle, then shift, are at the edge."""
        linear, square = whitened_weights(images, noise, rows)
        poses, moves, at_edge = rotations, shifts, np.zeros(len(rotations), np.bool_)
        for number, stage in enumerate(self._stages):
            last = number == len(self._stages) - 1
            poses, moves, score, edge = self._search(stage, images, linear, square, poses, moves, fit_angle=last)
            if number == 0:
                at_edge = edge
        clipped = _angle_between_deg(rotations, poses) > CLIPPED_SHARE * self.radius_deg
        return [poses, moves, score, clipped.astype(np.float64), at_edge.astype(np.float64)]

    def _search(
        self,
        stage: _Stage,
        images: BandImages,
        linear: Tensor,
        square: Tensor,
        rotations: Float64,
        shifts: Float64,
        *,
        fit_angle: bool,
    ) -> tuple[Float64, Float64, Float64, NDArray[np.bool_]]:
        """Search around poses `(n,)`; return poses, shifts, their scores and whether the shift is at the edge."""
        n, c = len(rotations), len(stage.offsets)
        candidates = np.matmul(rotations[:, None], _exponential(stage.offsets))
        scores = self._scores(stage, images, linear, square, candidates, shifts)
        side = round(len(stage.shifts_angstrom) ** 0.5)
        peaks, moves = self._shift_peaks(stage, scores.view(n * c, side, side))
        peaks, moves = peaks.reshape(n, c), moves.reshape(n, c, 2)
        best, each = peaks.argmax(1), np.arange(n)
        place = scores.argmax(2).cpu().numpy()[each, best]
        edge = (place % side % (side - 1) == 0) | (place // side % (side - 1) == 0)
        found, score = candidates[each, best], peaks[each, best]
        if fit_angle:
            turn, height = quadratic_peak(stage.offsets, torch.from_numpy(peaks))
            found, score = np.matmul(rotations, _exponential(turn.numpy())), np.maximum(height.numpy(), score)
        return found, shifts + moves[each, best], score, edge

    def _scores(
        self, stage: _Stage, images: BandImages, linear: Tensor, square: Tensor, candidates: Float64, shifts: Float64
    ) -> Tensor:
        """Log-likelihoods `(n, c, s)` of candidates `(n, c, 3, 3)` at the stage's s shifts about `shifts` `(n, 2)`."""
        n, c = candidates.shape[:2]
        members, envelope = stage.members, stage.envelope
        transfer, square = images.ctf_square[:, members], square[:, members]
        unresolved = square * transfer * (self.mean_power[members] * (1 - envelope.square()))
        attenuation = envelope / (1 + unresolved)
        angle = torch.from_numpy(shifts @ (-2 * np.pi * stage.frequencies.T)).to(self.device)
        centring = unit_phases(angle)
        weighted = times_real(images.matched[:, members], linear[:, members] * attenuation)
        real, imaginary = (part[:, None] for part in exact_product(weighted, centring))
        slices = torch.view_as_real(self._slices(candidates.reshape(-1, 3, 3), stage.frequencies))
        own_real, own_imaginary = slices.movedim(-1, 0).contiguous().view(2, n, c, -1)
        weight = square * transfer * envelope * attenuation
        norm = ((own_real.square() + own_imaginary.square()) * weight[:, None]).sum(-1)
        # conj(S) times the moved image
        products = torch.cat(
            [own_real * real + own_imaginary * imaginary, own_real * imaginary - own_imaginary * real], -1
        )
        linear_terms = torch.bmm(products, stage.phases.expand(n, -1, -1))
        return linear_terms.sub_(norm[:, :, None])

    def _shift_peaks(self, stage: _Stage, scores: Tensor) -> tuple[Float64, Float64]:
        """Return the height and shift `(., 2)` of the top of each correlation map `(., side, side)`, sub-sample."""
        side = scores.shape[1]
        best = scores.flatten(1).argmax(1)
        y, x = (best // side).clamp(1, side - 2), (best % side).clamp(1, side - 2)
        around = torch.arange(-1, 2, device=scores.device)
        index = (y[:, None, None] + around[:, None]) * side + x[:, None, None] + around
        offsets = np.stack(np.meshgrid([-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0], indexing="xy"), -1).reshape(-1, 2)
        place, height = quadratic_peak(offsets, scores.flatten(1).gather(1, index.flatten(1)))
        middle = torch.stack([x, y], 1) - side // 2
        step = stage.shifts_angstrom[1, 0] - stage.shifts_angstrom[0, 0]
        return height.cpu().numpy(), ((place + middle) * step).cpu().numpy()


def _lattice(square_radius: int) -> Float64:
    """Points `(c, 3)` of the cubic lattice within a squared radius, the middle first."""
    axis = np.arange(-2, 3)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    points = points[(points**2).sum(1) <= square_radius]
    return np.asarray(points[np.argsort((points**2).sum(1), kind="stable")], np.float64)


def _exponential(vectors: Float64) -> Float64:
    """Rotations `(c, 3, 3)` of rotation vectors `(c, 3)`, radians."""
    return np.asarray(Rotation.from_rotvec(vectors).as_matrix(), np.float64)


def _angle_between_deg(first: Float64, second: Float64) -> Float64:
    chord = np.sqrt(((first - second) ** 2).sum((1, 2)))
    return np.asarray(np.rad2deg(2 * np.arcsin(np.minimum(chord / 8**0.5, 1.0))), np.float64)
