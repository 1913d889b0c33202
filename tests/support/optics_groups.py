"""One molecule as two microscopes see it: other boxes, pixel sizes, voltages and defocus in one star."""

from pathlib import Path

import numpy as np
from support.matching import molecule

from cesped_stream.benchmark.entries import open_entry
from cesped_stream.imaging.entry import write_entry
from cesped_stream.particles.star import concatenated, read_star, write_star
from cesped_stream.particles.table import ParticleTable
from cesped_stream.settings import OpticsSettings, SimulationSettings

SAMPLINGS = {"first": (32, 5.0), "second": (40, 4.4)}
"""Box and pixel size (angstrom): neither the pixel nor the side in angstrom is common to both."""


def write_two_groups(folder: Path, count: int, *, snr: float = 0.5) -> ParticleTable:
    """Write `both.star`, `count` particles of each group, in turn by micrographs of 20; return its rows, stacks found.

    The molecule is D2; the groups have one name, as two sessions' stars may, and differ in numbers.
    """
    tables = []
    for number, (name, (box, pixel_size)) in enumerate(SAMPLINGS.items()):
        settings = SimulationSettings(
            num_particles=count,
            snr=snr,
            symmetry="D2",
            seed=5 + number,
            particles_per_micrograph=20,
            optics=(OpticsSettings(voltage_kv=(300.0, 200.0)[number]),),
            min_defocus_angstrom=(8000.0, 12000.0)[number],
        )
        write_entry(folder / name, molecule("D2", box, pixel_size), pixel_size, settings)
        for half in (0, 1):
            table = read_star(folder / name / f"particles_{half}.star")
            images = [image.replace("@", f"@{name}/") for image in table.column("rlnImageName")]
            micrographs = [micrograph.replace(".mrc", f"_{number}.mrc") for micrograph in table.micrographs()]
            tables.append(table.with_columns({"rlnImageName": images, "rlnMicrographName": micrographs}))
    both = concatenated(tables)
    order = np.argsort(both.micrographs(), kind="stable")
    write_star(folder / "both.star", both.select(order))
    return open_entry(folder / "both.star").particles()


def of_box(table: ParticleTable, box: int) -> np.ndarray:
    """Return which rows `(n,)` are of the group with this box size."""
    boxes = np.array([int(group.number("rlnImageSize")) for group in table.optics])
    return np.asarray(boxes[table.optics_index] == box)
