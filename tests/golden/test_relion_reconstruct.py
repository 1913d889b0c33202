"""relion_reconstruct is the oracle of the backprojection, relion_image_handler of the FSC."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cesped_stream.imaging.entry import write_entry
from cesped_stream.imaging.maps import read_map, write_map
from cesped_stream.imaging.simulate import embedded_ribosome, molecule_to_map
from cesped_stream.particles.stacks import StackReader, read_images
from cesped_stream.particles.star import read_star
from cesped_stream.particles.table import ParticleTable
from cesped_stream.reconstruction.backproject import Backprojector
from cesped_stream.reconstruction.fsc import fsc, resolution_angstrom
from cesped_stream.settings import SimulationSettings
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
