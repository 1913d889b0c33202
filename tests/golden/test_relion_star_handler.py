"""What a user does to our stars with relion_star_handler, and what it can do with columns of ours."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cesped_stream.imaging.entry import write_entry
from cesped_stream.imaging.simulate import embedded_ribosome, molecule_to_map
from cesped_stream.particles.stacks import STACK_LABEL
from cesped_stream.particles.star import read_star, write_star
from cesped_stream.particles.table import ParticleTable
from cesped_stream.settings import SimulationSettings
from cesped_stream_service.finished import Finished, Poses, joined, output_tables

NUMBER, GIVEN = 40, 10

pytestmark = [
    pytest.mark.relion,
    pytest.mark.skipif(shutil.which("relion_star_handler") is None, reason="relion_star_handler is not on PATH"),
]


@pytest.fixture(scope="module")
def session_rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ParticleTable]:
    """Return a folder with poses.star and its stack: predicted rows of a rising confidence, then given ones, which
    alone have RELION's own columns."""
    folder = tmp_path_factory.mktemp("rows")
    volume = molecule_to_map(*embedded_ribosome(), 32, 12.0, 26.0)
    write_entry(folder, volume, 12.0, SimulationSettings(num_particles=2 * (NUMBER + GIVEN), snr=0.5, seed=5))
    table = read_star(folder / "particles_0.star")
    table = table.with_columns(
        {
            STACK_LABEL: ["x"] * len(table),
            "rlnCoordinateX": [f"{100.0 * k:.1f}" for k in range(len(table))],
            "rlnCoordinateY": ["50.0"] * len(table),
        }
    )
    none = np.full((NUMBER, 3), np.nan)
    poses = Poses(
        euler_deg=np.stack([table.numbers(f"rlnAngle{name}")[:NUMBER] for name in ("Rot", "Tilt", "Psi")], axis=1),
        confidence=np.linspace(0.0, 0.975, NUMBER),
        top_euler_deg=np.zeros((NUMBER, 2, 3)),
        top_probability=np.zeros((NUMBER, 2)),
        flag=np.zeros(NUMBER, np.uint8),
        digest=np.zeros((NUMBER, 16), np.uint8),
        shift_angstrom=np.zeros((NUMBER, 2)),
        calibrated=np.ones(NUMBER, np.uint8),
        above_noise=np.where(np.arange(NUMBER) % 2, np.arange(NUMBER), np.nan),
        network_euler_deg=none,
        gallery_euler_deg=none,
        apart_deg=np.full(NUMBER, np.nan),
        clipped=np.zeros(NUMBER, np.uint8),
    )
    finished = Finished(1, 0, NUMBER, poses, checkpoint_id="ref-1", proposer="gallery+refinement")
    predicted, _ = output_tables(table.select(range(NUMBER)), finished)
    aligned = table.select(range(NUMBER, NUMBER + GIVEN))
    figures = {"rlnMaxValueProbDistribution": "0.9", "rlnNrOfSignificantSamples": "4", "rlnGroupName": "m.mrc"}
    aligned = aligned.with_columns({label: [text] * GIVEN for label, text in figures.items()})
    given, _ = output_tables(aligned, Finished(1, NUMBER, GIVEN))
    rows = joined([predicted, given])
    write_star(folder / "poses.star", rows)
    return folder, rows


def handled(folder: Path, *options: str, star: str = "poses.star") -> str:
    """Run the program; return what it says, with its exit code first."""
    for old in folder.glob("out*.star"):
        old.unlink()
    command = ["relion_star_handler", "--i", star, "--o", "out.star", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    return f"{done.returncode} {done.stdout}{done.stderr}"


@pytest.mark.parametrize("least, predicted", [(0.5, 20), (0.9, 4), (0.0, 40)])
def test_rows_are_selected_by_our_confidence(
    least: float, predicted: int, session_rows: tuple[Path, ParticleTable]
) -> None:
    folder, rows = session_rows
    said = handled(folder, "--select", "rlnMaxValueProbDistribution", "--minval", str(least))
    assert said.startswith("0 ")
    selected = read_star(folder / "out.star")
    assert selected.column("cestreamStatus").count("predicted") == predicted
    assert selected.column("cestreamStatus").count("given") == GIVEN
    assert set(selected.labels) == set(rows.labels)


def test_no_column_of_ours_can_be_selected_by_and_each_has_the_same_numbers_in_relions_column(
    session_rows: tuple[Path, ParticleTable],
) -> None:
    """RELION takes columns that it does not know for text, whatever stands in them."""
    folder, rows = session_rows
    assert "can only make a subset selection based on numbers" in handled(folder, "--select", "cestreamConfidence")
    assert rows.column("rlnMaxValueProbDistribution")[:NUMBER] == rows.column("cestreamConfidence")[:NUMBER]
    options = ("--select_by_str", "cestreamStatus", "--select_include", "given")
    assert "can only make a subset selection based on strings" in handled(folder, *options)


def test_the_line_of_awk_in_the_docs_selects_by_any_column_and_relion_reads_what_it_leaves(
    session_rows: tuple[Path, ParticleTable],
) -> None:
    folder, rows = session_rows
    program = '$1 == "_" label {column = substr($2, 2)} !/@/ || $column >= least'
    assert program in (Path(__file__).parents[2] / "docs" / "output.md").read_text()
    command = ["awk", "-v", "label=cestreamAboveNoise", "-v", "least=10", program, "poses.star"]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=10)
    (folder / "filtered.star").write_bytes(done.stdout)
    assert handled(folder, "--select", "rlnAngleTilt", star="filtered.star").startswith("0 ")
    assert len(read_star(folder / "out.star")) == sum(rows.numbers("cestreamAboveNoise") >= 10) == 15


def test_a_split_star_is_joined_again_and_its_duplicates_are_found(session_rows: tuple[Path, ParticleTable]) -> None:
    folder, rows = session_rows
    handled(folder, "--split", "--nr_split", "2")
    parts = [folder / f"out_split{k}.star" for k in (1, 2)]
    assert [len(read_star(part)) for part in parts] == [25, 25]
    for k, part in enumerate(parts, 1):
        part.rename(folder / f"part{k}.star")
    assert handled(folder, "--combine", star="part1.star part2.star").startswith("0 ")
    assert read_star(folder / "out.star").column("rlnImageName") == rows.column("rlnImageName")
    said = handled(folder, "--combine", "--check_duplicates", "rlnImageName", star="part1.star part1.star")
    assert "Total number of duplicate rlnImageName entries: 25" in said


def test_no_row_is_lost_as_a_duplicate_and_statistics_read_every_image(
    session_rows: tuple[Path, ParticleTable],
) -> None:
    folder, rows = session_rows
    handled(folder, "--remove_duplicates", "50")
    assert len(read_star(folder / "out.star")) == len(rows)
    assert handled(folder, "--discard_on_stats", "--discard_sigma", "9").startswith("0 ")
    assert len(read_star(folder / "out.star")) == len(rows)


def test_relions_columns_are_operated_on_and_ours_are_left_as_they_are(
    session_rows: tuple[Path, ParticleTable],
) -> None:
    folder, rows = session_rows
    handled(folder, "--operate", "rlnMaxValueProbDistribution", "--multiply_by", "100")
    changed = read_star(folder / "out.star")
    factor = changed.numbers("rlnMaxValueProbDistribution")[1:] / rows.numbers("rlnMaxValueProbDistribution")[1:]
    np.testing.assert_allclose(factor, 100.0, rtol=1e-4)
    for options in (("--operate", "cestreamRevision", "--set_to", "3"), ("--remove_column", "cestreamRevision")):
        assert handled(folder, *options).startswith("0 ")
        assert read_star(folder / "out.star").column("cestreamRevision") == rows.column("cestreamRevision")
