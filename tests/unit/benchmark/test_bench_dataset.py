"""The bench of data sets measures every way of asking."""

import json

import pytest

from cesped_stream_service.cli import main


def test_bench_gives_a_rate_for_every_way(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "dataset", "--particles", "24", "--box", "32", "--image-size", "24", "--batch-size", "8"]
    assert main([*words, "--device", "cpu", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert [f["compatible"] for f in figures] == ["cesped", "None"]
    for figure in figures:
        assert figure["image_pixels"] == 24
        assert min(figure[f"{way}_per_second"] for way in ("items", "loader", "batches")) > 0
    assert main([*words, "--device", "cpu"]) == 0
    assert "24 images, 32 -> 24 px" in capsys.readouterr().out
