"""A stream of two optics groups of other boxes and pixel sizes, through the whole daemon, answered by references."""

import json
from pathlib import Path

import numpy as np
from support.optics_groups import SAMPLINGS, of_box, write_two_groups

from cesped_stream.benchmark.replay import TRUTH_NAME
from cesped_stream.particles.star import read_star
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations
from cesped_stream_service.cli import main
from cesped_stream_service.toml import toml_text

from .conftest import QUICK_SERVICE

COUNT, ALIGNED = 300, 400
SETTINGS = {
    "proposer": "gallery",
    "scan_seconds": 0.2,
    "settle_seconds": 0.3,
    "deadline_minutes": 3.0,
    "gallery": {"grid_order": 2, "coarse_order": 1, "keep_fraction": 0.2},
    "referencing": {"mask_lowpass_angstrom": 20.0},
    "inference": {"device": "cpu", "threads": 1},
    "replay": {"first_aligned": ALIGNED, "batch_rows": 50},
    "service": QUICK_SERVICE,
    "reporting": {"write": False},
}


def test_both_groups_are_posed_once_each_with_shifts_in_angstrom(tmp_path: Path) -> None:
    write_two_groups(tmp_path / "project", COUNT)
    root, settings, output = ["--root", str(tmp_path / "root")], tmp_path / "settings.toml", tmp_path / "out"
    settings.write_text(toml_text(SETTINGS))
    star = str(tmp_path / "project" / "both.star")
    assert main(["entries", "add", "two", "--star", star, "--symmetry", "D2", *root]) == 0
    assert main(["entries", "verify", "two", *root]) == 0
    assert main(["replay", "two", *root, "--output", str(output), "--settings", str(settings)]) == 0
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["landed"], summary["unposed"], summary["lost"], summary["doubled"]) == (2 * COUNT, 0, 0, 0)
    assert summary["limit_fraction_within_5_deg"] > 0.9
    found, truth = read_star(output / "poses.star"), read_star(output / "truth" / TRUTH_NAME)
    rows = found.select(np.flatnonzero(np.array(found.column("cestreamStatus")) == "predicted"))
    place = {name: row for row, name in enumerate(truth.column("rlnImageName"))}
    true = truth.select([place[name] for name in rows.column("rlnImageName")])
    errors = angular_error_deg(true.rotations(), rows.rotations(), group_rotations("D2"))
    moved = rows.shifts_angstrom() - true.shifts_angstrom()
    for box, pixel_size in SAMPLINGS.values():
        own = of_box(rows, box)
        assert own.sum() >= 40
        assert {group.pixel_size_angstrom for group in rows.select(np.flatnonzero(own)).optics} >= {pixel_size}
        assert np.median(errors[own]) < 2.0
        assert np.median(np.abs(moved[own])) < 1.5
