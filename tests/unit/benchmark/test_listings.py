"""Listings 1 to 4 of the paper run as printed, but for the import line and for what they leave undefined."""

import runpy
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from samples.particle_entries import simulated_entry
from scipy.spatial.transform import Rotation
from torch.utils.data import DataLoader

from cesped_stream import particlesDataset
from cesped_stream.benchmark import download
from cesped_stream.benchmark.entry_folder import done_path
from cesped_stream.particles.star import read_star
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations

LISTING_1 = """
import torch
from cesped_stream import ParticlesDataset

listOfEntries = ParticlesDataset.getCESPEDEntries()
targetName, halfset = listOfEntries[0]
dataset = ParticlesDataset(targetName, halfset)
dl = DataLoader(dataset, batch_size=32, num_workers=4)
for batch in dl:
    iid, img, (rotMat, xyShiftAngs, confidence), metadata = batch

    predRot = model(img)
    loss = loss_function(predRot, rotMat)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""

LISTING_1_OF_THE_PAPER = LISTING_1.replace("from cesped_stream import", "from cesped_stream.particlesDataset import")

LISTING_2 = """
for iid, pred_rotmats, maxprob in predictions:
    n_preds = pred_rotmats.shape[0]
    dataset.updateMd(ids=iid, angles=pred_rotmats,
                    shifts=torch.zeros(n_preds, 2),
                    confidence=maxprob,
                    angles_format="rotmat")
dataset.saveMd("predictions.star")
"""


@pytest.fixture
def test_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TEST, the first published entry, as if it were downloaded under the default root."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = simulated_entry(tmp_path / "cesped_stream_entries", "TEST", num_particles=80)
    for half in (0, 1):
        done_path(folder, half).write_text("downloaded\n")
    return folder


def names_of_listing_1() -> dict[str, object]:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32 * 32, 9), torch.nn.Unflatten(1, (3, 3)))
    return {
        "DataLoader": DataLoader,
        "model": model,
        "loss_function": torch.nn.functional.mse_loss,
        "optimizer": torch.optim.SGD(model.parameters(), 1e-3),
    }


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("listing", [LISTING_1, LISTING_1_OF_THE_PAPER], ids=["package", "module"])
def test_listing_1_trains_on_the_first_entry(test_entry: Path, listing: str) -> None:
    names = names_of_listing_1()
    before = names["model"][1].weight.clone()  # type: ignore[index]
    exec(listing, names)
    assert (names["targetName"], names["halfset"]) == ("TEST", 0)
    assert len(names["dl"]) == 2  # type: ignore[arg-type]
    assert names["img"].shape == (8, 1, 32, 32)  # type: ignore[attr-defined]
    assert names["rotMat"].shape == (8, 3, 3)  # type: ignore[attr-defined]
    assert names["xyShiftAngs"].shape == (8, 2)  # type: ignore[attr-defined]
    assert names["confidence"].shape == (8, 1)  # type: ignore[attr-defined]
    assert ((names["confidence"] >= 0) & (names["confidence"] <= 1)).all()  # type: ignore[operator]
    assert all(isinstance(text, str) for text in names["iid"])  # type: ignore[attr-defined]
    assert len(names["metadata"]["rlnDefocusU"]) == 8  # type: ignore[index]
    assert not torch.equal(before, names["model"][1].weight)  # type: ignore[index]


def test_listing_2_saves_the_predictions_of_all_particles(test_entry: Path) -> None:
    from cesped_stream import ParticlesDataset

    dataset = ParticlesDataset("TEST", 0)
    rotations = torch.from_numpy(Rotation.random(len(dataset), random_state=1).as_matrix()).float()
    confidence = torch.linspace(0, 1, len(dataset))[:, None]
    ids = [item[0] for item in dataset]
    predictions = [(ids[i : i + 32], rotations[i : i + 32], confidence[i : i + 32]) for i in (0, 32)]
    exec(LISTING_2, {"dataset": dataset, "predictions": predictions, "torch": torch})
    saved = read_star(Path("predictions.star"))
    assert saved.column("rlnImageName") == ids
    assert angular_error_deg(saved.rotations(), rotations.numpy(), group_rotations("C1")).max() < 0.01
    assert (saved.shifts_angstrom() == 0).all()
    np.testing.assert_allclose(saved.numbers("rlnParticleFigureOfMerit"), confidence[:, 0], atol=1e-6)


def test_the_evaluator_has_the_papers_module_name(capsys: pytest.CaptureFixture[str]) -> None:
    sys.modules.pop("cesped_stream.evaluateEntry", None)
    with pytest.raises(SystemExit) as end:
        runpy.run_module("cesped_stream.evaluateEntry", run_name="__main__")
    assert end.value.code == 2  # no arguments: the parser's own error
    assert "--targetName" in capsys.readouterr().err


@pytest.mark.parametrize("answers", [True, False])
def test_the_embedded_entry_is_first_where_nobody_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(download, "server_answers", lambda: answers)
    first = particlesDataset.ParticlesDataset.getCESPEDEntries()[:3]
    embedded = [] if answers else [("DEMO", 0), ("DEMO", 1)]
    assert first == [*embedded, *particlesDataset.ParticlesDataset.published_entries()][:3]


def test_a_server_that_is_silent_or_absent_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert not download.server_answers(address, within_seconds=0.1)
    assert not download.server_answers(address, within_seconds=0.5)


def test_a_data_set_says_what_it_is(test_entry: Path) -> None:
    said = repr(particlesDataset.ParticlesDataset("TEST", 1))
    for word in ("TEST", "half-set 1", "40 particles", "32 px", " A", "C1", str(test_entry / "particles_1.star")):
        assert word in said
