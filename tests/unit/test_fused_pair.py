"""Networks and references as one checkpoint, and the poses that both give together."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from samples.models import TINY
from support.matching import BOX, PIXEL_SIZE, molecule
from support.proposers import about, random_rotations
from support.scored import with_rotations

from cesped_stream.benchmark.entries import open_entry
from cesped_stream.errors import InvalidCheckpointError
from cesped_stream.fused import shifts_near
from cesped_stream.fused_pair import (
    PROPOSER,
    FusedManifest,
    FusedParts,
    FusedProposer,
    publish_fused,
    read_fused_manifest,
)
from cesped_stream.gallery.search import Proposals
from cesped_stream.imaging.entry import write_entry
from cesped_stream.imaging.noise_model import NoiseScores
from cesped_stream.imaging.reference import load_reference
from cesped_stream.inference import PoseBatch, Predictor
from cesped_stream.model.checkpoint import CheckpointManifest, HalfRecord, publish_checkpoint, read_manifest
from cesped_stream.model.image2sphere import Image2Sphere
from cesped_stream.particles.flags import ImageFlag
from cesped_stream.particles.stacks import StackReader, read_images, write_stack
from cesped_stream.particles.table import ParticleTable
from cesped_stream.pipeline import infer_table, open_proposer
from cesped_stream.published import check_files, read_listing
from cesped_stream.reference_pair import MatchingSettings, ReferenceManifest, publish_references
from cesped_stream.reference_proposer import ReferenceProposer
from cesped_stream.settings import (
    CalibrationSettings,
    FusionSettings,
    GallerySettings,
    InferenceSettings,
    PreprocessSettings,
    ReferenceSettings,
    RefinementSettings,
    SimulationSettings,
    TrainingSettings,
)
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations
from cesped_stream_service.models_in_use import models_in_use
from cesped_stream_service.settings import LandingSettings, SessionSettings

ALIGNED = 230
MATCHING = MatchingSettings(
    ReferenceSettings(mask_lowpass_angstrom=20.0),
    GallerySettings(grid_order=2, coarse_order=1, keep_fraction=0.2, batch_size=16),
    RefinementSettings(),
    fusion=FusionSettings(max_particles=150),
    calibration=CalibrationSettings(min_particles=200),
)
TRAINING = TrainingSettings(symmetry="D2", model=TINY, preprocess=PreprocessSettings(image_size=16))
INFERENCE = InferenceSettings(batch_size=16, device="cpu")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ParticleTable:
    folder = tmp_path_factory.mktemp("entry")
    settings = SimulationSettings(num_particles=560, snr=0.5, symmetry="D2", seed=5, particles_per_micrograph=20)
    write_entry(folder, molecule("D2"), PIXEL_SIZE, settings)
    return open_entry(folder).particles()


def of_both_halves(table: ParticleTable, first: int, last: int) -> ParticleTable:
    halves = table.half_sets()
    rows = [np.flatnonzero(halves == half)[first:last] for half in (0, 1)]
    return table.select(np.sort(np.concatenate(rows)))


@pytest.fixture(scope="module")
def aligned(table: ParticleTable) -> ParticleTable:
    return of_both_halves(table, 0, ALIGNED)


@pytest.fixture(scope="module")
def streamed(table: ParticleTable) -> ParticleTable:
    return of_both_halves(table, ALIGNED, ALIGNED + 25)


@pytest.fixture(scope="module")
def parts(aligned: ParticleTable, tmp_path_factory: pytest.TempPathFactory) -> FusedParts:
    """Networks that never learned anything, and references."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    states = {half: Image2Sphere(TRAINING.model_settings).state_dict() for half in (0, 1)}
    manifest = CheckpointManifest(
        preset="small",
        model=TRAINING.model_settings,
        preprocess=TRAINING.preprocess_settings.model_copy(update={"crop_angstrom": BOX * PIXEL_SIZE}),
        network_pixel_size_angstrom=BOX * PIXEL_SIZE / 16,
        symmetry="D2",
        halves={half: HalfRecord(num_training=0, num_validation=0, steps=0) for half in (0, 1)},
        origin="random",
        independence="unknown",
        stopped_by="steps",
        training=TRAINING,
    )
    networks, _ = publish_checkpoint(folder, manifest, states)
    references, _ = publish_references(
        aligned, StackReader(), TRAINING, MATCHING, work_folder=folder / "work", checkpoints_folder=folder
    )
    return FusedParts(networks, references, INFERENCE, MATCHING)


@pytest.fixture(scope="module")
def published(aligned: ParticleTable, parts: FusedParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(aligned, parts, tmp_path_factory.mktemp("fused"))[0]


def publish(aligned: ParticleTable, parts: FusedParts, folder: Path) -> tuple[Path, FusedManifest]:
    return publish_fused(aligned, StackReader(), parts, checkpoints_folder=folder)


@pytest.fixture(scope="module")
def poses(published: Path, streamed: ParticleTable) -> PoseBatch:
    return FusedProposer(published, INFERENCE, MATCHING).poses(streamed, StackReader())


def test_the_same_parts_and_rows_give_the_same_checkpoint(
    published: Path, aligned: ParticleTable, parts: FusedParts, tmp_path: Path
) -> None:
    again, manifest = publish(aligned, parts, tmp_path)
    assert again.name == published.name == manifest.checkpoint_id
    files = [path.relative_to(published) for path in published.rglob("*") if path.is_file()]
    assert len(files) == len(manifest.files) + 1
    for file in files:
        assert (again / file).read_bytes() == (published / file).read_bytes()


def test_the_record_counts_the_particles_that_are_in_the_map(
    aligned: ParticleTable, parts: FusedParts, tmp_path: Path
) -> None:
    spoilt = np.flatnonzero(aligned.half_sets() == 0)[::3]
    rotations = aligned.rotations().copy()
    rotations[spoilt] = random_rotations(len(spoilt), 8)
    wrong = with_rotations(aligned, rotations)
    references, made = publish_references(
        wrong, StackReader(), TRAINING, MATCHING, work_folder=tmp_path / "work", checkpoints_folder=tmp_path
    )
    manifest = publish(wrong, replace(parts, references=references), tmp_path)[1]
    assert made.halves[0].num_left_out > 20
    for half, record in manifest.halves.items():
        counts = record.num_training, record.num_left_out
        assert counts == (made.halves[half].num_training, made.halves[half].num_left_out)


def test_the_folder_holds_both_checkpoints_as_they_are(published: Path, parts: FusedParts) -> None:
    for inside, source in (("network", parts.networks), ("references", parts.references)):
        names = sorted(path.name for path in source.iterdir())
        assert sorted(path.name for path in (published / inside).iterdir()) == names
        for name in names:
            assert (published / inside / name).read_bytes() == (source / name).read_bytes()
    listing = read_listing(published)
    check_files(published, listing.names_and_hashes())
    assert (listing.kind, listing.checkpoint_id) == ("fused", published.name)


def test_a_network_that_knows_nothing_changes_nothing_for_the_worse(
    parts: FusedParts, published: Path, poses: PoseBatch, streamed: ParticleTable
) -> None:
    manifest = FusedProposer(published, INFERENCE, MATCHING).manifest
    for record in manifest.halves.values():
        assert record.network_adds is not None and abs(record.network_adds) < 0.02
        assert record.network_median_error_deg is not None and record.network_median_error_deg > 20
        assert record.num_validation == ALIGNED
    alone = ReferenceProposer(parts.references, MATCHING).poses(streamed, StackReader())
    group, true = group_rotations("D2"), streamed.rotations()
    fused, gallery = (angular_error_deg(true, found.rotation, group) for found in (poses, alone))
    assert np.median(fused) < np.median(gallery) + 0.2
    assert (fused < 5).mean() >= (gallery < 5).mean() - 0.02


def test_rows_tell_what_each_proposer_says_and_how_sure_the_pose_is(
    parts: FusedParts, poses: PoseBatch, streamed: ParticleTable
) -> None:
    reader = StackReader()
    network = infer_table(Predictor(parts.networks, INFERENCE), streamed, reader)
    gallery = ReferenceProposer(parts.references, MATCHING).poses(streamed, reader)
    np.testing.assert_array_equal(poses.network_rotation, network.rotation)
    np.testing.assert_array_equal(poses.gallery_rotation, gallery.gallery_rotation)
    np.testing.assert_array_equal(poses.digest, network.digest)
    assert np.median(np.abs(poses.above_noise - gallery.above_noise)) < 0.1
    apart = angular_error_deg(network.rotation, gallery.gallery_rotation, group_rotations("D2"))
    np.testing.assert_allclose(poses.apart_deg, apart)
    assert poses.calibrated.all() and gallery.calibrated.all()
    assert ((poses.confidence > 0.5) & (poses.confidence <= 1)).mean() > 0.9
    moved = poses.shift_angstrom - streamed.shifts_angstrom()
    assert np.sqrt((moved**2).mean()) < 0.3 * PIXEL_SIZE


def test_cross_half_asks_the_other_halfs_models(
    parts: FusedParts, published: Path, poses: PoseBatch, streamed: ParticleTable
) -> None:
    reader = StackReader()
    crossed = FusedProposer(published, INFERENCE, MATCHING, "cross_half").poses(streamed, reader)
    network = infer_table(Predictor(parts.networks, INFERENCE, "cross_half"), streamed, reader)
    gallery = ReferenceProposer(parts.references, MATCHING, "cross_half").poses(streamed, reader)
    np.testing.assert_array_equal(crossed.network_rotation, network.rotation)
    np.testing.assert_array_equal(crossed.gallery_rotation, gallery.gallery_rotation)
    assert (crossed.network_rotation != poses.network_rotation).any((1, 2)).mean() > 0.9


def test_a_particle_knows_nothing_of_its_neighbours(published: Path, poses: PoseBatch, streamed: ParticleTable) -> None:
    proposer = FusedProposer(published, INFERENCE, MATCHING)
    order = np.random.default_rng(0).permutation(len(streamed))
    for rows in np.split(order, (1, 8, 29)):
        part = proposer.poses(streamed.select(rows), StackReader())
        for name in PoseBatch.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(part, name), getattr(poses, name)[rows], name)


def test_unusable_images_have_a_flag_and_no_pose(published: Path, streamed: ParticleTable, tmp_path: Path) -> None:
    images = read_images(streamed.select(range(3)), StackReader())[0].images.copy()
    images[1] = 1.0
    stack = tmp_path.resolve() / "spoilt.mrcs"
    write_stack(stack, images, PIXEL_SIZE)
    rows = streamed.select(range(3)).with_columns(
        {"cestreamStack": [str(stack)] * 3, "rlnImageName": [f"{k}@spoilt.mrcs" for k in range(1, 4)]}
    )
    proposer = FusedProposer(published, INFERENCE, MATCHING)
    found = proposer.poses(rows, StackReader())
    assert found.flag.tolist() == [ImageFlag.OK, ImageFlag.CONSTANT, ImageFlag.OK]
    assert np.isnan(found.rotation[1]).all() and np.isnan(found.network_rotation[1]).all()
    assert found.calibrated.tolist() == [True, False, True]
    nothing = proposer.poses(rows.select([1]), StackReader())
    assert nothing.flag.tolist() == [ImageFlag.CONSTANT] and nothing.digest.any()


def test_too_few_held_out_rows_leave_the_gallerys_answer_and_say_so(
    aligned: ParticleTable, parts: FusedParts, streamed: ParticleTable, tmp_path: Path
) -> None:
    folder, manifest = publish(of_both_halves(aligned, 0, 80), parts, tmp_path)
    assert "fusion weights need 100" in manifest.uncalibrated and "confidence needs 200" in manifest.uncalibrated
    found = FusedProposer(folder, INFERENCE, MATCHING).poses(streamed, StackReader())
    alone = ReferenceProposer(parts.references, MATCHING).poses(streamed, StackReader())
    np.testing.assert_array_equal(found.rotation, alone.rotation)
    assert not found.calibrated.any()
    assert np.isfinite(found.network_rotation).all()


OTHERWISE = (
    replace(MATCHING, gallery=MATCHING.gallery.model_copy(update={"temperature": 2.0})),
    replace(MATCHING, refinement=MATCHING.refinement.model_copy(update={"radius_deg": 9.0})),
)


@pytest.mark.parametrize("otherwise", OTHERWISE)
def test_other_settings_than_the_published_ones_leave_the_mass_and_say_so_once(
    published: Path, streamed: ParticleTable, otherwise: MatchingSettings, caplog: pytest.LogCaptureFixture
) -> None:
    for open_it in (
        lambda: FusedProposer(published, INFERENCE, otherwise),
        lambda: ReferenceProposer(published / "references", otherwise),
    ):
        caplog.clear()
        found = open_it().poses(streamed, StackReader())
        assert not found.calibrated.any() and np.isnan(found.above_noise).all()
        np.testing.assert_array_equal(found.confidence, found.top_probability.max(axis=1))
        assert len([record for record in caplog.records if "other settings" in record.getMessage()]) == 1


def test_references_whose_noise_was_measured_otherwise_leave_the_mass_and_say_so_once(
    published: Path, streamed: ParticleTable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = NoiseScores(mean=-30.0, std=10.0)
    monkeypatch.setattr(
        "cesped_stream.reference_proposer.load_reference",
        lambda folder, half: replace(load_reference(folder, half), of_noise=old),
    )
    found = FusedProposer(published, INFERENCE, MATCHING).poses(streamed, StackReader())
    assert not found.calibrated.any() and np.isnan(found.above_noise).all()
    np.testing.assert_array_equal(found.confidence, found.top_probability.max(axis=1))
    assert len([record for record in caplog.records if "confidence is a mass" in record.getMessage()]) == 1


def test_other_fusion_settings_leave_the_mass_and_what_the_references_tell(
    published: Path, streamed: ParticleTable, caplog: pytest.LogCaptureFixture
) -> None:
    otherwise = replace(MATCHING, fusion=FusionSettings(keep=64))
    found = FusedProposer(published, INFERENCE, otherwise).poses(streamed, StackReader())
    assert not found.calibrated.any() and np.isfinite(found.above_noise).all()
    assert len([record for record in caplog.records if "other settings" in record.getMessage()]) == 1


def test_settings_that_change_no_answer_leave_the_confidence(
    published: Path, streamed: ParticleTable, caplog: pytest.LogCaptureFixture
) -> None:
    otherwise = replace(
        MATCHING,
        gallery=MATCHING.gallery.model_copy(update={"batch_size": 32, "memory_mib": 32}),
        fusion=FusionSettings(max_particles=120),
    )
    found = FusedProposer(published, INFERENCE, otherwise).poses(streamed, StackReader())
    assert found.calibrated.all() and np.isfinite(found.above_noise).all()
    assert not any("other settings" in record.getMessage() for record in caplog.records)


@pytest.fixture(scope="module")
def in_two_frames(
    aligned: ParticleTable, parts: FusedParts, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, FusedManifest, ReferenceManifest]:
    """Of the same networks, and references of rows whose half-set 1 is turned by 90 degrees about the axis."""
    folder = tmp_path_factory.mktemp("turned")
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    is_turned = (aligned.half_sets() == 1)[:, None, None]
    turned = with_rotations(aligned, np.where(is_turned, quarter @ aligned.rotations(), aligned.rotations()))
    references, made = publish_references(
        turned, StackReader(), TRAINING, MATCHING, work_folder=folder / "work", checkpoints_folder=folder
    )
    return *publish(turned, replace(parts, references=references), folder), made


def test_held_out_rows_in_another_frame_leave_the_gallerys_answer_and_say_so(
    in_two_frames: tuple[Path, FusedManifest, ReferenceManifest], streamed: ParticleTable
) -> None:
    folder, manifest, _ = in_two_frames
    assert "half-set 1: held-out particles disagree with the reference" in manifest.uncalibrated
    assert all(record.gallery_weight is None for record in manifest.halves.values())
    found = FusedProposer(folder, INFERENCE, MATCHING).poses(streamed, StackReader())
    alone = ReferenceProposer(folder / "references", MATCHING).poses(streamed, StackReader())
    np.testing.assert_array_equal(found.rotation, alone.rotation)


def test_held_out_rows_in_another_frame_fit_no_confidence(
    in_two_frames: tuple[Path, FusedManifest, ReferenceManifest], streamed: ParticleTable
) -> None:
    folder, manifest, references = in_two_frames
    why = "held-out particles are within 5 degrees of their own poses"
    assert why in manifest.uncalibrated and why in references.uncalibrated
    assert not FusedProposer(folder, INFERENCE, MATCHING).poses(streamed, StackReader()).calibrated.any()
    assert references.calibration == ""


def test_open_proposer_takes_both(published: Path) -> None:
    proposer = open_proposer(published, INFERENCE, MATCHING, "gold_standard")
    assert (proposer.proposer, proposer.checkpoint_id) == (PROPOSER, published.name)


def test_a_stream_posed_by_both_is_told_what_its_network_is_and_what_confidence_means(
    published: Path, parts: FusedParts, tmp_path: Path
) -> None:
    calibration = CalibrationSettings(within_deg=9.0)
    landing = LandingSettings(folder=tmp_path)
    session = SessionSettings(session=tmp_path, landing=landing, checkpoint=str(published), calibration=calibration)
    models = models_in_use(None, session)
    assert models.manifest == read_fused_manifest(published) and models.network == read_manifest(parts.networks)
    assert models.preprocessor is not None and models.within_deg == MATCHING.calibration.within_deg == 5.0
    of_networks = models_in_use(None, session.model_copy(update={"checkpoint": str(parts.networks)}))
    assert of_networks.manifest == of_networks.network == models.network and of_networks.within_deg == 9.0
    assert models_in_use(None, session.model_copy(update={"checkpoint": str(parts.references)})).network is None
    assert models_in_use(None, session.model_copy(update={"checkpoint": ""})).manifest is None


@pytest.mark.parametrize("name", ["network/half_1.safetensors", "references/manifest.json", "manifest.json"])
def test_any_changed_byte_is_noticed(published: Path, tmp_path: Path, name: str) -> None:
    for file in published.rglob("*"):
        if file.is_file():
            target = tmp_path / file.relative_to(published)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file.read_bytes())
    content = (tmp_path / name).read_bytes()
    if name == "manifest.json":
        (tmp_path / name).write_text(json.dumps(json.loads(content) | {"symmetry": "C1"}))
    else:
        (tmp_path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InvalidCheckpointError):
        FusedProposer(tmp_path, INFERENCE, MATCHING)


def test_a_fused_mode_takes_the_shift_of_the_gallerys_nearest_rotation() -> None:
    group = group_rotations("D2")
    grid = about(np.eye(3)[None], 10.0, 1, "C1", 4)
    distribution = grid
    shifts = np.arange(8, dtype=np.float32).reshape(1, 4, 2)
    nothing = np.zeros(0)
    proposals = Proposals(distribution, shifts, nothing, nothing, nothing, nothing)
    third = group[2] @ distribution.rotations()[:, 2]
    far = distribution.rotations()[:, 0] @ np.diag([1.0, -1.0, -1.0]) @ np.array([[0, -1.0, 0], [1, 0, 0], [0, 0, 1]])
    found = shifts_near(np.stack([third, far], axis=1), proposals, group)
    np.testing.assert_array_equal(found[0], [shifts[0, 2], shifts[0, 0]])
