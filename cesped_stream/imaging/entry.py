"""Simulated entries in CESPED's layout."""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cesped_stream.conventions import half_set_to_random_subset, rotation_to_euler_deg
from cesped_stream.durable import rename_durably, write_whole
from cesped_stream.imaging.junk import KIND_LABEL, PARTICLE
from cesped_stream.imaging.maps import write_map
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.imaging.realism import SessionParticles, session_optics, simulate_session
from cesped_stream.imaging.simulate import SimulatedParticles, simulate_particles
from cesped_stream.particles.stack_writer import StackWriter
from cesped_stream.particles.star import optics_block, particles_header, row_line
from cesped_stream.particles.table import OpticsGroup
from cesped_stream.settings import REPLAY_ONLY, RealismSettings, SimulationSettings

TRUTH_MAP = "truth_map.mrc"
REALISM_NAME = "realism.json"
"""What a simulated entry contains besides clean particles: its settings, and counts of what was made of them."""

_CONFIDENCE_LABEL = "rlnMaxValueProbDistribution"

_LABELS = (
    "rlnImageName",
    "rlnMicrographName",
    "rlnDefocusU",
    "rlnDefocusV",
    "rlnDefocusAngle",
    "rlnPhaseShift",
    "rlnAngleRot",
    "rlnAngleTilt",
    "rlnAnglePsi",
    "rlnOriginXAngst",
    "rlnOriginYAngst",
    "rlnRandomSubset",
)


def write_entry(
    folder: Path,
    volume: NDArray[np.float32],
    pixel_size_angstrom: float,
    settings: SimulationSettings,
    *,
    realism: RealismSettings | None = None,
    rotations: NDArray[np.float64] | None = None,
    confidences: ArrayLike | None = None,
    device: str = "cpu",
    on_progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Write simulated particles of the map `volume` `(box, box, box)` as an entry that holds the true poses.

    Gives `particles_{0,1}.star` (RELION 3.1, rlnRandomSubset 1 and 2), `particles_{0,1}.mrcs` (float32),
    `info_{0,1}.json` and `truth_map.mrc`, each whole, the stars last. Every micrograph has particles of both halves.
    `rotations` `(num_particles, 3, 3)` are given poses, else uniform ones; `confidences` `(num_particles,)` go to
    rlnMaxValueProbDistribution, else there is no such column. The same arguments give the same bytes, whatever
    the number of threads. Memory is bounded by the chunk. `on_progress` gets the number of particles done.

    `realism` that is not clean makes a session of it (`simulate_session`) and writes `realism.json`. With junk, the
    stars have the truth in `cestreamKind` (`particle`, or the kind of junk) and a consensus's confidence in
    rlnMaxValueProbDistribution. The envelope's B is in the images and in no star, as at a microscope.
    """
    realism = (realism or RealismSettings()).without(REPLAY_ONLY)
    given = None if confidences is None else np.asarray(confidences, np.float64)
    if given is not None and given.shape != (settings.num_particles,):
        raise ValueError(f"confidences are {given.shape} for {settings.num_particles} particles")
    folder.mkdir(parents=True, exist_ok=True)
    projector = MapProjector(volume, pixel_size_angstrom, device=device)
    with_junk = realism.junk_fraction > 0
    labels = _LABELS if given is None and not with_junk else (*_LABELS, _CONFIDENCE_LABEL)
    labels = (*labels, KIND_LABEL) if with_junk else labels
    head = optics_block(_optics(settings, realism, projector)) + particles_header(labels)
    facts = SessionFacts()
    stream = (
        simulate_particles(projector, settings, rotations=rotations)
        if realism.is_clean
        else simulate_session(projector, settings, realism, rotations=rotations)
    )
    with contextlib.ExitStack() as open_files:
        halves = [open_files.enter_context(_HalfWriter(folder, half, projector, head)) for half in (0, 1)]
        for particles in stream:
            facts.count(particles)
            cells = _cells(particles, given, with_junk=with_junk)
            for half, writer in enumerate(halves):
                writer.append(particles, cells, np.flatnonzero(particles.half_sets == half))
            on_progress(int(particles.index[-1]) + 1)
    write_map(folder / TRUTH_MAP, volume, pixel_size_angstrom)
    if realism.is_clean:
        (folder / REALISM_NAME).unlink(missing_ok=True)
    else:
        words = {"settings": realism.model_dump(mode="json"), **facts.to_json()}
        write_whole(folder / REALISM_NAME, json.dumps(words, indent=1).encode() + b"\n")
    for half, writer in enumerate(halves):
        write_whole(folder / f"info_{half}.json", json.dumps({"symmetry": settings.symmetry}).encode() + b"\n")
        writer.publish_star()


@dataclass
class SessionFacts:
    """Counts over the picks of a session."""

    kinds: Counter[str] = field(default_factory=Counter)
    neighbours: int = 0
    clipped: int = 0
    """Particles of which a part lies beyond the box."""

    def count(self, particles: SimulatedParticles) -> None:
        """Add a chunk's picks; a clean simulation's chunk has particles only."""
        if isinstance(particles, SessionParticles):
            self.kinds.update(particles.kinds)
            self.neighbours += len(particles.neighbours.rows)
            self.clipped += int(particles.clipped.sum())
        else:
            self.kinds[PARTICLE] += len(particles.index)

    def to_json(self) -> dict[str, object]:
        """Return the counts for realism.json."""
        return {"kinds": dict(sorted(self.kinds.items())), "neighbours": self.neighbours, "clipped": self.clipped}


class _HalfWriter:
    """The stack and star of one half-set; the star appears only with `publish_star`, after its stack."""

    def __init__(self, folder: Path, half_set: int, projector: MapProjector, head: bytes) -> None:
        self._star = folder / f"particles_{half_set}.star"
        self._temporary = self._star.with_name(f".{self._star.name}.tmp")
        self._stack = folder / f"particles_{half_set}.mrcs"
        self._projector = projector
        self._head = head
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "_HalfWriter":
        self._images = self._open.enter_context(
            StackWriter(self._stack, self._projector.box_size, self._projector.pixel_size_angstrom)
        )
        self._rows = self._open.enter_context(open(self._temporary, "wb"))
        self._rows.write(self._head)
        return self

    def append(self, particles: SimulatedParticles, cells: Sequence[tuple[str, ...]], rows: NDArray[np.int64]) -> None:
        for number, row in enumerate(rows, self._images.num_images + 1):
            image_name = f"{number:06d}@{self._stack.name}"
            self._rows.write(row_line((image_name, *cells[row]), int(particles.optics_index[row]) + 1))
        self._images.append(particles.images[rows])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._rows.write(b"\n")
            self._rows.flush()
            os.fsync(self._rows.fileno())
        self._open.__exit__(kind, error, trace)
        if kind is not None:
            self._temporary.unlink()

    def publish_star(self) -> None:
        rename_durably(self._temporary, self._star)


def _cells(
    particles: SimulatedParticles, confidences: NDArray[np.float64] | None, *, with_junk: bool
) -> list[tuple[str, ...]]:
    """Texts of `_LABELS` without the image name, a row a particle; with junk, confidence and kind as well."""
    ctf = particles.ctf
    columns = [
        *(ctf.defocus_u_angstrom, ctf.defocus_v_angstrom, ctf.defocus_angle_deg, ctf.phase_shift_deg),
        *rotation_to_euler_deg(particles.rotations).T,
        *particles.shifts_angstrom.T,
    ]
    texts = [[f"{value:.6f}" for value in column] for column in columns]
    texts.insert(0, [f"micrograph_{number + 1:05d}.mrc" for number in particles.micrograph])
    texts.append([str(half_set_to_random_subset(int(half))) for half in particles.half_sets])
    if isinstance(particles, SessionParticles) and with_junk:
        junk = np.array([kind != PARTICLE for kind in particles.kinds], np.bool_)
        given = particles.confidences if confidences is None else confidences[particles.index]
        texts.append([f"{value:.6f}" for value in np.where(junk, particles.confidences, given)])
        texts.append(list(particles.kinds))
    elif confidences is not None:
        texts.append([f"{value:.6f}" for value in confidences[particles.index]])
    return list(zip(*texts, strict=True))


def _optics(settings: SimulationSettings, realism: RealismSettings, projector: MapProjector) -> list[OpticsGroup]:
    return [
        OpticsGroup(
            (
                ("rlnOpticsGroupName", f"simulated{number}"),
                ("rlnVoltage", f"{group.voltage_kv:.6f}"),
                ("rlnSphericalAberration", f"{group.spherical_aberration_mm:.6f}"),
                ("rlnAmplitudeContrast", f"{group.amplitude_contrast:.6f}"),
                ("rlnImagePixelSize", f"{projector.pixel_size_angstrom:.6f}"),
                ("rlnImageSize", str(projector.box_size)),
                ("rlnImageDimensionality", "2"),
            )
        )
        for number, group in enumerate(session_optics(settings, realism), 1)
    ]
