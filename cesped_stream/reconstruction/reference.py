"""References of one half-set: from its aligned rows, or from a given map."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from cesped_stream.errors import InvalidStarError
from cesped_stream.imaging.band import Band, BandImages, centred_slices
from cesped_stream.imaging.band_rows import read_band_images, usable_images
from cesped_stream.imaging.maps import crop_map
from cesped_stream.imaging.noise_model import PRIOR_ROWS, NoiseModel, fit_noise, optics_key
from cesped_stream.imaging.preprocess import Preprocessor
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.imaging.reference import Reference
from cesped_stream.imaging.shift_prior import ShiftPrior, fit_shift_prior
from cesped_stream.particles.flags import flags_in_words
from cesped_stream.particles.identities import particle_digests
from cesped_stream.particles.stacks import DIGEST_BYTES, StackReader, read_images
from cesped_stream.particles.table import CtfParameters, ParticleTable
from cesped_stream.reconstruction.agreement import agreeing, log_likelihoods
from cesped_stream.reconstruction.backproject import Backprojector, wiener_prior
from cesped_stream.reconstruction.fsc import postprocess_fsc, resolution_angstrom
from cesped_stream.reconstruction.mask import lowpassed, soft_mask
from cesped_stream.settings import PreprocessSettings, ReferenceSettings
from cesped_stream.so3.symmetry import group_rotations

logger = logging.getLogger(__name__)

LEAST_ROWS = 20
LEAVING_OUT_ROUNDS = 3
MARGIN_TO_NYQUIST = 1.05
SPREADS_PER_RESOLUTION = 4

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


def reference_from_rows(
    table: ParticleTable, symmetry: str, settings: ReferenceSettings, reader: StackReader, *, device: str = "cpu"
) -> Reference:
    """Return the reference of one half-set's aligned rows: symmetrised, Wiener-filtered, masked, with its noise model.

    The rows are split in two (every other one); the FSC of the two maps, corrected for the mask by random phases and
    carried over to all rows (2 F / (1 + F)), gives filter and resolution, so the other half-set is never looked at. The
    noise model is fitted to each part with the map of the other. Rows that the other part's map explains no better than
    noise does (junk, wrong poses: `agreement`) are left out, and all is made again; they stay members. Images of other
    boxes or pixel sizes than the most frequent are resampled to it. Memory: `ROWS_AT_ONCE` images, two padded maps and
    up to `settings.noise_rows` images' coefficients, more where optics groups need them (2 `PRIOR_ROWS` each).
    InvalidStarError for rows of two half-sets, or fewer than `LEAST_ROWS` with a pose and a usable image; else what
    reading raises.
    """
    halves = np.unique(table.half_sets())
    if len(halves) > 1:
        raise InvalidStarError(
            f"{table.source or 'aligned rows'}: rows of both half-sets; a reference is made of one, select it"
        )
    table = table.select(np.flatnonzero(table.has_poses()))
    frame = _Frame.of(table, settings, reader)
    make = partial(_Made.of, frame=frame, symmetry=symmetry, settings=settings, reader=reader, device=device)
    usable, agreed, made = _without_disagreeing(table, make, settings, reader, device)
    left_out = len(usable) - len(agreed)
    logger.info("reference made", extra={"num_rows": len(agreed), "num_left_out": left_out})
    return Reference(
        volume=made.maps.whole,
        pixel_size_angstrom=frame.pixel_size_angstrom,
        resolution_angstrom=made.maps.resolution_angstrom,
        symmetry=symmetry,
        half_set=int(halves[0]),
        shared=False,
        members=np.sort(particle_digests(usable)),
        noise=made.noise,
        shift_prior=_shift_prior(agreed, made.maps),
        num_left_out=left_out,
    )


def _without_disagreeing(
    table: ParticleTable,
    make: "Callable[[ParticleTable, Int64], _Made]",
    settings: ReferenceSettings,
    reader: StackReader,
    device: str,
) -> tuple[ParticleTable, ParticleTable, "_Made"]:
    """The usable rows, those of them that agree, and what is made of these."""
    made = make(table, np.arange(len(table)) % 2)
    usable, part_of = table.select(made.used), made.used % 2
    agreed = usable
    for _ in range(LEAVING_OUT_ROUNDS if settings.leave_out else 0):
        agree = agreeing(_log_likelihoods(usable, part_of, made, settings, reader, device))
        if agree.sum() < LEAST_ROWS or agree.sum() == len(agreed):
            break
        agreed = usable.select(np.flatnonzero(agree))
        made = make(agreed, part_of[agree])
    return usable, agreed, made


def _shift_prior(table: ParticleTable, maps: "_Maps") -> ShiftPrior:
    extent = maps.whole.shape[0] * maps.pixel_size_angstrom
    spread = maps.resolution_angstrom / SPREADS_PER_RESOLUTION
    return fit_shift_prior(table.shifts_angstrom(), spread, extent / 4)


def reference_from_map(
    volume: Float32, pixel_size_angstrom: float, symmetry: str, half_set: int, settings: ReferenceSettings
) -> Reference:
    """Return a given map as a half-set's reference: low-passed at `settings.map_lowpass_angstrom`, masked, `shared`.

    Both half-sets have the same map then, so it must not carry detail that would make two half maps agree. It has no
    noise model: that is fitted at the first poses.
    """
    box, finest = volume.shape[0], settings.map_lowpass_angstrom / 2
    smaller = min(box, 2 * int(np.ceil(box * pixel_size_angstrom / finest / 2)))
    filtered = lowpassed(crop_map(volume, smaller), pixel_size := pixel_size_angstrom * box / smaller, 2 * finest)
    mask = soft_mask(filtered, pixel_size, lowpass_angstrom=settings.mask_lowpass_angstrom)
    return Reference(
        volume=(filtered * mask).astype(np.float32),
        pixel_size_angstrom=pixel_size,
        resolution_angstrom=max(2 * finest, 2 * pixel_size * MARGIN_TO_NYQUIST),
        symmetry=symmetry,
        half_set=half_set,
        shared=True,
        members=np.empty(0, np.uint64),
    )


@dataclass(frozen=True, eq=False)
class _Frame:
    """Box and pixel size that a reference is made in, and what brings every image there."""

    box_size: int
    pixel_size_angstrom: float
    preprocessor: Preprocessor

    @staticmethod
    def of(table: ParticleTable, settings: ReferenceSettings, reader: StackReader) -> "_Frame":
        if len(table) == 0:
            raise InvalidStarError(f"{table.source or 'aligned rows'}: no row has a pose; a reference needs some")
        sizes, counts = np.unique(table.pixel_sizes_angstrom(), return_counts=True)
        own = float(sizes[counts.argmax()])
        row = int(np.flatnonzero(table.pixel_sizes_angstrom() == own)[0])
        box = read_images(table.select([row]), reader)[0].images.shape[-1]
        size = box - box % 2
        if settings.finest_angstrom > 2 * own * MARGIN_TO_NYQUIST:
            size = min(size, 2 * int(np.ceil(box * own * MARGIN_TO_NYQUIST / settings.finest_angstrom)))
        pixel_size = own if size >= box - 1 else own * box / size
        preprocess = PreprocessSettings(
            image_size=size, ctf_correction="none", background_radius_angstrom=settings.background_radius_angstrom
        )
        return _Frame(size, pixel_size, Preprocessor(preprocess, pixel_size))

    def images(self, raw: torch.Tensor, ctf: CtfParameters) -> tuple[torch.Tensor, CtfParameters]:
        """Return images `(n, box, box)` in this frame and their CTF in it."""
        resampled = self.preprocessor(raw, ctf)[:, 0]
        return resampled, replace(ctf, pixel_size_angstrom=np.full(len(raw), self.pixel_size_angstrom))


def _backproject(
    table: ParticleTable,
    part_of: Int64,
    frame: _Frame,
    parts: list[Backprojector],
    group: Float64,
    reader: StackReader,
) -> Int64:
    """Add row k to part `part_of[k]`; return the rows that were usable, ascending."""
    rotations, shifts, ctf = table.rotations(), table.shifts_angstrom(), table.ctf_parameters()
    used = [np.empty(0, np.int64)]
    flag, digest = np.zeros(len(table), np.uint8), np.zeros((len(table), DIGEST_BYTES), np.uint8)
    for found in usable_images(table, reader, flag, digest):
        index = found.index
        images, parameters = frame.images(found.images, ctf.select(index))
        for number, part in enumerate(parts):
            mine = np.flatnonzero(part_of[index] == number)
            rows = index[mine]
            part.add(images[mine], parameters.select(mine), rotations[rows], shifts[rows], group=group)
        used.append(index)
    if words := flags_in_words(flag, table.column("rlnImageName")):
        logger.warning("aligned rows of %s: %s", table.source or "an order", words)
    return np.sort(np.concatenate(used))


@dataclass(frozen=True, eq=False)
class _Made:
    """Maps and noise of some rows."""

    used: Int64
    """Rows of the table that were usable, ascending."""
    maps: "_Maps"
    noise: NoiseModel

    @staticmethod
    def of(
        table: ParticleTable,
        part_of: Int64,
        frame: _Frame,
        symmetry: str,
        settings: ReferenceSettings,
        reader: StackReader,
        device: str,
    ) -> "_Made":
        parts = [Backprojector(frame.box_size, frame.pixel_size_angstrom, device=device) for _ in range(2)]
        used = _backproject(table, part_of, frame, parts, group_rotations(symmetry), reader)
        if len(used) < LEAST_ROWS:
            raise InvalidStarError(
                f"{table.source or 'aligned rows'}: {len(used)} rows with a pose and a usable image, a reference needs "
                f"{LEAST_ROWS}; wait for more"
            )
        maps = _filtered(parts, frame, settings)
        return _Made(used, maps, _noise(table.select(used), part_of[used], maps, settings, reader, device))


def _log_likelihoods(
    table: ParticleTable, part_of: Int64, made: _Made, settings: ReferenceSettings, reader: StackReader, device: str
) -> Float64:
    return log_likelihoods(
        table,
        part_of,
        made.maps.parts,
        made.maps.pixel_size_angstrom,
        made.maps.resolution_angstrom,
        made.noise,
        reader,
        background_radius_angstrom=settings.background_radius_angstrom,
        device=device,
    )


@dataclass(frozen=True, eq=False)
class _Maps:
    whole: Float32
    parts: tuple[Float32, Float32]
    pixel_size_angstrom: float
    resolution_angstrom: float


def _filtered(parts: list[Backprojector], frame: _Frame, settings: ReferenceSettings) -> _Maps:
    box, pixel_size = frame.box_size, frame.pixel_size_angstrom
    plain = [part.map() for part in parts]
    mask = soft_mask(plain[0] + plain[1], pixel_size, lowpass_angstrom=settings.mask_lowpass_angstrom)
    correlation = postprocess_fsc(plain[0], plain[1], mask).corrected
    of_all = 2 * correlation.clip(0) / (1 + correlation.clip(0))
    reached = resolution_angstrom(of_all, box, pixel_size)
    smoothed = [part.map(wiener_prior(correlation, part.mean_denominator())) * mask for part in parts]
    parts[0].merge(parts[1])
    whole = parts[0].map(wiener_prior(of_all, parts[0].mean_denominator())) * mask
    coarsest = box * pixel_size / 3
    finest = max(2 * pixel_size * MARGIN_TO_NYQUIST, settings.finest_angstrom)
    return _Maps(whole, (smoothed[0], smoothed[1]), pixel_size, float(np.clip(reached, finest, max(coarsest, finest))))


def _noise(
    table: ParticleTable,
    part_of: Int64,
    maps: _Maps,
    settings: ReferenceSettings,
    reader: StackReader,
    device: str,
) -> NoiseModel:
    """The noise at the given poses, each row beside the map that it is not in."""
    step = max(1, -(-len(table) // settings.noise_rows))
    keys = [optics_key(group) for group in table.optics]
    chosen = _spread_over_groups(table, part_of, step)
    extent = maps.whole.shape[0] * maps.pixel_size_angstrom
    band = Band(extent, maps.resolution_angstrom)
    images, slices, groups = [], [], []
    for part, volume in enumerate(maps.parts):
        rows = chosen[part_of[chosen] != part]
        projector = MapProjector(volume, maps.pixel_size_angstrom, device=device)
        picked = table.select(rows)
        found = read_band_images(
            picked, [band], reader, background_radius_angstrom=settings.background_radius_angstrom, device=device
        )
        assert len(found.index) == len(picked), "rows of a reference are usable"
        images.append(found.images[0])
        slices.append(centred_slices(projector, band, picked.rotations(), picked.shifts_angstrom()))
        groups.append(picked.optics_index)
    present, place = np.unique(np.concatenate(groups), return_inverse=True)
    return fit_noise(BandImages.joined(images), torch.cat(slices), place, [keys[k] for k in present])


def _spread_over_groups(table: ParticleTable, part_of: Int64, step: int) -> Int64:
    """Every `step`-th row of each optics group and part, ascending; more where that is too few to fit a group on."""
    rows = [
        np.flatnonzero((table.optics_index == group) & (part_of == part))
        for group in range(len(table.optics))
        for part in range(2)
    ]
    return np.sort(np.concatenate([own[:: max(1, min(step, len(own) // PRIOR_ROWS))] for own in rows]))
