"""The row that RELION takes over: all that landed, all that was aligned, and nothing of a pose that was replaced."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.session_bench import Bench, FakeWorker, fake_checkpoint, run_until

from cesped_stream.export.star import export_star
from cesped_stream.particles.own_columns import OWN_LABELS
from cesped_stream.particles.own_rows import PoseSource, pose_sources
from cesped_stream.particles.stacks import STACK_LABEL
from cesped_stream.particles.star import read_star
from cesped_stream.particles.table import OpticsGroup, ParticleTable
from cesped_stream_service.finished import STALE_COLUMNS, Finished, Poses, joined, output_tables

GROUP = OpticsGroup((("rlnOpticsGroupName", "a"), ("rlnVoltage", "300"), ("rlnImagePixelSize", "1.5")))
DOCS = Path(__file__).parents[3] / "docs" / "output.md"
RUN_DATA = {
    "rlnNormCorrection": "0.87",
    "rlnGroupNumber": "3",
    "rlnGroupName": "mics/m1.mrc",
    "rlnClassNumber": "2",
    "rlnLogLikeliContribution": "-6.2e+07",
    "rlnMaxValueProbDistribution": "0.61",
    "rlnNrOfSignificantSamples": "7",
    "rlnAngleRot": "11.0",
    "rlnAngleTilt": "22.0",
    "rlnAnglePsi": "33.0",
    "rlnOriginXAngst": "1.5",
    "rlnOriginYAngst": "-1.5",
    "rlnAngleTiltPrior": "22.0",
}
LANDED = {"rlnCoordinateX": "100.0", "rlnMicrographName": "job002/m1.mrc", "rlnRandomSubset": "1", "fooBar": "x"}


def landed_rows(number: int = 3, optics: OpticsGroup = GROUP, **columns: str) -> ParticleTable:
    rows = [(f"{k + 1:06d}@a.mrcs", "a.mrcs", *columns.values()) for k in range(number)]
    return ParticleTable(("rlnImageName", STACK_LABEL, *columns), rows, (optics,), np.zeros(number, np.int64))


def predicted(number: int, flag: int = 0, **changes: object) -> Finished:
    poses = Poses(
        euler_deg=np.full((number, 3), 45.0),
        confidence=np.linspace(0.2, 0.8, number),
        top_euler_deg=np.zeros((number, 2, 3)),
        top_probability=np.zeros((number, 2)),
        flag=np.array([flag] + [0] * (number - 1), np.uint8),
        digest=np.zeros((number, 16), np.uint8),
        shift_angstrom=np.zeros((number, 2)),
        calibrated=np.ones(number, np.uint8),
        above_noise=np.array([np.nan] + [5.0] * (number - 1)),
        network_euler_deg=np.full((number, 3), np.nan),
        gallery_euler_deg=np.full((number, 3), np.nan),
        apart_deg=np.full(number, np.nan),
        clipped=np.zeros(number, np.uint8),
    )
    return Finished(1, 0, number, replace(poses, **changes), checkpoint_id="ref-1", proposer="gallery+refinement")


def test_a_predicted_row_keeps_every_input_column_but_the_stale_ones() -> None:
    columns = LANDED | RUN_DATA
    posed, _ = output_tables(landed_rows(**columns), predicted(3))
    for label, text in columns.items():
        kept = posed.column(label) == [text] * 3
        assert kept != (label in STALE_COLUMNS), label
    assert posed.column("rlnAngleTiltPrior") == posed.column("rlnAngleTilt") == ["45.000000"] * 3


def test_relion_filters_predicted_rows_by_our_confidence() -> None:
    for columns in (LANDED, LANDED | RUN_DATA):
        posed, _ = output_tables(landed_rows(**columns), predicted(3))
        assert posed.column("rlnMaxValueProbDistribution") == posed.column("cestreamConfidence")
        assert posed.column("rlnMaxValueProbDistribution") == ["0.200000", "0.500000", "0.800000"]


def test_a_predicted_row_is_told_from_a_refined_one_whatever_it_landed_with() -> None:
    posed, _ = output_tables(landed_rows(**LANDED, **RUN_DATA), predicted(3))
    assert posed.column("rlnNrOfSignificantSamples") == ["0"] * 3
    assert (pose_sources(posed) == PoseSource.OWN).all()
    given, _ = output_tables(landed_rows(**LANDED, **RUN_DATA), Finished(1, 0, 3))
    plain, _ = output_tables(landed_rows(**LANDED), predicted(3))
    together = joined([given, plain])
    assert together.column("rlnNrOfSignificantSamples") == ["7"] * 3 + ["0"] * 3


def test_number_columns_of_ours_hold_numbers_in_every_row() -> None:
    posed, unposed = output_tables(landed_rows(**LANDED), predicted(3, flag=1))
    given, _ = output_tables(landed_rows(**LANDED, **RUN_DATA), Finished(1, 0, 3))
    for table in (posed, unposed, given):
        for label in ("cestreamConfidence", "cestreamRevision", "cestreamAboveNoise", "cestreamApart"):
            assert np.isfinite(table.numbers(label)).all()


def test_a_given_row_has_all_of_its_aligned_star_and_what_only_the_landed_row_has() -> None:
    refined = OpticsGroup((*GROUP.values, ("rlnBeamTiltX", "0.3"), ("rlnPhaseShift", "85.0")))
    landed_group = OpticsGroup((*GROUP.values, ("rlnMtfFileName", "k2.star"), ("rlnDefocusU", "1.0")))
    landed = landed_rows(optics=landed_group, **LANDED, rlnPhaseShift="10.0")
    aligned = landed_rows(optics=refined, **RUN_DATA, rlnDefocusU="9000.0").with_columns(
        {"rlnImageName": [f"{k}@Extract/job005/a.mrcs" for k in (1, 2, 3)]}
    )
    given, unposed = output_tables(landed, replace(Finished(1, 0, 3), given=aligned))
    assert len(unposed) == 0 and STACK_LABEL not in given
    for label, text in (LANDED | RUN_DATA | {"rlnDefocusU": "9000.0"}).items():
        assert given.column(label) == [text] * 3, label
    assert given.column("rlnImageName") == landed.column("rlnImageName")
    assert given.column("cestreamStatus") == ["given"] * 3
    (group,) = given.optics
    assert dict(group.values) == dict(refined.values) | {"rlnMtfFileName": "k2.star"}
    assert "rlnPhaseShift" not in given  # the aligned star's group tells it, and RELION would prefer the row's


def test_given_rows_carry_the_consensus_figure_and_count_fully_where_it_has_none() -> None:
    given, _ = output_tables(landed_rows(**RUN_DATA), Finished(1, 0, 3))
    assert given.column("rlnMaxValueProbDistribution") == ["0.61"] * 3
    assert given.column("cestreamConfidence") == ["0.610000"] * 3
    without = {label: text for label, text in RUN_DATA.items() if label != "rlnMaxValueProbDistribution"}
    given, _ = output_tables(landed_rows(**without), Finished(1, 0, 3))
    assert given.column("rlnMaxValueProbDistribution") == ["1.000000"] * 3
    assert given.column("cestreamConfidence") == ["0.000000"] * 3


def test_stars_of_a_session_lose_no_column_that_landed_whatever_order_they_come_in(tmp_path: Path) -> None:
    extra = ("rlnNormCorrection", "rlnGroupNumber", "rlnClassNumber", "rlnGroupName")
    for order in ("ab", "ba"):
        bench = Bench(tmp_path / order, checkpoint=str(fake_checkpoint(tmp_path / order / "given")))
        core = bench.open()
        for number, name in enumerate(order, 1):
            bench.land(name, 8, aligned=name == "a", extra=extra if name == "a" else ())
            run_until(core, bench.clock, [FakeWorker()], 8 * number)
        core.close()
        (star,) = export_star(bench.session / "poses", tmp_path / f"{order}.star")
        table = read_star(star)
        rows = list(zip(*map(table.column, (*extra, "cestreamStatus")), strict=True))
        assert (
            rows == [("0.5", "1.5", "2.5", "3.5", "given")] * 8 + [("1.000000", "1", "1", "mic_b.mrc", "predicted")] * 8
        )
    assert (tmp_path / "ab.star").read_bytes() == (tmp_path / "ba.star").read_bytes()


def test_a_column_that_cannot_stay_is_told_as_a_problem(tmp_path: Path) -> None:
    bench = Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")))
    bench.land("a", 4, extra=("rlnCoordinateX",))
    core = bench.open()
    run_until(core, bench.clock, [FakeWorker()], 4)
    assert "rlnCoordinateX" in read_star(bench.session / "poses" / "poses.star")
    bench.land("b", 4)
    run_until(core, bench.clock, [FakeWorker()], 8)
    problems = core.status().problems
    core.close()
    table = read_star(bench.session / "poses" / "poses.star")
    assert len(table) == 8 and "rlnCoordinateX" not in table
    assert any("poses.star: without rlnCoordinateX" in problem for problem in problems)
    assert any("rlnCoordinateX" in read_star(path) for path in (bench.session / "batches").glob("*.star"))


@pytest.mark.parametrize("label", [*STALE_COLUMNS, *OWN_LABELS])
def test_the_page_on_output_tells_of_every_column_that_is_ours_or_renewed(label: str) -> None:
    assert f"`{label}`" in DOCS.read_text()
