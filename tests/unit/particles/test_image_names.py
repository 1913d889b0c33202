"""Image names as RELION takes them: index, stack, format after a colon; and names that stand for a whole file."""

import struct
from pathlib import Path

import numpy as np
import pytest

from cesped_stream.errors import InvalidStackError, InvalidStarError
from cesped_stream.particles.image_names import parse_image_name
from cesped_stream.particles.stacks import StackReader, read_header, read_images, write_stack
from cesped_stream.particles.table import OpticsGroup, ParticleTable

OPTICS = (OpticsGroup((("rlnOpticsGroupName", "g"), ("rlnImagePixelSize", "1.5"))),)


def table(folder: Path, *names: str) -> ParticleTable:
    source = str(folder / "x.star")
    return ParticleTable(
        ("rlnImageName",), [(name,) for name in names], OPTICS, np.zeros(len(names), np.int64), source=source
    )


def stack(folder: Path, num: int, name: str = "s.mrcs") -> np.ndarray:
    images = np.random.default_rng(num).normal(size=(num, 8, 8)).astype(np.float32)
    write_stack(folder / name, images, 1.5)
    return images


def test_mrcs_after_a_colon_says_that_the_file_is_a_stack(tmp_path: Path) -> None:
    assert parse_image_name("000002@a/x.mrc:mrcs") == (1, "a/x.mrc")
    images = stack(tmp_path, 3, "x.mrc")
    (group,) = read_images(table(tmp_path, "000003@x.mrc:mrcs", "000001@x.mrc:mrcs"), StackReader())
    np.testing.assert_array_equal(group.images, images[[2, 0]])


@pytest.mark.parametrize("name", ["1@x.mrc:mrc", "1@x.spi:spi", "1@x.raw:raw", "1@x.mrcs:", "1@:mrcs", "x.mrc:img"])
def test_other_formats_after_a_colon_are_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidStarError, match=r"takes ':\w*' for a format, and only ':mrcs' is read"):
        parse_image_name(name)


def test_colon_in_the_name_of_a_folder_is_no_format() -> None:
    assert parse_image_name("4@day_12:30/x.mrcs") == (3, "day_12:30/x.mrcs")


def test_name_without_index_is_the_one_image_of_its_file(tmp_path: Path) -> None:
    images = stack(tmp_path, 1)
    (group,) = read_images(table(tmp_path, "s.mrcs"), StackReader())
    np.testing.assert_array_equal(group.images, images)


def test_name_without_index_of_several_images_is_refused(tmp_path: Path) -> None:
    stack(tmp_path, 3)
    with pytest.raises(InvalidStarError, match=r"s\.mrcs: holds 3 images, and 's\.mrcs' names none of them"):
        read_images(table(tmp_path, "1@s.mrcs", "s.mrcs"), StackReader())


@pytest.mark.parametrize("magic", [b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"])
@pytest.mark.parametrize("size", [40, 5000])
def test_compressed_stack_is_refused_as_such(magic: bytes, size: int, tmp_path: Path) -> None:
    path = tmp_path / "s.mrcs.gz"
    path.write_bytes(magic + b"\x07" * size)
    with pytest.raises(InvalidStackError, match=r"s\.mrcs\.gz: is compressed .*unpack it"):
        read_header(path)


def _with_axes(path: Path, *axes: int) -> None:
    data = bytearray(path.read_bytes())
    struct.pack_into("<3i", data, 64, *axes)
    path.write_bytes(data)


@pytest.mark.parametrize("axes", [(2, 1, 3), (3, 2, 1), (1, 3, 2)])
def test_stack_of_turned_axes_is_refused_by_name(axes: tuple[int, int, int], tmp_path: Path) -> None:
    stack(tmp_path, 2)
    _with_axes(tmp_path / "s.mrcs", *axes)
    with pytest.raises(InvalidStackError, match=rf"s\.mrcs: its axes .* are {axes[0]}, {axes[1]}, {axes[2]}"):
        read_header(tmp_path / "s.mrcs")


def test_unusual_headers_that_can_be_read_are(tmp_path: Path) -> None:
    images = stack(tmp_path, 2)
    data = bytearray((tmp_path / "s.mrcs").read_bytes())
    # Axes and sampling not stated, no cell, no MAP stamp, space group of a volume stack, nonsense statistics.
    struct.pack_into("<3i", data, 64, 0, 0, 0)
    struct.pack_into("<3i", data, 28, 0, 0, 0)
    struct.pack_into("<3f", data, 40, 0.0, 0.0, 0.0)
    struct.pack_into("<3f", data, 76, 5.0, -5.0, float("nan"))
    struct.pack_into("<i", data, 88, 401)
    data[208:216] = b"\x00" * 8
    (tmp_path / "s.mrcs").write_bytes(data)
    np.testing.assert_array_equal(StackReader().read(tmp_path / "s.mrcs", [0, 1])[0], images)
