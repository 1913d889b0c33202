"""Stacks of every mode and byte order give mrcfile's pixels; damaged ones say what is wrong."""

import os
import struct
from hashlib import blake2b
from pathlib import Path
from urllib.parse import quote

import mrcfile
import numpy as np
import pytest

from cesped_stream.errors import (
    ForbiddenPathError,
    InvalidStackError,
    InvalidStarError,
    NotSettledError,
    UnreachableFileError,
)
from cesped_stream.particles.stacks import (
    StackReader,
    parse_image_name,
    read_header,
    read_images,
    write_stack,
)
from cesped_stream.particles.table import OpticsGroup, ParticleTable

DTYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}


def _images(num: int = 5, box: int = 16, *, positive: bool = False) -> np.ndarray:
    values = np.random.default_rng(num + box).normal(60.0 if positive else 0.0, 12.0, (num, box, box))
    return np.rint(values).astype(np.float32)


def _swap_header(path: Path) -> None:
    """Make a little-endian header big-endian: mrcfile writes no such file of single bytes."""
    data = bytearray(path.read_bytes())
    data[:208] = np.frombuffer(bytes(data[:208]), "<u4").byteswap().tobytes()
    data[212:214] = b"\x11\x11"
    data[216:224] = np.frombuffer(bytes(data[216:224]), "<u4").byteswap().tobytes()
    path.write_bytes(data)


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("mode", DTYPES)
def test_every_mode_and_byte_order_gives_mrcfiles_pixels(mode: int, byte_order: str, tmp_path: Path) -> None:
    path = tmp_path / "stack.mrcs"
    images = _images(positive=mode == 6)
    with mrcfile.new(path) as mrc:
        mrc.set_data(images.astype(byte_order + DTYPES[mode]))
        mrc.set_image_stack()
        mrc.voxel_size = 1.5
    if mode == 0 and byte_order == ">":
        _swap_header(path)
    header = read_header(path)
    assert (header.num_images, header.box_size, header.mode, header.byte_order) == (5, 16, mode, byte_order)
    assert header.pixel_size_angstrom == pytest.approx(1.5)
    read, _ = StackReader().read(path, range(5))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, mrcfile.read(path).astype(np.float32))


@pytest.mark.parametrize("mode", DTYPES)
def test_what_we_write_is_a_valid_stack_to_mrcfile(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "stack.mrcs"
    # Few pixels: mrcfile sums the squares of a float16 stack in float16, where more would overflow.
    images = _images(2, 8, positive=mode == 6)
    write_stack(path, images, 2.25, mode=mode)
    assert mrcfile.validate(path)
    with mrcfile.open(path) as mrc:
        assert mrc.is_image_stack()
        assert int(mrc.header.mode) == mode
        assert float(mrc.voxel_size.x) == pytest.approx(2.25)
        np.testing.assert_array_equal(mrc.data.astype(np.float32), images)


def test_images_come_in_the_order_asked_for_and_repeat(tmp_path: Path) -> None:
    images = _images()
    write_stack(tmp_path / "s.mrcs", images, 1.0)
    read, digests = StackReader().read(tmp_path / "s.mrcs", [4, 0, 1, 1, 3])
    np.testing.assert_array_equal(read, images[[4, 0, 1, 1, 3]])
    assert digests[2].tobytes() == digests[3].tobytes()


def test_long_runs_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cesped_stream.particles.stacks._READ_BYTES", 2500)
    images = _images(9)
    write_stack(tmp_path / "s.mrcs", images, 1.0)
    np.testing.assert_array_equal(StackReader().read(tmp_path / "s.mrcs", range(9))[0], images)


def test_digest_is_of_the_images_own_bytes(tmp_path: Path) -> None:
    images = _images()
    write_stack(tmp_path / "s.mrcs", images, 1.0, mode=12)
    _, digests = StackReader().read(tmp_path / "s.mrcs", [3])
    assert digests[0].tobytes() == blake2b(images[3].astype("<f2").tobytes(), digest_size=16).digest()


def test_extended_header_is_stepped_over(tmp_path: Path) -> None:
    images = _images()
    with mrcfile.new(tmp_path / "s.mrcs") as mrc:
        mrc.set_data(images)
        mrc.set_extended_header(np.frombuffer(os.urandom(2048), "V2048"))
    header = read_header(tmp_path / "s.mrcs")
    assert header.file_size == header.expected_size == 1024 + 2048 + images.nbytes
    np.testing.assert_array_equal(StackReader().read(tmp_path / "s.mrcs", [2])[0][0], images[2])


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_byte_order_is_found_without_a_machine_stamp(byte_order: str, tmp_path: Path) -> None:
    images = _images()
    header = bytearray(1024)
    struct.pack_into(byte_order + "4i", header, 0, 16, 16, 5, 2)
    (tmp_path / "s.mrcs").write_bytes(bytes(header) + images.astype(byte_order + "f4").tobytes())
    assert read_header(tmp_path / "s.mrcs").pixel_size_angstrom == 0.0
    np.testing.assert_array_equal(StackReader().read(tmp_path / "s.mrcs", range(5))[0], images)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ((16, 12, 5, 2), "size 16 x 12 x 5"),
        ((16, 16, 5, 4), "mode 4"),
        ((16, 16, 5, 101), "mode 101"),
        ((16, 16, 0, 2), "x 0, mode 2"),
        ((16, 16, -3, 2), "x -3, mode 2"),
        ((100_000, 100_000, 1, 2), "size 100000"),
    ],
)
def test_header_that_is_no_particle_stack_is_refused(fields: tuple[int, ...], says: str, tmp_path: Path) -> None:
    header = bytearray(1024)
    struct.pack_into("<4i", header, 0, *fields)
    header[212:214] = b"\x44\x44"
    (tmp_path / "s.mrcs").write_bytes(bytes(header) + bytes(5 * 16 * 16 * 4))
    with pytest.raises(InvalidStackError, match=says):
        read_header(tmp_path / "s.mrcs")


def test_damaged_extended_header_is_refused(tmp_path: Path) -> None:
    header = bytearray(1024)
    struct.pack_into("<4i", header, 0, 16, 16, 5, 2)
    struct.pack_into("<i", header, 92, -1)
    (tmp_path / "s.mrcs").write_bytes(bytes(header))
    with pytest.raises(InvalidStackError, match="extended header has -1 bytes"):
        read_header(tmp_path / "s.mrcs")


def test_stack_cut_anywhere_waits_or_gives_only_whole_images(tmp_path: Path) -> None:
    images = _images(3, 8)
    write_stack(tmp_path / "whole.mrcs", images, 1.0)
    whole = (tmp_path / "whole.mrcs").read_bytes()
    reader = StackReader()
    with (tmp_path / "s.mrcs").open("wb", buffering=0) as stream:
        for size in range(0, len(whole), 64):
            for index in range(3):
                if size >= 1024 + (index + 1) * 256:
                    np.testing.assert_array_equal(reader.read(tmp_path / "s.mrcs", [index])[0][0], images[index])
                else:
                    says = "an MRC header has 1024" if size < 1024 else f"image {index + 1} is not there yet"
                    with pytest.raises(NotSettledError, match=says):
                        reader.read(tmp_path / "s.mrcs", [index])
            stream.write(whole[size : size + 64])


def test_index_beyond_the_stack_waits_saying_both_numbers(tmp_path: Path) -> None:
    write_stack(tmp_path / "s.mrcs", _images(), 1.0)
    with pytest.raises(NotSettledError, match=r"s\.mrcs: 5 images, a row asks for 7; is the copy finished\?"):
        StackReader().read(tmp_path / "s.mrcs", [0, 6])
    with pytest.raises(ValueError, match="count from 0"):
        StackReader().read(tmp_path / "s.mrcs", [-1])


def test_replaced_stack_is_read_again(tmp_path: Path) -> None:
    reader = StackReader()
    for seed_box in (3, 4):
        images = _images(seed_box)
        write_stack(tmp_path / "s.mrcs", images, 1.0)
        np.testing.assert_array_equal(reader.read(tmp_path / "s.mrcs", range(seed_box))[0], images)
        assert reader.header(tmp_path / "s.mrcs").num_images == seed_box


def test_vanished_stack_is_unreachable_even_while_it_is_held_open(tmp_path: Path) -> None:
    write_stack(tmp_path / "s.mrcs", _images(), 1.0)
    reader = StackReader()
    reader.read(tmp_path / "s.mrcs", [0])
    (tmp_path / "s.mrcs").unlink()
    with pytest.raises(UnreachableFileError, match="is its mount there"):
        reader.read(tmp_path / "s.mrcs", [0])


def test_two_hundred_stacks_are_read_with_few_open_files(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    write_stack(tmp_path / "0.mrcs", _images(2, 8), 1.0)
    data = (tmp_path / "0.mrcs").read_bytes()
    for k in range(1, 200):
        (tmp_path / f"{k}.mrcs").write_bytes(data)
    most = 0
    with StackReader(max_open_files=8) as reader:
        for _ in range(2):
            for k in range(200):
                reader.read(tmp_path / f"{k}.mrcs", [0, 1])
                most = max(most, len(os.listdir("/proc/self/fd")) - before)
    assert most == 8
    assert len(os.listdir("/proc/self/fd")) == before


def test_refused_stack_leaves_no_file_open(tmp_path: Path) -> None:
    (tmp_path / "s.mrcs").write_bytes(b"\x07" * 2048)
    before = len(os.listdir("/proc/self/fd"))
    reader = StackReader()
    for _ in range(3):
        with pytest.raises(InvalidStackError):
            reader.header(tmp_path / "s.mrcs")
    assert len(os.listdir("/proc/self/fd")) == before


def test_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "s.mrcs")
    with pytest.raises(ForbiddenPathError, match="no regular file"):
        read_header(tmp_path / "s.mrcs")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("000001@a.mrcs", (0, "a.mrcs")),
        ("12@Extract/job 1/b@2.mrcs", (11, "Extract/job 1/b@2.mrcs")),
        ("single.mrc", (0, "single.mrc")),
        ("2147483647@a.mrcs", (2**31 - 2, "a.mrcs")),
    ],
)
def test_image_name_is_index_and_stack(text: str, parsed: tuple[int, str]) -> None:
    assert parse_image_name(text) == parsed


@pytest.mark.parametrize(
    "text",
    [
        *("0@a.mrcs", "000000@a.mrcs", "-1@a.mrcs", "+1@a.mrcs", "1e12@a.mrcs", "1000000000000@a.mrcs"),
        *("2147483648@a.mrcs", "1.0@a.mrcs", "\u0661@a.mrcs", "1@", "@a.mrcs", "", "1@a\0.mrcs", "1@a\n.mrcs", " 1@a"),
    ],
)
def test_impossible_image_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidStarError, match="image"):
        parse_image_name(text)


def _table(stacks: list[str], column: list[str] | None = None) -> ParticleTable:
    group = OpticsGroup((("rlnImagePixelSize", "1.5"),))
    labels = ("rlnImageName",) if column is None else ("rlnImageName", "cestreamStack")
    rows = [(name,) if column is None else (name, column[k]) for k, name in enumerate(stacks)]
    return ParticleTable(labels, rows, (group,), np.zeros(len(rows), np.int64))


def test_rows_of_several_stacks_and_boxes_come_in_groups_of_one_box(tmp_path: Path) -> None:
    stacks = {"a.mrcs": _images(3, 8), "b.mrcs": _images(4, 8), "c.mrcs": _images(2, 12)}
    for name, images in stacks.items():
        write_stack(tmp_path / name, images, 1.0)
    names = ["2@b.mrcs", "1@c.mrcs", "3@a.mrcs", "1@b.mrcs", "2@c.mrcs", "3@a.mrcs"]
    groups = read_images(_table(names), StackReader(), root=tmp_path)
    assert [group.index.tolist() for group in groups] == [[0, 2, 3, 5], [1, 4]]
    for group in groups:
        for k, row in enumerate(group.index):
            index, _, name = names[row].partition("@")
            np.testing.assert_array_equal(group.images[k], stacks[name][int(index) - 1])
    np.testing.assert_array_equal(groups[0].digests[1], groups[0].digests[3])


def test_resolved_stack_is_read_wherever_it_lies(tmp_path: Path) -> None:
    stack = tmp_path / "grid square 1" / "a.mrcs"
    stack.parent.mkdir()
    write_stack(stack, _images(), 1.0)
    (group,) = read_images(_table(["2@elsewhere.mrcs"], [quote(str(stack))]), StackReader())
    np.testing.assert_array_equal(group.images[0], _images()[1])


def test_resolved_stack_that_became_a_link_is_refused(tmp_path: Path) -> None:
    write_stack(tmp_path / "secret.mrcs", _images(), 1.0)
    write_stack(tmp_path / "a.mrcs", _images(), 1.0)
    table = _table(["2@a.mrcs"], [quote(str(tmp_path / "a.mrcs"))])
    assert len(read_images(table, StackReader())) == 1
    (tmp_path / "a.mrcs").unlink()
    (tmp_path / "a.mrcs").symlink_to(tmp_path / "secret.mrcs")
    with pytest.raises(ForbiddenPathError, match="is now a link to"):
        read_images(table, StackReader())


@pytest.mark.parametrize(
    ("images", "mode", "says"),
    [
        (np.zeros((2, 8, 9), np.float32), 2, "a stack is"),
        (np.zeros((0, 8, 8), np.float32), 2, "a stack is"),
        (np.zeros((8, 8), np.float32), 2, "a stack is"),
        (np.zeros((1, 8, 8), np.float32), 4, "mode 4"),
        (np.full((1, 8, 8), 200.0, np.float32), 0, "do not fit mode 0"),
        (np.full((1, 8, 8), -1.0, np.float32), 6, "do not fit mode 6"),
        (np.full((1, 8, 8), np.nan, np.float32), 1, "do not fit mode 1"),
        (np.full((1, 8, 8), 1e5, np.float32), 12, "do not fit mode 12"),
    ],
)
def test_images_that_a_stack_cannot_hold_are_refused(images: np.ndarray, mode: int, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        write_stack(tmp_path / "s.mrcs", images, 1.0, mode=mode)
    assert list(tmp_path.iterdir()) == []


def test_images_with_nan_and_inf_are_written_and_read_as_they_are(tmp_path: Path) -> None:
    images = _images()
    images[1, 2, 3], images[2, 0, 0] = np.nan, np.inf
    write_stack(tmp_path / "s.mrcs", images, 1.0)
    np.testing.assert_array_equal(StackReader().read(tmp_path / "s.mrcs", range(5))[0], images)
