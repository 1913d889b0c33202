"""What RELION would read beside a predicted pose: no prior, confidence or box that belongs to another one."""

from pathlib import Path

from support.session_bench import Bench, FakeWorker, fake_checkpoint, run_until, star_text

from cesped_stream.export.star import export_star
from cesped_stream.particles.star import read_star
from cesped_stream.particles.table import ParticleTable

PRIORS = {"rlnAngleRotPrior": "rlnAngleRot", "rlnAngleTiltPrior": "rlnAngleTilt", "rlnAnglePsiPrior": "rlnAnglePsi"}


def exported(bench: Bench, landed: int) -> ParticleTable:
    core = bench.open()
    run_until(core, bench.clock, [FakeWorker()], landed)
    core.close()
    (star,) = export_star(bench.session / "poses", bench.session / "all.star")
    return read_star(star)


def test_rows_without_a_prior_get_their_own_angles_and_not_zero(tmp_path: Path) -> None:
    bench = Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")))
    bench.land_stack("a", 4)
    (bench.landing / "a.star").write_text(star_text("a", range(1, 5), aligned=True, extra=tuple(PRIORS)))
    bench.land("b", 4)
    table = exported(bench, 8)
    predicted = [k for k, status in enumerate(table.column("cestreamStatus")) if status == "predicted"]
    assert len(predicted) == 4
    for prior, angle in PRIORS.items():
        for k in predicted:
            assert float(table.column(prior)[k]) == float(table.column(angle)[k])


def test_a_predicted_row_does_not_keep_a_former_poses_prior_or_probability(tmp_path: Path) -> None:
    bench = Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")))
    bench.land_stack("b", 4)
    extra = (*PRIORS, "rlnMaxValueProbDistribution")
    (bench.landing / "b.star").write_text(star_text("b", range(1, 5), extra=extra))
    table = exported(bench, 4)
    for prior, angle in PRIORS.items():
        assert table.column(prior) == table.column(angle)
    assert 0.5 not in table.numbers("rlnMaxValueProbDistribution")


def test_a_given_pose_without_a_probability_has_no_confidence_of_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")))
    bench.land_stack("a", 4)
    (bench.landing / "a.star").write_text(star_text("a", range(1, 5), aligned=True))
    table = exported(bench, 4)
    assert table.column("cestreamStatus") == ["given"] * 4
    assert table.numbers("cestreamConfidence").tolist() == [0.0] * 4
