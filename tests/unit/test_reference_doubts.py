"""A map or rows that the images speak against are used, and it is said: log, manifest, status."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.matching import BOX, PIXEL_SIZE, molecule, reference

from cesped_stream.benchmark.entries import open_entry
from cesped_stream.imaging.entry import write_entry
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.table import ParticleTable
from cesped_stream.reference_doubts import rows_doubts
from cesped_stream.reference_pair import MatchingSettings, ReferenceManifest, publish_map, read_reference_manifest
from cesped_stream.settings import (
    GallerySettings,
    ReferenceSettings,
    RefinementSettings,
    SimulationSettings,
    TrainingSettings,
)
from cesped_stream_service.training_gate import verify_checkpoint

MATCHING = MatchingSettings(
    ReferenceSettings(mask_lowpass_angstrom=20.0),
    GallerySettings(grid_order=2, coarse_order=1, keep_fraction=0.2, batch_size=16),
    RefinementSettings(),
)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ParticleTable:
    folder = tmp_path_factory.mktemp("entry")
    write_entry(folder, molecule(), PIXEL_SIZE, SimulationSettings(num_particles=240, snr=0.2, seed=5))
    return open_entry(folder).particles()


def published(volume: np.ndarray, table: ParticleTable, folder: Path) -> ReferenceManifest:
    made, _ = publish_map(
        volume, PIXEL_SIZE, table, StackReader(), TrainingSettings(), MATCHING,
        work_folder=folder / "work", checkpoints_folder=folder,
    )  # fmt: skip
    manifest = read_reference_manifest(made)
    assert verify_checkpoint(made).doubts == manifest.doubts
    return manifest


def test_nothing_is_said_of_the_right_map(table: ParticleTable, tmp_path: Path) -> None:
    assert published(molecule(), table, tmp_path).doubts == ()


def test_inverted_contrast_is_said(table: ParticleTable, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        manifest = published(-molecule(), table, tmp_path)
    assert [doubt[:10] for doubt in manifest.doubts if "contrast inverted" in doubt] == ["half-set 0", "half-set 1"]
    assert "fit the given map better with their contrast inverted" in caplog.text


def test_a_map_that_is_nothing_of_the_images_is_said(table: ParticleTable, tmp_path: Path) -> None:
    nothing = np.random.default_rng(0).normal(size=(BOX,) * 3).astype(np.float32)
    doubts = published(nothing, table, tmp_path).doubts
    assert len(doubts) == 2 and all("hardly better than noise" in doubt for doubt in doubts)


def test_rows_of_which_most_disagree_are_said() -> None:
    own = replace(reference(), members=np.arange(400, dtype=np.uint64), num_left_out=200)
    assert rows_doubts(own) == ()
    (said,) = rows_doubts(replace(own, num_left_out=367))
    assert said.startswith("half-set 0: 367 of 400 aligned rows")
