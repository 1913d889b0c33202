"""The benchmark of poses: its figures are of the work they name, and its limits are measured, not assumed."""

import json
import re
from pathlib import Path

import pytest

from cesped_stream.benchmark.bench_limits import (
    cached_share,
    disk_bytes_per_second,
    drop_from_page_cache,
)
from cesped_stream.benchmark.bench_poses import PoseFigures, poses_table
from cesped_stream_service.cli import main

STAGES = ("read", "transform", "gallery", "refinement")


def rate(per_second: float) -> dict[str, float]:
    return {"per_second": per_second, "cpu_ms": 1500 / per_second}


def figures(**changes: object) -> PoseFigures:
    values: dict[str, object] = {"box_pixels": 64, "pixel_size_angstrom": 6.0, "symmetry": "D2", "device": "cpu"}
    values |= {"threads": 2, "num_particles": 256, "resolution_angstrom": 12.6, "num_views": 9216}
    values |= {"num_coefficients": 970, "gallery_mflop": 100.0, "cached_share": 0.0}
    values |= {"read": rate(3e4), "transform": rate(6e3), "gallery": rate(400.0), "refinement": rate(500.0)}
    values |= {"poses": rate(200.0), "network": rate(900.0), "network_poses": rate(700.0)}
    values |= {"disk_bytes_per_second": 1e9, "product_flop_per_second": 8e10}
    return PoseFigures.model_validate(values | changes)


def test_limits_are_shares_of_the_disk_and_of_a_large_product() -> None:
    assert figures().bytes_per_second == 200 * 64 * 64 * 4
    assert figures().disk_share == pytest.approx(200 * 16384 / 1e9)
    assert figures().product_share == pytest.approx(400 * 100e6 / 8e10)
    assert {"disk_share", "product_share"} < set(figures().model_dump())


def test_table_has_a_column_a_case_and_says_what_the_page_cache_held() -> None:
    text = poses_table([figures(), figures(box_pixels=128, symmetry="C1")])
    assert "dropped from the page cache" in text
    rows_of = {line[:28].strip(): line[28:].split() for line in text.splitlines()[4:]}
    assert rows_of["symmetry"] == ["D2", "C1"]
    assert rows_of["acquired box, pixels"] == ["64", "128"]
    assert rows_of["gallery"] == ["400;", "3.75", "400;", "3.75"]
    assert rows_of["gallery, MFLOP a particle"] == ["100", "100"]
    assert rows_of["of a large product's rate"] == ["50%", "50%"]
    assert "40% of a stack stayed in the page cache" in poses_table([figures(cached_share=0.4)])


def test_command_measures_every_stage_of_a_small_case(capsys: pytest.CaptureFixture[str]) -> None:
    words = "bench poses --boxes 24 --symmetries D2 --particles 24 --resolution-angstrom 40 --snr 1 --threads 1"
    assert main([*words.split(), "--device", "cpu", "--disk-mib", "1", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    for name in (*STAGES, "poses", "network", "network_poses"):
        assert found[name]["per_second"] > 0 and found[name]["cpu_ms"] > 0, name
    assert found["poses"]["cpu_ms"] > max(found[stage]["cpu_ms"] for stage in STAGES)
    assert (found["box_pixels"], found["symmetry"], found["num_views"]) == (24, "D2", 9216)
    assert found["resolution_angstrom"] == pytest.approx(40.0, rel=0.1)
    assert 0 < found["product_share"] < 1.5


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("poses --boxes 64,8", "--boxes: got '8': .* greater than or equal to 16"),
        ("poses --boxes sixty", "--boxes: got 'sixty'"),
        ("poses --symmetries C1,Q2", "--symmetries: got 'Q2'"),
        ("poses --particles 0", "--particles: got '0'"),
        ("poses --device tpu", "--device: got 'tpu': .*'auto', 'cuda' or 'cpu'"),
        ("infer --batch-size 0", "--batch-size: got '0'"),
        ("infer --preset large", "--preset: got 'large'"),
        ("dataset --box 100000", "--box: got '100000': .* less than or equal to 1024"),
        ("dataset --workers -1", "--workers: got '-1'"),
        ("reconstruct --repeats 0", "--repeats: got '0'"),
        ("reconstruct --symmetry X", "--symmetry: got 'X'"),
    ],
)
def test_options_out_of_bounds_are_refused_before_anything_is_measured(
    words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1
    assert re.search(told, err), err


def test_help_tells_bounds_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "poses", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Acquired boxes in pixels. 16 to 1024. Default: 64,128,256." in text
    assert "--device auto|cuda|cpu" in text
    assert "cesped-stream bench poses --device cuda" in text


def test_page_cache_is_asked_and_not_assumed(tmp_path: Path) -> None:
    path = tmp_path / "stack"
    path.write_bytes(bytes(1 << 20))
    path.read_bytes()
    assert cached_share(path) == 1.0
    assert drop_from_page_cache(path) == cached_share(path)


def test_disk_rate_leaves_no_file(tmp_path: Path) -> None:
    assert disk_bytes_per_second(tmp_path, 3_000_000) > 0
    assert list(tmp_path.iterdir()) == []
