"""A RELION project folder by hand, without RELION: the columns, their order, the number texts, the blocks and the ways
of writing are those of RELION 3.1.3's Extract, Refine3D and Class3D; the images are noise."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from cesped_stream.conventions import ANGLE_LABELS
from cesped_stream.export.star import export_star
from cesped_stream.particles.stacks import write_stack
from cesped_stream.particles.star import read_star
from cesped_stream.particles.table import ParticleTable

from .session_bench import BOX, Bench

PER_MICROGRAPH: Final = 6
EXTRACT: Final = "Extract/job005"
OPTICS: Final = (
    *("rlnOpticsGroupName", "rlnOpticsGroup", "rlnMicrographOriginalPixelSize", "rlnVoltage"),
    *("rlnSphericalAberration", "rlnAmplitudeContrast", "rlnImagePixelSize", "rlnImageSize", "rlnImageDimensionality"),
)
EXTRACTED: Final = (
    *("rlnCoordinateX", "rlnCoordinateY", "rlnAutopickFigureOfMerit", "rlnClassNumber", "rlnAnglePsi", "rlnImageName"),
    *("rlnMicrographName", "rlnOpticsGroup", "rlnCtfMaxResolution", "rlnCtfFigureOfMerit", "rlnDefocusU"),
    *("rlnDefocusV", "rlnDefocusAngle", "rlnCtfBfactor", "rlnCtfScalefactor", "rlnPhaseShift"),
)
REFINED: Final = (
    *("rlnGroupNumber", "rlnAngleRot", "rlnAngleTilt", "rlnOriginXAngst", "rlnOriginYAngst", "rlnNormCorrection"),
    *("rlnRandomSubset", "rlnLogLikeliContribution", "rlnMaxValueProbDistribution", "rlnNrOfSignificantSamples"),
)


@dataclass(frozen=True)
class Consensus:
    """What a refinement says of its particles, by image name."""

    euler_deg: dict[str, tuple[float, float, float]]
    subset: dict[str, str]
    """"1" or "2"; empty where the star has no rlnRandomSubset."""

    def per_half(self) -> tuple[int, int]:
        """Return how many particles each half-set has, that of rlnRandomSubset 1 first."""
        subsets = list(self.subset.values())
        return subsets.count("1"), subsets.count("2")


@dataclass
class ProjectFolder:
    """Jobs write into the landing folder `root` as they would into their project."""

    root: Path
    made: set[int] = field(default_factory=set)

    def extract(self, micrographs: int, manner: str = "replaced") -> None:
        """Extract the first micrographs: `particles.star` grows by an atomic replacement, as RELION's does, or by rows
        that are appended, or each micrograph has a star of its own."""
        self._stacks(micrographs)
        star = self.root / EXTRACT / "particles.star"
        rows = [_extracted(k, i) for k in range(1, micrographs + 1) for i in range(1, PER_MICROGRAPH + 1)]
        if manner == "replaced":
            _replace(star, _star(EXTRACTED, rows))
        elif manner == "appended" and star.exists():
            known = star.read_text().count("@")
            with star.open("a") as stream:
                stream.write("".join(f"{' '.join(row)} \n" for row in rows[known:]))
        elif manner == "appended":
            star.write_text(_star(EXTRACTED, rows).rstrip(" \n") + " \n")
        else:
            for k in range(1, micrographs + 1):
                one = rows[(k - 1) * PER_MICROGRAPH : k * PER_MICROGRAPH]
                _replace(self.root / EXTRACT / f"mic_{k:04d}_particles.star", _star(EXTRACTED, one))

    def refine(self, job: str, micrographs: Iterable[int], *, seed: int, split: int | None = None) -> Consensus:
        """Write Refine3D's result in place; `split` draws the half-sets (default: `seed`, a job of its own)."""
        return self._write_refined(f"Refine3D/{job}/run_data.star", micrographs, seed, seed if split is None else split)

    def classify(self, job: str, micrographs: Iterable[int], *, seed: int) -> Consensus:
        """Write Class3D's result, which has poses and no rlnRandomSubset."""
        return self._write_refined(f"Class3D/{job}/run_it025_data.star", micrographs, seed, None)

    def select(self, job: str, micrographs: Iterable[int]) -> None:
        """Write what Select keeps of Class2D's particles: rows with psi and a fit, and with rot and tilt 0."""
        chosen = list(micrographs)
        self._stacks(max(chosen))
        labels = tuple(label for label in (*EXTRACTED, *REFINED) if label != "rlnRandomSubset")
        fit = (*("0.000000", "0.000000", "0.363007", "-6.71699", "1.007381", "2033.135994", "0.024507"), "106")
        rows = [(*_extracted(k, i), str(k), *fit) for k in chosen for i in range(1, PER_MICROGRAPH + 1)]
        rows = [(*row[:4], _number(7.5 * k - 90), *row[5:]) for k, row in enumerate(rows)]
        star = self.root / f"Select/{job}/particles.star"
        star.parent.mkdir(parents=True, exist_ok=True)
        star.write_text(_star(labels, rows))

    def names(self, micrographs: int) -> list[str]:
        """Return the image names of the first micrographs."""
        return [image_name(k, i) for k in range(1, micrographs + 1) for i in range(1, PER_MICROGRAPH + 1)]

    def _stacks(self, micrographs: int) -> None:
        (self.root / EXTRACT / "Micrographs").mkdir(parents=True, exist_ok=True)
        for k in range(1, micrographs + 1):
            if k not in self.made:
                images = np.random.default_rng(k).normal(size=(PER_MICROGRAPH, BOX, BOX)).astype(np.float32)
                write_stack(self.root / EXTRACT / "Micrographs" / f"mic_{k:04d}.mrcs", images, 2.0)
                self.made.add(k)

    def _write_refined(self, file: str, micrographs: Iterable[int], seed: int, split: int | None) -> Consensus:
        chosen = list(micrographs)
        self._stacks(max(chosen))
        consensus, rows = Consensus({}, {}), []
        for k in chosen:
            for i in range(1, PER_MICROGRAPH + 1):
                name = image_name(k, i)
                rng = np.random.default_rng([seed, k, i])
                rot, psi = rng.uniform(-180, 180, 2).tolist()
                tilt, x, y = rng.uniform(1, 179), *rng.uniform(-9, 9, 2).tolist()
                consensus.euler_deg[name] = (rot, tilt, psi)
                half = []
                if split is not None:
                    half = [str(1 + np.random.default_rng([split, k, i, 7]).integers(2))]
                    consensus.subset[name] = half[0]
                extracted = list(_extracted(k, i))
                extracted[EXTRACTED.index("rlnAnglePsi")] = _number(psi)
                fit = ("2119.476178", f"{rng.uniform(0.1, 1):.6f}", str(rng.integers(1, 30)))
                rows.append((*extracted, str(k), *map(_number, (rot, tilt, x, y)), "0.788372", *half, *fit))
        labels = tuple(label for label in (*EXTRACTED, *REFINED) if split is not None or label != "rlnRandomSubset")
        star = self.root / file
        star.parent.mkdir(parents=True, exist_ok=True)
        star.write_text(_star(labels, rows))
        return consensus


def image_name(micrograph: int, image: int) -> str:
    """Return the image's name, relative to the project."""
    return f"{image:06d}@{EXTRACT}/Micrographs/mic_{micrograph:04d}.mrcs"


def exported(bench: Bench) -> ParticleTable:
    """Return the session's canonical export; every image has a pose."""
    paths = export_star(bench.session / "poses", bench.root / "export.star")
    assert len(paths) == 1
    return read_star(paths[0])


def trained_on(bench: Bench, training_id: int) -> ParticleTable:
    """Return the rows that an order of references was given."""
    return read_star(bench.session / "batches" / f"training_{training_id:06d}.star")


def last_training(bench: Bench) -> int:
    """Return the number of the newest order."""
    return max(int(star.stem.rpartition("_")[2]) for star in (bench.session / "batches").glob("training_*.star"))


def check_rows(bench: Bench, landed: Sequence[str], consensus: Consensus) -> dict[str, dict[str, str]]:
    """Check that each landed particle has one row, given (pose and half-set of the consensus) or predicted by a
    reference that it is not in; return the rows by image name."""
    table = exported(bench)
    names = table.column("rlnImageName")
    assert sorted(names) == sorted(landed)
    rows = {name: dict(zip(table.labels, cells, strict=True)) for name, cells in zip(names, table.rows, strict=True)}
    expected = {name: "given" if name in consensus.euler_deg else "predicted" for name in names}
    assert {name: row["cestreamStatus"] for name, row in rows.items()} == expected
    for name, euler_deg in consensus.euler_deg.items():
        angles = [float(rows[name][label]) for label in ANGLE_LABELS]
        assert np.allclose(angles, euler_deg, rtol=0, atol=1e-4), name
    assert {name: rows[name]["rlnRandomSubset"] for name in consensus.subset} == consensus.subset
    for name, row in rows.items():
        if row["cestreamStatus"] == "predicted" and row["cestreamCheckpoint"].startswith("ref-aligned-"):
            training_id = int(row["cestreamCheckpoint"].rpartition("-")[2])
            assert name not in set(trained_on(bench, training_id).column("rlnImageName")), f"{name} scored by its own"
    return rows


def check_references(bench: Bench, training_id: int, consensus: Consensus) -> None:
    """Check that an order's references were made of all the consensus' rows, each in the half-set that it says."""
    table = trained_on(bench, training_id)
    assert sorted(table.column("rlnImageName")) == sorted(consensus.euler_deg)
    subsets = dict(zip(table.column("rlnImageName"), table.column("rlnRandomSubset"), strict=True))
    assert {name: subsets[name] for name in consensus.subset} == consensus.subset


def _extracted(micrograph: int, image: int) -> tuple[str, ...]:
    defocus = 10000 + 700 * micrograph
    return (
        *(_number(28 + 40 * image), _number(29 + 40 * micrograph), _number(1 + 0.01 * image), "1", _number(0.0)),
        *(image_name(micrograph, image), f"Micrographs/mic_{micrograph:04d}.mrc", "1", _number(5.0), _number(0.1)),
        *(_number(defocus + 0.492704), _number(defocus - 197.071496), _number(44.07034)),
        *(_number(0.0), _number(1.0), _number(0.0)),
    )


def _number(value: float) -> str:
    """Return a number as RELION writes it: six decimals, five where it is negative."""
    return f"{value:.5f}" if value < 0 else f"{value:.6f}"


def _star(labels: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    pixel_size, optics = "2.000000", "300.000000 2.700000 0.100000"
    return (
        _head("optics", OPTICS)
        + f"opticsGroup1 1 {pixel_size} {optics} {pixel_size} {BOX} 2 \n \n"
        + _head("particles", labels)
        + "".join(f"{' '.join(row)} \n" for row in rows)
        + " \n"
    )


def _head(name: str, labels: Sequence[str]) -> str:
    columns = "".join(f"_{label} #{k} \n" for k, label in enumerate(labels, 1))
    return f"\n# version 30001\n\ndata_{name}\n\nloop_ \n{columns}"


def _replace(star: Path, text: str) -> None:
    temporary = star.with_name(f"{star.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, star)
