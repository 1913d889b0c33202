"""What a replay does to an entry's images on their way: junk, neighbours, bad centring, more noise."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cesped_stream.errors import InvalidStarError
from cesped_stream.imaging.junk import CONTRAST, PARTICLE, PICTURES, kinds_of
from cesped_stream.imaging.noise import filtered, phase_randomised, power_law
from cesped_stream.particles.table import ParticleTable
from cesped_stream.settings import RealismSettings

_DIAMETER_BOXES = 0.7
_PICTURE_CONTRAST = 0.4
"""A particle's signal over the noise, as standard deviations, where the entry does not tell: SNR 0.16."""
_NEIGHBOURHOOD = 10

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ImageEdits:
    """Edits of the images of `source`'s rows; the same rows in the same stack give the same bits."""

    realism: RealismSettings
    source: ParticleTable
    moves: Int64
    """`(n, 2)` (x, y), whole pixels."""
    time: Float64
    """`(n,)`: when each row lands, 0 for the first and 1 for the last."""

    def __call__(self, rows: Int64, images: Float32) -> Float32:
        """Return the images `(m, box, box)` of the source's `rows` as they land. Flagged ones stay as they are.

        Noise levels are each image's own, outside the circle inscribed in its box. What a neighbour or a pair is made
        of are other images of the same stack, of the same half-set, so that halves stay apart. What a moved image
        loses at one side comes in on the other, as background.
        """
        good = np.array([bool(np.isfinite(image).all() and np.ptp(image) > 0) for image in images], np.bool_)
        if not good.any():
            return images
        stack = _Stack(self, rows[good], images[good].astype(np.float32))
        edited = images.astype(np.float32)
        edited[good] = stack.edited()
        return edited

    @property
    def any(self) -> bool:
        """Whether an image is changed at all."""
        realism = self.realism
        more_noise = realism.added_noise > 0 or realism.snr_end_over_start < 1
        return more_noise or realism.junk_fraction > 0 or realism.neighbours > 0 or bool(self.moves.any())

    def clipped(self, boxes: Int64) -> NDArray[np.bool_]:
        """Flags `(n,)`: moved so far that the particle's circle leaves its box, of side `boxes` `(n,)` pixels."""
        pixel = self.source.pixel_sizes_angstrom()
        diameters = diameters_px(self.realism, pixel, boxes)
        away = np.abs(self.source.shifts_angstrom() / pixel[:, None]).max(1)
        return np.asarray(self.moves.any(1) & (away + diameters / 2 > boxes / 2), np.bool_)

    def added_variance(self, rows: Int64) -> Float64:
        """Return the variance of the noise that is added to `rows`, over the variance that they have, `(m,)`."""
        slower = self.realism.snr_end_over_start ** self.time[rows]
        return np.asarray((1 + self.realism.added_noise) / slower - 1, np.float64)


def diameters_px(realism: RealismSettings, pixel_sizes_angstrom: Float64, boxes: Int64) -> Float64:
    """Return the particle's diameter in pixels of each image `(n,)`: as given, else 0.7 of its box."""
    given = realism.particle_diameter_angstrom / pixel_sizes_angstrom
    return np.where(given > 0, given, _DIAMETER_BOXES * boxes)


class _Stack:
    """Images of one landing stack."""

    def __init__(self, edits: ImageEdits, rows: Int64, images: Float32) -> None:
        self._edits, self._realism, self._rows = edits, edits.realism, rows
        self._table = edits.source.select(rows)
        box = images.shape[-1]
        axis = np.arange(box) - box // 2
        self._x, self._y = np.broadcast_to(axis, (box, box)), np.broadcast_to(axis[:, None], (box, box))
        outside = self._x**2 + self._y**2 > (box / 2) ** 2
        self._level = images[:, outside].mean(1, dtype=np.float64).astype(np.float32)
        self._spread = np.maximum(images[:, outside].std(1, dtype=np.float64), 1e-20).astype(np.float32)
        self._raw = images
        self._images = images - self._level[:, None, None]
        self._half_sets = self._table.half_sets()
        boxes = np.full(len(rows), box, np.int64)
        self._diameters = diameters_px(self._realism, self._table.pixel_sizes_angstrom(), boxes)

    def edited(self) -> Float32:
        edited = self._images.copy()
        for k, kind in enumerate(kinds_of(self._table)):
            generator = np.random.default_rng([*b"image", self._realism.seed, int(self._rows[k])])
            if kind != PARTICLE and self._realism.junk_fraction:
                edited[k] = self._junk(k, kind, generator)
            else:
                edited[k] = self._with_neighbours(k, generator)
            edited[k] = np.roll(edited[k], self._edits.moves[self._rows[k], ::-1], (0, 1))
            edited[k] += self._more_noise(k, generator)
        same = [np.array_equal(new, old) for new, old in zip(edited, self._images, strict=True)]
        edited += self._level[:, None, None]
        edited[same] = self._raw[same]  # to the bit
        return np.asarray(edited, np.float32)

    def _junk(self, k: int, kind: str, generator: np.random.Generator) -> Float32:
        if kind == "two_particles":
            return self._pair(k, generator)
        noise = phase_randomised(self._images[k : k + 1], generator)[0]
        diameter = float(self._diameters[k])
        box = len(noise)
        # On a field of two boxes: the CTF must not bring one edge's contents in at the other.
        field = PICTURES[kind](2 * box, diameter, generator)[None]
        part = slice(box - box // 2, 2 * box - box // 2)
        picture = filtered(field, self._transfer(k, 2 * box))[0, part, part]
        strength = generator.uniform(*CONTRAST[kind]) * _PICTURE_CONTRAST * self._spread[k]
        return np.asarray(noise + picture * np.float32(strength / max(float(picture.std()), 1e-20)), np.float32)

    def _pair(self, k: int, generator: np.random.Generator) -> Float32:
        """Two images on either side of a line through the pick, each moved away from it by 0.3 to 0.5 diameters."""
        angle = generator.uniform(0, 2 * np.pi)
        reach = generator.uniform(0.3, 0.5) * float(self._diameters[k])
        dx, dy = round(reach * np.cos(angle)), round(reach * np.sin(angle))
        one = np.roll(self._images[k], (dy, dx), (0, 1))
        other = np.roll(self._another(k, generator), (-dy, -dx), (0, 1))
        return np.where(self._x * dx + self._y * dy >= 0, one, other)

    def _with_neighbours(self, k: int, generator: np.random.Generator) -> Float32:
        """Add other images' particle circles; where they overlap, scaled so that the noise stays what it was."""
        image, diameter = self._images[k], float(self._diameters[k])
        for _ in range(min(4, int(generator.poisson(self._realism.neighbours)))):
            distance = diameter * generator.uniform(
                self._realism.min_neighbour_diameters, self._realism.max_neighbour_diameters
            )
            angle = generator.uniform(0, 2 * np.pi)
            dx, dy = round(distance * np.cos(angle)), round(distance * np.sin(angle))
            away = np.hypot(self._x - dx, self._y - dy)
            mask = np.clip((diameter / 2 - away) / (0.1 * diameter), 0, 1)
            neighbour = np.roll(self._another(k, generator), (dy, dx), (0, 1))
            image = ((image + mask * neighbour) / np.sqrt(1 + mask**2)).astype(np.float32)
        return np.asarray(image, np.float32)

    def _another(self, k: int, generator: np.random.Generator) -> Float32:
        """Return a nearby image of the same half-set, at this image's noise level; itself turned where it is alone."""
        mates = np.flatnonzero(self._half_sets == self._half_sets[k])
        place = int(np.searchsorted(mates, k))
        if len(mates) == 1:
            return np.ascontiguousarray(np.rot90(self._images[k], 2))
        other = int(mates[(place + generator.integers(1, min(_NEIGHBOURHOOD, len(mates) - 1) + 1)) % len(mates)])
        return np.asarray(self._images[other] * (self._spread[k] / self._spread[other]), np.float32)

    def _more_noise(self, k: int, generator: np.random.Generator) -> Float32 | np.float32:
        """Noise of the image's own power spectrum, times the power law that is asked for."""
        variance = float(self._edits.added_variance(self._rows[k : k + 1])[0])
        if variance <= 0:
            return np.float32(0)
        noise = phase_randomised(self._images[k : k + 1], generator)
        if self._realism.noise_exponent:
            corner = self._realism.noise_corner_angstrom / float(self._table.pixel_sizes_angstrom()[k])
            noise = filtered(noise, power_law(noise.shape[-1], self._realism.noise_exponent, corner))
        return np.asarray(noise[0] * (self._spread[k] * variance**0.5 / max(float(noise.std()), 1e-20)), np.float32)

    def _transfer(self, k: int, box: int) -> Float64 | Float32:
        """What the image's own signal has gone through; 1 where the star tells no CTF."""
        from cesped_stream.imaging.ctf import ctf  # torch: the settings of a replay are read without it

        try:
            parameters = self._table.select([k]).ctf_parameters()
        except InvalidStarError:
            return np.ones((box, box // 2 + 1))
        values = np.asarray(ctf(parameters, box)[0].numpy())
        if parameters.premultiplied[0]:
            return np.asarray(values**2)
        return np.abs(values) if parameters.phase_flipped[0] else values
