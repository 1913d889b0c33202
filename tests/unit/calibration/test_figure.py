"""The picture of reliability."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from cesped_stream.calibration.figure import draw_reliability, save_reliability


def cases(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probability = rng.beta(2, 1, 3000)
    return probability, rng.random(3000) < probability


def test_the_figure_says_what_it_shows(tmp_path: Path) -> None:
    probability, right = cases(0)
    few = (probability[:300] ** 0.2, right[:300])
    save_reliability({"all": (probability, right), "overconfident": few}, 5.0, tmp_path / "reliability.png")
    assert imread(tmp_path / "reliability.png").shape[2] == 4
    labels = [text.get_text() for text in draw_reliability({"all": (probability, right)}, 5.0).axes[0].texts]
    legend = draw_reliability({"few": few}, 5.0).axes[0].get_legend()
    assert legend is not None
    words = " ".join(text.get_text() for text in legend.get_texts())
    assert "n 300" in words
    assert "few: chance" in words
    assert labels == []


def test_no_case_and_more_than_six_are_refused() -> None:
    with pytest.raises(ValueError, match="0 cases"):
        draw_reliability({}, 5.0)
    with pytest.raises(ValueError, match="7 cases"):
        draw_reliability({str(k): cases(k) for k in range(7)}, 5.0)
