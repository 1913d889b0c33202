"""Small simulated entries in CESPED's layout, and stars of spots whose places are known."""

from pathlib import Path

import numpy as np
from support.imaging import blobs

from cesped_stream.imaging.entry import write_entry
from cesped_stream.particles.stacks import write_stack
from cesped_stream.particles.star import write_star
from cesped_stream.particles.table import OpticsGroup, ParticleTable
from cesped_stream.settings import OpticsSettings, SimulationSettings

BOX, PIXEL_SIZE = 32, 3.0


def simulated_entry(root: Path, name: str, *, box: int = BOX, confidences: bool = True, **settings: object) -> Path:
    """Write an entry of 24 shifted particles of `blobs`, one optics group, no astigmatism, and return its folder."""
    merged: dict[str, object] = {
        "num_particles": 24,
        "snr": 1.0,
        "optics": (OpticsSettings(),),
        "max_astigmatism_angstrom": 0.0,
        "particles_per_micrograph": 4,
        **settings,
    }
    chosen = SimulationSettings.model_validate(merged)
    weights = np.linspace(0.2, 1.0, chosen.num_particles) if confidences else None
    write_entry(root / name, blobs(box), PIXEL_SIZE, chosen, confidences=weights)
    return root / name


def optics(name: str, pixel_size: float, box: int) -> OpticsGroup:
    values = {"rlnVoltage": "300", "rlnSphericalAberration": "2.7", "rlnAmplitudeContrast": "0.1"}
    sizes = {"rlnImagePixelSize": f"{pixel_size}", "rlnImageSize": f"{box}", "rlnImageDimensionality": "2"}
    return OpticsGroup(tuple({"rlnOpticsGroupName": name, **values, **sizes}.items()))


def spot(box: int, pixel_size: float, x_angstrom: float, y_angstrom: float, sigma_angstrom: float = 6.0) -> np.ndarray:
    """Return a Gaussian spot that far from pixel box // 2, `(box, box)` (y, x), on a little noise."""
    axis = (np.arange(box) - box // 2) * pixel_size
    square = (axis[:, None] - y_angstrom) ** 2 + (axis - x_angstrom) ** 2
    noise = np.random.default_rng(box).normal(size=(box, box)) * 1e-3
    return np.asarray(np.exp(-square / (2 * sigma_angstrom**2)) + noise, np.float32)


def star_of_spots(folder: Path, groups: list[tuple[float, int]], x_angstrom: float, y_angstrom: float) -> Path:
    """Write a star without poses: two spots in each optics group (pixel size, box), each group a stack of its own."""
    rows, index = [], []
    for k, (pixel_size, box) in enumerate(groups):
        images = np.stack([spot(box, pixel_size, x_angstrom, y_angstrom)] * 2)
        write_stack(folder / f"stack_{k}.mrcs", images, pixel_size)
        rows += [(f"{n:06d}@stack_{k}.mrcs", "10000", "10000", "0") for n in (1, 2)]
        index += [k, k]
    labels = ("rlnImageName", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
    groups_of = tuple(optics(f"group{k}", *group) for k, group in enumerate(groups))
    write_star(folder / "spots.star", ParticleTable(labels, rows, groups_of, np.array(index)))
    return folder / "spots.star"
