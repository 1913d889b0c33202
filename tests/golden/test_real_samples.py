"""Every real sample reads as starfile, mrcfile and RELION read it, or is refused saying why."""

import shutil
import subprocess
import warnings
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile

from cesped_stream.errors import InvalidStackError, InvalidStarError
from cesped_stream.particles.stacks import StackReader, read_header, read_images, write_stack
from cesped_stream.particles.star import read_star, write_star
from cesped_stream.particles.star_normalise import NUMERIC_LABELS

STARS = {
    "empiar_10076_7.star": (7, 1, False),
    "relion31.6opticsgroups.star": (139, 6, True),
    "relion31.star": (5, 1, True),
    "relion5.star": (17, 1, True),
    "sample_particles_relion30.star": (17, 2, True),
    "sample_particles_relion31.star": (17, 2, True),
}
STACKS = {"empiar_10076_7.mrc": (7, 320), "relion31.mrcs": (5, 256), "sample.mrcs": (17, 200)}
DATASETS = ("cryosparc_P12_J24_001_particles.cs", "empiar_10076_7.cs")
needs_relion = pytest.mark.skipif(shutil.which("relion_star_handler") is None, reason="RELION is not installed")


@pytest.fixture
def samples(test_data: Path) -> Path:
    return test_data / "real_samples"


def test_every_sample_has_its_claim(samples: Path) -> None:
    assert {path.name for path in samples.iterdir()} == {*STARS, *STACKS, *DATASETS}


@pytest.mark.parametrize("name", STARS)
def test_star_has_starfiles_cells(name: str, samples: Path) -> None:
    table = read_star(samples / name)
    num_rows, num_groups, posed = STARS[name]
    assert (len(table), len(table.optics)) == (num_rows, num_groups)
    assert table.has_poses().tolist() == [posed] * num_rows
    blocks = starfile.read(samples / name, always_dict=True, parse_as_string=list(table.labels))
    particles = blocks.get("particles", next(iter(blocks.values())))
    for label in set(table.labels) & set(particles.columns):
        assert table.column(label) == particles[label].tolist(), label
    assert not set(table.labels) - set(particles.columns) - {"rlnOriginXAngst", "rlnOriginYAngst"}


@pytest.mark.parametrize("name", STARS)
def test_star_has_starfiles_optics(name: str, samples: Path) -> None:
    table = read_star(samples / name)
    blocks = starfile.read(samples / name, always_dict=True)
    particles = blocks.get("particles", next(iter(blocks.values())))
    if "optics" in blocks:
        particles = particles.merge(blocks["optics"], on="rlnOpticsGroup")
        pixel_sizes = particles["rlnImagePixelSize"]
    else:
        pixel_sizes = 1e4 * particles["rlnDetectorPixelSize"] / particles["rlnMagnification"]
    particles["pixel size"] = pixel_sizes
    particles = particles.set_index(["rlnImageName", "rlnMicrographName"])
    order = list(zip(table.column("rlnImageName"), particles.index.get_level_values(1), strict=True))
    assert len(order) == len(table)
    by_name = {name: row for (name, _), row in particles.iterrows()} if name != "relion5.star" else None
    for k, image in enumerate(table.column("rlnImageName")):
        row = particles.iloc[0] if by_name is None else by_name[image]
        ctf = table.ctf_parameters().select(slice(k, k + 1))
        assert ctf.pixel_size_angstrom[0] == pytest.approx(row["pixel size"], abs=1e-6)
        assert ctf.voltage_kv[0] == row["rlnVoltage"]
        assert ctf.amplitude_contrast[0] == row["rlnAmplitudeContrast"]
        assert ctf.spherical_aberration_mm[0] == row["rlnSphericalAberration"]


def test_relion30_origins_in_pixels_become_angstrom(samples: Path) -> None:
    table = read_star(samples / "sample_particles_relion30.star")
    particles = starfile.read(samples / "sample_particles_relion30.star")
    pixel_size = 1e4 * particles["rlnDetectorPixelSize"] / particles["rlnMagnification"]
    expected = np.stack([particles[f"rlnOrigin{axis}"] * pixel_size for axis in "XY"], -1)
    np.testing.assert_allclose(table.shifts_angstrom(), expected, atol=1e-5)
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("name", STACKS)
def test_stack_has_mrcfiles_pixels(name: str, samples: Path) -> None:
    header = read_header(samples / name)
    assert (header.num_images, header.box_size) == STACKS[name]
    assert header.file_size == header.expected_size
    # relion31.mrcs has neither map ID nor machine stamp: mrcfile warns of it, and reads it.
    with warnings.catch_warnings(action="ignore"), mrcfile.open(samples / name, permissive=True) as mrc:
        read, _ = StackReader().read(samples / name, range(header.num_images))
        np.testing.assert_array_equal(read, mrc.data)


@pytest.mark.parametrize(
    "name", ["empiar_10076_7.star", "sample_particles_relion30.star", "sample_particles_relion31.star"]
)
def test_images_of_a_star_are_found_beside_it(name: str, samples: Path) -> None:
    table = read_star(samples / name)
    (group,) = read_images(table, StackReader())
    assert group.index.tolist() == list(range(len(table)))
    assert np.isfinite(group.images).all() and group.images.std() > 0


@pytest.mark.parametrize("name", DATASETS)
def test_cryosparc_dataset_is_refused_saying_what_to_do(name: str, samples: Path) -> None:
    with pytest.raises(InvalidStarError, match=rf"{name}: a cryoSPARC dataset .*convert it with csparc2star\.py"):
        read_star(samples / name)
    with pytest.raises(InvalidStackError, match=r"cryoSPARC \.cs file"):
        read_header(samples / name)


def test_stack_given_as_star_is_refused(samples: Path) -> None:
    with pytest.raises(InvalidStarError, match="is this a star file"):
        read_star(samples / "sample.mrcs")


def test_star_given_as_stack_is_refused(samples: Path) -> None:
    with pytest.raises(InvalidStackError, match="Is this a particle stack"):
        read_header(samples / "relion31.star")


def test_tilt_series_ribosomes_read(test_data: Path) -> None:
    table = read_star(test_data / "ribosome_70s_tilt" / "particles.star")
    (group,) = read_images(table, StackReader())
    with mrcfile.open(test_data / "ribosome_70s_tilt" / "particles.mrcs") as mrc:
        np.testing.assert_array_equal(group.images, mrc.data.astype(np.float32))
    assert table.ctf_parameters().premultiplied.all()


@needs_relion
@pytest.mark.relion
@pytest.mark.parametrize("name", STARS)
def test_relion_reads_the_star_that_we_write(name: str, samples: Path, tmp_path: Path) -> None:
    table = read_star(samples / name)
    write_star(tmp_path / "ours.star", table)
    every = ["--select", "rlnDefocusU", "--minval", "0", "--maxval", "1e9"]
    subprocess.run(
        ["relion_star_handler", "--i", "ours.star", "--o", "relion.star", *every],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    relions = read_star(tmp_path / "relion.star")
    assert relions.column("rlnImageName") == table.column("rlnImageName")
    assert [relions.optics[k].name for k in relions.optics_index] == [table.optics[k].name for k in table.optics_index]
    np.testing.assert_allclose(relions.pixel_sizes_angstrom(), table.pixel_sizes_angstrom(), atol=1e-5)
    numeric = sorted(set(table.labels) & NUMERIC_LABELS)
    assert numeric
    for label in numeric:
        np.testing.assert_allclose(relions.numbers(label), table.numbers(label), atol=1e-5, err_msg=label)


@needs_relion
@pytest.mark.relion
@pytest.mark.parametrize("mode", [0, 1, 2, 6])
def test_relion_reads_the_pixels_that_we_write(mode: int, tmp_path: Path) -> None:
    images = np.rint(np.random.default_rng(mode).normal(60 if mode == 6 else -3, 15, (3, 32, 32))).astype(np.float32)
    write_stack(tmp_path / "ours.mrcs", images, 3.5, mode=mode)
    subprocess.run(
        ["relion_image_handler", "--i", "ours.mrcs", "--o", "relion.mrcs", "--multiply_constant", "2"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    assert read_header(tmp_path / "relion.mrcs").pixel_size_angstrom == pytest.approx(3.5)
    np.testing.assert_array_equal(StackReader().read(tmp_path / "relion.mrcs", range(3))[0], 2 * images)
