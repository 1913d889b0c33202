"""Beta-galactosidase by relion_project, added as an entry, streamed through the daemon, answered by references."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.relion_particles import SYMMETRY, Acquisition, betagal, write_particles

from cesped_stream.particles.star import read_star
from cesped_stream_service.cli import main

ALIGNED, STREAMED = 2500, 2100
FIRST = Acquisition()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.relion,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("relion_project") is None, reason="relion_project is not on PATH"),
]


@pytest.mark.parametrize(("snr", "largest_median_deg", "least_within_5_deg"), [(0.68, 1.6, 0.98), (0.2, 2.9, 0.86)])
def test_a_streamed_entry_of_relions_projections_gets_its_poses(
    test_data: Path, tmp_path: Path, snr: float, largest_median_deg: float, least_within_5_deg: float
) -> None:
    map_file = test_data / "betagal" / "map.mrc"
    write_particles(tmp_path / "project", map_file, FIRST, count=ALIGNED + STREAMED, snr=snr, seed=21)
    root, output = ["--root", str(tmp_path / "root")], tmp_path / "out"
    star = str(tmp_path / "project" / f"{FIRST.name}.star")
    assert main(["entries", "add", "betagal", "--star", star, "--symmetry", SYMMETRY, *root]) == 0
    assert main(["entries", "verify", "betagal", *root]) == 0
    first = ["--replay.first_aligned", str(ALIGNED), "--replay.rate", "45"]
    assert main(["replay", "betagal", *root, "--output", str(output), "--proposer", "gallery", *first]) == 0
    found = json.loads((output / "summary.json").read_text())
    shift_px = found["refined_shift_error_angstrom"] / betagal(map_file, FIRST)[1]
    print(_told(snr, found, shift_px))
    assert (found["aligned"], found["inferred"], found["unposed"]) == (ALIGNED, STREAMED, 0)
    assert (found["lost"], found["doubled"], found["foreign"]) == (0, 0, 0)
    assert len(set(read_star(output / "poses.star").column("rlnImageName"))) == ALIGNED + STREAMED
    assert found["refined_median_angular_error_deg"] <= largest_median_deg
    assert found["refined_fraction_within_5_deg"] >= least_within_5_deg
    assert shift_px <= 0.3
    # What the noise itself allows, from the true poses, is all but reached.
    assert found["refined_median_angular_error_deg"] <= 1.05 * found["limit_median_angular_error_deg"]
    assert found["refined_fraction_within_5_deg"] >= found["limit_fraction_within_5_deg"] - 0.02


def _told(snr: float, found: dict[str, Any], shift_px: float) -> str:
    return (
        f"SNR {snr}: refined {found['refined_median_angular_error_deg']:.2f} deg median, "
        f"{found['refined_fraction_within_5_deg']:.1%} within 5; from the true poses "
        f"{found['limit_median_angular_error_deg']:.2f} deg, {found['limit_fraction_within_5_deg']:.1%}; gallery alone "
        f"{found['gallery_median_angular_error_deg']:.2f} deg; shifts {shift_px:.2f} px; first pose "
        f"{found['first_pose_seconds']:.0f} s after the aligned rows; latency p50 / p95 "
        f"{found['latency_p50_seconds']:.1f} / {found['latency_p95_seconds']:.1f} s; worker "
        f"{found['particles_per_second']:.0f} particles/s"
    )
