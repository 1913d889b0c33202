"""relion_project is the oracle of the simulator: projections, shifts and CTF."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cesped_stream.conventions import rotation_to_euler_deg
from cesped_stream.imaging.ctf import ctf
from cesped_stream.imaging.maps import write_map
from cesped_stream.imaging.simulate import MapProjector, embedded_ribosome, molecule_to_map, random_rotations
from cesped_stream.particles.stacks import StackReader, read_header
from cesped_stream.particles.star import read_star, write_star
from cesped_stream.particles.table import OpticsGroup, ParticleTable

BOX = 112
PIXEL_SIZE = 3.0
COUNT = 16
LABELS = (
    *("rlnImageName", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift", "rlnCtfBfactor"),
    *("rlnCtfScalefactor", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"),
)

pytestmark = [
    pytest.mark.relion,
    pytest.mark.skipif(shutil.which("relion_project") is None, reason="relion_project is not on PATH"),
]


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    return molecule_to_map(*embedded_ribosome(), BOX, PIXEL_SIZE, 6.0)


@pytest.fixture(scope="module")
def particles(volume: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> tuple[ParticleTable, Path]:
    folder = tmp_path_factory.mktemp("relion_project")
    write_map(folder / "map.mrc", volume, PIXEL_SIZE)
    rng = np.random.default_rng(7)
    optics = tuple(
        OpticsGroup(
            (
                *(("rlnVoltage", str(voltage)), ("rlnSphericalAberration", str(aberration))),
                *(("rlnAmplitudeContrast", str(contrast)), ("rlnImagePixelSize", str(PIXEL_SIZE))),
                *(("rlnImageSize", str(BOX)), ("rlnImageDimensionality", "2")),
            )
        )
        for voltage, aberration, contrast in ((300.0, 2.7, 0.1), (200.0, 1.4, 0.07))
    )
    defocus = rng.uniform(8000, 22000, COUNT)
    columns = np.stack(
        [
            *(defocus, defocus - rng.uniform(500, 3000, COUNT), rng.uniform(0, 180, COUNT)),
            *(np.where(np.arange(COUNT) % 4 == 3, 70.0, 0.0), rng.uniform(0, 60, COUNT), rng.uniform(0.5, 1.5, COUNT)),
            *rotation_to_euler_deg(random_rotations(COUNT, rng)).T,
            *rng.uniform(-9, 9, (2, COUNT)),
        ]
    ).T
    rows = [(f"{i + 1:06d}@none.mrcs", *(f"{v:.6f}" for v in row)) for i, row in enumerate(columns)]
    write_star(folder / "poses.star", ParticleTable(LABELS, rows, optics, np.arange(COUNT) % 2))
    return read_star(folder / "poses.star"), folder


def projected_by_relion(folder: Path, *options: str) -> np.ndarray:
    program = ["relion_project", "--i", "map.mrc", "--o", "projected", "--ang", "poses.star", *options]
    subprocess.run(program, cwd=folder, capture_output=True, timeout=60, check=True)
    stack = folder / "projected.mrcs"
    return StackReader().read(stack, range(read_header(stack).num_images))[0]


@pytest.fixture(scope="module")
def relions_projections(particles: tuple[ParticleTable, Path]) -> np.ndarray:
    return projected_by_relion(particles[1])


@pytest.fixture(scope="module")
def relions_images(particles: tuple[ParticleTable, Path]) -> np.ndarray:
    return projected_by_relion(particles[1], "--ctf")


@pytest.fixture(scope="module")
def projector(volume: np.ndarray) -> MapProjector:
    return MapProjector(volume, PIXEL_SIZE)


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)])


def test_projections_with_shifts_equal_relions(
    projector: MapProjector, particles: tuple[ParticleTable, Path], relions_projections: np.ndarray
) -> None:
    table = particles[0]
    ours = projector.project(table.rotations(), table.shifts_angstrom()).numpy()
    assert correlations(ours, relions_projections).min() >= 0.9999
    # The oracle can tell a transposed rotation and a shift of the wrong sign.
    transposed = projector.project(table.rotations().transpose(0, 2, 1), table.shifts_angstrom()).numpy()
    assert np.median(correlations(transposed, relions_projections)) < 0.95
    mirrored = projector.project(table.rotations(), -table.shifts_angstrom()).numpy()
    assert np.median(correlations(mirrored, relions_projections)) < 0.9


def test_images_with_astigmatic_ctf_of_two_optics_groups_equal_relions(
    projector: MapProjector, particles: tuple[ParticleTable, Path], relions_images: np.ndarray
) -> None:
    table = particles[0]
    transfer = ctf(table.ctf_parameters(), BOX)
    ours = projector.project(table.rotations(), table.shifts_angstrom(), transfer).numpy()
    assert correlations(ours, relions_images).min() >= 0.999
    # RELION's envelope and scale too: one factor takes all our images to its images.
    factor = (ours * relions_images).sum() / (ours**2).sum()
    assert np.abs(factor * ours - relions_images).max() < 0.02 * np.abs(relions_images).max()


def test_the_oracle_tells_a_wrong_astigmatism_angle(
    projector: MapProjector, particles: tuple[ParticleTable, Path], relions_images: np.ndarray
) -> None:
    table = particles[0]
    right = table.ctf_parameters()
    wrong = ctf(replace(right, defocus_angle_deg=90 - right.defocus_angle_deg), BOX)
    ours = projector.project(table.rotations(), table.shifts_angstrom(), wrong).numpy()
    assert np.median(correlations(ours, relions_images)) < 0.97
