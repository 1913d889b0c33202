"""Particles of a map at known poses: projections with shifts, CTF of several optics groups and white noise."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cesped_stream.imaging.ctf import ctf
from cesped_stream.imaging.molecule import embedded_ribosome, molecule_to_map
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.particles.table import CtfParameters
from cesped_stream.settings import OpticsSettings, SimulationSettings

__all__ = [
    "CHUNK",
    "MapProjector",
    "SimulatedParticles",
    "Simulation",
    "embedded_ribosome",
    "molecule_to_map",
    "random_rotations",
    "simulate_particles",
    "simulated_optics",
]

CHUNK = 256
"""Particles drawn from one random stream and held in memory at a time: part of what a seed means."""

_SNR_CHUNKS = 8
_SNR_STRIDE = 4
_NO_CTF = OpticsSettings(spherical_aberration_mm=0.0, amplitude_contrast=1.0)

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SimulatedParticles:
    """Consecutive particles of a simulation, first axis n. The noise has variance 1."""

    index: Int64
    images: NDArray[np.float32]
    """`(n, box, box)` (y, x): not phase-flipped, positive density bright."""
    rotations: Float64
    """`(n, 3, 3)`, image xyz to map xyz."""
    shifts_angstrom: Float64
    """`(n, 2)` (x, y) that centre the images."""
    ctf: CtfParameters
    optics_index: Int64
    micrograph: Int64
    half_sets: NDArray[np.int8]


def simulated_optics(settings: SimulationSettings) -> tuple[OpticsSettings, ...]:
    """Return the optics groups, or as many whose CTF is 1 everywhere where `settings.ctf` is false."""
    return settings.optics if settings.ctf else (_NO_CTF,) * len(settings.optics)


def random_rotations(count: int, generator: np.random.Generator) -> Float64:
    """Return rotations `(count, 3, 3)` uniform on SO(3)."""
    return np.asarray(Rotation.from_quat(generator.standard_normal((count, 4))).as_matrix(), np.float64)


def simulate_particles(
    projector: MapProjector, settings: SimulationSettings, *, rotations: Float64 | None = None
) -> Iterator[SimulatedParticles]:
    """Yield the particles in chunks of `CHUNK`, so that memory is bounded; the same arguments give the same bits.

    `rotations` `(num_particles, 3, 3)` (image to map) are given poses, else they are uniform on SO(3). The signal is
    scaled to the SNR that `settings` states: mean over particles of the variance inside the particle circle, after
    the CTF, estimated from up to 512 particles spread over the whole run. ValueError for a wrong number of rotations.
    """
    simulation = Simulation(projector, settings, rotations)
    scale = simulation.scale()
    for chunk in range(simulation.num_chunks):
        yield simulation.noisy(chunk, scale)


@dataclass(frozen=True)
class Simulation:
    """A run of particles, made chunk by chunk; `imaging.realism` makes a session of it."""

    projector: MapProjector
    settings: SimulationSettings
    rotations: Float64 | None

    def __post_init__(self) -> None:
        if self.rotations is not None and self.rotations.shape != (self.settings.num_particles, 3, 3):
            raise ValueError(f"rotations are {self.rotations.shape} for {self.settings.num_particles} particles")

    @property
    def optics(self) -> tuple[OpticsSettings, ...]:
        """The optics groups, first one first."""
        return simulated_optics(self.settings)

    @property
    def num_chunks(self) -> int:
        """Chunks of `CHUNK` particles, the last one not full."""
        return -(-self.settings.num_particles // CHUNK)

    def scale(self) -> float:
        """Factor of the signal that gives the SNR at noise of variance 1 (no noise: that gives it variance 1)."""
        chunks = np.unique(np.linspace(0, self.num_chunks - 1, _SNR_CHUNKS).round().astype(int))
        circle = self.circle()
        variances = []
        for chunk in chunks:
            particles = self._draw(int(chunk))
            clean = self._clean(particles, slice(None, None, _SNR_STRIDE))
            variances.append(clean[:, circle].var(1, dtype=np.float64))
        variance = float(np.concatenate(variances).mean())
        if not variance > 0:
            raise ValueError("the map's projections are constant; is the map empty?")
        return float(np.sqrt((self.settings.snr if np.isfinite(self.settings.snr) else 1.0) / variance))

    def noisy(self, chunk: int, scale: float) -> SimulatedParticles:
        """Return a chunk's particles with their images, the signal scaled by `scale`, at noise of variance 1."""
        particles = self._draw(chunk)
        images = self._clean(particles, slice(None)) * np.float32(scale)
        if np.isfinite(self.settings.snr):
            images += self._generator("noise", chunk).standard_normal(images.shape, dtype=np.float32)
        return SimulatedParticles(**{**particles.__dict__, "images": images})

    def circle(self) -> NDArray[np.bool_]:
        """Return `(box, box)`: where the SNR holds."""
        box = self.projector.box_size
        axis = np.arange(box) - box // 2
        radius = self.settings.particle_radius_angstrom / self.projector.pixel_size_angstrom or box / 2
        return np.asarray(axis[:, None] ** 2 + axis**2 <= radius**2)

    def _generator(self, purpose: str, number: int) -> np.random.Generator:
        return np.random.default_rng([*purpose.encode(), self.settings.seed, number])

    def _clean(self, particles: SimulatedParticles, rows: slice) -> NDArray[np.float32]:
        transfer = ctf(particles.ctf.select(rows), self.projector.box_size, device=self.projector.device)
        images = self.projector.project(particles.rotations[rows], particles.shifts_angstrom[rows], transfer)
        return np.asarray(images.cpu().numpy())

    def _draw(self, chunk: int) -> SimulatedParticles:
        """Everything of a chunk but its images."""
        settings = self.settings
        index = np.arange(chunk * CHUNK, min((chunk + 1) * CHUNK, settings.num_particles))
        generator = self._generator("particles", chunk)
        rotations = random_rotations(len(index), generator)
        shifts = generator.uniform(-1, 1, (len(index), 2)) * settings.max_shift_angstrom
        height = generator.uniform(-1, 1, len(index)) * settings.defocus_spread_angstrom
        # One particle of each pair goes to each half-set, so the halves are equal and every micrograph is in both.
        first = generator.integers(0, 2, CHUNK // 2).repeat(2)[: len(index)]
        micrograph = index // settings.particles_per_micrograph
        optics_index = self._optics_of(micrograph)
        if self.rotations is not None:
            rotations = self.rotations[index]
        return SimulatedParticles(
            index=index,
            images=np.empty((0, 0, 0), np.float32),
            rotations=rotations,
            shifts_angstrom=shifts.round(6),
            ctf=self._ctf_parameters(micrograph, optics_index, height),
            optics_index=optics_index,
            micrograph=micrograph,
            half_sets=((first + index) % 2).astype(np.int8),
        )

    def _optics_of(self, micrograph: Int64) -> Int64:
        return np.asarray(micrograph % len(self.settings.optics), np.int64)

    def _ctf_parameters(self, micrograph: Int64, optics_index: Int64, height: Float64) -> CtfParameters:
        settings = self.settings
        present, place = np.unique(micrograph, return_inverse=True)
        drawn = np.stack([self._generator("micrograph", int(m)).uniform(size=3) for m in present])[place]
        reach = settings.max_defocus_angstrom - settings.min_defocus_angstrom
        mean = settings.min_defocus_angstrom + drawn[:, 0] * reach + height
        half_difference = drawn[:, 1] * settings.max_astigmatism_angstrom / 2
        present_ctf = float(settings.ctf)
        optics = self.optics

        def of_group(name: str) -> Float64:
            return np.array([getattr(group, name) for group in optics], np.float64)[optics_index]

        return CtfParameters(
            defocus_u_angstrom=(present_ctf * (mean + half_difference)).round(6),
            defocus_v_angstrom=(present_ctf * (mean - half_difference)).round(6),
            defocus_angle_deg=(present_ctf * drawn[:, 2] * 180).round(6),
            phase_shift_deg=of_group("phase_shift_deg"),
            voltage_kv=of_group("voltage_kv"),
            spherical_aberration_mm=of_group("spherical_aberration_mm"),
            amplitude_contrast=of_group("amplitude_contrast"),
            bfactor_angstrom2=np.zeros(len(micrograph)),
            scale=np.ones(len(micrograph)),
            pixel_size_angstrom=np.full(len(micrograph), self.projector.pixel_size_angstrom),
            premultiplied=np.zeros(len(micrograph), np.bool_),
            phase_flipped=np.zeros(len(micrograph), np.bool_),
        )
