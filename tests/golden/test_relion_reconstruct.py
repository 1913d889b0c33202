"""relion_reconstruct is the oracle of the backprojection, relion_image_handler of the FSC."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch

from cesped_stream.benchmark.entries import open_entry
from cesped_stream.imaging.ctf import ctf
from cesped_stream.imaging.entry import write_entry
from cesped_stream.imaging.maps import read_map, write_map
from cesped_stream.imaging.simulate import embedded_ribosome, molecule_to_map
from cesped_stream.particles.stacks import StackReader, read_images, write_stack
from cesped_stream.particles.star import read_star
from cesped_stream.particles.table import OpticsGroup, ParticleTable
from cesped_stream.reconstruction.backproject import Backprojector
from cesped_stream.reconstruction.correlation import pearson
from cesped_stream.reconstruction.engine import BuiltinEngine, RelionEngine
from cesped_stream.reconstruction.fsc import fsc, resolution_angstrom
from cesped_stream.settings import EngineSettings, SimulationSettings
from cesped_stream.so3.symmetry import group_rotations

BOX = 56
PIXEL_SIZE = 6.5
NYQUIST_09 = int(0.9 * BOX / 2)

pytestmark = [
    pytest.mark.relion,
    pytest.mark.skipif(shutil.which("relion_reconstruct") is None, reason="relion_reconstruct is not on PATH"),
]


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    return molecule_to_map(*embedded_ribosome(), BOX, PIXEL_SIZE, 14.0)


@pytest.fixture(scope="module")
def entry(volume: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("entry")
    write_entry(folder, volume, PIXEL_SIZE, SimulationSettings(num_particles=1000, snr=0.3, seed=5))
    return folder


def reconstructed_by_relion(folder: Path, half: int, *options: str) -> np.ndarray:
    program = ["relion_reconstruct", "--i", f"particles_{half}.star", "--o", "relion.mrc", "--ctf", "--pad", "2"]
    subprocess.run([*program, *options], cwd=folder, capture_output=True, timeout=120, check=True)
    return read_map(folder / "relion.mrc")[0]


def reconstructed(folder: Path, half: int, symmetry: str = "C1") -> tuple[Backprojector, ParticleTable]:
    table = read_star(folder / f"particles_{half}.star")
    (images,) = read_images(table, StackReader())
    backprojector = Backprojector(BOX, PIXEL_SIZE)
    backprojector.add(
        images.images,
        table.ctf_parameters(),
        table.rotations(),
        table.shifts_angstrom(),
        group=group_rotations(symmetry),
    )
    return backprojector, table


@pytest.fixture(scope="module")
def particles(entry: Path) -> ParticleTable:
    return open_entry(entry / "particles_0.star").particles()


@pytest.fixture(scope="module")
def halves(entry: Path) -> tuple[np.ndarray, np.ndarray]:
    return reconstructed(entry, 0)[0].map(), reconstructed(entry, 1)[0].map()


def test_backprojection_of_500_particles_equals_relions(entry: Path, halves: tuple[np.ndarray, np.ndarray]) -> None:
    expected = reconstructed_by_relion(entry, 0, "--skip_gridding")
    assert fsc(halves[0], expected)[: NYQUIST_09 + 1].min() >= 0.999
    assert np.corrcoef(halves[0].ravel(), expected.ravel())[0, 1] >= 0.999
    # The oracle can tell: the other half's particles give another map.
    assert fsc(halves[1], expected)[NYQUIST_09] < 0.9


def test_symmetric_backprojection_equals_relions(entry: Path) -> None:
    expected = reconstructed_by_relion(entry, 1, "--skip_gridding", "--sym", "D2")
    ours = reconstructed(entry, 1, "D2")[0].map()
    assert fsc(ours, expected)[: NYQUIST_09 + 1].min() >= 0.999
    core = ours[:, 1:, 1:]
    np.testing.assert_allclose(core[:, ::-1, ::-1], core, atol=1e-3 * ours.std())


@pytest.mark.parametrize("symmetry", ["C3", "T"])
def test_engines_agree_under_symmetry_and_weights(particles: ParticleTable, symmetry: str) -> None:
    """RELION symmetrises its transform, weighs numerator and denominator: so do we."""
    weights = np.random.default_rng(1).uniform(0, 1, len(particles)) ** 3
    theirs = RelionEngine(EngineSettings(kind="relion", skip_gridding=True))
    expected = theirs.reconstruct(particles, symmetry, weights=weights).volume
    found = BuiltinEngine().reconstruct(particles, symmetry, weights=weights).volume
    assert fsc(found, expected)[: NYQUIST_09 + 1].min() >= 0.999
    assert pearson(found, expected) >= 0.999
    unweighted = BuiltinEngine().reconstruct(particles, symmetry).volume
    assert fsc(unweighted, expected)[NYQUIST_09] < 0.999


def test_weights_weigh_numerator_and_denominator(particles: ParticleTable) -> None:
    """A weight that is the same for all changes nothing: it stands in both."""
    engine = RelionEngine(EngineSettings(kind="relion", skip_gridding=True))
    few = particles.select(range(120))
    plain = engine.reconstruct(few, "C1").volume
    np.testing.assert_allclose(
        engine.reconstruct(few, "C1", weights=np.full(120, 0.25)).volume, plain, atol=1e-5 * plain.std()
    )


def test_phase_flipped_images_agree_between_the_engines(particles: ParticleTable, tmp_path: Path) -> None:
    few = particles.select(range(200))
    (images,) = read_images(few, StackReader())
    flip = torch.sign(ctf(few.ctf_parameters(), BOX))
    flipped = torch.fft.irfft2(torch.fft.rfft2(torch.from_numpy(images.images)) * flip)
    write_stack(tmp_path / "flipped.mrcs", flipped.numpy(), PIXEL_SIZE)
    names = {
        "rlnImageName": [f"{i + 1}@flipped.mrcs" for i in range(200)],
        "cestreamStack": [quote(str(tmp_path.resolve() / "flipped.mrcs"))] * 200,
    }
    optics = tuple(OpticsGroup((*group.values, ("rlnCtfDataArePhaseFlipped", "1"))) for group in few.optics)
    marked = replace(few.with_columns(names), optics=optics)
    theirs = RelionEngine(EngineSettings(kind="relion", skip_gridding=True)).reconstruct(marked, "C1").volume
    found = BuiltinEngine().reconstruct(marked, "C1").volume
    assert fsc(found, theirs)[: NYQUIST_09 + 1].min() >= 0.999
    unmarked = BuiltinEngine().reconstruct(replace(marked, optics=few.optics), "C1").volume
    assert fsc(unmarked, theirs)[: NYQUIST_09 + 1].min() < 0.99


@pytest.mark.skipif(shutil.which("relion_reconstruct_mpi") is None, reason="relion_reconstruct_mpi is not on PATH")
def test_two_processes_under_mpi_give_the_map_of_one(particles: ParticleTable) -> None:
    few = particles.select(range(100))
    root = " --allow-run-as-root --oversubscribe"
    settings = EngineSettings(kind="relion", skip_gridding=True, processes=2, mpirun=f"mpirun{root}")
    seen: list[int] = []
    found = RelionEngine(settings).reconstruct(few, "C1", on_progress=seen.append).volume
    one = RelionEngine(settings.model_copy(update={"processes": 1})).reconstruct(few, "C1").volume
    np.testing.assert_allclose(found, one, atol=1e-4 * one.std())
    assert seen[-1] == 100


def test_gridding_of_relions_default_run_changes_the_map_little(entry: Path) -> None:
    """The size of it that docs/decisions/2026-11-24-gridding.md states, for few particles and a box that they fill."""
    halves = [open_entry(entry / f"particles_{half}.star").particles() for half in (0, 1)]
    gridded = RelionEngine(EngineSettings(kind="relion"))
    ours, theirs = ([engine.reconstruct(half, "C1").volume for half in halves] for engine in (BuiltinEngine(), gridded))
    assert 0.97 < pearson(ours[0], theirs[0]) < 0.999
    assert fsc(ours[0], theirs[0])[: NYQUIST_09 + 1].min() > 0.93
    for threshold in (0.5, 0.143):
        found, expected = (resolution_angstrom(fsc(*maps), BOX, PIXEL_SIZE, threshold) for maps in (ours, theirs))
        assert found == pytest.approx(expected, rel=0.02)


def test_fsc_equals_relions(halves: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    for name, half in zip("ab", halves, strict=True):
        write_map(tmp_path / f"{name}.mrc", half, PIXEL_SIZE)
    program = ["relion_image_handler", "--i", "a.mrc", "--fsc", "b.mrc", "--angpix", str(PIXEL_SIZE)]
    text = subprocess.run(program, cwd=tmp_path, capture_output=True, timeout=60, check=True, text=True).stdout
    rows = [line.split() for line in text.splitlines() if len(line.split()) in (2, 3, 4)]
    expected = np.array([float(row[-1]) for row in rows if row[0].replace(".", "").isdigit()])
    assert len(expected) == BOX // 2 + 1
    np.testing.assert_allclose(fsc(*halves), expected, atol=2e-6)


def test_half_maps_of_simulated_particles_agree_with_the_truth(
    volume: np.ndarray, halves: tuple[np.ndarray, np.ndarray]
) -> None:
    truth = fsc(halves[0] + halves[1], volume)
    assert resolution_angstrom(truth, BOX, PIXEL_SIZE, 0.5) < 25


def test_backprojection_of_real_premultiplied_images_equals_relions(test_data: Path, tmp_path: Path) -> None:
    """Scale factors, B-factors and CTF-premultiplied data, as the star says."""
    folder = test_data / "ribosome_70s_tilt"
    table = read_star(folder / "particles.star")
    assert table.ctf_parameters().premultiplied.all()
    (images,) = read_images(table, StackReader())
    backprojector = Backprojector(images.images.shape[-1], 12.0)
    backprojector.add(images.images, table.ctf_parameters(), table.rotations(), table.shifts_angstrom())
    program = [
        "relion_reconstruct",
        "--i",
        "particles.star",
        "--o",
        str(tmp_path / "relion.mrc"),
        "--ctf",
        "--pad",
        "2",
    ]
    subprocess.run([*program, "--skip_gridding"], cwd=folder, capture_output=True, timeout=120, check=True)
    expected = read_map(tmp_path / "relion.mrc")[0]
    assert fsc(backprojector.map(), expected)[: int(0.9 * 16) + 1].min() >= 0.999
