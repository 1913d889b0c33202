"""Particles against all views of a reference: a posterior on the SO(3) grid, with a shift for each rotation."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cesped_stream.gallery.products import blocks, matrix, product, products, shift_grid, taken, waves
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
from cesped_stream.imaging.shift_prior import LEAST_RANGE_ANGSTROM
from cesped_stream.settings import GallerySettings
from cesped_stream.so3.distribution import SparseDistribution, top_poses_sparse
from cesped_stream.so3.grids import grid_step_deg, nearest_index
from cesped_stream.so3.symmetry import group_rotations

SHIFT_STEPS_PER_LIMIT: Final = 4.0
SEPARATION_IN_GRID_STEPS: Final = 2.0
NEAR_COARSE_STEPS: Final = 1.5
"""How far from a coarse view's best shift the fine search looks, in coarse steps."""
UNDECIDED: Final = 4
"""So many times `keep_fraction` is followed where the coarse search leaves it open which views are likely."""
LEAST_MASS_OF_A_VIEW: Final = 3e-4
"""Those further coarse views have at least this share of the likeliest one's posterior mass."""
_LEAST_POWER: Final = 1e-20
_LARGEST_CORRELATION: Final = 0.999

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


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


@dataclass(frozen=True, eq=False)
class _Batch:
    """A batch's coefficients with weights, for one set of views."""

    weighted: Tensor
    """`(t, m)` complex64: images times CTF over the noise's variance."""
    norm: Tensor
    """`(m, t)` float32."""
    length: Tensor
    """`(t,)`: norm of the images, for the correlation."""

    def part(self, which: slice) -> "_Batch":
        """The images of a slice."""
        return _Batch(self.weighted[which], self.norm[:, which], self.length[which])


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
        self.coarse_shifts_angstrom = shift_grid(self.shift_range_angstrom, self._coarse_step)
        self._near_shifts = shift_grid(NEAR_COARSE_STEPS * self._coarse_step, self.shift_step_angstrom)
        projector = MapProjector(reference.volume, reference.pixel_size_angstrom, device=self.device)
        self._coarse = self._views(
            projector, settings.coarse_order, self.coarse_band, coarse_displacement, self._coarse_step
        )
        self._fine = self._views(projector, settings.grid_order, self.band, displacement, self.shift_step_angstrom)
        self._prepare_shifts()
        children, is_child = finer_views_of(self._coarse.unit, self._fine.unit)
        self._children = torch.from_numpy(children).to(self.device)
        self._is_child = torch.from_numpy(is_child).to(self.device)
        self._log_children = self._is_child.sum(1).clamp(min=1e-9).log()
        self._kept_views = max(1, round(settings.keep_fraction * len(self._coarse)))

    def _prepare_shifts(self) -> None:
        """Phases and priors of the coarse shifts and of those about each."""
        self._coarse_phases, near_phases, self._centre_phases = (
            band.shift_phases(torch.from_numpy(shifts)).to(self.device)
            for band, shifts in (
                (self.coarse_band, self.coarse_shifts_angstrom),
                (self.band, self._near_shifts),
                (self.band, self.coarse_shifts_angstrom),
            )
        )
        self._coarse_waves, self._near_waves = waves(self._coarse_phases), waves(near_phases)
        self._coarse_prior, self._near_prior = self._priors()
        grid = torch.from_numpy(self.coarse_shifts_angstrom).to(self.device)
        self._is_beside = torch.cdist(grid, grid) <= NEAR_COARSE_STEPS * self._coarse_step + 1e-6

    @property
    def shift_range_angstrom(self) -> float:
        """Shifts within this distance are searched: the setting's, else what the reference's aligned rows reach."""
        learned = self.reference.shift_prior
        automatic = LEAST_RANGE_ANGSTROM if learned is None else learned.range_angstrom
        return self.settings.shift_range_angstrom or automatic

    def _priors(self) -> tuple[Tensor, Tensor]:
        """Log prior of the coarse shifts `(s,)` and of those about each `(s, near)`, each set's masses adding to 1.

        A correlation has none: its products are in the map's own unit.
        """
        near = self.coarse_shifts_angstrom[:, None] + self._near_shifts
        learned = self.reference.shift_prior
        if self.settings.score == "correlation":
            return torch.zeros(len(near), device=self.device), torch.zeros(near.shape[:2], device=self.device)
        if learned is None or not self.settings.shift_prior:
            density = (np.zeros(len(near)), np.zeros(near.shape[:2]))
        else:
            density = (learned.log_density_at(self.coarse_shifts_angstrom), learned.log_density_at(near))
        mass = np.logaddexp.reduce(density[0])
        per_cell = 2 * np.log(self._coarse_step / self.shift_step_angstrom)
        first, about = (
            torch.from_numpy(part.astype(np.float32)).to(self.device)
            for part in (density[0] - mass, density[1] - mass - per_cell)
        )
        return first, about

    def __len__(self) -> int:
        """Return the number of views of the result's order."""
        return len(self._fine)

    def propose(self, images: BandImages, noise: NoiseModel, rows: Int64) -> Proposals:
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
        return self._proposals([torch.cat(part).cpu() for part in zip(*parts, strict=True)])

    def _views(
        self, projector: MapProjector, order: int, band: Band, displacement: float, shift_step_angstrom: float
    ) -> Views:
        envelope = grid_envelope(band, displacement, shift_step_angstrom)
        if self.settings.score == "correlation":
            envelope = np.ones_like(envelope)
        return views_of(projector, self.reference.symmetry, order, band, envelope)

    def _weighted(self, images: BandImages, noise: NoiseModel, rows: Int64, views: Views) -> _Batch:
        """What a batch's products with these views need; the noise includes what the grid cannot resolve."""
        linear, square = whitened_weights(images, noise, rows)
        if self.settings.score == "correlation":
            linear, square = torch.ones_like(linear), torch.ones_like(square)
        else:
            # a^2 C^2 |S|^2 (1 - envelope^2) over the noise's variance; square is a^2 over it
            unresolved = square * images.ctf_square * (views.shell_power * (1 - views.envelope.square()))
            linear, square = linear / (1 + unresolved), square / (1 + unresolved)
        length = images.power.sum(1).sqrt()
        return _Batch(times_real(images.matched, linear), (images.ctf_square * square).T.contiguous(), length)

    def _propose_batch(self, images: BandImages, noise: NoiseModel, rows: Int64) -> list[Tensor]:
        """Positions of the fine views kept, their log-weights, shifts and the best score."""
        blurred = images.within(self.coarse_band.limit_angstrom)
        coarse = self._weighted(blurred, noise, rows, self._coarse)
        fine = self._weighted(images, noise, rows, self._fine)
        best = self._search_coarse(coarse)
        step = 1 if self.device.type == "cpu" else self.settings.batch_size
        found = [
            self._follow(coarse.part(slice(i, i + step)), fine.part(slice(i, i + step)), best[i : i + step])
            for i in range(0, len(images), step)
        ]
        return [torch.cat(part) for part in zip(*found, strict=True)]

    def _follow(self, coarse: _Batch, fine: _Batch, best: Tensor) -> list[Tensor]:
        """Search the fine views of the best coarse ones, each about the shift that is best for its coarse view."""
        height, chosen = best.topk(min(UNDECIDED * self._kept_views, best.shape[1]), dim=1)
        weight = self._log_weight(height, self.coarse_band)
        followed = weight >= weight[:, :1] + np.log(LEAST_MASS_OF_A_VIEW)
        followed[:, : self._kept_views] = True
        count = int(followed.sum(1).max())
        chosen, followed = chosen[:, :count], followed[:, :count]
        centres = self._own_shifts(coarse, chosen, followed)
        return self._search_fine(fine, best, chosen, followed, centres)

    def _own_shifts(self, batch: _Batch, chosen: Tensor, followed: Tensor) -> Tensor:
        """Which of the coarse shifts `(t, k)` suits each of the coarse views `chosen` `(t, k)` best.

        Where that is next to the shift with most posterior mass, it is that one: what is compared is then alike.
        """
        own = batch.weighted[:, None].real.contiguous(), batch.weighted[:, None].imag.contiguous()
        parts = [
            torch.matmul(products(*self._rows_of(self._coarse, chosen[:, part]), *own), self._coarse_waves)
            for part in blocks(chosen.shape[1])
        ]
        linear = torch.cat(parts, 1) + self._coarse_prior
        norm = self._norm_of(self._coarse, chosen, batch)
        score = self._score(linear, norm[:, :, None], batch.length[:, None, None])
        weight = self._log_weight(score, self.coarse_band).masked_fill(~followed[:, :, None], -torch.inf)
        likeliest = weight.logsumexp(1).argmax(1, keepdim=True)
        best = score.argmax(2)
        return torch.where(self._is_beside[best, likeliest], likeliest, best)

    def _search_coarse(self, batch: _Batch) -> Tensor:
        """Best score over shifts, their prior included, `(t, coarse views)`."""
        views = self._coarse
        num_shifts, size = len(self.coarse_shifts_angstrom), len(batch.weighted)
        tile = max(1, self.settings.memory_mib * 2**20 // (8 * num_shifts * size))
        moved = exact_product(batch.weighted.T[:, None], self._coarse_phases.T[:, :, None])
        real, imaginary = (matrix(part, self.settings.precision) for part in moved)
        prior = self._coarse_prior[None, :, None]
        both = torch.empty(2, len(views.real), size, device=self.device)
        for start in range(0, len(views.real), tile):
            part = slice(start, start + tile)
            even = product(views.real[part], real, self.settings.precision).view(-1, num_shifts, size)
            odd = product(views.imaginary[part], imaginary, self.settings.precision).view(-1, num_shifts, size)
            norm = views.power[part] @ batch.norm
            both[0, part] = self._score((even + odd).add_(prior).amax(1), norm, batch.length)
            both[1, part] = self._score(even.sub_(odd).add_(prior).amax(1), norm, batch.length)
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

    def _search_fine(
        self, batch: _Batch, coarse: Tensor, chosen: Tensor, followed: Tensor, centres: Tensor
    ) -> list[Tensor]:
        """Search the fine views of the coarse ones `chosen` `(t, k)` about their shifts `centres` `(t, k)`."""
        views, most = self._fine, self._children.shape[1]
        candidates, is_one = self._children[chosen].flatten(1), self._is_child[chosen] & followed[:, :, None]
        order = is_one.flatten(1).to(torch.int8).argsort(dim=1, descending=True, stable=True)
        order = order[:, : max(int(is_one.flatten(1).sum(1).max()), 1)]
        candidates, is_one = candidates.gather(1, order), is_one.flatten(1).gather(1, order)
        parent = order // most
        moved = exact_product(batch.weighted[:, None], self._centre_phases[centres])
        first = torch.arange(len(parent), device=self.device)[:, None] * centres.shape[1]
        flat = tuple(part.flatten(0, 1) for part in moved)
        parts = []
        for part in blocks(candidates.shape[1]):
            images = (taken(own, (parent + first)[:, part]) for own in flat)
            parts.append(torch.matmul(products(*self._rows_of(views, candidates[:, part]), *images), self._near_waves))
        linear = torch.cat(parts, 1)
        norm = self._norm_of(views, candidates, batch)
        scores = self._score(linear, norm[:, :, None], batch.length[:, None, None])
        return self._kept(scores, candidates, is_one, centres.gather(1, parent), coarse, chosen, followed)

    def _kept(
        self,
        scores: Tensor,
        candidates: Tensor,
        is_one: Tensor,
        centres: Tensor,
        coarse: Tensor,
        chosen: Tensor,
        followed: Tensor,
    ) -> list[Tensor]:
        """The best fine views of scores `(t, f, near)`, their log-weights normalised over all views.

        Those that were not searched have the share that the coarse views give them.
        """
        prior = self._near_prior[centres]
        posterior = self._log_weight(scores, self.band) + prior
        log_weights = posterior.logsumexp(2).masked_fill(~is_one, -torch.inf)
        total = log_weights.logsumexp(1) - self._log_share_followed(coarse, chosen, followed)
        count = min(self.settings.num_kept, log_weights.shape[1])
        values, places = log_weights.topk(count, dim=1)
        missing = (0, self.settings.num_kept - count)
        values = torch.nn.functional.pad(values - total[:, None], missing, value=-torch.inf)
        places = torch.nn.functional.pad(places, missing)
        near = posterior.gather(1, places[:, :, None].expand(-1, -1, scores.shape[2])).argmax(2)
        own = centres.gather(1, places)
        shifts = self._near_shifts_of(own, near)
        peak = scores.gather(1, places[:, :1, None].expand(-1, -1, scores.shape[2]))[:, 0].gather(1, near[:, :1])[:, 0]
        return [candidates.gather(1, places), values, shifts, peak]

    def _near_shifts_of(self, centres: Tensor, near: Tensor) -> Tensor:
        """Shifts `(..., 2)` float64 of coarse shifts and of those about them."""
        coarse, fine = (torch.from_numpy(a).to(self.device) for a in (self.coarse_shifts_angstrom, self._near_shifts))
        return coarse[centres] + fine[near]

    def _norm_of(self, views: Views, index: Tensor, batch: _Batch) -> Tensor:
        """What views at indices `(t, f)` have in the images, `(t, f)`."""
        pair = torch.from_numpy(views.pair[index.cpu().numpy()]).to(self.device)
        return torch.bmm(taken(views.power, pair), batch.norm.T[:, :, None])[:, :, 0]

    def _rows_of(self, views: Views, index: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary coefficients `(t, f, m)` of views at indices `(t, f)`."""
        flat = index.cpu().numpy()
        pair = torch.from_numpy(views.pair[flat]).to(self.device)
        sign = torch.from_numpy(np.where(views.conjugate[flat], np.float32(-1), np.float32(1))).to(self.device)
        return taken(views.real, pair), taken(views.imaginary, pair).mul_(sign[:, :, None])

    def _log_share_followed(self, coarse: Tensor, chosen: Tensor, followed: Tensor) -> Tensor:
        """Log of the posterior mass, by the coarse scores, at the coarse views that were followed, `(t,)`."""
        mass = self._log_weight(coarse, self.coarse_band) + self._log_children
        return mass.gather(1, chosen).masked_fill(~followed, -torch.inf).logsumexp(1) - mass.logsumexp(1)

    def _proposals(self, found: list[Tensor]) -> Proposals:
        positions, log_weights, moved, peak = found
        order, settings = self.settings.grid_order, self.settings
        indices = self._fine.unit.points[positions.numpy()]
        distribution = SparseDistribution(order, True, indices, log_weights.numpy())
        separation = SEPARATION_IN_GRID_STEPS * grid_step_deg(order)
        group = group_rotations(self.reference.symmetry)
        modes, weights = top_poses_sparse(distribution, group, settings.num_modes, separation)
        moves = moved.numpy()
        chosen = nearest_index(modes.reshape(-1, 3, 3), order).reshape(len(modes), -1)
        column = (indices[:, None] == chosen[:, :, None]).argmax(2)
        return Proposals(
            distribution=distribution,
            shifts_angstrom=moves.astype(np.float32),
            mode_rotations=modes,
            mode_shifts_angstrom=np.take_along_axis(moves, column[:, :, None], 1),
            mode_weights=weights,
            log_likelihood=peak.double().numpy(),
        )
