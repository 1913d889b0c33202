"""A stack written chunk by chunk."""

from pathlib import Path

import mrcfile
import numpy as np
import pytest

from cesped_stream.particles.stack_writer import StackWriter
from cesped_stream.particles.stacks import StackReader, read_header


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(3, 2, (count, 10, 10)).astype(np.float32)


def test_chunks_become_one_valid_stack(tmp_path: Path) -> None:
    with StackWriter(tmp_path / "a.mrcs", 10, 1.5) as writer:
        for count in (3, 0, 5):
            writer.append(images(count))
        assert not (tmp_path / "a.mrcs").exists()
    expected = np.concatenate([images(3), images(5)])
    found, _ = StackReader().read(tmp_path / "a.mrcs", range(8))
    np.testing.assert_array_equal(found, expected)
    header = read_header(tmp_path / "a.mrcs")
    assert (header.num_images, header.box_size, header.mode) == (8, 10, 2)
    assert header.pixel_size_angstrom == pytest.approx(1.5)
    assert header.file_size == header.expected_size
    with mrcfile.open(tmp_path / "a.mrcs") as mrc:
        assert float(mrc.header.dmin) == expected.min()
        assert float(mrc.header.dmax) == expected.max()
        assert float(mrc.header.dmean) == pytest.approx(expected.mean(), rel=1e-4)
        assert float(mrc.header.rms) == pytest.approx(expected.std(), rel=1e-4)


def test_after_an_error_or_without_images_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), StackWriter(tmp_path / "a.mrcs", 10, 1.5) as writer:
        writer.append(images(2))
        raise KeyboardInterrupt
    with StackWriter(tmp_path / "b.mrcs", 10, 1.5):
        pass
    assert list(tmp_path.iterdir()) == []


def test_images_of_another_box_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="box size 12"), StackWriter(tmp_path / "a.mrcs", 12, 1.5) as writer:
        writer.append(images(2))
