"""Every demo configuration resolves: no key is unknown, no value out of range, and a training can start."""

from pathlib import Path

import pytest

from cesped_stream_service.resolve import resolve
from cesped_stream_service.stream_settings import DemoCommand

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


@pytest.mark.parametrize("name", ["demo.toml", "demo-short.toml", "demo-gallery.toml"])
def test_a_demo_configuration_resolves_and_leaves_rows_to_stream(name: str) -> None:
    settings = resolve(DemoCommand, {"output": "somewhere"}, CONFIGS / name)
    assert 2 * settings.min_aligned_per_half <= settings.replay.first_aligned < settings.simulate.num_particles
    assert settings.output == Path("somewhere")
    assert settings.training.preset == "small"
