"""Particles posed by a low-passed map make references that pose the next ones better."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from support.matching import PIXEL_SIZE, molecule

from cesped_stream.benchmark.entries import open_entry
from cesped_stream.conventions import ANGLE_LABELS, SHIFT_LABELS, rotation_to_euler_deg
from cesped_stream.errors import InvalidCheckpointError, UnreachableFileError
from cesped_stream.imaging.entry import write_entry
from cesped_stream.imaging.maps import write_map
from cesped_stream.inference import PoseBatch
from cesped_stream.particles.own_columns import CHECKPOINT
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.star import read_star, write_star
from cesped_stream.particles.table import ParticleTable
from cesped_stream.reference_pair import ReferenceManifest
from cesped_stream.reference_proposer import ReferenceProposer
from cesped_stream.settings import SimulationSettings
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations
from cesped_stream_service.messages import TrainingOrder
from cesped_stream_service.publishing import Publisher
from cesped_stream_service.referencing import kept_map, published_of
from cesped_stream_service.settings import SessionSettings
from cesped_stream_service.worker import matching_settings

FIRST, LATER = 220, 40
"""Particles of a half-set that the map poses; that both references pose then."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> SessionSettings:
    """A session that reads a map to 30 A only."""
    root = tmp_path_factory.mktemp("session")
    return SessionSettings(
        session=root,
        landing={"folder": root},
        proposer="gallery",
        inference={"device": "cpu"},
        training={"symmetry": "D2", "alignment": "independent"},
        referencing={"mask_lowpass_angstrom": 20.0, "map_lowpass_angstrom": 30.0},
        gallery={"grid_order": 2, "coarse_order": 1, "keep_fraction": 0.2, "batch_size": 16},
    )


@pytest.fixture(scope="module")
def particles(tmp_path_factory: pytest.TempPathFactory) -> ParticleTable:
    folder = tmp_path_factory.mktemp("entry")
    simulated = SimulationSettings(num_particles=2 * (FIRST + LATER), snr=0.3, symmetry="D2", seed=5)
    write_entry(folder, molecule("D2"), PIXEL_SIZE, simulated)
    return open_entry(folder).particles()


def of_both_halves(table: ParticleTable, first: int, last: int) -> ParticleTable:
    rows = [np.flatnonzero(table.half_sets() == half)[first:last] for half in (0, 1)]
    return table.select(np.sort(np.concatenate(rows)))


def published(
    settings: SessionSettings, rows: ParticleTable, number: int, **order: str
) -> tuple[ReferenceProposer, ReferenceManifest]:
    checkpoints = settings.session / "checkpoints"
    star = settings.session / f"training_{number}.star"
    write_star(star, rows)
    work_folder = str(checkpoints / f"{number}.work")
    asked = TrainingOrder(training_id=number, aligned_star=str(star), work_folder=work_folder, **order)  # type: ignore[arg-type]
    publisher = Publisher(settings, read_star(star), Path(work_folder), checkpoints)
    proposer = ReferenceProposer(published_of(asked, publisher).folder, matching_settings(settings))
    return proposer, proposer.manifest


def with_poses(table: ParticleTable, poses: PoseBatch, checkpoint_id: str) -> ParticleTable:
    values = np.concatenate([rotation_to_euler_deg(poses.rotation), poses.shift_angstrom], axis=1)
    columns = dict(zip((*ANGLE_LABELS, *SHIFT_LABELS), values.T, strict=True))
    cells = {label: [f"{value:.6f}" for value in column] for label, column in columns.items()}
    return table.with_columns(cells | {CHECKPOINT: [checkpoint_id] * len(table)})


def median_error_deg(table: ParticleTable, poses: PoseBatch) -> float:
    return float(np.median(angular_error_deg(table.rotations(), poses.rotation, group_rotations("D2"))))


def test_rebuilt_references_reach_further_and_pose_better_than_the_map_that_posed_their_rows(
    settings: SessionSettings, particles: ParticleTable
) -> None:
    first, later = of_both_halves(particles, 0, FIRST), of_both_halves(particles, FIRST, FIRST + LATER)
    content = settings.session / "map.mrc"
    write_map(content, molecule("D2"), PIXEL_SIZE)
    given = kept_copy(content)
    by_map, of_map = published(settings, first, 1, source="map", reference=str(given))
    assert (of_map.origin, of_map.independence) == ("a given map", "shared_reference")

    posed = with_poses(first, by_map.poses(first, StackReader()), by_map.checkpoint_id)
    rebuilt, manifest = published(settings, posed, 2, source="poses")
    assert (manifest.origin, manifest.independence) == ("aligned and predicted rows", "shared_reference")
    for half, record in manifest.halves.items():
        assert 0.9 * FIRST < record.num_training <= FIRST and record.num_validation == 0
        assert record.resolution_angstrom < 0.8 * of_map.halves[half].resolution_angstrom
        assert "0 held-out particles" in manifest.uncalibrated, "predicted poses are no truth"
    assert np.isfinite(by_map.poses(later, StackReader()).above_noise).all()
    before = median_error_deg(later, by_map.poses(later, StackReader()))
    after = median_error_deg(later, rebuilt.poses(later, StackReader()))
    assert after < 0.6 * before


def kept_copy(path: Path) -> Path:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    copy = path.with_name(f"given_map_{digest[:16]}.mrc")
    copy.write_bytes(path.read_bytes())
    return copy


def test_a_kept_map_that_is_gone_or_another_one_is_not_used(tmp_path: Path) -> None:
    write_map(tmp_path / "map.mrc", molecule("D2"), PIXEL_SIZE)
    copy = kept_copy(tmp_path / "map.mrc")
    assert kept_map(copy) == copy
    copy.write_bytes(b"torn")
    with pytest.raises(InvalidCheckpointError, match="not the map that was kept"):
        kept_map(copy)
    copy.unlink()
    with pytest.raises(UnreachableFileError):
        kept_map(copy)
