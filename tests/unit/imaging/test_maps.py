"""Maps as files."""

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
