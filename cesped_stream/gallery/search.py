"""Particles against all views of a reference: a posterior on the SO(3) grid, with a shift for each rotation."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cesped_stream.gallery.views import (
    Views,
    displacement_angstrom,
    finer_views_of,
    grid_envelope,
    supported_angstrom,
    views_of,
)
from cesped_stream.imaging.band import Band, BandImages, exact_product, times_real
from cesped_stream.imaging.noise_model import NoiseModel, whitened_weights
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.imaging.reference import Reference
from cesped_stream.settings import GallerySettings
from cesped_stream.so3.distribution import SparseDistribution, top_poses_sparse
from cesped_stream.so3.grids import grid_step_deg, nearest_index
from cesped_stream.so3.symmetry import group_rotations

SHIFT_STEPS_PER_LIMIT: Final = 4.0
SEPARATION_IN_GRID_STEPS: Final = 2.0
LEAST_STD: Final = 0.05
SHIFT_BLOCK: Final = 16
NEAR_COARSE_STEPS: Final = 1.5
"""How far from the coarse search's likely shifts the fine one looks, in coarse steps."""
SHIFT_CENTRES: Final = 2
SHIFT_CENTRES_APART: Final = 2.0
"""How many such shifts there are, and how far apart they are at least, in coarse steps."""
LEAST_MASS_OF_A_SHIFT: Final = 1e-3
"""A shift of less posterior mass than this share of the likeliest one's is not searched."""
_LEAST_POWER: Final = 1e-20
_LARGEST_CORRELATION: Final = 0.999

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class NoiseScores:
    """What images of nothing but noise reach: mean and spread of `Proposals.standing` over them."""

    mean: float
    std: float


@dataclass(frozen=True, eq=False)
class Proposals:
    """What the gallery says of n particles."""

    distribution: SparseDistribution
    """On the asymmetric unit; what is left out has the rest of the mass."""
    shifts_angstrom: Float32
    """`(n, kept, 2)` (x, y): the best shift at each rotation of the distribution."""
    mode_rotations: Float64
    """`(n, modes, 3, 3)`: distinct poses, best first."""
    mode_shifts_angstrom: Float64
    """`(n, modes, 2)`."""
    mode_weights: Float32
    """`(n, modes)`: posterior mass around each."""
    log_likelihood: Float64
    """`(n,)`: of the best rotation and shift, over that of noise alone (likelihood score), or the correlation."""
    standing: Float64
    """`(n,)`: the best score in units in which noise has variance 1 at a single view and shift."""
    above_noise: Float64
    """`(n,)`: `standing` less what noise reaches, in standard deviations of that; NaN without `NoiseScores`."""


@dataclass(frozen=True, eq=False)
class _Batch:
    """A batch's coefficients with weights, for one set of views."""

    real: Tensor
    """`(m, shifts, t)` float32: real part of the weighted images moved by each shift."""
    imaginary: Tensor
    """`(m, shifts, t)` float32."""
    norm: Tensor
    """`(m, t)` float32."""
    length: Tensor
    """`(t,)`: norm of the images, for the correlation."""


class ProjectionGallery:
    """The views of one half-set's reference, searched coarse to fine.

    Each grid compares images up to the resolution that its step supports, at shifts a quarter of that apart: the coarse
    one all shifts in range, the fine one those about the coarse one's likeliest. All of a particle's numbers are its
    own: batches are padded to one size, and the fine search takes particles one by one on a CPU.
    """

    def __init__(self, reference: Reference, settings: GallerySettings, *, device: torch.device | str = "cpu") -> None:
        """ValueError where `coarse_order` is above `grid_order`."""
        if settings.coarse_order > settings.grid_order:
            raise ValueError(f"coarse_order {settings.coarse_order} is above grid_order {settings.grid_order}")
        self.reference = reference
        self.settings = settings
        self.device = torch.device(device)
        radius = reference.rms_radius_angstrom()
        extent = reference.volume.shape[0] * reference.pixel_size_angstrom
        coarse_displacement, displacement = (
            displacement_angstrom(order, radius) for order in (settings.coarse_order, settings.grid_order)
        )
        self.coarse_band, self.band = (
            Band(extent, min(max(limit, reference.resolution_angstrom), extent / 2))
            for limit in (
                settings.limit_angstrom or supported_angstrom(moved, SHIFT_STEPS_PER_LIMIT)
                for moved in (coarse_displacement, displacement)
            )
        )
        self._coarse_step = settings.shift_step_angstrom or self.coarse_band.limit_angstrom / SHIFT_STEPS_PER_LIMIT
        self.shift_step_angstrom = min(self._coarse_step, self.band.limit_angstrom / SHIFT_STEPS_PER_LIMIT)
        self.coarse_shifts_angstrom = _shift_grid(settings.shift_range_angstrom, self._coarse_step)
        self._near_shifts = _shift_grid(NEAR_COARSE_STEPS * self._coarse_step, self.shift_step_angstrom)
        projector = MapProjector(reference.volume, reference.pixel_size_angstrom, device=self.device)
        self._coarse = self._views(
            projector, settings.coarse_order, self.coarse_band, coarse_displacement, self._coarse_step
        )
        self._fine = self._views(projector, settings.grid_order, self.band, displacement, self.shift_step_angstrom)
        self._coarse_phases, self._near_phases = (
            band.shift_phases(torch.from_numpy(shifts)).to(self.device)
            for band, shifts in ((self.coarse_band, self.coarse_shifts_angstrom), (self.band, self._near_shifts))
        )
        children, is_child = finer_views_of(self._coarse.unit, self._fine.unit)
        self._children = torch.from_numpy(children).to(self.device)
        self._is_child = torch.from_numpy(is_child).to(self.device)
        self._log_children = self._is_child.sum(1).clamp(min=1e-9).log()
        self._kept_views = max(1, round(settings.keep_fraction * len(self._coarse)))

    def __len__(self) -> int:
        """Return the number of views of the result's order."""
        return len(self._fine)

    def propose(
        self, images: BandImages, noise: NoiseModel, rows: Int64, *, of_noise: NoiseScores | None = None
    ) -> Proposals:
        """Return the proposals for images in this gallery's `band`; `rows` `(n,)` are their rows in `noise`.

        ValueError for images of another band.
        """
        if images.band != self.band:
            raise ValueError(f"images are in {images.band}, the gallery in {self.band}")
        size, parts = self.settings.batch_size, []
        for start in range(0, len(images), size):
            count = min(size, len(images) - start)
            batch = images.select(slice(start, start + count)).padded(size)
            index = np.concatenate([rows[start : start + count], np.zeros(size - count, np.int64)])
            parts.append([part[:count] for part in self._propose_batch(batch, noise, index)])
        if not parts:
            raise ValueError("no images; propose for at least one")
        return self._proposals([torch.cat(part).cpu() for part in zip(*parts, strict=True)], of_noise)

    def measure_noise(self, images: BandImages, noise: NoiseModel, rows: Int64, *, seed: int = 0) -> NoiseScores:
        """Return what noise reaches that has the model's spectrum and these images' CTFs; `seed` fixes the noise."""
        generator = torch.Generator().manual_seed(seed)
        shape = (*images.matched.shape, 2)
        white = torch.view_as_complex(torch.randn(shape, generator=generator) / 2**0.5).to(images.matched.device)
        variance = noise.variance_in(images.band).to(white.device)[torch.from_numpy(rows).to(white.device)]
        coefficients = white * variance.sqrt()
        transfer = images.ctf_square.sqrt()
        power = coefficients.real.square() + coefficients.imag.square()
        power *= torch.where(images.premultiplied[:, None], images.ctf_square, 1.0)
        nothing = BandImages(
            images.band, coefficients * transfer, images.ctf_square, power, images.premultiplied, images.information
        )
        standing = self.propose(nothing, noise, rows).standing
        return NoiseScores(float(standing.mean()), max(float(standing.std()), LEAST_STD))

    def _views(
        self, projector: MapProjector, order: int, band: Band, displacement: float, shift_step_angstrom: float
    ) -> Views:
        envelope = grid_envelope(band, displacement, shift_step_angstrom)
        if self.settings.score == "correlation":
            envelope = np.ones_like(envelope)
        return views_of(projector, self.reference.symmetry, order, band, envelope)

    def _weighted(
        self, images: BandImages, noise: NoiseModel, rows: Int64, views: Views, phases: Tensor, centres: Tensor
    ) -> _Batch:
        """What a batch's products with these views need; the noise includes what the grid cannot resolve.

        `phases` `(shifts, m)` move every image, after `centres` `(t, m)` moved each.
        """
        linear, square = whitened_weights(images, noise, rows)
        if self.settings.score == "correlation":
            linear, square = torch.ones_like(linear), torch.ones_like(square)
        else:
            # a^2 C^2 |S|^2 (1 - envelope^2) over the noise's variance; square is a^2 over it
            unresolved = square * images.ctf_square * (views.shell_power * (1 - views.envelope.square()))
            linear, square = linear / (1 + unresolved), square / (1 + unresolved)
        centred = torch.complex(*exact_product(times_real(images.matched, linear), centres))
        real, imaginary = exact_product(centred.T[:, None], phases.T[:, :, None])
        length = images.power.sum(1).sqrt()
        return _Batch(real, imaginary, (images.ctf_square * square).T.contiguous(), length)

    def _propose_batch(self, images: BandImages, noise: NoiseModel, rows: Int64) -> list[Tensor]:
        """Positions of the fine views kept, their log-weights, best scores, shifts and the standing of the best."""
        blurred = images.within(self.coarse_band.limit_angstrom)
        as_it_is = torch.ones(1, len(self.coarse_band), dtype=torch.complex64, device=self.device)
        coarse = self._weighted(blurred, noise, rows, self._coarse, self._coarse_phases, as_it_is)
        best = self._search_coarse(coarse)
        places, likely = self._likely_shifts(coarse, best)
        centres = torch.from_numpy(self.coarse_shifts_angstrom).to(self.device)[places]
        parts = [
            self._weighted(images, noise, rows, self._fine, self._near_phases, self.band.shift_phases(centre))
            for centre in centres
        ]
        fine = _Batch(
            torch.cat([part.real for part in parts], 1),
            torch.cat([part.imaginary for part in parts], 1),
            parts[0].norm,
            parts[0].length,
        )
        moves = centres.transpose(0, 1)[:, :, None] + torch.from_numpy(self._near_shifts).to(self.device)
        step = 1 if self.device.type == "cpu" else self.settings.batch_size
        found = [
            self._search_fine(fine, best[i : i + step], likely[:, i : i + step], i) for i in range(0, len(images), step)
        ]
        positions, weights, place, peak, standing = (torch.cat(part) for part in zip(*found, strict=True))
        chosen = moves.flatten(1, 2).gather(1, place[:, :, None].expand(-1, -1, 2))
        return [positions, weights, chosen, peak, standing]

    def _likely_shifts(self, batch: _Batch, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Places `(SHIFT_CENTRES, t)` of the shifts with most posterior mass of the best coarse views, apart.

        With them which of them have enough to be searched, likewise; the first always.
        """
        views = self._coarse
        chosen = scores.topk(self._kept_views, dim=1).indices.cpu().numpy()
        pair = torch.from_numpy(views.pair[chosen]).to(self.device)
        sign = torch.from_numpy(np.where(views.conjugate[chosen], np.float32(-1), np.float32(1))).to(self.device)
        linear = torch.bmm(_rows(views.real, pair), batch.real.permute(2, 0, 1))
        linear += torch.bmm(_rows(views.imaginary, pair), batch.imaginary.permute(2, 0, 1)) * sign[:, :, None]
        norm = torch.bmm(_rows(views.power, pair), batch.norm.T[:, :, None])
        score = self._score(linear, norm, batch.length[:, None, None])
        mass = self._log_weight(score, self.coarse_band).logsumexp(1)
        grid = torch.from_numpy(self.coarse_shifts_angstrom).to(self.device)
        near = torch.cdist(grid, grid) <= SHIFT_CENTRES_APART * self._coarse_step + 1e-6
        most, places, likely = mass.amax(1), [], []
        for _ in range(SHIFT_CENTRES):
            height, place = mass.max(1)
            places.append(place)
            likely.append(height >= most + np.log(LEAST_MASS_OF_A_SHIFT))
            mass = mass.masked_fill(near[place], -torch.inf)
        return torch.stack(places), torch.stack(likely)

    def _search_coarse(self, batch: _Batch) -> Tensor:
        """Best score over shifts, `(t, coarse views)`."""
        views = self._coarse
        num_shifts, size = batch.real.shape[1:]
        tile = max(1, self.settings.memory_mib * 2**20 // (8 * num_shifts * size))
        real, imaginary = (_matrix(part, self.settings.precision) for part in (batch.real, batch.imaginary))
        both = torch.empty(2, len(views.real), size, device=self.device)
        for start in range(0, len(views.real), tile):
            part = slice(start, start + tile)
            even = _product(views.real[part], real, self.settings.precision).view(-1, num_shifts, size)
            odd = _product(views.imaginary[part], imaginary, self.settings.precision).view(-1, num_shifts, size)
            norm = views.power[part] @ batch.norm
            both[0, part] = self._score((even + odd).amax(1), norm, batch.length)
            both[1, part] = self._score(even.sub_(odd).amax(1), norm, batch.length)
        conjugate, pair = (torch.from_numpy(a).to(self.device) for a in (views.conjugate.astype(np.int64), views.pair))
        return both[conjugate, pair].T.contiguous()

    def _score(self, linear: Tensor, norm: Tensor, length: Tensor) -> Tensor:
        """Likelihood: linear - norm. Correlation: linear over both norms."""
        if self.settings.score == "likelihood":
            return linear - norm
        return linear / (norm.clamp(min=_LEAST_POWER).sqrt() * length.clamp(min=_LEAST_POWER))

    def _log_weight(self, score: Tensor, band: Band) -> Tensor:
        """Log-likelihoods of scores: of a correlation that of white noise of unknown variance and scale."""
        if self.settings.score == "correlation":
            gain = -len(band) * torch.log1p(-score.clamp(0, _LARGEST_CORRELATION).square())
            score = torch.where(score.isneginf(), score, gain)
        return score / self.settings.temperature

    def _search_fine(self, batch: _Batch, coarse: Tensor, likely: Tensor, first: int) -> list[Tensor]:
        """Search the fine views of the best coarse ones, for the particles `first` and on of a batch."""
        views, count, near = self._fine, len(coarse), len(self._near_shifts)
        num_shifts = near * int(likely.sum(0).max())
        chosen = coarse.topk(self._kept_views, dim=1).indices
        candidates, is_one = self._children[chosen].flatten(1), self._is_child[chosen].flatten(1)
        order = is_one.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        longest = max(int(is_one.sum(1).max()), 1)
        candidates, is_one = (part.gather(1, order[:, :longest]) for part in (candidates, is_one))
        flat = candidates.cpu().numpy()
        pair = torch.from_numpy(views.pair[flat]).to(self.device)
        sign = torch.from_numpy(np.where(views.conjugate[flat], np.float32(-1), np.float32(1))).to(self.device)
        part = slice(first, first + count)
        # (t, shifts, m) x (t, m, f): MKL is fastest with whole blocks of rows, hence the empty shifts at the end
        real, imaginary = (
            torch.nn.functional.pad(moved[:, :num_shifts, part].permute(2, 1, 0), (0, 0, 0, -num_shifts % SHIFT_BLOCK))
            for moved in (batch.real, batch.imaginary)
        )
        linear = torch.bmm(real, _rows(views.real, pair).mT)
        linear += torch.bmm(imaginary, _rows(views.imaginary, pair).mT) * sign[:, None]
        norm = torch.bmm(batch.norm[:, part].T[:, None], _rows(views.power, pair).mT)
        scores = self._score(linear[:, :num_shifts], norm, batch.length[part, None, None])
        searched = likely.T.repeat_interleave(near, dim=1)[:, :num_shifts]
        scores = scores.masked_fill(~searched[:, :, None], -torch.inf)
        return self._kept(scores, norm[:, 0], candidates, is_one, coarse, chosen)

    def _kept(
        self, scores: Tensor, norm: Tensor, candidates: Tensor, is_one: Tensor, coarse: Tensor, chosen: Tensor
    ) -> list[Tensor]:
        """The best fine views of scores `(t, shifts, f)`, their log-weights normalised over all views.

        Those that were not searched have the share that the coarse views give them.
        """
        uniform = np.log(scores.shape[1])
        log_weights = (self._log_weight(scores, self.band).logsumexp(1) - uniform).masked_fill(~is_one, -torch.inf)
        total = log_weights.logsumexp(1) - self._log_share_followed(coarse, chosen)
        count = min(self.settings.num_kept, log_weights.shape[1])
        values, places = log_weights.topk(count, dim=1)
        missing = (0, self.settings.num_kept - count)
        values = torch.nn.functional.pad(values - total[:, None], missing, value=-torch.inf)
        places = torch.nn.functional.pad(places, missing)
        best, shift = scores.gather(2, places[:, None].expand(-1, scores.shape[1], -1)).max(1)
        peak, power = best[:, 0], norm.gather(1, places[:, :1])[:, 0]
        if self.settings.score == "correlation":
            standing = peak * (2 * len(self.band)) ** 0.5
        else:  # of noise alone the score has mean -power and variance 2 power
            standing = (peak + power) / (2 * power.clamp(min=_LEAST_POWER)).sqrt()
        return [candidates.gather(1, places), values, shift, peak, standing]

    def _log_share_followed(self, coarse: Tensor, chosen: Tensor) -> Tensor:
        """Log of the posterior mass, by the coarse scores, at the coarse views that were followed, `(t,)`."""
        mass = self._log_weight(coarse, self.coarse_band) + self._log_children
        return mass.gather(1, chosen).logsumexp(1) - mass.logsumexp(1)

    def _proposals(self, found: list[Tensor], of_noise: NoiseScores | None) -> Proposals:
        positions, log_weights, moved, peak, standing = found
        order, settings = self.settings.grid_order, self.settings
        indices = self._fine.unit.points[positions.numpy()]
        distribution = SparseDistribution(order, True, indices, log_weights.numpy())
        separation = SEPARATION_IN_GRID_STEPS * grid_step_deg(order)
        group = group_rotations(self.reference.symmetry)
        modes, weights = top_poses_sparse(distribution, group, settings.num_modes, separation)
        moves = moved.numpy()
        chosen = nearest_index(modes.reshape(-1, 3, 3), order).reshape(len(modes), -1)
        column = (indices[:, None] == chosen[:, :, None]).argmax(2)
        height = standing.double().numpy()
        return Proposals(
            distribution=distribution,
            shifts_angstrom=moves.astype(np.float32),
            mode_rotations=modes,
            mode_shifts_angstrom=np.take_along_axis(moves, column[:, :, None], 1),
            mode_weights=weights,
            log_likelihood=peak.double().numpy(),
            standing=height,
            above_noise=np.full(len(height), np.nan) if of_noise is None else (height - of_noise.mean) / of_noise.std,
        )


def _shift_grid(range_angstrom: float, step_angstrom: float) -> Float64:
    """Shifts `(s, 2)` (x, y) on a square grid within a circle, 0 among them."""
    reach = int(range_angstrom / step_angstrom + 1e-6)
    axis = np.arange(-reach, reach + 1)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    inside = x**2 + y**2 <= (range_angstrom / step_angstrom + 1e-6) ** 2
    return np.asarray(np.stack([x[inside], y[inside]], -1) * step_angstrom, np.float64)


def _rows(matrix: Tensor, index: Tensor) -> Tensor:
    """Rows `(t, f, m)` of a matrix `(h, m)` at indices `(t, f)`."""
    return torch.index_select(matrix, 0, index.flatten()).view(*index.shape, -1)


def _matrix(values: Tensor, precision: str) -> Tensor:
    """A `(m, shifts, t)` part as the right factor `(m, shifts t)`."""
    matrix = values.reshape(len(values), -1)
    return matrix.bfloat16() if precision == "bfloat16" else matrix


def _product(left: Tensor, right: Tensor, precision: str) -> Tensor:
    return (left.bfloat16() @ right).float() if precision == "bfloat16" else left @ right
