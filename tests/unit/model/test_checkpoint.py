"""Checkpoints: whole or absent, named by content, verified before use."""

import json
import os
from pathlib import Path

import pytest
import torch
from samples.models import TINY

from cesped_stream import durable, published
from cesped_stream.errors import InvalidCheckpointError, UnreachableFileError
from cesped_stream.model.checkpoint import (
    CheckpointManifest,
    HalfRecord,
    load_checkpoint,
    publish_checkpoint,
    read_manifest,
)
from cesped_stream.model.image2sphere import Image2Sphere
from cesped_stream.settings import PreprocessSettings, TrainingSettings

CPU = torch.device("cpu")


def _manifest(**changes: object) -> CheckpointManifest:
    fields = {
        "preset": "small",
        "model": TINY,
        "preprocess": PreprocessSettings(image_size=16),
        "network_pixel_size_angstrom": 8.0,
        "symmetry": "C1",
        "halves": {half: HalfRecord(num_training=10, num_validation=2, steps=3) for half in (0, 1)},
        "origin": "random",
        "independence": "independent",
        "stopped_by": "steps",
        "training": TrainingSettings(),
    }
    return CheckpointManifest(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def states() -> dict[int, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    return {half: Image2Sphere(TINY).state_dict() for half in (0, 1)}


States = dict[int, dict[str, torch.Tensor]]


def test_what_was_published_is_what_is_loaded(tmp_path: Path, states: States) -> None:
    folder, manifest = publish_checkpoint(tmp_path, _manifest(), states)
    loaded = load_checkpoint(folder, device=CPU)
    assert loaded.manifest == manifest == read_manifest(folder)
    assert folder == tmp_path / manifest.checkpoint_id
    for half in (0, 1):
        assert not loaded.models[half].training
        for name, tensor in loaded.models[half].state_dict().items():
            assert torch.equal(tensor, states[half][name])


def test_equal_contents_have_equal_ids_and_other_contents_others(tmp_path: Path, states: States) -> None:
    first = publish_checkpoint(tmp_path / "a", _manifest(), states)[1]
    assert publish_checkpoint(tmp_path / "b", _manifest(), states)[1] == first
    assert publish_checkpoint(tmp_path / "b", _manifest(), states)[1] == first
    swapped = publish_checkpoint(tmp_path / "b", _manifest(), {0: states[1], 1: states[0]})[1]
    other = publish_checkpoint(tmp_path / "b", _manifest(symmetry="C2"), states)[1]
    assert len({first.checkpoint_id, swapped.checkpoint_id, other.checkpoint_id}) == 3
    assert (tmp_path / "a" / first.checkpoint_id / "half_0.safetensors").read_bytes() == (
        tmp_path / "b" / first.checkpoint_id / "half_0.safetensors"
    ).read_bytes()
    assert sorted(os.listdir(tmp_path / "b")) == sorted(m.checkpoint_id for m in (first, swapped, other))


def test_killed_at_any_step_it_leaves_no_visible_folder_and_the_next_try_succeeds(
    tmp_path: Path, states: States, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"left": 0}
    whole, rename = durable.write_whole, durable.rename_durably

    def dying(action):  # type: ignore[no-untyped-def]
        def act(*args: object) -> None:
            if calls["left"] == 0:
                raise KeyboardInterrupt
            calls["left"] -= 1
            action(*args)

        return act

    monkeypatch.setattr(published, "write_whole", dying(whole))
    monkeypatch.setattr(published, "rename_durably", dying(rename))
    for survived in range(4):
        calls["left"] = survived
        with pytest.raises(KeyboardInterrupt):
            publish_checkpoint(tmp_path, _manifest(), states)
        assert all(name.startswith(".") for name in os.listdir(tmp_path))
    calls["left"] = 4
    folder, _ = publish_checkpoint(tmp_path, _manifest(), states)
    assert os.listdir(tmp_path) == [folder.name]
    load_checkpoint(folder, device=CPU)


def test_gold_standard_uses_the_own_half_and_cross_half_the_other(tmp_path: Path, states: States) -> None:
    loaded = load_checkpoint(publish_checkpoint(tmp_path, _manifest(), states)[0], device=CPU)
    for half in (0, 1):
        assert loaded.model_for(half, "gold_standard") is loaded.models[half]
        assert loaded.model_for(half, "cross_half") is loaded.models[1 - half]
    with pytest.raises(ValueError, match="half_set is 2"):
        loaded.model_for(2, "gold_standard")


def test_a_changed_byte_is_refused_before_the_file_is_read(tmp_path: Path, states: States) -> None:
    folder, _ = publish_checkpoint(tmp_path, _manifest(), states)
    path = folder / "half_1.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InvalidCheckpointError, match=r"half_1\.safetensors: its sha256"):
        load_checkpoint(folder, device=CPU)


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"symmetry": "C2"}, "it was edited"),
        ({"surprise": 1}, "surprise: Extra inputs"),
        ({"network_pixel_size_angstrom": -1}, "network_pixel_size_angstrom"),
    ],
)
def test_an_edited_manifest_is_refused(
    tmp_path: Path, states: States, changes: dict[str, object], message: str
) -> None:
    folder, _ = publish_checkpoint(tmp_path, _manifest(), states)
    _edit(folder, **changes)
    with pytest.raises(InvalidCheckpointError, match=message):
        load_checkpoint(folder, device=CPU)


def test_a_manifest_that_points_outside_its_folder_is_refused(tmp_path: Path, states: States) -> None:
    folder, manifest = publish_checkpoint(tmp_path, _manifest(), states)
    halves = {**manifest.halves, 0: manifest.halves[0].model_copy(update={"file": "../half_0.safetensors"})}
    forged = manifest.model_copy(update={"halves": halves})
    forged = forged.model_copy(update={"checkpoint_id": forged.content_id()})
    (folder / "manifest.json").write_text(forged.model_dump_json())
    with pytest.raises(InvalidCheckpointError, match="not a file inside the folder"):
        load_checkpoint(folder, device=CPU)


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path, states: States) -> None:
    wider = _manifest(model=TINY.model_copy(update={"s2_channels": 3}))
    folder, _ = publish_checkpoint(tmp_path, wider, states)
    with pytest.raises(InvalidCheckpointError, match=r"half_0\.safetensors: .*other model settings"):
        load_checkpoint(folder, device=CPU)


def test_a_folder_without_manifest_or_weights_is_unreachable(tmp_path: Path, states: States) -> None:
    with pytest.raises(UnreachableFileError, match=r"manifest\.json"):
        load_checkpoint(tmp_path, device=CPU)
    folder, _ = publish_checkpoint(tmp_path, _manifest(), states)
    (folder / "half_0.safetensors").unlink()
    with pytest.raises(UnreachableFileError, match=r"half_0\.safetensors"):
        load_checkpoint(folder, device=CPU)


def test_both_halves_are_needed_to_publish(tmp_path: Path, states: States) -> None:
    with pytest.raises(ValueError, match="train both"):
        publish_checkpoint(tmp_path, _manifest(), {0: states[0]})
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_names_no_data_keeps_the_id_it_had_before_it_could(tmp_path: Path, states: States) -> None:
    folder, manifest = publish_checkpoint(tmp_path, _manifest(), states)
    file = folder / "manifest.json"
    older = json.loads(file.read_text())
    assert older.pop("trained_on") == ""
    file.write_text(json.dumps(older))
    assert read_manifest(folder) == manifest
    named, its = publish_checkpoint(tmp_path, _manifest(trained_on="10166"), states)
    assert its.checkpoint_id != manifest.checkpoint_id
    assert read_manifest(named).trained_on == "10166"
