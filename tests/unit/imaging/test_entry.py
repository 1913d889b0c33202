"""Simulated entries on disk."""

import json
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
from support.imaging import blobs

from cesped_stream.imaging import entry as entry_module
from cesped_stream.imaging.entry import write_entry
from cesped_stream.imaging.maps import read_map
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.imaging.simulate import SimulatedParticles, simulate_particles
from cesped_stream.particles.own_rows import consensus_confidences
from cesped_stream.particles.stacks import StackReader, read_images
from cesped_stream.particles.star import read_star
from cesped_stream.settings import SimulationSettings

SETTINGS = SimulationSettings(num_particles=301, snr=0.5, symmetry="C2", seed=4)
FILES = {
    f"{name}_{half}.{kind}"
    for name, kind in (("particles", "star"), ("particles", "mrcs"), ("info", "json"))
    for half in (0, 1)
} | {"truth_map.mrc"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("entry")
    write_entry(folder, blobs(24), 6.0, SETTINGS)
    return folder


@pytest.fixture(scope="module")
def particles() -> list[SimulatedParticles]:
    return list(simulate_particles(MapProjector(blobs(24), 6.0), SETTINGS))


def test_it_has_cespeds_layout(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES
    assert json.loads((folder / "info_1.json").read_text()) == {"symmetry": "C2"}
    np.testing.assert_array_equal(read_map(folder / "truth_map.mrc")[0], blobs(24))
    for half in (0, 1):
        with mrcfile.open(folder / f"particles_{half}.mrcs") as stack:
            assert stack.header.mode == 2
            assert stack.is_image_stack()
            assert float(stack.voxel_size.x) == pytest.approx(6.0)
            assert float(stack.header.dmean) == pytest.approx(float(stack.data.mean()), abs=1e-4)
            assert float(stack.header.rms) == pytest.approx(float(stack.data.std()), rel=1e-3)


def test_its_stars_hold_the_true_poses_and_images(folder: Path, particles: list[SimulatedParticles]) -> None:
    for half in (0, 1):
        table = read_star(folder / f"particles_{half}.star")
        assert (table.half_sets() == half).all()
        expected = {
            name: np.concatenate([getattr(chunk, name)[chunk.half_sets == half] for chunk in particles])
            for name in ("images", "rotations", "shifts_angstrom", "optics_index")
        }
        np.testing.assert_allclose(table.rotations(), expected["rotations"], atol=1e-7)
        np.testing.assert_allclose(table.shifts_angstrom(), expected["shifts_angstrom"], atol=1e-6)
        np.testing.assert_array_equal(table.optics_index, expected["optics_index"])
        (group,) = read_images(table, StackReader())
        np.testing.assert_array_equal(group.images, expected["images"])
        ctf = table.ctf_parameters()
        given = np.concatenate([chunk.ctf.defocus_u_angstrom[chunk.half_sets == half] for chunk in particles])
        np.testing.assert_allclose(ctf.defocus_u_angstrom, given, atol=1e-5)
        assert set(ctf.voltage_kv) == {200.0, 300.0}


def test_starfile_reads_its_star(folder: Path) -> None:
    blocks = starfile.read(folder / "particles_0.star")
    assert len(blocks["optics"]) == 2
    assert len(blocks["particles"]) == 151
    assert blocks["particles"]["rlnImageName"].iloc[0] == "000001@particles_0.mrcs"
    assert "rlnMaxValueProbDistribution" not in blocks["particles"]


def test_every_micrograph_is_in_both_halves(folder: Path) -> None:
    names = [set(read_star(folder / f"particles_{half}.star").micrographs()) for half in (0, 1)]
    assert len(names[0] & names[1]) >= 6
    assert len(names[0] | names[1]) == 7


def test_the_same_settings_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_entry(tmp_path, blobs(24), 6.0, SETTINGS)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_given_confidences_go_to_their_particles(tmp_path: Path, particles: list[SimulatedParticles]) -> None:
    confidences = np.linspace(0, 1, 301)
    done: list[int] = []
    write_entry(tmp_path, blobs(24), 6.0, SETTINGS, confidences=confidences, on_progress=done.append)
    index = np.concatenate([chunk.index[chunk.half_sets == 1] for chunk in particles])
    written = consensus_confidences(read_star(tmp_path / "particles_1.star"))
    np.testing.assert_allclose(written, confidences[index], atol=1e-6)
    assert done == [256, 301]
    with pytest.raises(ValueError, match="301 particles"):
        write_entry(tmp_path, blobs(24), 6.0, SETTINGS, confidences=confidences[1:])


def test_an_interrupted_entry_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_late(*args: object, **kwargs: object) -> object:
        yield next(simulate_particles(MapProjector(blobs(24), 6.0), SETTINGS))
        raise KeyboardInterrupt

    monkeypatch.setattr(entry_module, "simulate_particles", fails_late)
    with pytest.raises(KeyboardInterrupt):
        write_entry(tmp_path, blobs(24), 6.0, SETTINGS)
    assert list(tmp_path.iterdir()) == []
