"""A preprocessed copy shows the same particles at the same poses, and says what its images carry."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from samples.particle_entries import PIXEL_SIZE, simulated_entry, star_of_spots
from support.imaging import blobs

from cesped_stream import ParticlesDataset
from cesped_stream.benchmark.entries import open_entry
from cesped_stream.benchmark.prepare import PreparationSettings, preprocess_entry
from cesped_stream.errors import InvalidSettingsError, InvalidStarError, UnreachableFileError
from cesped_stream.imaging.maps import crop_map
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.particles.stacks import read_header
from cesped_stream.particles.star import read_star
from cesped_stream_service.cli import main


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return simulated_entry(tmp_path, "own", symmetry="C2")


def test_copy_holds_the_images_that_this_projects_steps_give(tmp_path: Path, source: Path) -> None:
    done = preprocess_entry(open_entry(source), tmp_path / "copy", PreparationSettings(image_size=20))
    assert (done.num_particles, done.num_unusable, done.image_size) == (24, 0, 20)
    assert done.pixel_size_angstrom == pytest.approx(PIXEL_SIZE * 24 / 20)
    for half in (0, 1):
        copy = ParticlesDataset(
            "copy", half, tmp_path, apply_perImg_normalization=False, image_size_factor_for_crop=0, compatible=None
        )
        direct = ParticlesDataset("own", half, tmp_path, image_size=20, compatible=None)
        assert copy.sampling_rate == pytest.approx(direct.sampling_rate)
        assert copy.symmetry == "C2"
        for a, b in zip(copy, direct, strict=True):
            torch.testing.assert_close(a[1], b[1], atol=1e-5, rtol=0)
            torch.testing.assert_close(a[2][:2], b[2][:2])


def test_poses_and_shifts_hold_for_the_copy(tmp_path: Path) -> None:
    source = simulated_entry(tmp_path, "clean", box=48, snr=float("inf"), ctf=False, max_shift_angstrom=9.0)
    settings = PreparationSettings(image_size=32, crop_fraction=0.0, ctf_correction="none")
    done = preprocess_entry(open_entry(source), tmp_path / "copy", settings)
    projector = MapProjector(crop_map(blobs(48), 32), done.pixel_size_angstrom)
    table = open_entry(tmp_path / "copy").particles()
    images = projector.project(table.rotations(), table.shifts_angstrom())
    dataset = [item[1][0] for half in (0, 1) for item in ParticlesDataset("copy", half, tmp_path, compatible=None,
               image_size_factor_for_crop=0, ctf_correction="none")]  # fmt: skip
    for image, expected in zip(dataset, images, strict=True):
        assert np.corrcoef(image.ravel(), expected.ravel())[0, 1] > 0.999


@pytest.mark.parametrize(("correction", "flags"), [("none", (0, 0)), ("phase_flip", (1, 0)), ("multiply", (0, 1))])
def test_star_says_size_and_what_the_images_carry(
    tmp_path: Path, source: Path, correction: str, flags: tuple[int, int]
) -> None:
    settings = PreparationSettings.model_validate({"ctf_correction": correction})
    preprocess_entry(open_entry(source), tmp_path / "copy", settings)
    before = read_star(source / "particles_0.star")
    table = read_star(tmp_path / "copy" / "particles_0.star")
    (group,) = table.optics
    assert (group.phase_flipped, group.ctf_premultiplied) == tuple(map(bool, flags))
    header = read_header(tmp_path / "copy" / "particles_0.mrcs")
    assert group.number("rlnImageSize") == header.box_size == 24
    assert group.pixel_size_angstrom == pytest.approx(header.pixel_size_angstrom) == PIXEL_SIZE
    assert table.column("rlnImageOriginalName") == before.column("rlnImageName")
    for label in ("rlnOriginXAngst", "rlnAngleRot", "rlnDefocusU", "rlnMaxValueProbDistribution"):
        assert table.column(label) == before.column(label)
    assert json.loads((tmp_path / "copy" / "info_1.json").read_text()) == {"symmetry": "C2"}


def test_optics_groups_become_one_scale(tmp_path: Path) -> None:
    star = star_of_spots(tmp_path, [(3.0, 32), (2.0, 48), (4.0, 24)], 9.0, -6.0)
    settings = PreparationSettings(image_size=16, ctf_correction="none", normalise=False)
    table = open_entry(star).particles()
    half = int(table.half_sets()[0])
    preprocess_entry(open_entry(star), tmp_path / "copy", settings, half_sets=(half,))
    copy = read_star(tmp_path / "copy" / f"particles_{half}.star")
    assert {(g.pixel_size_angstrom, g.text("rlnImageSize")) for g in copy.optics} == {(4.5, "16")}


def test_a_broken_stack_leaves_nothing(tmp_path: Path, source: Path) -> None:
    (source / "particles_1.mrcs").unlink()
    with pytest.raises(UnreachableFileError, match="particles_1"):
        preprocess_entry(open_entry(source), tmp_path / "copy", PreparationSettings())
    assert {path.name for path in tmp_path.iterdir()} == {".copy.lock", "own"}


def test_a_failure_half_way_leaves_nothing(tmp_path: Path, source: Path) -> None:
    def fail(done: int, total: int) -> None:
        if done > 12:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        preprocess_entry(open_entry(source), tmp_path / "copy", PreparationSettings(), on_progress=fail)
    assert {path.name for path in tmp_path.iterdir()} == {".copy.lock", "own"}


def test_nothing_is_written_over(tmp_path: Path, source: Path) -> None:
    with pytest.raises(InvalidSettingsError, match="exists"):
        preprocess_entry(open_entry(source), source, PreparationSettings())


def test_an_empty_half_is_said(tmp_path: Path, source: Path) -> None:
    one = open_entry(source / "particles_0.star")
    with pytest.raises(InvalidStarError, match="no row of half-set 1"):
        preprocess_entry(one, tmp_path / "copy", PreparationSettings())


def test_command_writes_the_copy(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["entries", "preprocess", "own", "--root", str(tmp_path), "--output", str(tmp_path / "copy")]
    assert main([*words, "--image-size", "16", "--ctf", "multiply", "--no-normalise"]) == 0
    assert "24 images of 16 px at 4.5 A" in capsys.readouterr().out
    assert read_star(tmp_path / "copy" / "particles_0.star").optics[0].ctf_premultiplied
    assert main(words) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*words[:-1], str(tmp_path / "other"), "--ctf", "wiener"]) == 2
    assert "ctf_correction: got 'wiener'" in capsys.readouterr().err


def test_second_process_is_refused_while_the_first_writes_and_disturbs_nothing(tmp_path: Path, source: Path) -> None:
    """Another process tries to make the same copy in the middle of this one's."""
    command = [sys.executable, "-c", SECOND, str(source), str(tmp_path / "copy")]
    said: list[str] = []

    def meanwhile(done: int, total: int) -> None:
        if not said:
            said.append(subprocess.run(command, capture_output=True, text=True, check=False).stdout)

    done = preprocess_entry(open_entry(source), tmp_path / "copy", PreparationSettings(), on_progress=meanwhile)
    assert str(os.getpid()) in said[0]
    assert len(open_entry(tmp_path / "copy").particles()) == done.num_particles
    assert not (tmp_path / ".copy.tmp").exists()


SECOND = """
import sys
from pathlib import Path
from cesped_stream.benchmark.entries import open_entry
from cesped_stream.benchmark.prepare import PreparationSettings, preprocess_entry
from cesped_stream.errors import BusyEntryError
try:
    preprocess_entry(open_entry(Path(sys.argv[1])), Path(sys.argv[2]), PreparationSettings())
except BusyEntryError as error:
    print(error)
"""
