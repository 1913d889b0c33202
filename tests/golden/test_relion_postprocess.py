"""relion_postprocess is the oracle of the masked and corrected FSC, relion_mask_create of the masks."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cesped_stream.imaging.maps import read_map, write_map
from cesped_stream.imaging.simulate import embedded_ribosome, molecule_to_map
from cesped_stream.reconstruction.fsc import postprocess_fsc
from cesped_stream.reconstruction.mask import lowpassed, soft_mask

BOX, PIXEL_SIZE, THRESHOLD = 56, 6.5, 0.4

pytestmark = [
    pytest.mark.relion,
    pytest.mark.skipif(shutil.which("relion_postprocess") is None, reason="relion_postprocess is not on PATH"),
]


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two noisy half maps of the ribosome, noisier where finer."""
    folder = tmp_path_factory.mktemp("halves")
    truth = molecule_to_map(*embedded_ribosome(), BOX, PIXEL_SIZE, 14.0)
    rng = np.random.default_rng(3)
    for name in "ab":
        noise = rng.normal(scale=0.18, size=truth.shape)
        fine = noise - lowpassed(noise, PIXEL_SIZE, 25.0)
        noisy = truth / truth.max() + 0.3 * noise + 1.5 * fine
        write_map(folder / f"{name}.mrc", noisy.astype(np.float32), PIXEL_SIZE)
    return folder


def run(folder: Path, *words: str) -> None:
    # relion_postprocess ends with an error where Ghostscript is missing, after it has written its star.
    subprocess.run(words, cwd=folder, capture_output=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def mask(halves: Path) -> np.ndarray:
    found = soft_mask(read_map(halves / "a.mrc")[0], PIXEL_SIZE, threshold=THRESHOLD, lowpass_angstrom=20.0)
    write_map(halves / "mask.mrc", found, PIXEL_SIZE)
    return found


@pytest.fixture(scope="module")
def star(halves: Path, mask: np.ndarray) -> str:
    names = ("--i", "a.mrc", "--i2", "b.mrc", "--mask", "mask.mrc", "--o", "post")
    run(halves, "relion_postprocess", *names, "--angpix", str(PIXEL_SIZE))
    return (halves / "post.star").read_text()


def column(star: str, label: str) -> np.ndarray:
    block = star.split("data_fsc")[1].split("data_guinier", maxsplit=1)[0]
    labels = [line.split()[0].removeprefix("_") for line in block.splitlines() if line.startswith("_")]
    rows = [line.split() for line in block.splitlines() if len(line.split()) == len(labels)]
    return np.array([float(row[labels.index(label)]) for row in rows])


def value(star: str, label: str) -> float:
    return float(next(line.split()[1] for line in star.splitlines() if line.startswith(f"_{label} ")))


def test_unmasked_and_masked_fsc_equal_relions(halves: Path, mask: np.ndarray, star: str) -> None:
    ours = postprocess_fsc(read_map(halves / "a.mrc")[0], read_map(halves / "b.mrc")[0], mask)
    unmasked = column(star, "rlnFourierShellCorrelationUnmaskedMaps")
    masked = column(star, "rlnFourierShellCorrelationMaskedMaps")
    assert np.abs(masked - unmasked).max() > 0.05
    np.testing.assert_allclose(ours.unmasked, unmasked, atol=1e-5)
    np.testing.assert_allclose(ours.masked, masked, atol=1e-5)


def test_corrected_fsc_follows_relions_rules(halves: Path, mask: np.ndarray, star: str) -> None:
    """Shells without correction are equal; beyond, ours differ from RELION's no more than two draws of ours do."""
    maps = [read_map(halves / f"{name}.mrc")[0] for name in "ab"]
    draws = [postprocess_fsc(*maps, mask, seed=seed) for seed in range(12)]
    start = draws[0].randomise_from
    assert value(star, "rlnRandomiseFrom") == pytest.approx(BOX * PIXEL_SIZE / start, rel=1e-5)
    theirs = column(star, "rlnFourierShellCorrelationCorrected")
    np.testing.assert_allclose(draws[0].corrected[: start + 2], theirs[: start + 2], atol=1e-5)
    assert np.abs(theirs - draws[0].masked)[start + 2 :].max() > 1e-3
    random = column(star, "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps")
    for mine, their in ((random_of(draws), random), (np.stack([d.corrected for d in draws]), theirs)):
        spread = mine[:, start:].std(0)
        away = np.abs(their - mine.mean(0))[start:]
        assert (away <= 4.5 * spread.clip(min=1e-4)).all()


def random_of(draws: list) -> np.ndarray:
    return np.stack([draw.phase_randomised for draw in draws])


def last_resolved_angstrom(curve: np.ndarray) -> float:
    """Return the resolution of the last shell before the curve falls below 0.143, not interpolated."""
    return float(BOX * PIXEL_SIZE / np.flatnonzero(curve[1:] < 0.143)[0])


def test_last_resolved_shell_is_relions_final_resolution(halves: Path, mask: np.ndarray, star: str) -> None:
    theirs = column(star, "rlnFourierShellCorrelationCorrected")
    assert 2 * PIXEL_SIZE < value(star, "rlnFinalResolution") < 100
    ours = postprocess_fsc(read_map(halves / "a.mrc")[0], read_map(halves / "b.mrc")[0], mask)
    for curve in (theirs, ours.corrected):
        found = last_resolved_angstrom(curve)
        assert found == pytest.approx(value(star, "rlnFinalResolution"), rel=1e-5)


@pytest.mark.parametrize(
    ("threshold", "extend", "edge", "lowpass"), [(0.4, 3, 6, 20.0), (0.8, 2.5, 5, 0.0), (0.4, 0, 4, 30.0)]
)
def test_soft_mask_equals_relions_voxel_by_voxel(
    halves: Path, threshold: float, extend: float, edge: float, lowpass: float
) -> None:
    words = ["--ini_threshold", str(threshold), "--extend_inimask", str(extend), "--width_soft_edge", str(edge)]
    words += ["--angpix", str(PIXEL_SIZE), *(["--lowpass", str(lowpass)] if lowpass else [])]
    run(halves, "relion_mask_create", "--i", "a.mrc", "--o", "theirs.mrc", *words)
    theirs, _ = read_map(halves / "theirs.mrc")
    assert 0.01 < theirs.mean() < 0.9
    shape = {"lowpass_angstrom": lowpass, "extend_pixels": extend, "edge_pixels": edge}
    ours = soft_mask(read_map(halves / "a.mrc")[0], PIXEL_SIZE, threshold=threshold, **shape)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
