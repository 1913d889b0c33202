"""The 2-fold protocol with references: each half's reference poses the other half, shifts included."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.matching import PIXEL_SIZE, molecule

from cesped_stream.benchmark.entries import open_entry
from cesped_stream.imaging.entry import write_entry
from cesped_stream.particles.star import read_star
from cesped_stream.reference_pair import read_reference_manifest
from cesped_stream.settings import SimulationSettings
from cesped_stream_service.cli import main
from cesped_stream_service.toml import toml_text

COUNT = 360
SETTINGS = {
    "gallery": {"grid_order": 2, "coarse_order": 1, "keep_fraction": 0.2},
    "referencing": {"mask_lowpass_angstrom": 20.0},
    "inference": {"device": "cpu", "threads": 1},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two entries of one molecule, D2: `one` and `two`."""
    folder = tmp_path_factory.mktemp("entries")
    for seed, name in enumerate(("one", "two")):
        settings = SimulationSettings(
            num_particles=COUNT // (1 + seed), snr=0.5, symmetry="D2", seed=seed, particles_per_micrograph=20
        )
        write_entry(folder / name, molecule("D2"), PIXEL_SIZE, settings)
    (folder / "settings.toml").write_text(toml_text(SETTINGS))
    return folder


def words(root: Path, entry: str, output: Path, *more: str) -> list[str]:
    given = ["protocol", entry, "--root", str(root), "--output", str(output)]
    return [*given, "--settings", str(root / "settings.toml"), *more]


@pytest.fixture(scope="module")
def output(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("protocol") / "out"
    assert main(words(root, "one", folder, "--proposer", "gallery")) == 0
    return folder


def test_each_half_is_posed_with_shifts_by_the_other_halfs_reference(root: Path, output: Path) -> None:
    (checkpoint,) = (output / "checkpoints").glob("ref-*")
    manifest = read_reference_manifest(checkpoint)
    assert (manifest.trained_on, manifest.symmetry) == ("one", "D2")
    assert manifest.uncalibrated.startswith("no row is held out")
    for half, star in enumerate(open_entry(root / "one").stars):
        predicted, truth = read_star(output / f"predictions_{half}.star"), read_star(star)
        assert predicted.column("rlnImageName") == truth.column("rlnImageName")
        assert set(predicted.column("cestreamProposer")) == {"gallery+refinement"}
        assert np.median(np.abs(predicted.shifts_angstrom() - truth.shifts_angstrom())) < 0.3 * PIXEL_SIZE
    metrics = json.loads((output / "metrics.json").read_text())
    own = metrics["cesped_stream"]
    assert own["coverage"]["together"]["num_predicted"] == COUNT
    assert own["poses"]["together"]["median_deg"] < 2.5
    assert metrics["shiftsRMSE"] < 0.6 * PIXEL_SIZE
    assert own["half_words"] == "cross half (CESPED's protocol), not gold standard"
    assert own["alignment_limit_angstrom"] == min(half.resolution_angstrom for half in manifest.halves.values())
    assert "aligned rows" in (output / "report.html").read_text()


def test_a_cut_run_ends_with_the_same_stars_and_other_references_are_refused(
    root: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (output / "predictions_1.star").read_bytes()
    (output / "predictions_1.star").unlink()
    again = words(root, "one", output, "--proposer", "gallery")
    assert main(again) == 0
    assert (output / "predictions_1.star").read_bytes() == before
    assert main([*again, "--gallery.num_modes", "2"]) == 2
    assert "begun with gallery.num_modes 3, now 2" in capsys.readouterr().err
    assert main(words(root, "one", output)) == 2
    assert "begun with proposer 'gallery', now 'network'; go on" in capsys.readouterr().err


def test_references_of_another_entry_pose_this_one_and_the_result_says_so(
    root: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint,) = (output / "checkpoints").glob("ref-*")
    given = words(root, "two", tmp_path / "out", "--checkpoint", str(checkpoint))
    assert main([*given, "--proposer", "network"]) == 2
    assert "is for proposer gallery; leave it out" in capsys.readouterr().err
    assert main([*given, "--protocol", "gold_standard", "--no-report"]) == 0
    rows = read_star(tmp_path / "out" / "predictions_0.star")
    assert set(rows.column("cestreamCheckpoint")) == {checkpoint.name}
    assert (
        main(words(root, "one", tmp_path / "own", "--checkpoint", str(checkpoint), "--protocol", "gold_standard")) == 2
    )
    assert "it was trained on one" in capsys.readouterr().err
