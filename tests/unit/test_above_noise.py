"""How far images stand above noise means the same whatever their CTF: one threshold tells particles from junk."""

from pathlib import Path

import numpy as np
import pytest
from support.matching import PIXEL_SIZE, molecule

from cesped_stream.benchmark.entries import open_entry
from cesped_stream.calibration.metrics import area_under_curve
from cesped_stream.imaging.entry import write_entry
from cesped_stream.imaging.junk import is_particle
from cesped_stream.imaging.noise import coloured_noise
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.imaging.simulate import Simulation
from cesped_stream.matching import Float64, MatchedPoses, ReferenceMatcher
from cesped_stream.particles.stacks import StackReader, write_stack
from cesped_stream.particles.table import ParticleTable
from cesped_stream.reconstruction.reference import reference_from_rows
from cesped_stream.settings import (
    GallerySettings,
    OpticsSettings,
    RealismSettings,
    ReferenceSettings,
    RefinementSettings,
    SimulationSettings,
)
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations

GALLERY = GallerySettings(grid_order=2, coarse_order=1, keep_fraction=0.2, batch_size=16)
THRESHOLD = 3.0
LARGEST_SPREAD = 4.0
"""Between the medians of right poses of streams, in standard deviations."""
ALIGNED = SimulationSettings(
    num_particles=480, snr=0.3, symmetry="D2", seed=5, particles_per_micrograph=20, optics=(OpticsSettings(),)
)

Change = dict[str, float | tuple[OpticsSettings, ...]]
USUAL: Change = {}
STREAMS: dict[str, list[Change]] = {
    "defocus": [
        USUAL,
        {"min_defocus_angstrom": 3000.0, "max_defocus_angstrom": 8000.0},
        {"min_defocus_angstrom": 25000.0, "max_defocus_angstrom": 35000.0},
    ],
    "phase shift": [USUAL, *({"optics": (OpticsSettings(phase_shift_deg=shift),)} for shift in (30.0, 90.0))],
    "optics group": [
        USUAL,
        {"optics": (OpticsSettings(voltage_kv=200.0, amplitude_contrast=0.07),)},
        {"optics": (OpticsSettings(voltage_kv=200.0, amplitude_contrast=0.2, phase_shift_deg=90.0),)},
    ],
}


@pytest.fixture(scope="module")
def matcher(tmp_path_factory: pytest.TempPathFactory) -> ReferenceMatcher:
    """By rows without phase shift, 0.8 to 2 micrometres underfocus, 300 kV; noise measured on them."""
    aligned = half_0_of(tmp_path_factory.mktemp("aligned"), ALIGNED)
    reference = reference_from_rows(aligned, "D2", ReferenceSettings(mask_lowpass_angstrom=20.0), StackReader())
    matcher = ReferenceMatcher(reference, GALLERY, RefinementSettings())
    matcher.measure_noise(aligned, StackReader())
    return matcher


def half_0_of(folder: Path, settings: SimulationSettings, realism: RealismSettings | None = None) -> ParticleTable:
    write_entry(folder, molecule("D2"), PIXEL_SIZE, settings, realism=realism)
    table = open_entry(folder).particles()
    return table.select(np.flatnonzero(table.half_sets() == 0))


def changed(change: Change) -> SimulationSettings:
    """Return settings of a stream of the same molecule, as bright before the CTF as in the aligned rows."""
    stream = ALIGNED.model_copy(update={"num_particles": 100, "seed": 6, **change})
    projector = MapProjector(molecule("D2"), PIXEL_SIZE)
    usual, own = (Simulation(projector, settings, None).scale() for settings in (ALIGNED, stream))
    return stream.model_copy(update={"snr": stream.snr * (usual / own) ** 2})


def as_noise(table: ParticleTable, folder: Path, exponent: float) -> ParticleTable:
    """Return the same rows, of images of nothing but noise."""
    box, stack = molecule("D2").shape[0], folder.resolve() / f"noise_{exponent:g}.mrcs"
    write_stack(stack, coloured_noise(len(table), box, exponent, 40.0, np.random.default_rng(8)), PIXEL_SIZE)
    names = [f"{number}@{stack.name}" for number in range(1, len(table) + 1)]
    return table.with_columns({"cestreamStack": [str(stack)] * len(table), "rlnImageName": names})


def right(table: ParticleTable, poses: MatchedPoses) -> Float64:
    """Return what particles at right poses tell."""
    errors = angular_error_deg(table.rotations(), poses.rotation, group_rotations("D2"))
    rows = is_particle(table) & (errors < 5)
    assert rows.sum() >= 0.8 * is_particle(table).sum()
    return poses.above_noise[rows]


@pytest.mark.parametrize("varied", STREAMS)
def test_particles_are_told_from_junk_by_one_threshold_whatever_varies(
    matcher: ReferenceMatcher, varied: str, tmp_path: Path
) -> None:
    told, particles, junk = [], [], []
    for number, change in enumerate(STREAMS[varied]):
        picks = half_0_of(tmp_path / str(number), changed(change), RealismSettings(junk_fraction=0.4, seed=2))
        poses, nothing = matcher.match(picks, StackReader()), picks.select(range(20))
        told.append(right(picks, poses))
        particles.append(poses.above_noise[is_particle(picks)])
        junk.append(poses.above_noise[~is_particle(picks)])
        for exponent in (0.0, 1.0):
            noise = matcher.match(as_noise(nothing, tmp_path / str(number), exponent), StackReader()).above_noise
            assert noise.max() < THRESHOLD
            junk.append(noise)
    medians = [float(np.median(values)) for values in told]
    assert min(medians) > 2 * THRESHOLD
    assert max(medians) - min(medians) < LARGEST_SPREAD
    assert min(np.percentile(values, 5) for values in told) > THRESHOLD
    good, bad = np.concatenate(particles), np.concatenate(junk)
    assert (bad > THRESHOLD).mean() < 0.05
    auc = area_under_curve(np.concatenate([good, bad]), np.arange(len(good) + len(bad)) < len(good))
    assert auc is not None and auc > 0.98
