"""relion_star_handler, relion_reconstruct and relion_refine take every neutral value as they take no column at all."""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cesped_stream.imaging.entry import write_entry
from cesped_stream.imaging.maps import read_map, write_map
from cesped_stream.imaging.simulate import embedded_ribosome, molecule_to_map
from cesped_stream.particles.missing_columns import NEUTRAL_OPTICS, NEUTRAL_VALUES, noise_group
from cesped_stream.particles.star import read_star, write_star
from cesped_stream.particles.table import OpticsGroup, ParticleTable
from cesped_stream.settings import SimulationSettings
from cesped_stream_service.finished import joined

BOX, PIXEL_SIZE = 32, 12.0
REFINE = (
    "relion_refine --o {run} --ref ref.mrc --ini_high 40 --ctf --ctf_corrected_ref --particle_diameter 340 --zero_mask "
    "--K 1 --tau2_fudge 2 --healpix_order 2 --sigma_ang 5 --oversampling 0 --offset_range 1 --offset_step 1 --norm "
    "--scale --pad 1 --j 1 --random_seed 1 --dont_combine_weights_via_disc --iter 1"
)

pytestmark = [
    pytest.mark.relion,
    pytest.mark.skipif(shutil.which("relion_refine") is None, reason="relion_refine is not on PATH"),
]

EFFECTIVE_OPTICS = {
    "rlnMagMat00": "1.02",
    "rlnMagMat11": "0.98",
    "rlnMagMat01": "0.02",
    "rlnMagMat10": "0.02",
    "rlnBeamTiltX": "5.0",
    "rlnBeamTiltY": "5.0",
    "rlnOddZernike": "[1.2,1.2,1.3,1.4,1.5,1.6]",
    "rlnEvenZernike": "[0.1,0.2,0.3,0.4,0.5,0.6]",
    "rlnCtfDataAreCtfPremultiplied": "1",
    "rlnCtfDataArePhaseFlipped": "1",
    "rlnPhaseShift": "90.0",
    "rlnCtfBfactor": "500.0",
    "rlnCtfScalefactor": "0.5",
    "rlnImageDimensionality": "2",
    "rlnOpticsGroupName": "other",
}
TOGETHER = (
    ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11"),
    ("rlnBeamTiltX", "rlnBeamTiltY"),
)
"""Columns that RELION reads only together."""


@dataclass(frozen=True)
class Answer:
    """What RELION's programs make of a star."""

    selected: int
    reconstructed: NDArray[np.float32]
    refined: NDArray[np.float32]
    poses: list[tuple[str, ...]]
    groups: list[str]

    def is_that_of(self, other: "Answer") -> bool:
        same_maps = np.array_equal(self.reconstructed, other.reconstructed) and np.array_equal(
            self.refined, other.refined
        )
        return same_maps and (self.selected, self.poses, self.groups) == (other.selected, other.poses, other.groups)


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("entry")
    volume = molecule_to_map(*embedded_ribosome(), BOX, PIXEL_SIZE, 26.0)
    write_entry(folder, volume, PIXEL_SIZE, SimulationSettings(num_particles=120, snr=0.5, seed=5))
    write_map(folder / "ref.mrc", volume, PIXEL_SIZE)
    return folder


@pytest.fixture(scope="module")
def plain(entry: Path) -> ParticleTable:
    """Rows of one optics group that names nothing but voltage, Cs, contrast and sizes."""
    table = read_star(entry / "particles_0.star").without(["rlnPhaseShift"])
    return replace(table, optics=table.optics[:1], optics_index=np.zeros(len(table), np.int64))


@pytest.fixture(scope="module")
def expected(entry: Path, plain: ParticleTable) -> Answer:
    return answered(entry, plain)


def run(folder: Path, command: str) -> None:
    done = subprocess.run(command.split(), cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}\n{done.stderr[-400:]}"


def answered(folder: Path, table: ParticleTable) -> Answer:
    for old in folder.glob("answer*"):
        old.unlink()
    write_star(folder / "answer.star", table)
    run(folder, "relion_star_handler --i answer.star --o answer_all.star --select rlnAngleTilt --minval -360")
    run(folder, "relion_reconstruct --i answer.star --o answer.mrc --ctf --pad 1")
    run(folder, REFINE.format(run="./answer") + " --i answer.star")
    refined = read_star(folder / "answer_it001_data.star")
    pose = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")
    model = (folder / "answer_it001_model.star").read_text().partition("data_model_groups")[2]
    cells = [line.split() for line in model.partition("data_model_group_1")[0].splitlines()]
    return Answer(
        len(read_star(folder / "answer_all.star")),
        read_map(folder / "answer.mrc")[0],
        read_map(folder / "answer_it001_class001.mrc")[0],
        list(zip(*map(refined.column, pose), strict=True)),
        [cell[1] for cell in cells if len(cell) == 4 and cell[0].isdigit()],
    )


def with_cells(table: ParticleTable, cells: Mapping[str, str]) -> ParticleTable:
    return table.with_columns({label: [cell] * len(table) for label, cell in cells.items()})


def with_other_group(table: ParticleTable, other: Mapping[str, str]) -> ParticleTable:
    """Return the rows with a second optics group in their star, of which no row is and which alone has columns."""
    group = OpticsGroup(tuple((dict(table.optics[0].values) | {"rlnOpticsGroupName": "other"} | dict(other)).items()))
    return replace(table, optics=(*table.optics, group))


@pytest.mark.parametrize("label", [label for label in NEUTRAL_VALUES if not label.startswith("rlnDefocus")])
def test_a_particles_neutral_value_is_no_column(
    label: str, entry: Path, plain: ParticleTable, expected: Answer
) -> None:
    rows = plain.without([label])
    without = expected if label not in plain else answered(entry, rows)
    assert answered(entry, with_cells(rows, {label: NEUTRAL_VALUES[label]})).is_that_of(without)


def test_no_defocus_is_a_defocus_of_zero(entry: Path, plain: ParticleTable) -> None:
    labels = [label for label in NEUTRAL_VALUES if label.startswith("rlnDefocus")]
    assert len(labels) == 3
    rows = plain.without(labels)
    for name, cells in (("bare", {}), ("flat", {label: NEUTRAL_VALUES[label] for label in labels})):
        write_star(entry / f"{name}.star", with_cells(rows, cells))
        run(entry, f"relion_reconstruct --i {name}.star --o {name}.mrc --ctf --pad 1")
    assert np.array_equal(read_map(entry / "bare.mrc")[0], read_map(entry / "flat.mrc")[0])


def test_every_neutral_value_of_optics_is_tried() -> None:
    assert EFFECTIVE_OPTICS.keys() == NEUTRAL_OPTICS.keys()


@pytest.mark.parametrize("label", EFFECTIVE_OPTICS)
def test_an_optics_groups_neutral_value_is_no_column(
    label: str, entry: Path, plain: ParticleTable, expected: Answer
) -> None:
    labels = next((labels for labels in TOGETHER if label in labels), (label,))
    other = {label: EFFECTIVE_OPTICS[label] for label in labels}
    assert answered(entry, with_other_group(plain, other)).is_that_of(expected)


def test_a_wrong_fill_would_be_seen(entry: Path, plain: ParticleTable, expected: Answer) -> None:
    for cells in ({"rlnCtfScalefactor": "0.000000"}, {"rlnGroupName": "None"}, {"rlnMicrographName": "None"}):
        assert not answered(entry, with_cells(plain, cells)).is_that_of(expected)


@pytest.mark.parametrize("program", ["reconstruct", "refine"])
def test_a_detector_curve_that_not_all_groups_have_stops_relion_unless_it_is_left_out(
    program: str, entry: Path, plain: ParticleTable, expected: Answer
) -> None:
    other = {"rlnMtfFileName": "mtf.star", "rlnMicrographOriginalPixelSize": "4.0"}
    assert answered(entry, with_other_group(plain, other)).is_that_of(expected)
    curve = "".join(f"{k / 100:.4f} {1 - k / 80:.4f}\n" for k in range(51))
    (entry / "mtf.star").write_text(f"\ndata_\n\nloop_\n_rlnResolutionInversePixel #1\n_rlnMtfValue #2\n{curve}\n")
    none = {"rlnMtfFileName": "None", "rlnMicrographOriginalPixelSize": "0.000000"}
    (first,) = plain.optics
    filled = with_other_group(replace(plain, optics=(OpticsGroup((*first.values, *none.items())),)), other)
    write_star(entry / "filled.star", filled)
    refine = REFINE.format(run="./filled") + " --i filled.star"
    command = {"reconstruct": "relion_reconstruct --i filled.star --o filled.mrc --ctf", "refine": refine}[program]
    done = subprocess.run(command.split(), cwd=entry, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0 and "None does not exist" in done.stderr


def test_rows_without_a_group_get_relions_own_groups_beside_rows_that_have_one(
    entry: Path, plain: ParticleTable
) -> None:
    names = [f"MotionCorr/job002/Movies/{name}" for name in plain.column("rlnMicrographName")]
    rows = plain.with_columns({"rlnMicrographName": names})
    by_relion = answered(entry, rows)
    assert by_relion.groups == sorted({noise_group(name) for name in names})
    half = len(rows) // 2
    named = rows.select(range(half)).with_columns({"rlnGroupName": [noise_group(name) for name in names[:half]]})
    mixed = joined([named, rows.select(range(half, len(rows)))])
    assert answered(entry, mixed).is_that_of(by_relion)


def test_rows_without_a_micrograph_are_grouped_by_their_stack(entry: Path, plain: ParticleTable) -> None:
    half = len(plain) // 2
    bare = plain.select(range(half, len(plain))).without(["rlnMicrographName"])
    mixed = joined([plain.select(range(half)), bare])
    groups = sorted(set(plain.column("rlnMicrographName")[:half]))
    assert answered(entry, mixed).groups == [*groups, "particles_0.mrcs"]
    assert answered(entry, plain.without(["rlnMicrographName"])).groups == ["group"]
