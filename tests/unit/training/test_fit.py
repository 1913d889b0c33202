"""Training on a few noise-like particles: what is exact (resume, threads, halves), not how well it learns."""

from pathlib import Path

import numpy as np
import pytest
import torch
from samples.models import TINY

from cesped_stream.errors import PermanentError, TransientError
from cesped_stream.model.checkpoint import load_checkpoint
from cesped_stream.particles.stacks import StackReader, write_stack
from cesped_stream.particles.star import read_star, write_star
from cesped_stream.particles.table import OpticsGroup, ParticleTable
from cesped_stream.settings import InferenceSettings, PreprocessSettings, TrainingSettings
from cesped_stream.training.fit import Progress, TrainingStopped, fit_pair

SETTINGS = TrainingSettings(
    model=TINY,
    preprocess=PreprocessSettings(image_size=16),
    batch_size=8,
    max_steps=9,
    steps_per_epoch=3,
    warmup_steps=2,
    validation_fraction=0.25,
    alignment="independent",
)
CPU = InferenceSettings(device="cpu")


@pytest.fixture
def aligned(tmp_path: Path) -> ParticleTable:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(48, 20, 20)).astype(np.float32)
    images[5] = np.nan
    write_stack(tmp_path / "particles.mrcs", images, 4.0)
    optics = OpticsGroup(
        (
            ("rlnOpticsGroupName", "g"),
            ("rlnVoltage", "300"),
            ("rlnSphericalAberration", "2.7"),
            ("rlnAmplitudeContrast", "0.1"),
            ("rlnImagePixelSize", "4.0"),
            ("rlnImageSize", "20"),
            ("rlnImageDimensionality", "2"),
        )
    )
    labels = (
        "rlnImageName",
        "rlnMicrographName",
        "rlnDefocusU",
        "rlnDefocusV",
        "rlnDefocusAngle",
        "rlnAngleRot",
        "rlnAngleTilt",
        "rlnAnglePsi",
        "rlnRandomSubset",
    )
    angles = rng.uniform([-180, 0, -180], [180, 180, 180], (48, 3))
    rows = [
        (f"{i + 1:06d}@particles.mrcs", f"m{i // 6}", "15000", "14800", "30", *map(str, angles[i]), str(1 + i % 2))
        for i in range(48)
    ]
    write_star(tmp_path / "aligned.star", ParticleTable(labels, rows, (optics,), np.zeros(48, np.int64)))
    return read_star(tmp_path / "aligned.star")


def weights(folder: Path) -> list[bytes]:
    return [(folder / f"half_{half}.safetensors").read_bytes() for half in (0, 1)]


def run(table: ParticleTable, root: Path, name: str, settings: TrainingSettings = SETTINGS, **kwargs: object) -> Path:
    folder, _ = fit_pair(
        table,
        StackReader(),
        settings,
        CPU,
        root=root,
        work_folder=root / name / "work",
        checkpoints_folder=root / name,
        **kwargs,  # type: ignore[arg-type]
    )
    return folder


def test_both_halves_are_trained_on_their_own_rows_and_published(aligned: ParticleTable, tmp_path: Path) -> None:
    seen: list[Progress] = []
    folder = run(aligned, tmp_path, "a", on_progress=seen.append)
    manifest = load_checkpoint(folder, device=torch.device("cpu")).manifest
    assert folder.name == manifest.checkpoint_id
    for half in (0, 1):
        record = manifest.halves[half]
        assert (record.num_training + record.num_validation, record.steps) == (24 - (half == 1), 9)
        assert max(p.step for p in seen if p.half_set == half) == 9
    assert weights(folder)[0] != weights(folder)[1]
    assert (manifest.stopped_by, manifest.independence, manifest.origin) == ("steps", "independent", "random")


def test_training_stopped_anywhere_ends_with_the_same_bits(aligned: ParticleTable, tmp_path: Path) -> None:
    whole = run(aligned, tmp_path, "whole")
    for stop_after in (1, 8, 13):
        calls = iter(range(10_000))
        with pytest.raises(TrainingStopped):
            run(aligned, tmp_path, f"cut{stop_after}", should_stop=lambda n=calls, k=stop_after: next(n) >= k)  # type: ignore[misc]
        resumed = run(aligned, tmp_path, f"cut{stop_after}")
        assert resumed.name == whole.name
        assert weights(resumed) == weights(whole)


def test_the_number_of_threads_does_not_change_a_bit(aligned: ParticleTable, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(aligned, tmp_path, "one")
        torch.set_num_threads(2)
        two = run(aligned, tmp_path, "two")
    finally:
        torch.set_num_threads(before)
    assert weights(one) == weights(two)


def test_other_settings_do_not_resume_from_this_run(aligned: ParticleTable, tmp_path: Path) -> None:
    first = run(aligned, tmp_path, "same")
    other = run(aligned, tmp_path, "same", SETTINGS.model_copy(update={"seed": 1}))
    assert weights(first) != weights(other)


def test_one_half_never_sees_the_other_halfs_rows(aligned: ParticleTable, tmp_path: Path) -> None:
    whole = run(aligned, tmp_path, "whole")
    angle = aligned.labels.index("rlnAngleRot")
    changed = aligned.with_columns(
        {
            "rlnAngleRot": [
                "0.0" if half == 1 else row[angle] for row, half in zip(aligned.rows, aligned.half_sets(), strict=True)
            ]
        }
    )
    other = run(changed, tmp_path, "changed")
    assert weights(other)[0] == weights(whole)[0]
    assert weights(other)[1] != weights(whole)[1]


def test_a_shared_start_is_said_in_the_manifest(aligned: ParticleTable, tmp_path: Path) -> None:
    first = run(aligned, tmp_path, "first")
    second = run(aligned, tmp_path, "second", SETTINGS.model_copy(update={"init_from": str(first)}))
    manifest = load_checkpoint(second, device=torch.device("cpu")).manifest
    assert (manifest.origin, manifest.independence) == (f"checkpoint {first.name}", "shared_reference")


def test_a_half_without_rows_is_refused(aligned: ParticleTable, tmp_path: Path) -> None:
    only_one = aligned.select(np.flatnonzero(aligned.half_sets() == 0))
    with pytest.raises(PermanentError, match="have rlnRandomSubset 1 and none 2"):
        run(only_one, tmp_path, "x")


def test_a_time_budget_that_cut_training_is_said_in_the_manifest(aligned: ParticleTable, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"max_steps": 10_000, "max_minutes": 1e-6})
    manifest = load_checkpoint(run(aligned, tmp_path, "cut", settings), device=torch.device("cpu")).manifest
    assert manifest.stopped_by == "minutes"
    assert manifest.halves[0].steps == 3


def test_the_halves_are_called_no_more_independent_than_their_alignment(aligned: ParticleTable, tmp_path: Path) -> None:
    unsaid = TrainingSettings.model_validate(SETTINGS.model_dump(exclude={"alignment"}))
    manifest = load_checkpoint(run(aligned, tmp_path, "unsaid", unsaid), device=torch.device("cpu")).manifest
    assert manifest.independence == "unknown"


def test_a_second_trainer_in_the_same_work_folder_is_refused(aligned: ParticleTable, tmp_path: Path) -> None:
    refused: list[str] = []

    def meanwhile(progress: Progress) -> None:
        if not refused:
            with pytest.raises(TransientError, match="another trainer works here") as error:
                run(aligned, tmp_path, "a")
            refused.append(str(error.value))

    run(aligned, tmp_path, "a", on_progress=meanwhile)
    assert refused


def test_a_torn_resume_point_starts_training_anew(aligned: ParticleTable, tmp_path: Path) -> None:
    whole = run(aligned, tmp_path, "whole")
    calls = iter(range(10_000))
    with pytest.raises(TrainingStopped):
        run(aligned, tmp_path, "torn", should_stop=lambda: next(calls) >= 13)
    point = tmp_path / "torn" / "work" / "resume_half_0.safetensors"
    point.write_bytes(point.read_bytes()[:-100])
    assert weights(run(aligned, tmp_path, "torn")) == weights(whole)
