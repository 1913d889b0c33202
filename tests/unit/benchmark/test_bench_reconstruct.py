"""The benchmark of the reconstruction: that its figures are of the work it names."""

import json
import shutil
from pathlib import Path

import pytest

from cesped_stream.benchmark.bench_reconstruct import ReconstructionFigures, figures_table, reconstruct_half
from cesped_stream.imaging.entry import write_entry
from cesped_stream.imaging.maps import read_map
from cesped_stream.imaging.simulate import embedded_ribosome, molecule_to_map
from cesped_stream.reconstruction.correlation import pearson
from cesped_stream.settings import SimulationSettings
from cesped_stream_service.cli import main


def figures(**changes: object) -> ReconstructionFigures:
    values = {"num_particles": 4000, "box_pixels": 64, "symmetry": "C1", "device": "cpu", "threads": 2, "repeats": 3}
    values |= {"builtin_seconds": 0.5, "builtin_process_seconds": 3.0, "builtin_cold_seconds": 6.0}
    values |= {"relion_skip_gridding_seconds": 0.8, "relion_default_seconds": 2.8, "smallest_fsc": 0.9999}
    values |= {"correlation": 0.99995, "default_correlation": 0.98, "peak_memory_bytes": 10**9}
    return ReconstructionFigures.model_validate(values | changes)


def test_ratio_compares_with_relion_without_gridding() -> None:
    assert figures().ratio == pytest.approx(0.625)
    assert "0.62" in figures_table(figures())
    assert figures(relion_skip_gridding_seconds=None).ratio is None


def test_measured_work_writes_the_map_of_the_half_set(tmp_path: Path) -> None:
    volume = molecule_to_map(*embedded_ribosome(), 24, 16.0, 32.0)
    write_entry(tmp_path, volume, 16.0, SimulationSettings(num_particles=400, snr=1.0))
    reconstruct_half(tmp_path, "C1", "cpu", tmp_path / "made.mrc")
    made, pixel_size = read_map(tmp_path / "made.mrc")
    assert pixel_size == pytest.approx(16.0)
    assert pearson(made, volume) > 0.9


@pytest.mark.relion
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("relion_reconstruct") is None, reason="relion_reconstruct is not on PATH")
def test_command_measures_both_and_they_agree(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--particles", "200", "--box-size", "32", "--repeats", "1", "--device", "cpu", "--json"]
    assert main(["bench", "reconstruct", *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["smallest_fsc"] > 0.999
    assert said["correlation"] > 0.999
    assert min(said["builtin_cold_seconds"], said["builtin_process_seconds"]) > said["builtin_seconds"] > 0
    assert said["ratio"] == pytest.approx(said["builtin_seconds"] / said["relion_skip_gridding_seconds"])
