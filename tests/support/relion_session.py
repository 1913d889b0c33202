"""A RELION project of simulated micrographs, and the jobs that RELION itself runs in it: Extract, Refine3D, Class3D."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import mrcfile
import numpy as np
from numpy.typing import NDArray

from cesped_stream.conventions import ANGLE_LABELS, euler_deg_to_rotation, rotation_to_euler_deg
from cesped_stream.imaging.maps import crop_map, write_map
from cesped_stream.imaging.simulate import random_rotations
from cesped_stream.particles.own_columns import OWN_LABELS
from cesped_stream.particles.own_rows import SIGNIFICANT_SAMPLES
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.star import read_star, write_star
from cesped_stream.particles.table import OpticsGroup, ParticleTable
from cesped_stream.so3.symmetry import group_rotations

from .relion_particles import Acquisition, betagal

SYMMETRY: Final = "D2"
MICROGRAPHS: Final = 8
PER_MICROGRAPH: Final = 40
BOX: Final = 32
SNR: Final = 1.0
EXTRACT: Final = Path("Extract/job005/particles.star")
MPI: Final = ("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "3", "relion_refine_mpi")
COMMON: Final = (
    *("--pad", "1", "--ctf", "--particle_diameter", "200", "--flatten_solvent", "--zero_mask", "--norm", "--scale"),
    *("--oversampling", "1", "--offset_range", "2", "--sym", SYMMETRY, "--dont_combine_weights_via_disc"),
)
PREDICTED_CELLS: Final = {
    "cestreamConfidence": "0.987654",
    "cestreamConfidenceKind": "mass",
    "cestreamCheckpoint": "ref-000000000001",
    "cestreamProposer": "gallery+refinement",
    "cestreamStatus": "predicted",
    "cestreamTopPoses": "[-119.649555,110.786353,99.441608,0.999692]",
}
"""Of a row that this program predicted; its other columns of ours are "none"."""
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class RelionProject:
    """A project folder, as RELION's own jobs fill it. Jobs are run in it, file names are relative to it."""

    folder: Path

    def extract(self, micrographs: int) -> Path:
        """Run the Extract job on the first micrographs, as a schedule does again and again; return its star."""
        write_micrographs_star(self.folder, micrographs)
        job = f"{EXTRACT.parent}/"
        _relion(
            self.folder,
            *("relion_preprocess", "--i", "CtfFind/job003/micrographs_ctf.star", "--coord_dir", "AutoPick/job004/"),
            *("--coord_suffix", "_autopick.star", "--part_star", str(EXTRACT), "--part_dir", job, "--extract"),
            *("--extract_size", str(BOX), "--norm", "--bg_radius", "13", "--white_dust", "-1", "--black_dust", "-1"),
            *("--invert_contrast", "--only_do_unfinished"),
        )
        return self.folder / EXTRACT

    def refine(self, job: str, star: Path, *, seed: int) -> Path:
        """Run Refine3D (gold standard, from a low-passed map) on a star; return its run_data.star."""
        self._job(job)
        _relion(
            self.folder,
            *(*MPI, "--o", f"{job}/run", "--i", str(star), "--ref", "InitialModel/ref.mrc", "--ini_high", "25"),
            *(*COMMON, "--auto_refine", "--split_random_halves", "--firstiter_cc", "--healpix_order", "1"),
            *("--auto_local_healpix_order", "2", "--auto_ignore_angles", "--auto_resol_angles", "--offset_step", "2"),
            *("--low_resol_join_halves", "40", "--j", "1", "--pool", "10", "--random_seed", str(seed)),
        )
        return self.folder / job / "run_data.star"

    def classify(self, job: str, star: Path, *, more: Sequence[str] = ()) -> Path:
        """Run Class3D with two classes and three iterations; return the last iteration's star, which is its result."""
        self._job(job)
        _relion(
            self.folder,
            *("relion_refine", "--o", f"{job}/run", "--i", str(star), "--ref", "InitialModel/ref.mrc", "--K", "2"),
            *(*COMMON, "--ini_high", "40", "--tau2_fudge", "4", "--iter", "3", "--j", "2", "--pool", "20"),
            *("--random_seed", "1", *(more or ("--firstiter_cc", "--healpix_order", "1", "--offset_step", "2"))),
        )
        return self.folder / job / "run_it003_data.star"

    def classify_2d(self, job: str, star: Path) -> Path:
        """Run Class2D with four classes and two iterations; return the last one's star."""
        self._job(job)
        words = COMMON[: COMMON.index("--sym")] + COMMON[COMMON.index("--sym") + 2 :]
        _relion(
            self.folder,
            *("relion_refine", "--o", f"{job}/run", "--i", str(star), "--K", "4", "--iter", "2", "--tau2_fudge", "2"),
            *(*words, "--psi_step", "12", "--offset_step", "2", "--j", "2", "--pool", "20", "--random_seed", "1"),
        )
        return self.folder / job / "run_it002_data.star"

    def refine_locally(self, job: str, star: Path, reference: Path) -> Path:
        """Refine the poses of a star in three iterations, about where they are; return the last one's star."""
        self._job(job)
        _relion(
            self.folder,
            *("relion_refine", "--o", f"{job}/run", "--i", str(star), "--ref", str(reference), "--ini_high", "25"),
            *(*COMMON, "--ctf_corrected_ref", "--K", "1", "--tau2_fudge", "2", "--healpix_order", "3", "--iter", "3"),
            *("--sigma_ang", "4", "--offset_step", "1", "--j", "2", "--pool", "10", "--random_seed", "1"),
        )
        return self.folder / job / "run_it003_data.star"

    def _job(self, job: str) -> None:
        (self.folder / job).mkdir(parents=True)


def start_project(folder: Path, map_file: Path, *, seed: int = 5) -> RelionProject:
    """Simulate micrographs of beta-galactosidase, with their picks, CTF and a low-passed map to start from.

    `truth.star` has each particle's pose under the name that Extract will give it; it lies beside the project.
    """
    folder.mkdir(parents=True)
    volume, pixel_size = betagal(map_file, Acquisition(box_size=100))
    volume, pixel_size = crop_map(volume[18:82, 18:82, 18:82], BOX), 2 * pixel_size
    rng = np.random.default_rng(seed)
    truth = _truth(pixel_size, rng)
    images = _projected(folder.with_name(f"{folder.name}_truth"), volume, pixel_size, truth)
    positions = _picks(rng)
    for k in range(MICROGRAPHS):
        rows = slice(k * PER_MICROGRAPH, (k + 1) * PER_MICROGRAPH)
        _write_micrograph(folder, k, images[rows], positions[rows], pixel_size, rng)
    (folder / "InitialModel").mkdir()
    write_map(folder / "InitialModel" / "full.mrc", volume, pixel_size)
    low_passed = ("relion_image_handler", "--i", "InitialModel/full.mrc", "--o", "InitialModel/ref.mrc")
    _relion(folder, *low_passed, "--lowpass", "25", "--angpix", f"{pixel_size:.6f}")
    (folder / "InitialModel" / "full.mrc").unlink()
    _write_ctf_results(folder, truth)
    return RelionProject(folder)


def truth_of(project: RelionProject) -> ParticleTable:
    """Return the true poses under the names of the Extract star."""
    return read_star(project.folder.with_name(f"{project.folder.name}_truth") / "truth.star")


def angular_errors_deg(table: ParticleTable, truth: ParticleTable) -> Float64:
    """Return the angle `(n,)` between each row's pose and its particle's true one, equivalent poses alike."""
    place = {name: k for k, name in enumerate(truth.column("rlnImageName"))}
    true = rotations(truth)[[place[name] for name in table.column("rlnImageName")]]
    mates = np.einsum("gij,njk->gnik", group_rotations(SYMMETRY), true)
    trace = np.einsum("gnik,nik->gn", mates, rotations(table)).max(0)
    return np.asarray(np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1))), np.float64)


def rotations(table: ParticleTable) -> Float64:
    """Return the rotations `(n, 3, 3)` of a table's poses, image to map."""
    return euler_deg_to_rotation(*(table.numbers(label) for label in ANGLE_LABELS))


def write_micrographs_star(folder: Path, micrographs: int) -> None:
    """Write the CTF job's star as it is when so many micrographs are through."""
    lines = (folder / "CtfFind" / "all.txt").read_text().splitlines()
    head, rows = lines[:-MICROGRAPHS], lines[-MICROGRAPHS:]
    star = folder / "CtfFind" / "job003" / "micrographs_ctf.star"
    star.parent.mkdir(exist_ok=True)
    star.write_text("\n".join([*head, *rows[:micrographs], " ", ""]))


def _truth(pixel_size: float, rng: np.random.Generator) -> ParticleTable:
    """Return poses, shifts within 5 A, and one defocus a micrograph, as a CTF job finds it."""
    count = MICROGRAPHS * PER_MICROGRAPH
    defocus = np.repeat(rng.uniform(8000, 20000, MICROGRAPHS), PER_MICROGRAPH)
    astigmatism = np.repeat(rng.uniform(0, 400, MICROGRAPHS), PER_MICROGRAPH)
    axis = np.repeat(rng.uniform(0, 180, MICROGRAPHS), PER_MICROGRAPH)
    angles = rotation_to_euler_deg(random_rotations(count, rng))
    numbers = np.column_stack([defocus, defocus - astigmatism, axis, angles, rng.uniform(-5, 5, (count, 2))])
    names = [_micrograph(k // PER_MICROGRAPH) for k in range(count)]
    rows = [
        (
            f"{k % PER_MICROGRAPH + 1:06d}@{EXTRACT.parent}/Micrographs/{name}.mrcs",
            *(f"Micrographs/{name}.mrc", *(f"{number:.6f}" for number in numbers[k])),
        )
        for k, name in enumerate(names)
    ]
    labels = ("rlnImageName", "rlnMicrographName", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", *ANGLE_LABELS)
    optics = OpticsGroup(
        (
            *(("rlnOpticsGroupName", "opticsGroup1"), ("rlnVoltage", "300.0"), ("rlnSphericalAberration", "2.7")),
            *(("rlnAmplitudeContrast", "0.1"), ("rlnImagePixelSize", f"{pixel_size:.6f}")),
            *(("rlnImageSize", str(BOX)), ("rlnImageDimensionality", "2")),
        )
    )
    labels = (*labels, "rlnOriginXAngst", "rlnOriginYAngst")
    return ParticleTable(labels, rows, (optics,), np.zeros(count, np.int64))


def _projected(folder: Path, volume: np.ndarray, pixel_size: float, truth: ParticleTable) -> np.ndarray:
    """Return relion_project's images `(n, box, box)` with CTF and shifts, scaled to `SNR` over noise of variance 1."""
    folder.mkdir()
    write_map(folder / "map.mrc", volume, pixel_size)
    write_star(folder / "truth.star", truth)
    _relion(folder, "relion_project", "--i", "map.mrc", "--ang", "truth.star", "--o", "projected", "--ctf")
    images = np.array(StackReader().read(folder / "projected.mrcs", range(len(truth)))[0], np.float32)
    axis = (np.arange(BOX) - BOX // 2) * pixel_size
    circle = axis[:, None] ** 2 + axis**2 <= 90.0**2
    return images * np.float32((SNR / images[:, circle].var(1, dtype=np.float64).mean()) ** 0.5)


def _picks(rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the centres `(n, 2)` (x, y) of the particles in their micrographs, in pixels."""
    k = np.arange(MICROGRAPHS * PER_MICROGRAPH) % PER_MICROGRAPH
    return np.stack([28 + 40 * (k % 8), 28 + 40 * (k // 8)], 1) + rng.integers(-2, 3, (len(k), 2))


def _write_micrograph(
    folder: Path, k: int, images: np.ndarray, positions: NDArray[np.int64], pixel_size: float, rng: np.random.Generator
) -> None:
    name, half = _micrograph(k), BOX // 2
    pixels = rng.standard_normal((220, 340)).astype(np.float32)
    for image, (x, y) in zip(images, positions, strict=True):
        pixels[y - half : y + half, x - half : x + half] -= image
    picks = folder / "AutoPick" / "job004" / "Micrographs"
    for made in (folder / "Micrographs", picks, folder / "CtfFind"):
        made.mkdir(parents=True, exist_ok=True)
    with mrcfile.new(folder / "Micrographs" / f"{name}.mrc") as file:
        file.set_data(pixels)
        file.voxel_size = pixel_size
    labels = ("rlnCoordinateX", "rlnCoordinateY", "rlnAutopickFigureOfMerit", "rlnClassNumber", "rlnAnglePsi")
    rows = [f"{x:12.6f} {y:12.6f} {1 + 0.01 * i:12.6f} 1 {0:12.6f}" for i, (x, y) in enumerate(positions)]
    (picks / f"{name}_autopick.star").write_text(_block("", labels, rows))


def _write_ctf_results(folder: Path, truth: ParticleTable) -> None:
    """Write what the CTF job finds, from the truth; `write_micrographs_star` takes the first rows of it."""
    truth = truth.select(range(0, MICROGRAPHS * PER_MICROGRAPH, PER_MICROGRAPH))
    pixel_size = truth.optics[0].text("rlnImagePixelSize")
    optics = ("rlnOpticsGroupName", "rlnOpticsGroup", "rlnMicrographOriginalPixelSize", "rlnVoltage")
    optics += ("rlnSphericalAberration", "rlnAmplitudeContrast", "rlnMicrographPixelSize")
    values = [f"opticsGroup1 1 {pixel_size} 300.000000 2.700000 0.100000 {pixel_size}"]
    labels = ("rlnMicrographName", "rlnOpticsGroup", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
    labels += ("rlnCtfFigureOfMerit", "rlnCtfMaxResolution")
    columns = (truth.column(label) for label in (labels[0], *labels[2:5]))
    rows = [f"{name} 1 {u} {v} {angle} 0.1 5.0" for name, u, v, angle in zip(*columns, strict=True)]
    text = _block("optics", optics, values) + "\n" + _block("micrographs", labels, rows).rstrip()
    (folder / "CtfFind" / "all.txt").write_text(text)


def _micrograph(k: int) -> str:
    return f"mic_{k + 1:04d}"


def _block(name: str, labels: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"_{label} #{k}\n" for k, label in enumerate(labels, 1))
    return f"\n# version 30001\n\ndata_{name}\n\nloop_\n{head}" + "".join(f"{row}\n" for row in rows) + "\n"


def _relion(folder: Path, *command: str) -> None:
    """Run a program of RELION's in a folder; its words are told where it fails."""
    environment = os.environ | {"OMPI_MCA_btl_vader_single_copy_mechanism": "none", "OMPI_MCA_mpi_yield_when_idle": "1"}
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=environment, timeout=600, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@dataclass
class RelionJobs:
    """RELION's own jobs on one project, each run when it is first asked for."""

    project: RelionProject

    @cached_property
    def refined(self) -> Path:
        """Refine3D job010's run_data.star: of the first six micrographs."""
        self.project.extract(6)
        return self.project.refine("Refine3D/job010", EXTRACT, seed=1)

    @cached_property
    def refined_again(self) -> Path:
        """Refine3D job020's run_data.star: of all micrographs, in half-sets of its own."""
        self._all_extracted()
        return self.project.refine("Refine3D/job020", EXTRACT, seed=2)

    @cached_property
    def classes(self) -> Path:
        """Class3D job008's last star, of all micrographs: poses without half-sets."""
        self._all_extracted()
        return self.project.classify("Class3D/job008", EXTRACT)

    @cached_property
    def own_star(self) -> Path:
        """A star with Refine3D's poses as if this program had predicted them: an export of ours in the project."""
        table = read_star(self.refined)
        fit = ("rlnMaxValueProbDistribution", "rlnLogLikeliContribution", SIGNIFICANT_SAMPLES)
        own = {label: [PREDICTED_CELLS.get(label, "none")] * len(table) for label in OWN_LABELS}
        write_star(self.project.folder / "own.star", table.without(fit).with_columns(own))
        return self.project.folder / "own.star"

    @cached_property
    def refined_from_own(self) -> Path:
        """What RELION's local refinement makes of `own_star`."""
        own = self.own_star.relative_to(self.project.folder)
        return self.project.refine_locally("Refine3D/job030", own, Path("Refine3D/job010/run_class001.mrc"))

    def _all_extracted(self) -> None:
        # job010 must have seen no more than six micrographs.
        assert self.refined.exists()
        self.project.extract(MICROGRAPHS)

    def new_project(self, folder: Path) -> RelionProject:
        """Return a project of the same micrographs, picks and CTF, in which no particle is extracted yet."""
        for name in ("Micrographs", "AutoPick", "CtfFind", "InitialModel"):
            shutil.copytree(self.project.folder / name, folder / name)
        return RelionProject(folder)

    def deliver(self, star: Path, project: RelionProject) -> None:
        """Let a job's files come into another project as the job writes them: its star last, in place."""
        job = project.folder / star.parent.relative_to(self.project.folder)
        shutil.copytree(star.parent, job, ignore=shutil.ignore_patterns(star.name))
        with star.open("rb") as source, (job / star.name).open("wb") as target:
            for line in source:
                target.write(line)
