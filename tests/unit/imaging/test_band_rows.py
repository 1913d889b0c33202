"""Rows read once, in several bands, whatever their boxes and pixel sizes."""

from pathlib import Path

import numpy as np
import torch

from cesped_stream.imaging.band import CACHED_PIXELS, Band, band_images
from cesped_stream.imaging.band_rows import images_in_bands, read_band_images
from cesped_stream.particles.flags import ImageFlag
from cesped_stream.particles.stacks import StackReader, read_images, write_stack
from cesped_stream.particles.table import OpticsGroup, ParticleTable

BANDS = (Band(96.0, 12.0), Band(96.0, 20.0))
LABELS = ("rlnImageName", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")


def optics(pixel_size: float) -> OpticsGroup:
    values = {"rlnImagePixelSize": pixel_size, "rlnVoltage": 300, "rlnSphericalAberration": 2.7}
    return OpticsGroup(tuple((k, str(v)) for k, v in {**values, "rlnAmplitudeContrast": 0.1}.items()))


def mixed(folder: Path) -> ParticleTable:
    """Rows of two stacks in turn: box 24 at 4 A and box 32 at 3 A, the third one constant."""
    rng = np.random.default_rng(0)
    for name, box, pixel_size in (("a", 24, 4.0), ("b", 32, 3.0)):
        images = rng.standard_normal((3, box, box), np.float32)
        if name == "a":
            images[1] = 2.0
        write_stack(folder / f"{name}.mrcs", images, pixel_size)
    rows = [(f"{k // 2 + 1}@{'ab'[k % 2]}.mrcs", f"{15000 + 100 * k}", "14000", "30") for k in range(6)]
    return ParticleTable(LABELS, rows, (optics(4.0), optics(3.0)), np.arange(6) % 2, str(folder / "x.star"))


def test_each_row_is_what_it_is_alone(tmp_path: Path) -> None:
    table = mixed(tmp_path)
    found = read_band_images(table, BANDS, StackReader())
    assert found.index.tolist() == [0, 1, 3, 4, 5]
    assert found.flag.tolist() == [0, 0, ImageFlag.CONSTANT, 0, 0, 0]
    assert len({row.tobytes() for row in found.digest}) == 6
    for place, row in enumerate(found.index):
        one = table.select([row])
        raw = torch.from_numpy(read_images(one, StackReader())[0].images)
        for band, images, alone in zip(
            BANDS, found.images, images_in_bands(raw, one.ctf_parameters(), BANDS), strict=True
        ):
            assert torch.equal(images.matched[place], alone.matched[0])
            assert torch.equal(images.ctf_square[place], alone.ctf_square[0])
            own = band_images(raw, one.ctf_parameters(), band)
            torch.testing.assert_close(alone.matched, own.matched, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(alone.ctf_square, own.ctf_square, rtol=1e-5, atol=1e-5)


def test_no_usable_row_gives_empty_images(tmp_path: Path) -> None:
    found = read_band_images(mixed(tmp_path).select([2]), BANDS, StackReader())
    assert [len(images) for images in found.images] == [0, 0] and len(found.index) == 0
    assert found.images[0].matched.shape == (0, len(BANDS[0]))


def test_bands_of_different_extents_are_each_their_own(tmp_path: Path) -> None:
    one = mixed(tmp_path).select([0])
    raw, ctf = torch.from_numpy(read_images(one, StackReader())[0].images), one.ctf_parameters()
    bands = (Band(96.0, 20.0), Band(80.0, 12.0), Band(96.0, 12.0))
    for band, images in zip(bands, images_in_bands(raw, ctf, bands), strict=True):
        assert images.band == band
        torch.testing.assert_close(images.power, band_images(raw, ctf, band).power, rtol=1e-4, atol=1e-5)


def test_an_image_is_the_same_beside_more_images_than_are_worked_on_at_a_time(tmp_path: Path) -> None:
    box, count = 64, 2 * CACHED_PIXELS // 64**2 + 3
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((count, box, box), np.float32))
    names = [(f"{k + 1}@a.mrcs", "15000", "14000", "30") for k in range(count)]
    ctf = ParticleTable(LABELS, names, (optics(3.0),), np.zeros(count, np.int64)).ctf_parameters()
    band = Band(192.0, 12.0)
    together = band_images(images, ctf, band).matched
    for row in (0, count // 2, count - 1):
        alone = band_images(images[row : row + 1], ctf.select(slice(row, row + 1)), band)
        assert torch.equal(together[row], alone.matched[0])
