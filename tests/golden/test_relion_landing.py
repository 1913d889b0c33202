"""RELION's own project as landing folder: its stars are told apart, and what it renames into place is taken at once."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from samples.relion_project import COORDINATES, OPTICS, table
from support.session_bench import Bench, fake_checkpoint, turn

from cesped_stream.imaging.maps import write_map
from cesped_stream.particles.stacks import write_stack
from cesped_stream.particles.star_kind import StarKind, star_kind
from cesped_stream_service.doctor import StarVerdict, examine_landing
from cesped_stream_service.settings import LandingSettings
from cesped_stream_service.watcher import Watcher

PER_MICROGRAPH = 20
BOX = 32

pytestmark = [
    pytest.mark.relion,
    pytest.mark.skipif(shutil.which("relion_preprocess") is None, reason="relion_preprocess is not on PATH"),
]


def relion(folder: Path, *words: str) -> None:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr


def write_micrographs(project: Path, many: int) -> None:
    """Write micrographs of noise, their CTF star and picks."""
    rng = np.random.default_rng(3)
    rows = []
    for folder in ("MotionCorr/job002/Movies", "AutoPick/job004/Movies", "CtfFind/job003", "Extract/job005"):
        (project / folder).mkdir(parents=True, exist_ok=True)
    for m in range(many):
        name = f"MotionCorr/job002/Movies/mic{m}.mrc"
        write_stack(project / name, rng.normal(size=(1, 256, 256)).astype(np.float32), 2.0)
        picks = "".join(f"{x:.2f} {y:.2f} 0.5 \n" for x, y in rng.uniform(20, 230, (PER_MICROGRAPH, 2)))
        (project / f"AutoPick/job004/Movies/mic{m}_autopick.star").write_text(f"{COORDINATES}{picks} \n")
        rows.append(f"{name} 1 {10000 + 500 * m}.0 {9900 + 500 * m}.0 12.0")
    optics = OPTICS + "_rlnMicrographPixelSize #7 \nopticsGroup1 1 2.0 300.0 2.7 0.1 2.0 \n \n"
    labels = ("rlnMicrographName", "rlnOpticsGroup", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
    (project / "CtfFind/job003/micrographs_ctf.star").write_text(optics + table("micrographs", labels, rows))


def extract(project: Path) -> None:
    relion(
        project,
        *("relion_preprocess", "--i", "CtfFind/job003/micrographs_ctf.star", "--coord_dir", "AutoPick/job004/"),
        *("--coord_suffix", "_autopick.star", "--part_star", "Extract/job005/particles.star"),
        *("--part_dir", "Extract/job005/", "--extract", "--extract_size", str(BOX), "--norm", "--bg_radius", "12"),
        *("--white_dust", "-1", "--black_dust", "-1", "--invert_contrast", "--only_do_unfinished"),
    )


def refine(project: Path) -> None:
    z, y, x = np.mgrid[-16:16, -16:16, -16:16]
    write_map(project / "ref.mrc", np.exp(-(x**2 + (y - 2) ** 2 + 2 * z**2) / 40).astype(np.float32), 2.0)
    (project / "Refine3D/job007").mkdir(parents=True)
    relion(
        project,
        *("relion_refine", "--i", "Extract/job005/particles.star", "--o", "Refine3D/job007/run", "--ref", "ref.mrc"),
        *("--ini_high", "20", "--ctf", "--particle_diameter", "50", "--K", "1", "--healpix_order", "1", "--norm"),
        *("--offset_range", "3", "--offset_step", "2", "--scale", "--pad", "1", "--iter", "1", "--firstiter_cc"),
    )
    shutil.copy(project / "Refine3D/job007/run_it001_data.star", project / "Refine3D/job007/run_data.star")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("relion") / "landing"
    write_micrographs(folder, 2)
    extract(folder)
    refine(folder)
    return folder


def test_the_stars_that_relion_writes_are_told_apart(project: Path) -> None:
    kinds = {str(star.relative_to(project)): star_kind(star) for star in project.rglob("*.star")}
    particles = {name for name, kind in kinds.items() if kind is StarKind.PARTICLES}
    runs = {f"Refine3D/job007/run_{name}data.star" for name in ("it000_", "it001_", "")}
    assert particles == {"Extract/job005/particles.star"} | runs
    assert kinds["Extract/job005/Movies/mic0_extract.star"] is StarKind.ONE_MICROGRAPH
    assert kinds["CtfFind/job003/micrographs_ctf.star"] is StarKind.MICROGRAPHS
    for name in ("model", "optimiser"):
        assert str(kinds[f"Refine3D/job007/run_it001_{name}.star"]) == name
    assert kinds["Refine3D/job007/run_it001_sampling.star"] is StarKind.SAMPLING


def test_doctor_takes_the_extracted_and_the_refined_star_of_relions_project(project: Path) -> None:
    findings = examine_landing(LandingSettings(folder=project), min_aligned_per_half=1)
    assert {Path(star.path).name for star in findings.of(StarVerdict.TAKEN)} == {"particles.star", "run_data.star"}
    assert findings.particles == 2 * PER_MICROGRAPH and findings.is_well
    (refined,) = [star for star in findings.stars if star.path.endswith("run_data.star")]
    assert (refined.rows, refined.aligned, refined.boxes) == (40, 40, (BOX,))


def test_what_extract_renames_into_place_again_and_again_is_taken_without_waiting(tmp_path: Path) -> None:
    bench = Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")), landing={"settle_seconds": 1.0})
    core = bench.open()
    for many in (1, 2, 3):
        write_micrographs(bench.landing, many)
        extract(bench.landing)
        for _ in range(4):
            turn(core, bench.clock, [], 0.6)
        assert core.status().landed == many * PER_MICROGRAPH
    status = core.status()
    assert (status.quarantined_stars, status.conflicts, status.refused_rows, status.problems) == (0, 0, 0, ())
    assert status.stars_left["Extract's stars of one micrograph"] == 3
    core.close()


def test_the_first_scan_after_extract_replaced_its_star_takes_it(tmp_path: Path) -> None:
    watcher = Watcher(LandingSettings(folder=tmp_path, settle_seconds=600.0))
    write_micrographs(tmp_path, 1)
    extract(tmp_path)
    before = (tmp_path / "Extract/job005/particles.star").stat().st_ino
    watcher.scan(100.0)
    os.link(tmp_path / "Extract/job005/particles.star", tmp_path / "kept")  # so that its inode is not used again
    write_micrographs(tmp_path, 2)
    extract(tmp_path)
    assert (tmp_path / "Extract/job005/particles.star").stat().st_ino != before
    assert "particles.star" in {star.path.name for star in watcher.scan(102.0)}
