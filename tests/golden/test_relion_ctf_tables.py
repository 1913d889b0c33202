"""relion_project is the oracle of which table a value of the CTF comes from."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from samples.stars import ctf_star

from cesped_stream.imaging.ctf import ctf
from cesped_stream.imaging.maps import write_map
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.star import read_star

pytestmark = [
    pytest.mark.relion,
    pytest.mark.skipif(shutil.which("relion_project") is None, reason="relion_project is not on PATH"),
]

BOX = 32
POSE = {"rlnAngleRot": "10", "rlnAngleTilt": "40", "rlnAnglePsi": "70"}
PARTICLE = {
    **{"rlnVoltage": "200", "rlnSphericalAberration": "1.4", "rlnAmplitudeContrast": "0.3", "rlnPhaseShift": "70"},
    **{"rlnCtfBfactor": "40", "rlnCtfScalefactor": "0.5"},
    **{"rlnDefocusU": "9000", "rlnDefocusV": "7000", "rlnDefocusAngle": "20"},
}
GROUP = {
    **{"rlnVoltage": "120", "rlnSphericalAberration": "2.7", "rlnAmplitudeContrast": "0.1", "rlnPhaseShift": "30"},
    **{"rlnCtfBfactor": "90", "rlnCtfScalefactor": "1.5"},
    **{"rlnDefocusU": "12000", "rlnDefocusV": "5000", "rlnDefocusAngle": "65"},
}
ASKED_OF_OPTICS = {label: GROUP[label] for label in ("rlnVoltage", "rlnSphericalAberration")}
"""RELION 3.1.3 reads no star whose data_optics lacks these."""


def without(values: dict[str, str], *labels: str) -> dict[str, str]:
    return {label: text for label, text in values.items() if label not in labels}


CASES = {
    "all of the particle": (PARTICLE, ASKED_OF_OPTICS),
    "all of the group": ({}, GROUP),
    "all of both": (PARTICLE, GROUP),
    **{f"{label} of the group": (without(PARTICLE, label), ASKED_OF_OPTICS | {label: GROUP[label]}) for label in GROUP},
    **{f"{label} of the particle": ({label: PARTICLE[label]}, GROUP) for label in GROUP},
    "no phase shift, B-factor and scale": (
        without(PARTICLE, "rlnPhaseShift", "rlnCtfBfactor", "rlnCtfScalefactor"),
        ASKED_OF_OPTICS,
    ),
}


def projected(folder: Path, *options: str) -> np.ndarray:
    program = ["relion_project", "--i", "map.mrc", "--o", "out", "--ang", "p.star", *options]
    subprocess.run(program, cwd=folder, capture_output=True, timeout=60, check=True)
    return StackReader().read(folder / "out.mrcs", [0])[0][0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ctf_tables")
    rng = np.random.default_rng(0)
    volume = rng.normal(size=(BOX, BOX, BOX))
    # Density in the middle alone, so that the CTF folds nothing over the edge.
    away = np.linalg.norm(np.mgrid[:BOX, :BOX, :BOX] - BOX // 2, axis=0)
    write_map(folder / "map.mrc", (volume * np.exp(-((away / 4) ** 2))).astype(np.float32), 3.0)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_ctf_of_either_table_is_relions(case: str, folder: Path) -> None:
    row, group = CASES[case]
    (folder / "p.star").write_bytes(ctf_star(row | POSE, group))
    with_ctf, plain = projected(folder, "--ctf"), projected(folder)
    parameters = read_star(folder / "p.star").select([0]).ctf_parameters()
    transfer = ctf(parameters, BOX)[0].numpy()
    ours = np.fft.irfft2(np.fft.rfft2(plain) * transfer, s=(BOX, BOX))
    assert np.corrcoef(ours.ravel(), with_ctf.ravel())[0, 1] > 0.999
    factor = abs((ours * with_ctf).sum() / (with_ctf**2).sum())
    assert factor == pytest.approx(1.0, abs=0.01)
