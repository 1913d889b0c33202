"""The inference benchmark measures what it says, on a tiny preset."""

import json
import os
from pathlib import Path

import pytest
import torch
from samples.models import TINY

from cesped_stream.benchmark import bench_infer
from cesped_stream.benchmark.bench_infer import figures_table, measure_preset, peak_memory_bytes
from cesped_stream.settings import MODEL_PRESETS, InferenceSettings, PreprocessSettings


def test_every_stage_has_a_rate_and_the_whole_is_slower_than_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODEL_PRESETS, "tiny", (TINY, PreprocessSettings(image_size=32)))
    monkeypatch.setitem(bench_infer.BOX_PIXELS, "tiny", 48)
    figures = measure_preset("tiny", InferenceSettings(batch_size=16, device="cpu"), 64)
    rates = (figures.backbone_per_second, figures.head_per_second)
    assert min(rates) > 0 and figures.pipeline_per_second > 0
    assert figures.predict_per_second < max(rates)
    assert 10_000_000 < figures.peak_memory_bytes <= peak_memory_bytes()
    assert (figures.num_particles, figures.batch_size, figures.box_pixels) == (64, 16, 48)
    table = figures_table([figures, figures])
    assert table.splitlines()[0].split() == ["preset", "tiny", "tiny"]
    assert f"{figures.pipeline_per_second:.1f}" in table
    assert json.loads(figures.model_dump_json())["device"] == "cpu"


def test_peak_memory_counts_what_was_allocated_and_freed() -> None:
    before = peak_memory_bytes()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    beyond = 50_000_000
    block = torch.ones((before - resident + beyond) // 4)
    del block
    assert before + 0.9 * beyond < peak_memory_bytes() < before + 1.5 * beyond


def test_a_measurement_that_fails_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="preset absent"):
        next(bench_infer.bench_infer(["absent"], InferenceSettings(device="cpu"), 1))


@pytest.mark.slow
def test_paper_preset_infers_batches_of_32_within_2_5_gb_and_builds_within_5_cpu_seconds() -> None:
    settings = InferenceSettings(batch_size=32, device="cpu", threads=2)
    (figures,) = bench_infer.bench_infer(["paper"], settings, 32)
    assert figures.peak_memory_bytes <= 2.5e9
    assert figures.build_cpu_seconds <= 5
