"""Commands without a session, given rows that this program predicted, or that RELION refined from such rows."""

import json
from pathlib import Path

import pytest
from support.relion_session import SYMMETRY, RelionJobs

from cesped_stream.particles.star import read_star
from cesped_stream_service.cli import main

pytestmark = [pytest.mark.relion, pytest.mark.timeout(900)]


def train_words(jobs: RelionJobs, star: Path, output: Path) -> list[str]:
    """Return the arguments that make references of a star's rows."""
    words = ["train", "--proposer", "gallery", "--star", str(star), "--image_root", str(jobs.project.folder)]
    words += ["--output", str(output), "--training.symmetry", SYMMETRY]
    return [*words, "--training.alignment", "independent"]


def test_train_refuses_our_own_predictions(
    relion_jobs: RelionJobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train_words(relion_jobs, relion_jobs.own_star, tmp_path)) != 0
    assert "predict" in capsys.readouterr().err
    assert not list(tmp_path.glob("ref-*"))


def test_entries_add_refuses_our_own_predictions(
    relion_jobs: RelionJobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["entries", "add", "own", "--star", str(relion_jobs.own_star), "--symmetry", SYMMETRY]
    assert main([*words, "--root", str(tmp_path)]) != 0
    assert "predict" in capsys.readouterr().err


def test_entries_add_takes_relions_own_poses(relion_jobs: RelionJobs, tmp_path: Path) -> None:
    star = relion_jobs.project.folder / "refined.star"
    star.write_bytes(relion_jobs.refined.read_bytes())
    words = ["entries", "add", "consensus", "--star", str(star), "--symmetry", SYMMETRY, "--root", str(tmp_path)]
    assert main(words) == 0


def test_references_of_what_relion_refined_from_our_predictions_say_so(relion_jobs: RelionJobs, tmp_path: Path) -> None:
    assert main(train_words(relion_jobs, relion_jobs.refined_from_own, tmp_path)) == 0
    (file,) = tmp_path.glob("ref-*/manifest.json")
    manifest = json.loads(file.read_text())
    assert manifest["initialised_from_own_predictions"] == len(read_star(relion_jobs.refined_from_own))
    assert manifest["independence"] != "independent"
