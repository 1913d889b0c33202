"""Items equal those of the public `cesped` package where it is right, and differ where it is not."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples.particle_entries import simulated_entry

from cesped_stream import ParticlesDataset
from cesped_stream.settings import OpticsSettings

Peer = Callable[..., tuple[dict[str, Any], Mapping[str, np.ndarray]]]

DUMP = """
from cesped.particlesDataset import ParticlesDataset
for k, options in enumerate(arguments["options"]):
    dataset = ParticlesDataset(arguments["target"], 0, benchmarkDir=arguments["root"], **options)
    items = [dataset[i] for i in range(len(dataset))]
    arrays[f"img{k}"] = np.stack([i[1] for i in items])
    for part, name in enumerate(("rotation", "shift", "confidence")):
        arrays[f"{name}{k}"] = np.stack([i[2][part] for i in items])
    result[str(k)] = {"ids": [i[0] for i in items], "metadata": [i[3] for i in items], "image_size": dataset.image_size}
"""

OPTIONS: list[dict[str, Any]] = [
    {},
    {"image_size": 36},
    {"image_size": 30, "image_size_factor_for_crop": 0.15},
    {"image_size": 48, "image_size_factor_for_crop": 0.0, "ctf_correction": "none"},
    {"image_size": 24, "apply_perImg_normalization": False},
]


def cespeds(peer: Peer, root: Path, target: str, *options: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all that its data set gives, once for each set of options."""
    result, arrays = peer(DUMP, root=root, target=target, options=list(options))
    names = ("img", "rotation", "shift", "confidence")
    return [result[str(k)] | {name: arrays[f"{name}{k}"] for name in names} for k in range(len(options))]


def entry(root: Path, name: str, **settings: object) -> None:
    folder = simulated_entry(root, name, box=48, **settings)
    for half in (0, 1):
        (folder / f"SUCCESSFUL_DOWNLOAD_{half}.txt").write_text(f"{name}\n")


@pytest.mark.parametrize("symmetry", ["C1", "C3", "D2"])
def test_items_are_cespeds(peer: Peer, tmp_path: Path, symmetry: str) -> None:
    entry(tmp_path, "plain", symmetry=symmetry)
    for options, theirs in zip(OPTIONS, cespeds(peer, tmp_path, "plain", *OPTIONS), strict=True):
        dataset = ParticlesDataset("plain", 0, benchmarkDir=tmp_path, **options)
        items = list(dataset)
        assert [item[0] for item in items] == theirs["ids"]
        assert [item[3] for item in items] == theirs["metadata"]
        assert dataset.image_size == theirs["image_size"]
        mine = {"img": torch.stack([item[1] for item in items])}
        for part, name in enumerate(("rotation", "shift", "confidence")):
            mine[name] = torch.stack([item[2][part] for item in items])
        for name, tensor in mine.items():
            assert tensor.shape == theirs[name].shape
            assert np.abs(tensor.numpy() - theirs[name]).max() < 1e-3, (options, name)


def test_with_astigmatism_only_the_exact_steps_are_cespeds(peer: Peer, tmp_path: Path) -> None:
    entry(tmp_path, "astigmatic", max_astigmatism_angstrom=800.0)
    theirs = cespeds(peer, tmp_path, "astigmatic", {"image_size": 36})[0]["img"]

    def difference(compatible: str) -> np.ndarray:
        dataset = ParticlesDataset("astigmatic", 0, tmp_path, image_size=36, compatible=compatible)
        images = torch.stack([item[1] for item in dataset]).numpy()
        return np.sqrt(np.square(images - theirs).mean((1, 2, 3)) / np.square(theirs).mean((1, 2, 3)))

    right, exact = difference("cesped"), difference("cesped_exact")
    assert exact.max() < 1e-3
    assert np.median(right) > 0.03


def test_with_two_optics_groups_cesped_gives_up_and_we_do_not(peer: Peer, tmp_path: Path) -> None:
    entry(tmp_path, "two", optics=(OpticsSettings(), OpticsSettings(voltage_kv=200.0)))
    with pytest.raises(AssertionError, match="can only convert an array of size 1"):
        cespeds(peer, tmp_path, "two", {})
    assert len(list(ParticlesDataset("two", 0, benchmarkDir=tmp_path))) == 12


def test_a_star_that_we_save_is_cespeds_too(peer: Peer, tmp_path: Path) -> None:
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
    (theirs,) = cespeds(peer, tmp_path, "saved", {})
    assert np.abs(theirs["rotation"] - rotation.numpy()).max() < 1e-4
    assert {row["rlnParticleFigureOfMerit"] for row in theirs["metadata"]} == {0.5}
