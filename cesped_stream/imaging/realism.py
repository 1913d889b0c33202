"""A simulated session: what a microscope and a picker add to the particles of a clean simulation."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cesped_stream.imaging.canvas import Canvas, measured_diameter_angstrom
from cesped_stream.imaging.junk import CONTRAST, PARTICLE, PICTURES
from cesped_stream.imaging.noise import coloured_noise
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.imaging.simulate import (
    CHUNK,
    Float64,
    Int64,
    SimulatedParticles,
    Simulation,
    random_rotations,
    simulated_optics,
)
from cesped_stream.particles.table import CtfParameters
from cesped_stream.settings import OpticsSettings, RealismSettings, SimulationSettings

REMEASURED_CS_MM = 0.05
"""By how much the spherical aberration of the later optics groups differs: a microscope that was aligned anew."""

_FIELD_PIXELS = 8_000_000
_CONFIDENCE_OF_PARTICLES, _CONFIDENCE_OF_JUNK = (6.0, 2.0), (2.0, 8.0)
"""Beta distributions of rlnMaxValueProbDistribution: means 0.75 and 0.2, overlapping, as in a consensus."""


@dataclass(frozen=True, eq=False)
class SessionParticles(SimulatedParticles):
    """Consecutive picks of a session, first axis n. The noise has variance 1; `ctf` holds the true envelope."""

    kinds: tuple[str, ...]
    """`particle`, or the kind of junk."""
    confidences: Float64
    """`(n,)` in [0, 1]: what a consensus gives, little for junk."""
    clipped: NDArray[np.bool_]
    """`(n,)`: a part of the particle's circle lies outside the box."""
    neighbours: "Neighbours"


@dataclass(frozen=True, eq=False)
class Neighbours:
    """m particles beside picks of a chunk."""

    rows: Int64
    """`(m,)` the pick of the chunk that each stands beside."""
    rotations: Float64
    """`(m, 3, 3)`."""
    offsets_angstrom: Float64
    """`(m, 2)` (x, y) from the pick's particle to the neighbour."""


def simulate_session(
    projector: MapProjector,
    settings: SimulationSettings,
    realism: RealismSettings,
    *,
    rotations: Float64 | None = None,
) -> Iterator[SessionParticles]:
    """Yield the picks of a session in chunks, in the order of the session; the same arguments give the same bits.

    Box, poses and memory as `simulate_particles`; what realism does not touch is what it gives for the same seed. The
    SNR holds for single, centred particles at the session's start (envelope included, neighbours not counted); later
    ones have less signal at the same noise. Shifts and kinds are true; junk has a random pose. ValueError where
    `rotations` are given and preferred views asked for.
    """
    if rotations is not None and realism.preferred_fraction:
        raise ValueError("preferred_fraction chooses views, and rotations are given; leave one of them out")
    session = _Session(projector, settings, rotations, realism)
    scale = session.scale()
    for chunk in range(session.num_chunks):
        yield session.picks(chunk, scale)


def session_optics(settings: SimulationSettings, realism: RealismSettings) -> tuple[OpticsSettings, ...]:
    """Return the optics groups of a simulation, and those that replace them where `new_optics_at` is set."""
    before = simulated_optics(settings)
    if not realism.new_optics_at:
        return before
    change = REMEASURED_CS_MM if settings.ctf else 0.0
    after = [g.model_copy(update={"spherical_aberration_mm": g.spherical_aberration_mm + change}) for g in before]
    return (*before, *after)


def cone_axes(realism: RealismSettings) -> Float64:
    """Return the unit axes `(cones, 3)` of the preferred views: random, and as far apart as two cone widths allow."""
    generator = np.random.default_rng([*b"cones", realism.seed])
    candidates = random_rotations(64, generator)[:, :, 2]
    chosen = [candidates[0]]
    while len(chosen) < realism.preferred_cones:
        nearest = (candidates @ np.array(chosen).T).max(1)
        chosen.append(candidates[int(nearest.argmin())])
    return np.array(chosen)


def preferred_rotations(count: int, realism: RealismSettings, generator: np.random.Generator) -> Float64:
    """Return rotations `(count, 3, 3)`: views spread evenly over the cones, within each evenly, any in-plane angle."""
    axes = cone_axes(realism)[generator.integers(0, realism.preferred_cones, count)]
    height = generator.uniform(np.cos(np.deg2rad(realism.preferred_cone_deg)), 1, count)
    around, psi = generator.uniform(-180, 180, (2, count))
    in_cone = Rotation.from_euler("ZYZ", np.stack([around, np.rad2deg(np.arccos(height)), psi], -1), degrees=True)
    tilt = np.rad2deg(np.arccos(np.clip(axes[:, 2], -1, 1)))
    to_axis = Rotation.from_euler("ZY", np.stack([np.rad2deg(np.arctan2(axes[:, 1], axes[:, 0])), tilt], -1), True)
    return np.asarray((to_axis * in_cone).as_matrix(), np.float64).reshape(-1, 3, 3)


@dataclass(frozen=True)
class _Session(Simulation):
    realism: RealismSettings

    @property
    def optics(self) -> tuple[OpticsSettings, ...]:
        return session_optics(self.settings, self.realism)

    @cached_property
    def _canvas(self) -> Canvas:
        return Canvas(self.projector)

    @cached_property
    def _diameter_angstrom(self) -> float:
        given = self.realism.particle_diameter_angstrom or 2 * self.settings.particle_radius_angstrom
        return given or measured_diameter_angstrom(self.projector)

    def picks(self, chunk: int, scale: float) -> SessionParticles:
        picks = self._picked(chunk)
        gain = scale * self.realism.snr_end_over_start ** (self._time(picks.index) / 2)
        images = self._signal(picks) * gain[:, None, None].astype(np.float32)
        self._add_pictures(images, picks, chunk, gain / scale)
        if np.isfinite(self.settings.snr):
            images += self._noise(len(images), chunk)
        return replace(picks, images=images)

    def _session_generator(self, purpose: str, number: int) -> np.random.Generator:
        return np.random.default_rng([*purpose.encode(), self.settings.seed, self.realism.seed, number])

    def _time(self, index: Int64) -> Float64:
        """Share of the session that has passed, 0 at the first particle and 1 at the last."""
        return np.asarray(index / (self.settings.num_particles - 1), np.float64)

    def _optics_of(self, micrograph: Int64) -> Int64:
        groups = super()._optics_of(micrograph)
        if not self.realism.new_optics_at:
            return groups
        begin = self._time(micrograph * self.settings.particles_per_micrograph)
        return groups + len(self.settings.optics) * (begin >= self.realism.new_optics_at)

    def _draw(self, chunk: int) -> SimulatedParticles:
        """As at the session's start: centred single particles. This is what the SNR is measured on."""
        particles = super()._draw(chunk)
        rotations = self._with_preferred(particles.rotations, chunk)
        envelope = self._envelopes(particles.micrograph)
        return replace(particles, rotations=rotations, ctf=replace(particles.ctf, bfactor_angstrom2=envelope))

    def _with_preferred(self, rotations: Float64, chunk: int) -> Float64:
        if not self.realism.preferred_fraction:
            return rotations
        generator = self._session_generator("views", chunk)
        rows = np.flatnonzero(generator.uniform(size=CHUNK)[: len(rotations)] < self.realism.preferred_fraction)
        turned = rotations.copy()
        turned[rows] = preferred_rotations(len(rows), self.realism, generator)
        return turned

    def _envelopes(self, micrograph: Int64) -> Float64:
        present, place = np.unique(micrograph, return_inverse=True)
        low, high = self.realism.min_envelope_angstrom2, self.realism.max_envelope_angstrom2
        drawn = [self._session_generator("envelope", int(m)).uniform(low, high) for m in present]
        return np.asarray(drawn, np.float64)[place]

    def _picked(self, chunk: int) -> SessionParticles:
        """Everything of a chunk but its images: `_draw`, and what befalls a particle in a session."""
        drawn = self._draw(chunk)
        generator = self._session_generator("picks", chunk)
        kinds = self._kinds(drawn.index, generator)
        junk = np.array([kind != PARTICLE for kind in kinds], np.bool_)
        rotations = np.where(junk[:, None, None], random_rotations(len(junk), generator), drawn.rotations)
        shifts = self._shifts(drawn.shifts_angstrom, generator)
        confidences = np.where(
            junk, generator.beta(*_CONFIDENCE_OF_JUNK, len(junk)), generator.beta(*_CONFIDENCE_OF_PARTICLES, len(junk))
        )
        known = {field.name: getattr(drawn, field.name) for field in fields(drawn)}
        known |= {"rotations": rotations, "shifts_angstrom": shifts, "ctf": self._drifted(drawn)}
        return SessionParticles(
            **known,
            kinds=kinds,
            confidences=confidences.round(6),
            clipped=self._clipped(shifts) & ~junk,
            neighbours=self._neighbours(np.flatnonzero(~junk), chunk),
        )

    def _kinds(self, index: Int64, generator: np.random.Generator) -> tuple[str, ...]:
        """Kinds of the picks `index`: exactly the asked share of junk over the whole session, each kind in turn."""
        fraction, names = self.realism.junk_fraction, self.realism.junk_kinds
        first, end = int(index[0] * fraction), int((index[-1] + 1) * fraction)
        places = generator.permutation(len(index))[: end - first]
        kinds = np.full(len(index), PARTICLE, object)
        for number, place in enumerate(places, first):
            kinds[place] = names[number % len(names)]
        return tuple(kinds)

    def _shifts(self, shifts: Float64, generator: np.random.Generator) -> Float64:
        realism = self.realism
        chance, length, angle = generator.uniform(size=(3, len(shifts)))
        reach = realism.min_off_centre_px + length * (realism.max_off_centre_px - realism.min_off_centre_px)
        reach = reach * self.projector.pixel_size_angstrom
        away = reach[:, None] * np.stack([np.cos(2 * np.pi * angle), np.sin(2 * np.pi * angle)], -1)
        return np.where((chance < realism.off_centre_fraction)[:, None], away, shifts).round(6)

    def _drifted(self, particles: SimulatedParticles) -> CtfParameters:
        ctf = particles.ctf
        if not (self.realism.defocus_drift_angstrom and self.settings.ctf):
            return ctf
        begin = self._time(particles.micrograph * self.settings.particles_per_micrograph)
        more = self.realism.defocus_drift_angstrom * begin
        return replace(
            ctf,
            defocus_u_angstrom=(ctf.defocus_u_angstrom + more).round(6),
            defocus_v_angstrom=(ctf.defocus_v_angstrom + more).round(6),
        )

    def _clipped(self, shifts: Float64) -> NDArray[np.bool_]:
        half_box = self.projector.box_size * self.projector.pixel_size_angstrom / 2
        return np.asarray(np.abs(shifts).max(1) + self._diameter_angstrom / 2 > half_box, np.bool_)

    def _neighbours(self, rows: Int64, chunk: int) -> Neighbours:
        generator = self._session_generator("neighbours", chunk)
        beside = np.repeat(rows, generator.poisson(self.realism.neighbours, len(rows)).clip(max=4))
        low, high = self.realism.min_neighbour_diameters, self.realism.max_neighbour_diameters
        distance = generator.uniform(low, high, len(beside)) * self._diameter_angstrom
        angle = generator.uniform(0, 2 * np.pi, len(beside))
        offsets = distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
        return Neighbours(beside, self._views(len(beside), generator), offsets)

    def _views(self, count: int, generator: np.random.Generator) -> Float64:
        views = random_rotations(count, generator).reshape(-1, 3, 3)
        rows = np.flatnonzero(generator.uniform(size=count) < self.realism.preferred_fraction)
        views[rows] = preferred_rotations(len(rows), self.realism, generator)
        return views

    def _signal(self, picks: SessionParticles) -> NDArray[np.float32]:
        """Particles, their neighbours and pairs `(n, box, box)` after the CTF, unscaled; 0 where there is none."""
        realism = self.realism
        if not (realism.junk_fraction or realism.neighbours or realism.off_centre_fraction):
            return self._clean(picks, slice(None))
        canvas = self._canvas
        step = max(1, _FIELD_PIXELS // canvas.size**2)
        pairs = self._pairs(picks)
        parts = []
        for start in range(0, len(picks.index), step):
            stop = min(start + step, len(picks.index))
            drawn = canvas.blank(stop - start)
            for rows, rotations, shifts in (self._singles(picks), self._beside(picks), pairs):
                here = (rows >= start) & (rows < stop)
                canvas.add_particles(drawn, rows[here] - start, rotations[here], shifts[here])
            parts.append(canvas.cut(drawn, picks.ctf.select(slice(start, stop))))
        return np.concatenate(parts)

    def _singles(self, picks: SessionParticles) -> tuple[Int64, Float64, Float64]:
        rows = np.flatnonzero([kind == PARTICLE for kind in picks.kinds])
        return rows, picks.rotations[rows], picks.shifts_angstrom[rows]

    def _beside(self, picks: SessionParticles) -> tuple[Int64, Float64, Float64]:
        beside = picks.neighbours
        # A shift moves an image by its negative.
        return beside.rows, beside.rotations, picks.shifts_angstrom[beside.rows] - beside.offsets_angstrom

    def _pairs(self, picks: SessionParticles) -> tuple[Int64, Float64, Float64]:
        """Two particles on either side of the pick, 0.6 to 1 diameter apart."""
        rows = np.flatnonzero([kind == "two_particles" for kind in picks.kinds])
        generator = self._session_generator("pairs", int(picks.index[0]))
        half = generator.uniform(0.3, 0.5, len(rows)) * self._diameter_angstrom
        angle = generator.uniform(0, 2 * np.pi, len(rows))
        away = half[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
        return np.tile(rows, 2), self._views(2 * len(rows), generator), np.concatenate([away, -away])

    def _add_pictures(self, images: NDArray[np.float32], picks: SessionParticles, chunk: int, gain: Float64) -> None:
        """Add ice, edges and other proteins, each at a contrast relative to the particles of its time."""
        signal = self.settings.snr**0.5 if np.isfinite(self.settings.snr) else 1.0
        circle = self.circle()
        for row in np.flatnonzero([kind in PICTURES for kind in picks.kinds]):
            kind = picks.kinds[row]
            generator = self._session_generator("junk", int(picks.index[row]))
            diameter = self._diameter_angstrom / self.projector.pixel_size_angstrom
            field = PICTURES[kind](self._canvas.size, diameter, generator)[None]
            picture = self._canvas.cut(field, picks.ctf.select(slice(row, row + 1)))[0]
            strength = (
                generator.uniform(*CONTRAST[kind]) * signal * gain[row] / max(float(picture[circle].std()), 1e-20)
            )
            images[row] += picture * np.float32(strength)

    def _noise(self, count: int, chunk: int) -> NDArray[np.float32]:
        corner = self.realism.noise_corner_angstrom / self.projector.pixel_size_angstrom
        exponent = self.realism.noise_exponent
        return coloured_noise(count, self.projector.box_size, exponent, corner, self._generator("noise", chunk))
