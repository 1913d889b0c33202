"""Maps as files."""

import gzip
import shutil
import struct
import subprocess
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from support.imaging import blobs

from cesped_stream.errors import InvalidStackError, UnreachableFileError
from cesped_stream.imaging.maps import crop_map, read_map, write_map


def test_a_map_written_is_the_map_read(tmp_path: Path) -> None:
    write_map(tmp_path / "map.mrc", blobs(20), 2.5)
    volume, pixel_size = read_map(tmp_path / "map.mrc")
    np.testing.assert_array_equal(volume, blobs(20))
    assert pixel_size == pytest.approx(2.5)
    assert [path.name for path in tmp_path.iterdir()] == ["map.mrc"]


def test_the_same_map_gives_the_same_bytes_at_any_time(tmp_path: Path) -> None:
    write_map(tmp_path / "a.mrc", blobs(20), 2.5)
    assert b"mrcfile" not in (tmp_path / "a.mrc").read_bytes()


def test_files_that_are_no_map_are_refused_with_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UnreachableFileError, match="absent"):
        read_map(tmp_path / "absent.mrc")
    (tmp_path / "text.mrc").write_bytes(b"no map" * 400)
    with pytest.raises(InvalidStackError, match=r"text\.mrc"):
        read_map(tmp_path / "text.mrc")
    for name, data, voxel, message in (
        ("flat", np.zeros((8, 8), np.float32), 1.0, "cubic"),
        ("brick", np.zeros((8, 8, 9), np.float32), 1.0, "cubic"),
        ("bare", np.zeros((8, 8, 8), np.float32), 0.0, "pixel size"),
        ("nan", np.full((8, 8, 8), np.nan, np.float32), 1.0, "NaN"),
    ):
        with mrcfile.new(tmp_path / f"{name}.mrc", data=np.nan_to_num(data)) as mrc:
            mrc.voxel_size = voxel
            mrc.data[...] = data
        with pytest.raises(InvalidStackError, match=message):
            read_map(tmp_path / f"{name}.mrc")


def test_a_cropped_map_is_the_same_density_on_fewer_voxels() -> None:
    full = blobs(48)
    half = crop_map(full, 24)
    assert np.corrcoef(half.ravel(), full[::2, ::2, ::2].ravel())[0, 1] > 0.97
    assert half.mean() == pytest.approx(full.mean(), rel=1e-5)
    np.testing.assert_allclose(crop_map(full, 48), full, atol=1e-5)
    with pytest.raises(ValueError, match="only made smaller"):
        crop_map(full, 50)


def with_header(path: Path, *changes: tuple[int, bytes]) -> Path:
    """Write a map of blobs whose header has these bytes at these places."""
    write_map(path, blobs(20), 2.5)
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[place : place + len(value)] = value
    path.write_bytes(content)
    return path


ODD_HEADERS = {
    "no MAP word": [(208, b"\0\0\0\0")],
    "another MAP word": [(208, b"XYZ ")],
    "no machine stamp": [(212, b"\0\0\0\0")],
    "the other machine stamp": [(212, b"\x11\x11\0\0")],
    "labels beyond number": [(220, struct.pack("<i", 999999)), (224, b"\xff" * 800)],
    "no axes": [(64, b"\0" * 12)],
    "a version from nowhere": [(108, struct.pack("<i", -7))],
    "a space group of a stack": [(88, struct.pack("<i", 0))],
    "another space group": [(88, struct.pack("<i", 19))],
}


@pytest.mark.parametrize("changes", ODD_HEADERS.values(), ids=list(ODD_HEADERS))
def test_a_map_with_an_odd_header_is_read(tmp_path: Path, changes: list[tuple[int, bytes]]) -> None:
    volume, pixel_size = read_map(with_header(tmp_path / "map.mrc", *changes))
    np.testing.assert_array_equal(volume, blobs(20))
    assert pixel_size == pytest.approx(2.5)


@pytest.mark.relion
@pytest.mark.skipif(shutil.which("relion_image_handler") is None, reason="RELION is not on PATH")
@pytest.mark.parametrize("changes", ODD_HEADERS.values(), ids=list(ODD_HEADERS))
def test_relion_reads_such_a_map_with_the_same_values(tmp_path: Path, changes: list[tuple[int, bytes]]) -> None:
    odd = with_header(tmp_path / "map.mrc", *changes)
    command = ["relion_image_handler", "--i", str(odd), "--o", str(tmp_path / "out.mrc"), "--multiply_constant", "2"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    np.testing.assert_allclose(read_map(tmp_path / "out.mrc")[0], 2 * read_map(odd)[0], rtol=1e-6)


@pytest.mark.parametrize(("mode", "kind"), [(0, "i1"), (1, "<i2"), (6, "<u2"), (12, "<f2"), (2, ">f4")])
def test_a_map_of_any_real_mode_and_byte_order_is_read(tmp_path: Path, mode: int, kind: str) -> None:
    voxels = np.arange(8**3).reshape(8, 8, 8) % 100
    order = ">" if kind.startswith(">") else "<"
    header = bytearray(1024)
    struct.pack_into(order + "10i", header, 0, 8, 8, 8, mode, 0, 0, 0, 8, 8, 8)
    struct.pack_into(order + "6f", header, 40, 16.0, 16.0, 16.0, 90.0, 90.0, 90.0)
    struct.pack_into(order + "3i", header, 64, 1, 2, 3)
    struct.pack_into(order + "i", header, 92, 160)  # an extended header
    (tmp_path / "map.mrc").write_bytes(bytes(header) + b"\x01" * 160 + voxels.astype(kind).tobytes())
    volume, pixel_size = read_map(tmp_path / "map.mrc")
    np.testing.assert_array_equal(volume, voxels)
    assert pixel_size == 2.0


def test_axes_that_are_not_in_order_are_refused_by_name(tmp_path: Path) -> None:
    turned = with_header(tmp_path / "map.mrc", (64, struct.pack("<3i", 3, 2, 1)))
    with pytest.raises(InvalidStackError, match=r"map\.mrc: .*MAPC 3, MAPR 2, MAPS 1"):
        read_map(turned)


def test_gzip_and_a_cut_map_are_called_so(tmp_path: Path) -> None:
    whole = with_header(tmp_path / "map.mrc").read_bytes()
    (tmp_path / "map.mrc.gz").write_bytes(gzip.compress(whole))
    with pytest.raises(InvalidStackError, match="compressed by gzip"):
        read_map(tmp_path / "map.mrc.gz")
    (tmp_path / "cut.mrc").write_bytes(whole[:-100])
    with pytest.raises(InvalidStackError, match="copy finished"):
        read_map(tmp_path / "cut.mrc")
