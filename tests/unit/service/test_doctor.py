"""`doctor` tells of a landing folder what a session then does with it."""

import json
from pathlib import Path

import numpy as np
import pytest
from samples.relion_project import BOX, EXTRACT_LABELS, PARTICLE_OPTICS, RelionProject, table
from support.session_bench import Bench, fake_checkpoint, star_text, turn

from cesped_stream.particles.stacks import write_stack
from cesped_stream_service.cli import main
from cesped_stream_service.doctor import LandingFindings, StarFinding, StarVerdict, examine_landing
from cesped_stream_service.doctor_command import finding_lines
from cesped_stream_service.settings import LandingSettings


def examined(folder: Path, **changes: object) -> LandingFindings:
    least = changes.pop("min_aligned_per_half", 5)
    settings = LandingSettings.model_validate({"folder": folder} | changes)
    return examine_landing(settings, min_aligned_per_half=int(str(least)))


def named(findings: LandingFindings, end: str) -> StarFinding:
    (star,) = [star for star in findings.stars if star.path.endswith(end)]
    return star


def test_a_project_is_told_star_by_star_with_a_verdict(tmp_path: Path) -> None:
    project = RelionProject(tmp_path)
    findings = examined(tmp_path)
    assert dict(findings.left) == project.kinds and len(findings.stars) == project.num_stars
    extracted, refined = named(findings, "Extract/job005/particles.star"), named(findings, "job007/run_data.star")
    assert (extracted.rows, extracted.aligned, extracted.halves_given) == (24, 0, False)
    assert (extracted.stacks, extracted.stacks_found, extracted.boxes) == (4, 4, (BOX,))
    assert (refined.rows, refined.aligned, refined.half_sets) == (24, 24, (12, 12))
    assert findings.particles == project.num_particles and findings.aligned_per_half == (12, 12)
    assert findings.is_well
    assert findings.verdict == (
        "24 particles of 3 stars would be taken; 12 + 12 aligned a half-set, min_aligned_per_half is 5: references can "
        "be made at once"
    )


def test_what_it_would_take_and_leave_is_what_a_session_does(tmp_path: Path) -> None:
    bench = Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")))
    RelionProject(bench.landing)
    bench.land("good", 5)
    bench.land_star("bad", range(1, 5), stack="good", optics="B")
    text = (bench.landing / "bad.star").read_text()
    (bench.landing / "bad.star").write_text(text.replace(f" {BOX}\n", f" {2 * BOX}\n"))
    findings = examined(bench.landing)
    core = bench.open()
    for _ in range(12):
        turn(core, bench.clock, [])
    status = core.status()
    assert findings.particles == status.landed and dict(findings.left) == status.stars_left
    assert sum(star.refused for star in findings.stars) == status.refused_rows == 4
    assert named(findings, "bad.star").verdict is StarVerdict.REFUSED
    core.close()


def test_rows_without_their_stack_and_outside_of_the_roots_are_told_with_the_first_reason(tmp_path: Path) -> None:
    landing = tmp_path / "landing"
    landing.mkdir()
    write_stack(landing / "s.mrcs", np.random.default_rng(0).normal(size=(3, BOX, BOX)).astype(np.float32), 2.0)
    write_stack(tmp_path / "out.mrcs", np.zeros((3, BOX, BOX), np.float32), 2.0)
    (landing / "s.star").write_text(star_text("s", [1, 2, 3, 9]))
    (landing / "out.star").write_text(star_text("s", [1, 2, 3]).replace("@s.mrcs", "@../out.mrcs"))
    findings = examined(landing)
    part, outside = named(findings, "/s.star"), named(findings, "out.star")
    assert (part.verdict, part.waiting, part.refused) == (StarVerdict.PARTLY, 1, 0)
    assert "row 4: " in part.why and "3 images, a row asks for 9" in part.why
    assert (outside.verdict, outside.refused) == (StarVerdict.REFUSED, 3)
    assert "row 1: " in outside.why and "set allowed_roots" in outside.why
    assert not findings.is_well and "none is aligned" in findings.verdict
    assert "4 rows are refused or wait for their stack, 1 star as a whole" in findings.verdict


def test_a_star_that_cannot_be_read_is_refused_by_name_and_the_others_go_on(tmp_path: Path) -> None:
    RelionProject(tmp_path)
    good = star_text("s", [1, 2])
    (tmp_path / "nan.star").write_text(good.replace("9900.00", "nan", 1))
    (tmp_path / "cut.star").write_text(good.rstrip("\n")[:-4])
    findings = examined(tmp_path)
    assert "rlnDefocusV" in named(findings, "nan.star").why
    assert "no newline at its end" in named(findings, "cut.star").why
    assert findings.particles == 24


def test_an_empty_folder_and_one_of_other_stars_have_nothing_to_take(tmp_path: Path) -> None:
    assert "nothing would be taken: no star with particles" in examined(tmp_path).verdict
    (tmp_path / "job.star").write_text("data_job\n\n_rlnJobType 5\n")
    findings = examined(tmp_path)
    assert "1 star of other things" in findings.verdict and not findings.is_well


def test_a_second_extraction_in_another_box_and_one_valued_half_sets_are_warned_of(tmp_path: Path) -> None:
    RelionProject(tmp_path)
    folder = tmp_path / "Extract/job020/Movies"
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).normal(size=(4, 2 * BOX, 2 * BOX)).astype(np.float32)
    write_stack(folder / "mic00000.mrcs", images, 1.0)
    rows = [f"1 1 0.5 {k}@Extract/job020/Movies/mic00000.mrcs mic.mrc 1 9000 9000 0 0 1 0 1" for k in range(1, 5)]
    optics = PARTICLE_OPTICS.replace(f"  {BOX}   2", f"  {2 * BOX}   2")
    text = optics + table("particles", (*EXTRACT_LABELS, "rlnRandomSubset"), rows)
    (tmp_path / "Extract/job020/particles.star").write_text(text)
    findings = examined(tmp_path)
    assert any("particles of 2 box sizes" in warning and "landing.inputs" in warning for warning in findings.warnings)
    assert any("one value in all 4 rows" in warning for warning in findings.warnings)
    chosen = examined(tmp_path, inputs="Extract/job005/*", aligned="Refine3D/*/run_data.star")
    assert chosen.warnings == () and chosen.left["not named by landing.inputs"] > 5
    assert named(chosen, "Extract/job020/particles.star").verdict is StarVerdict.LEFT


def test_rows_that_this_program_posed_are_particles_and_not_aligned(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.land_stack("s", 4)
    text = star_text("s", range(1, 5), aligned=True, extra=["cestreamCheckpoint"])
    (bench.landing / "own.star").write_text(text)
    findings = examined(bench.landing)
    assert (named(findings, "own.star").aligned, named(findings, "own.star").own) == (0, 4)
    assert findings.aligned_per_half == (0, 0)
    assert any("poses by cesped-stream" in warning for warning in findings.warnings)


def test_a_linked_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.star").write_text("data_")
    (tmp_path / "landing").mkdir()
    (tmp_path / "landing/Extract").symlink_to(tmp_path / "elsewhere")
    (warning,) = examined(tmp_path / "landing").warnings
    assert "which is not looked into" in warning


def test_the_command_prints_takes_leaves_and_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RelionProject(tmp_path, micrographs=50)
    assert main(["doctor", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "taken: 3 stars, 750 rows" in out
    assert (
        "Extract/job005/particles.star: 300 rows, not aligned, half-sets not given, 50 of 50 stacks found, 8 px" in out
    )
    assert "Refine3D/job007/run_data.star: 300 rows, 300 aligned, half-sets 150 + 150" in out
    assert "51 coordinates: AutoPick/job004/Movies/mic00000_autopick.star, " in out
    assert "150 + 150 aligned a half-set, min_aligned_per_half is 1,000: references wait" in out
    assert main(["doctor", str(tmp_path), "--min_aligned_per_half", "100", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["particles"] == 300 and "at once" in told["verdict"]
    assert main(["doctor", str(tmp_path), "--landing.inputs", "Nothing/*"]) == 1
    assert not (tmp_path / "session").exists()


def test_a_landing_folder_that_is_none_is_an_error_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: is no folder" in capsys.readouterr().err


def test_long_lists_are_capped_and_counted(tmp_path: Path) -> None:
    stars = tuple(StarFinding(f"/l/{k}.star", StarVerdict.TAKEN) for k in range(50))
    findings = LandingFindings("/l", stars, 1, (0, 0), (), "v")
    lines = finding_lines(findings)
    assert len(lines) == 43 and lines[-2] == "  and 10 more; --all lists them" and lines[-1] == "v"
    assert len(finding_lines(findings, most=None)) == 52
