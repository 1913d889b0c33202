"""`train --proposer gallery` and `infer` with what it publishes: no session."""

from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from support.matching import PIXEL_SIZE, molecule

from cesped_stream.errors import InvalidSettingsError, InvalidStarError, PermanentError
from cesped_stream.imaging.entry import write_entry
from cesped_stream.imaging.maps import write_map
from cesped_stream.particles.star import read_star, write_star
from cesped_stream.reference_pair import read_reference_manifest
from cesped_stream.settings import SimulationSettings
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations
from cesped_stream_service import tools
from cesped_stream_service.finished import joined
from cesped_stream_service.process import StopRequest
from cesped_stream_service.settings import InferCommand, TrainCommand

POSE = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")
SETTINGS = {
    "gallery": {"grid_order": 2, "coarse_order": 1, "keep_fraction": 0.2},
    "referencing": {"mask_lowpass_angstrom": 20.0},
    "inference": {"device": "cpu", "threads": 1},
}


def test_train_makes_references_and_infer_answers_with_shifts(tmp_path: Path) -> None:
    settings = SimulationSettings(num_particles=400, snr=0.5, symmetry="D2", seed=5, particles_per_micrograph=20)
    write_entry(tmp_path, molecule("D2"), PIXEL_SIZE, settings)
    halves = [read_star(tmp_path / f"particles_{half}.star") for half in (0, 1)]
    write_star(tmp_path / "aligned.star", joined([half.select(range(160)) for half in halves]))
    write_star(tmp_path / "new.star", joined([half.select(range(160, 190)) for half in halves]))
    console = Console(file=StringIO())
    train = TrainCommand(
        proposer="gallery", star=tmp_path / "aligned.star", output=tmp_path / "published",
        training={"symmetry": "D2"}, **SETTINGS,
    )  # fmt: skip
    folder = tools.train(train, StopRequest(), console)
    assert folder.name.startswith("ref-")
    infer = InferCommand(checkpoint=folder, star=tmp_path / "new.star", output=tmp_path / "posed.star", **SETTINGS)
    tools.infer(infer, console)
    true, found = read_star(tmp_path / "new.star"), read_star(tmp_path / "posed.star")
    assert set(found.column("cestreamProposer")) == {"gallery+refinement"}
    assert set(found.column("cestreamCheckpoint")) == {folder.name}
    assert np.median(angular_error_deg(true.rotations(), found.rotations(), group_rotations("D2"))) < 2.5
    assert np.sqrt(((true.shifts_angstrom() - found.shifts_angstrom()) ** 2).mean()) < 0.4 * PIXEL_SIZE

    _spoil(tmp_path / "new.star", tmp_path / "spoilt.star")
    said = Console(file=StringIO())
    outputs = {"star": tmp_path / "spoilt.star", "output": tmp_path / "others.star"}
    tools.infer(infer.model_copy(update=outputs), said)
    others, unposed = read_star(tmp_path / "others.star"), read_star(tmp_path / "others_unposed.star")
    for label in ("rlnImageName", *POSE, "cestreamConfidence"):
        assert others.column(label) == found.column(label)[3:]
    by_image = dict(zip(unposed.column("rlnImageName"), unposed.column("cestreamStatus"), strict=True))
    names = true.column("rlnImageName")
    away = names[0].partition("@")[0] + "@away.mrcs"
    beyond = "900000@" + names[2].partition("@")[2]
    assert by_image == {away: "unreadable", names[1]: "no_ctf", beyond: "unreadable"}
    text = said.file.getvalue()  # type: ignore[attr-defined]
    assert "3 particles (1 no_ctf, 2 unreadable)" in text
    assert f"row 1 ({away}): " in text and "row 3 (900000@" in text and "asks for 900000" in text

    write_star(tmp_path / "half.star", halves[0].select(range(160, 164)))
    said = Console(file=StringIO())
    tools.infer(infer.model_copy(update={"star": tmp_path / "half.star", "output": tmp_path / "half_posed.star"}), said)
    assert "half.star: all 4 rows have rlnRandomSubset 1 and none 2" in said.file.getvalue()  # type: ignore[attr-defined]
    write_star(tmp_path / "half.star", halves[0].select(range(160)))
    with pytest.raises(InvalidStarError, match=r"half\.star: all 160 rows have rlnRandomSubset 1 and none 2"):
        tools.train(train.model_copy(update={"star": tmp_path / "half.star"}), StopRequest(), console)

    before = (tmp_path / "posed_unposed.star").write_bytes((tmp_path / "new.star").read_bytes())
    for star, output in (("new.star", "new.star"), ("posed_unposed.star", "posed.star")):
        with pytest.raises(InvalidSettingsError, match="would replace the input star"):
            tools.infer(infer.model_copy(update={"star": tmp_path / star, "output": tmp_path / output}), console)
    assert (tmp_path / "posed_unposed.star").stat().st_size == before

    again = infer.model_copy(update={"star": tmp_path / "aligned.star"})
    with pytest.raises(PermanentError, match="in the reference"):
        tools.infer(again, console)


def _spoil(star: Path, output: Path) -> None:
    """Write a star whose first row's stack is away, whose second has no CTF, and whose third is not in its stack."""
    table = read_star(star)
    names, bfactor = table.column("rlnImageName"), ["0.0"] * len(table)
    names[0] = names[0].partition("@")[0] + "@away.mrcs"
    bfactor[1] = "-10000000.0"
    names[2] = "900000@" + names[2].partition("@")[2]
    write_star(output, table.with_columns({"rlnImageName": names, "rlnCtfBfactor": bfactor}))


def test_a_map_of_an_earlier_session_answers_without_aligned_rows_and_says_that_it_is_shared(tmp_path: Path) -> None:
    settings = SimulationSettings(num_particles=240, snr=0.5, symmetry="D2", seed=6, particles_per_micrograph=20)
    write_entry(tmp_path, molecule("D2"), PIXEL_SIZE, settings)
    truth = joined([read_star(tmp_path / f"particles_{half}.star") for half in (0, 1)])
    write_map(tmp_path / "earlier.mrc", molecule("D2"), PIXEL_SIZE)
    write_star(tmp_path / "landed.star", truth.without(POSE))
    console = Console(file=StringIO())
    train = TrainCommand(
        proposer="gallery", reference=tmp_path / "earlier.mrc", star=tmp_path / "landed.star",
        output=tmp_path / "published", training={"symmetry": "D2"}, **SETTINGS,
    )  # fmt: skip
    folder = tools.train(train, StopRequest(), console)
    manifest = read_reference_manifest(folder)
    assert (manifest.independence, manifest.origin) == ("shared_reference", "a given map")
    infer = InferCommand(checkpoint=folder, star=tmp_path / "landed.star", output=tmp_path / "posed.star", **SETTINGS)
    tools.infer(infer, console)
    found = read_star(tmp_path / "posed.star")
    assert np.median(angular_error_deg(truth.rotations(), found.rotations(), group_rotations("D2"))) < 4.0

    with pytest.raises(InvalidSettingsError, match="reference"):
        tools.train(train.model_copy(update={"proposer": "network"}), StopRequest(), console)


def test_train_takes_neither_own_predictions_nor_2d_classes_and_says_what_it_was_told_to_take(tmp_path: Path) -> None:
    settings = SimulationSettings(num_particles=400, snr=0.5, symmetry="D2", seed=5, particles_per_micrograph=20)
    write_entry(tmp_path, molecule("D2"), PIXEL_SIZE, settings)
    truth = joined([read_star(tmp_path / f"particles_{half}.star").select(range(160)) for half in (0, 1)])
    count, console = len(truth), Console(file=StringIO())
    star = tmp_path / "aligned.star"
    train = TrainCommand(
        proposer="gallery", star=star, output=tmp_path / "published",
        training={"symmetry": "D2", "alignment": "independent"}, **SETTINGS,
    )  # fmt: skip
    write_star(star, truth.with_columns({"rlnAngleTilt": ["0.0"] * count}))
    with pytest.raises(InvalidStarError, match=r"rlnAngleTilt is 0 in all 320 rows"):
        tools.train(train, StopRequest(), console)
    write_star(star, truth.with_columns({"cestreamStatus": ["given"] * 20 + ["predicted"] * (count - 20)}))
    with pytest.raises(InvalidStarError, match=r"300 of 320 rows .*first is row 21.*--allow_own_predictions"):
        tools.train(train, StopRequest(), console)
    told = train.model_copy(update={"allow_own_predictions": True})
    manifest = read_reference_manifest(tools.train(told, StopRequest(), console))
    assert (manifest.independence, manifest.initialised_from_own_predictions) == ("unknown", 300)
    assert "predictions of this program" in console.file.getvalue()  # type: ignore[attr-defined]

    write_star(tmp_path / "empty.star", truth.select([]))
    infer = InferCommand(
        checkpoint=tmp_path / "published" / manifest.checkpoint_id, star=tmp_path / "empty.star",
        output=tmp_path / "posed.star", **SETTINGS,
    )  # fmt: skip
    tools.infer(infer, console)
    assert "has no particle row" in console.file.getvalue()  # type: ignore[attr-defined]
    assert len(read_star(tmp_path / "posed.star")) == 0
