"""Settings that contradict each other are refused where they are read, not where they are first used."""

from typing import Any

import pytest
from pydantic import ValidationError

from cesped_stream.settings import CalibrationSettings, FusionSettings, GallerySettings, Settings


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (GallerySettings, {"coarse_order": 4}, "coarse_order 4 is above grid_order 3"),
        (GallerySettings, {"grid_order": 1}, "coarse_order 2 is above grid_order 1"),
        (CalibrationSettings, {"min_particles": 700}, "min_particles 700 is above max_particles 600"),
        (
            CalibrationSettings,
            {"max_particles": 3000, "max_fused_particles": 400},
            "min_particles 500 is above max_fused_particles 400",
        ),
        (FusionSettings, {"max_particles": 50}, "min_particles 100 is above max_particles 50"),
    ],
)
def test_a_contradiction_is_refused_at_once(kind: type[Settings], values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        kind(**values)


def test_equal_ones_are_none() -> None:
    GallerySettings(coarse_order=3)
    FusionSettings(max_particles=100)
