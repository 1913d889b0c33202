"""Items equal those of the public `cesped` package where it is right, and differ where it is not.

PEERS_PYTHON names the Python of an environment with cesped 25.12.0; it runs in a process of its own.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from samples.particle_entries import simulated_entry

from cesped_stream import ParticlesDataset
from cesped_stream.settings import OpticsSettings

pytestmark = pytest.mark.peers

DUMP = """
import json, sys, warnings
warnings.simplefilter("ignore")
import numpy as np
from cesped.particlesDataset import ParticlesDataset
root, target, out, options = sys.argv[1:]
dataset = ParticlesDataset(target, 0, benchmarkDir=root, **json.loads(options))
items = [dataset[i] for i in range(len(dataset))]
np.savez(
    out, iid=[i[0] for i in items], img=np.stack([i[1] for i in items]), rotation=np.stack([i[2][0] for i in items]),
    shift=np.stack([i[2][1] for i in items]), confidence=np.stack([i[2][2] for i in items]),
    metadata=json.dumps([i[3] for i in items]), sampling_rate=dataset.sampling_rate, image_size=dataset.image_size,
)
"""


@pytest.fixture(scope="module")
def peer_python() -> str:
    python = os.environ.get("PEERS_PYTHON", "")
    if not python:
        pytest.skip("PEERS_PYTHON is not set: no environment with the cesped package")
    return python


def cespeds(python: str, root: Path, target: str, options: dict[str, object]) -> dict[str, np.ndarray]:
    out = root / "items.npz"
    subprocess.run([python, "-c", DUMP, str(root), target, str(out), json.dumps(options)], check=True, env=_clean())
    with np.load(out) as arrays:
        return dict(arrays)


def _clean() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def entry(root: Path, name: str, **settings: object) -> None:
    folder = simulated_entry(root, name, box=48, **settings)
    for half in (0, 1):
        (folder / f"SUCCESSFUL_DOWNLOAD_{half}.txt").write_text(f"{name}\n")


@pytest.mark.parametrize("symmetry", ["C1", "C3", "D2"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_size": 36},
        {"image_size": 30, "image_size_factor_for_crop": 0.15},
        {"image_size": 48, "image_size_factor_for_crop": 0.0, "ctf_correction": "none"},
        {"image_size": 24, "apply_perImg_normalization": False},
    ],
    ids=str,
)
def test_items_are_cespeds(peer_python: str, tmp_path: Path, symmetry: str, options: dict[str, object]) -> None:
    entry(tmp_path, "plain", symmetry=symmetry)
    theirs = cespeds(peer_python, tmp_path, "plain", options)
    dataset = ParticlesDataset("plain", 0, benchmarkDir=tmp_path, **options)  # type: ignore[arg-type]
    items = list(dataset)
    assert [item[0] for item in items] == theirs["iid"].tolist()
    assert dataset.image_size == theirs["image_size"]
    for part, mine in (
        ("img", [item[1] for item in items]),
        ("rotation", [item[2][0] for item in items]),
        ("shift", [item[2][1] for item in items]),
        ("confidence", [item[2][2] for item in items]),
    ):
        assert np.abs(torch.stack(mine).numpy() - theirs[part]).max() < 1e-3, part
    for item, metadata in zip(items, json.loads(str(theirs["metadata"])), strict=True):
        assert item[3] == metadata


def test_with_astigmatism_only_the_exact_steps_are_cespeds(peer_python: str, tmp_path: Path) -> None:
    entry(tmp_path, "astigmatic", max_astigmatism_angstrom=800.0)
    theirs = cespeds(peer_python, tmp_path, "astigmatic", {"image_size": 36})["img"]

    def difference(compatible: str) -> np.ndarray:
        dataset = ParticlesDataset("astigmatic", 0, tmp_path, image_size=36, compatible=compatible)
        images = torch.stack([item[1] for item in dataset]).numpy()
        return np.sqrt(np.square(images - theirs).mean((1, 2, 3)) / np.square(theirs).mean((1, 2, 3)))

    right, exact = difference("cesped"), difference("cesped_exact")
    assert exact.max() < 1e-3
    assert np.median(right) > 0.03


def test_with_two_optics_groups_cesped_gives_up_and_we_do_not(peer_python: str, tmp_path: Path) -> None:
    entry(tmp_path, "two", optics=(OpticsSettings(), OpticsSettings(voltage_kv=200.0)))
    with pytest.raises(subprocess.CalledProcessError):
        cespeds(peer_python, tmp_path, "two", {})
    assert len(list(ParticlesDataset("two", 0, benchmarkDir=tmp_path))) == 12


def test_a_star_that_we_save_is_cespeds_too(peer_python: str, tmp_path: Path) -> None:
    entry(tmp_path, "plain")
    dataset = ParticlesDataset("plain", 0, benchmarkDir=tmp_path)
    rotation = torch.linalg.qr(torch.eye(3) + 0.3).Q
    rotation = rotation * torch.det(rotation)
    dataset.updateMd(
        [item[0] for item in dataset], angles=rotation.expand(12, 3, 3), confidence=torch.full((12, 1), 0.5)
    )
    (tmp_path / "saved").mkdir()
    dataset.saveMd(tmp_path / "saved" / "particles_0.star")
    for name in ("particles_0.mrcs", "info_0.json", "SUCCESSFUL_DOWNLOAD_0.txt"):
        (tmp_path / "saved" / name).symlink_to(tmp_path / "plain" / name)
    theirs = cespeds(peer_python, tmp_path, "saved", {})
    assert np.abs(theirs["rotation"] - rotation.numpy()).max() < 1e-4
    assert {row["rlnParticleFigureOfMerit"] for row in json.loads(str(theirs["metadata"]))} == {0.5}
