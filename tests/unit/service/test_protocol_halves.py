"""`protocol` on a star of one half-set says so before anything is trained."""

from pathlib import Path

import numpy as np
import pytest
from samples.record_server import table_of

from cesped_stream.particles.stacks import write_stack
from cesped_stream.particles.star import write_star
from cesped_stream_service.cli import main


def test_a_star_of_one_half_set_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_stack(tmp_path / "a.mrcs", np.random.default_rng(0).random((4, 16, 16), np.float32), 1.5)
    write_star(tmp_path / "one.star", table_of(0, 4, 16, "a.mrcs"))
    words = ["protocol", str(tmp_path / "one.star"), "--output", str(tmp_path / "out"), "--training.symmetry", "C1"]
    assert main(words) == 2
    assert "one.star: all 4 rows have rlnRandomSubset 1 and none 2" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.star")) and not (tmp_path / "out" / "checkpoints").exists()
