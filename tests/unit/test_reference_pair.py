"""References of both half-sets as one checkpoint, and the poses that they give."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.imaging import random_rotations
from support.matching import PIXEL_SIZE, molecule

from cesped_stream.benchmark.entries import open_entry
from cesped_stream.calibration.calibrator import ids_sha256
from cesped_stream.calibration.store import load_calibration
from cesped_stream.conventions import ANGLE_LABELS, rotation_to_euler_deg
from cesped_stream.errors import InvalidCheckpointError, PermanentError
from cesped_stream.held_out import held_out_rows
from cesped_stream.imaging.entry import write_entry
from cesped_stream.imaging.noise_model import NoiseScores
from cesped_stream.imaging.reference import load_reference
from cesped_stream.inference import PoseBatch
from cesped_stream.matching import ReferenceMatcher
from cesped_stream.model.checkpoint import read_manifest
from cesped_stream.model.device import intra_op_threads
from cesped_stream.particles.flags import ImageFlag
from cesped_stream.particles.identities import particle_digests
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.table import ParticleTable
from cesped_stream.pipeline import open_proposer
from cesped_stream.reference_pair import (
    MatchingSettings,
    ReferenceManifest,
    checkpoint_kind,
    publish_map,
    publish_references,
    read_reference_manifest,
)
from cesped_stream.reference_proposer import PROPOSER, ReferenceProposer
from cesped_stream.settings import (
    CalibrationSettings,
    GallerySettings,
    InferenceSettings,
    ReferenceSettings,
    RefinementSettings,
    SimulationSettings,
    TrainingSettings,
)
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations
from cesped_stream_service.training_gate import verify_checkpoint

MATCHING = MatchingSettings(
    ReferenceSettings(mask_lowpass_angstrom=20.0),
    GallerySettings(grid_order=2, coarse_order=1, keep_fraction=0.2, batch_size=16),
    RefinementSettings(),
)
ALMOST_ALL = replace(MATCHING, calibration=CalibrationSettings(min_particles=220))
"""Confidence needs nearly all of the 230 aligned rows of a half-set."""
TRAINING = TrainingSettings(symmetry="D2", validation_fraction=0.1)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ParticleTable:
    folder = tmp_path_factory.mktemp("entry")
    settings = SimulationSettings(num_particles=640, snr=0.5, symmetry="D2", seed=5, particles_per_micrograph=20)
    write_entry(folder, molecule("D2"), PIXEL_SIZE, settings)
    return open_entry(folder).particles()


@pytest.fixture(scope="module")
def aligned(table: ParticleTable) -> ParticleTable:
    return of_both_halves(table, 0, 230)


@pytest.fixture(scope="module")
def streamed(table: ParticleTable) -> ParticleTable:
    return of_both_halves(table, 230, 260)


def of_both_halves(table: ParticleTable, first: int, last: int) -> ParticleTable:
    halves = table.half_sets()
    rows = [np.flatnonzero(halves == half)[first:last] for half in (0, 1)]
    return table.select(np.sort(np.concatenate(rows)))


@pytest.fixture(scope="module")
def published(aligned: ParticleTable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(aligned, tmp_path_factory.mktemp("first"))[0]


def publish(
    aligned: ParticleTable, folder: Path, matching: MatchingSettings = MATCHING
) -> tuple[Path, ReferenceManifest]:
    return publish_references(
        aligned, StackReader(), TRAINING, matching, work_folder=folder / "work", checkpoints_folder=folder
    )


@pytest.fixture(scope="module")
def poses(published: Path, streamed: ParticleTable) -> PoseBatch:
    return ReferenceProposer(published, MATCHING).poses(streamed, StackReader())


def test_the_same_rows_give_the_same_checkpoint(published: Path, aligned: ParticleTable, tmp_path: Path) -> None:
    left = tmp_path / "work" / "references.killed"
    left.mkdir(parents=True)
    (left / "reference_0.mrc").write_bytes(b"what a publication that was killed had written")
    again, manifest = publish(aligned, tmp_path)
    assert not list((tmp_path / "work").glob("references.*"))
    assert again.name == published.name == manifest.checkpoint_id
    for file in published.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()


def test_the_manifest_says_what_it_holds(published: Path) -> None:
    manifest = read_reference_manifest(published)
    assert checkpoint_kind(published) == manifest.kind == "reference"
    assert (manifest.origin, manifest.independence) == ("aligned rows", TRAINING.alignment)
    for record in manifest.halves.values():
        assert record.num_validation >= 20
        assert record.num_training + record.num_validation == 230
        assert record.median_error_deg is not None and record.median_error_deg < 3.0
    assert verify_checkpoint(published).checkpoint_id == manifest.checkpoint_id
    with pytest.raises(InvalidCheckpointError):
        read_manifest(published)


def test_what_noise_reaches_is_published_and_every_pose_tells_how_far_above_it_stands(
    published: Path, poses: PoseBatch
) -> None:
    for half in (0, 1):
        of_noise = load_reference(published, half).of_noise
        assert of_noise is not None and of_noise.std > 0 and of_noise.hardest
    assert np.isfinite(poses.above_noise).all() and np.median(poses.above_noise) > 2


def test_references_of_before_noise_was_measured_for_all_ctfs_give_poses_and_say_what_they_lack(
    aligned: ParticleTable,
    streamed: ParticleTable,
    poses: PoseBatch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    old = NoiseScores(mean=-30.0, std=10.0)
    monkeypatch.setattr(ReferenceMatcher, "measure_noise", lambda matcher, table, reader: old)
    published, _ = publish(aligned, tmp_path)
    found = ReferenceProposer(published, MATCHING).poses(streamed, StackReader())
    assert np.isnan(found.above_noise).all() and not found.calibrated.any()
    np.testing.assert_array_equal(found.rotation, poses.rotation)
    assert [r.getMessage() for r in caplog.records if "make them anew" in r.getMessage()] == [
        "references were published by a version that measured noise for the aligned rows' CTFs alone (make them anew "
        "to have both): confidence is a mass and the fit above noise unknown"
    ]


def test_too_few_held_out_rows_leave_the_mass_and_the_manifest_says_why(published: Path, poses: PoseBatch) -> None:
    manifest = read_reference_manifest(published)
    assert manifest.calibration == "" and not poses.calibrated.any()
    assert manifest.uncalibrated.startswith("half-set 0: 230 held-out particles of ")
    assert "confidence needs 500 (calibration.min_particles)" in manifest.uncalibrated
    np.testing.assert_array_equal(poses.confidence, poses.top_probability.max(axis=1))


def test_confidence_of_a_half_is_fitted_on_the_other_halfs_rows_only(aligned: ParticleTable, tmp_path: Path) -> None:
    fewer = replace(MATCHING, calibration=CalibrationSettings(min_particles=100, max_particles=120))
    folder, manifest = publish(aligned, tmp_path, fewer)
    file = folder / manifest.calibration
    calibration = load_calibration(file, checkpoint_id="", symmetry="D2")
    assert calibration.reference_ids == {half: record.reference_id for half, record in manifest.halves.items()}
    for half in (0, 1):
        others = held_out_rows(aligned, half, 120)
        assert len(others) == 120 and set(others.half_sets()) == {1 - half}
        calibrator = calibration.halves[half].calibrator
        assert calibrator is not None and calibrator.num_particles == 120
        assert calibrator.particles_sha256 == ids_sha256(map(str, particle_digests(others).tolist()))
    assert manifest.files[file.name] and not manifest.uncalibrated


def with_random_poses(table: ParticleTable, share: float) -> tuple[ParticleTable, np.ndarray]:
    """The table with random poses in about that share of its rows, and which."""
    rng = np.random.default_rng(7)
    wrong = rng.uniform(size=len(table)) < share
    rotations = np.where(wrong[:, None, None], random_rotations(len(table), rng), table.rotations())
    angles = rotation_to_euler_deg(rotations).T
    columns = {label: [f"{value:.6f}" for value in values] for label, values in zip(ANGLE_LABELS, angles, strict=True)}
    return table.with_columns(columns), wrong


def test_random_poses_among_the_held_out_rows_take_nothing_off_the_confidence(
    aligned: ParticleTable, streamed: ParticleTable, tmp_path: Path
) -> None:
    spoilt, wrong = with_random_poses(aligned, 0.2)
    folder, manifest = publish(spoilt, tmp_path, ALMOST_ALL)
    calibration = load_calibration(folder / manifest.calibration, checkpoint_id="", symmetry="D2")
    for half in (0, 1):
        calibrator = calibration.halves[half].calibrator
        others = aligned.half_sets() == 1 - half
        assert calibrator is not None
        assert (~wrong[others]).sum() <= calibrator.num_particles <= (~wrong[others]).sum() + 0.1 * wrong[others].sum()
    poses = ReferenceProposer(folder, ALMOST_ALL).poses(streamed, StackReader())
    errors = angular_error_deg(streamed.rotations(), poses.rotation, group_rotations("D2"))
    assert poses.calibrated.all()
    assert poses.confidence.mean() == pytest.approx((errors <= 5).mean(), abs=0.05)


def test_where_too_many_held_out_rows_disagree_all_of_them_count(
    aligned: ParticleTable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoilt, _ = with_random_poses(aligned, 0.4)
    folder, manifest = publish(spoilt, tmp_path, ALMOST_ALL)
    calibration = load_calibration(folder / manifest.calibration, checkpoint_id="", symmetry="D2")
    for half in (0, 1):
        calibrator = calibration.halves[half].calibrator
        assert calibrator is not None and calibrator.num_particles == 230
    assert any("too many held-out rows disagree" in record.getMessage() for record in caplog.records)


def test_held_out_micrographs_are_in_no_reference(published: Path, aligned: ParticleTable) -> None:
    for half in (0, 1):
        own = aligned.select(np.flatnonzero(aligned.half_sets() == half))
        inside = np.isin(particle_digests(own), load_reference(published, half).members)
        names = np.array(own.micrographs())
        assert not set(names[inside]) & set(names[~inside])
        assert 0 < (~inside).sum() < 80


def test_both_halves_get_rotations_and_shifts(poses: PoseBatch, streamed: ParticleTable) -> None:
    errors = angular_error_deg(streamed.rotations(), poses.rotation, group_rotations("D2"))
    assert np.median(errors) < 2.0
    moved = poses.shift_angstrom - streamed.shifts_angstrom()
    assert np.sqrt((moved**2).mean()) < 0.3 * PIXEL_SIZE
    assert ((poses.confidence > 0) & (poses.confidence <= 1)).all()
    assert np.isfinite(poses.top_rotation).all() and np.isfinite(poses.top_probability).all()
    assert poses.digest.any(1).all()


def test_a_particle_knows_nothing_of_its_neighbours(published: Path, poses: PoseBatch, streamed: ParticleTable) -> None:
    proposer = ReferenceProposer(published, MATCHING)
    order = np.random.default_rng(0).permutation(len(streamed))
    for rows in np.split(order, (1, 8, 29)):
        part = proposer.poses(streamed.select(rows), StackReader())
        for name in PoseBatch.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(part, name), getattr(poses, name)[rows], name)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_the_rows_and_change_no_bit(
    published: Path, poses: PoseBatch, streamed: ParticleTable, threads: int
) -> None:
    with intra_op_threads(threads):
        found = ReferenceProposer(published, MATCHING).poses(streamed, StackReader())
        assert torch.get_num_threads() == threads
    for name in PoseBatch.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(found, name), getattr(poses, name), name)


def test_a_row_of_the_reference_is_refused_by_any_thread(published: Path, aligned: ParticleTable) -> None:
    with intra_op_threads(2), pytest.raises(PermanentError, match="in the reference"):
        ReferenceProposer(published, MATCHING).poses(aligned, StackReader())


def test_a_map_whose_pixel_size_cannot_be_right_is_refused(aligned: ParticleTable, tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=r"the given map is 32 A wide, the images of .* are 160 A"):
        publish_map(
            molecule("D2"), 1.0, aligned, StackReader(), TRAINING, MATCHING,
            work_folder=tmp_path / "work", checkpoints_folder=tmp_path,
        )  # fmt: skip


def test_a_particle_of_the_reference_is_not_scored_by_it(published: Path, aligned: ParticleTable) -> None:
    members = load_reference(published, 0).members
    row = int(np.flatnonzero(np.isin(particle_digests(aligned), members))[0])
    with pytest.raises(PermanentError, match="in the reference"):
        ReferenceProposer(published, MATCHING).poses(aligned.select([row]), StackReader())


def test_the_limit_from_true_poses_leaves_out_what_is_in_the_reference(published: Path, aligned: ParticleTable) -> None:
    limit = ReferenceProposer(published, MATCHING).refined(aligned, StackReader())
    left_out = limit.flag == ImageFlag.IN_REFERENCE
    for half in (0, 1):
        own = aligned.half_sets() == half
        members = load_reference(published, half).members
        np.testing.assert_array_equal(left_out[own], np.isin(particle_digests(aligned)[own], members))
    assert 0 < (~left_out).sum() < len(aligned) and np.isfinite(limit.rotation[~left_out]).all()


def test_cross_half_takes_the_other_halfs_reference(published: Path, poses: PoseBatch, streamed: ParticleTable) -> None:
    crossed = ReferenceProposer(published, MATCHING, "cross_half").poses(streamed, StackReader())
    assert (crossed.rotation != poses.rotation).any((1, 2)).mean() > 0.9
    errors = angular_error_deg(streamed.rotations(), crossed.rotation, group_rotations("D2"))
    assert np.median(errors) < 2.0


def test_refinement_of_true_poses_is_no_worse(published: Path, poses: PoseBatch, streamed: ParticleTable) -> None:
    limit = ReferenceProposer(published, MATCHING).refined(streamed, StackReader())
    group, true = group_rotations("D2"), streamed.rotations()
    found = np.median(angular_error_deg(true, poses.rotation, group))
    assert np.median(angular_error_deg(true, limit.rotation, group)) < found + 0.2


def test_open_proposer_takes_what_the_folder_holds(published: Path) -> None:
    proposer = open_proposer(published, InferenceSettings(), MATCHING, "gold_standard")
    assert (proposer.proposer, proposer.checkpoint_id) == (PROPOSER, published.name)


@pytest.mark.parametrize("name", ["reference_1.mrc", "reference_0.members", "reference_1.json", "manifest.json"])
def test_any_changed_byte_is_noticed(published: Path, tmp_path: Path, name: str) -> None:
    for file in published.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    content = (tmp_path / name).read_bytes()
    if name == "manifest.json":
        values = json.loads(content)
        values["symmetry"] = "C1"
        (tmp_path / name).write_text(json.dumps(values))
    else:
        (tmp_path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(InvalidCheckpointError):
            verify_checkpoint(tmp_path)
    with pytest.raises(InvalidCheckpointError):
        ReferenceProposer(tmp_path, MATCHING)
