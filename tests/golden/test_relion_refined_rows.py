"""What RELION makes of our rows and of its own: which columns stay, and how a prediction of ours is known again."""

from pathlib import Path

import numpy as np
import pytest
from support.relion_session import (
    EXTRACT,
    PER_MICROGRAPH,
    SYMMETRY,
    RelionJobs,
    angular_errors_deg,
    rotations,
    truth_of,
)

from cesped_stream.conventions import ANGLE_LABELS, rotation_to_euler_deg
from cesped_stream.particles.own_columns import OWN_LABELS
from cesped_stream.particles.own_rows import SIGNIFICANT_SAMPLES, PoseSource, pose_sources
from cesped_stream.particles.star import read_star, write_star
from cesped_stream.particles.table import ParticleTable
from cesped_stream.so3.symmetry import group_rotations

pytestmark = [pytest.mark.relion, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def refined(relion_jobs: RelionJobs) -> ParticleTable:
    """Refine3D's run_data.star."""
    return read_star(relion_jobs.refined)


def test_refine3d_adds_half_sets_and_leaves_what_declares_a_particle_as_extract_wrote_it(
    relion_jobs: RelionJobs, refined: ParticleTable
) -> None:
    relion_jobs.project.extract(6)
    extracted = read_star(relion_jobs.project.folder / EXTRACT)
    assert "rlnRandomSubset" not in extracted and "rlnAnglePsi" in extracted
    assert not extracted.has_poses().any() and refined.has_poses().all()
    assert set(refined.column("rlnRandomSubset")) == {"1", "2"}
    changed = [label for label in extracted.labels if extracted.column(label) != refined.column(label)]
    assert changed == ["rlnAnglePsi"]
    assert extracted.optics == refined.optics


def test_a_micrograph_has_particles_of_both_half_sets_that_refine3d_drew(refined: ParticleTable) -> None:
    halves = refined.half_sets()
    micrographs = np.array(refined.micrographs())
    assert all(0 < halves[micrographs == name].mean() < 1 for name in np.unique(micrographs))


def test_class3d_writes_poses_without_half_sets(relion_jobs: RelionJobs) -> None:
    classes = read_star(relion_jobs.classes)
    assert classes.has_poses().all() and "rlnRandomSubset" not in classes
    assert (pose_sources(classes) == PoseSource.FOREIGN).all()


def test_class2d_writes_rot_and_tilt_0_and_counts_significant_samples_too(relion_jobs: RelionJobs) -> None:
    relion_jobs.project.extract(1)
    classes = read_star(relion_jobs.project.classify_2d("Class2D/job006", EXTRACT))
    assert not classes.numbers("rlnAngleTilt").any() and not classes.numbers("rlnAngleRot").any()
    assert len(np.unique(classes.numbers("rlnAnglePsi"))) > 10
    assert classes.numbers(SIGNIFICANT_SAMPLES).min() >= 1


def test_local_refinement_keeps_poses_that_lie_in_relions_asymmetric_unit_and_loses_their_mates(
    relion_jobs: RelionJobs, refined: ParticleTable
) -> None:
    """RELION 3.1 compares directions with all mates of a prior, but its psi as it stands."""
    project, reference = relion_jobs.project, Path("Refine3D/job010/run_class001.mrc")
    truth = truth_of(project).select(range(0, 6 * PER_MICROGRAPH, 3))
    mates = np.stack([rotation_to_euler_deg(g @ rotations(truth)) for g in group_rotations(SYMMETRY)])
    inside = (mates[..., 0] >= 0) & (mates[..., 1] <= 90)
    assert (inside.sum(0) == 1).all()
    assert (refined.numbers("rlnAngleRot") > -10).all() and (refined.numbers("rlnAngleTilt") < 100).all()
    chosen = {"inside": inside.argmax(0), "outside": (mates[..., 1] > 90).argmax(0)}
    errors_deg = {}
    for name, mate in chosen.items():
        euler_deg = mates[mate, np.arange(len(truth))]
        columns = {label: [f"{a:.6f}" for a in euler_deg[:, axis]] for axis, label in enumerate(ANGLE_LABELS)}
        write_star(project.folder / f"{name}.star", truth.with_columns(columns))
        found = project.refine_locally(f"Refine3D/{name}", Path(f"{name}.star"), reference)
        errors_deg[name] = float(np.median(angular_errors_deg(read_star(found), truth)))
    print(f"median error after local refinement, by where the priors lie: {errors_deg}")
    assert errors_deg["inside"] < 6.0
    assert errors_deg["outside"] > 20.0


def test_every_row_that_relion_refined_has_a_significant_sample(
    relion_jobs: RelionJobs, refined: ParticleTable
) -> None:
    job = relion_jobs.refined.parent
    last = [read_star(job / f"run_it{iteration:03d}_data.star") for iteration in (1, 2)]
    for table in (refined, *last, read_star(relion_jobs.classes), read_star(relion_jobs.refined_from_own)):
        assert table.numbers(SIGNIFICANT_SAMPLES).min() >= 1
    assert SIGNIFICANT_SAMPLES not in read_star(job / "run_it000_data.star")


def test_our_columns_survive_a_refinement_and_its_rows_are_known_as_refined_from_ours(
    relion_jobs: RelionJobs,
) -> None:
    before, after = read_star(relion_jobs.own_star), read_star(relion_jobs.refined_from_own)
    assert [after.column(label) for label in OWN_LABELS] == [before.column(label) for label in OWN_LABELS]
    assert (pose_sources(before) == PoseSource.OWN).all()
    assert (pose_sources(after) == PoseSource.REFINED_FROM_OWN).all()


def test_before_the_first_iteration_rows_of_ours_are_still_our_predictions(relion_jobs: RelionJobs) -> None:
    started = read_star(relion_jobs.refined_from_own.with_name("run_it000_data.star"))
    assert (pose_sources(started) == PoseSource.OWN).all()


@pytest.mark.xfail(
    strict=True, reason="RELION counts significant samples where it only classifies, too: the pose is ours still"
)
def test_rows_of_ours_that_relion_only_classified_are_our_predictions(relion_jobs: RelionJobs) -> None:
    classified = relion_jobs.project.classify("Class3D/job031", relion_jobs.own_star, more=("--skip_align",))
    before, after = read_star(relion_jobs.own_star), read_star(classified)
    assert np.allclose(after.numbers("rlnAngleRot"), before.numbers("rlnAngleRot"), atol=1e-4)
    assert (pose_sources(after) == PoseSource.OWN).all()
