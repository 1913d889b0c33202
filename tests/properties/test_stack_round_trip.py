"""Pixels that a mode can hold come back exactly, in any order, however many are read at once."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cesped_stream.particles.stacks import StackReader, read_header, write_stack

LIMITS = {0: (-128, 127), 1: (-32768, 32767), 2: (-1e30, 1e30), 6: (0, 65535), 12: (-60000, 60000)}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), mode=st.sampled_from(sorted(LIMITS)), seed=st.integers(0, 2**32 - 1))
def test_pixels_come_back_in_the_order_asked_for(data: st.DataObject, mode: int, seed: int) -> None:
    num, box = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 9))
    wanted = data.draw(st.lists(st.integers(0, num - 1), max_size=8))
    low, high = LIMITS[mode]
    images = np.random.default_rng(seed).uniform(low, high, (num, box, box)).astype(np.float32)
    images = np.rint(images) if mode in (0, 1, 6) else images
    images = images.astype(np.float16).astype(np.float32) if mode == 12 else images
    with tempfile.TemporaryDirectory() as folder, StackReader() as reader:
        path = Path(folder) / "s.mrcs"
        write_stack(path, images, 1.25, mode=mode)
        read, digests = reader.read(path, wanted)
        header = read_header(path)
    np.testing.assert_array_equal(read, images[np.array(wanted, np.int64)])
    assert digests.shape == (len(wanted), 16)
    assert header.file_size == header.expected_size and header.num_whole_images == num
