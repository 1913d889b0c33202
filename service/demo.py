"""Commands that simulate an entry: simulate, and demo, which streams it as well."""

import json
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from cesped_stream.benchmark.entries import open_entry
from cesped_stream.benchmark.examples import save_examples
from cesped_stream.benchmark.output_folder import output_folder
from cesped_stream.benchmark.stream_realism import for_demo, for_simulation
from cesped_stream.errors import InvalidSettingsError
from cesped_stream.imaging.entry import write_entry
from cesped_stream.imaging.maps import crop_map, read_map
from cesped_stream.imaging.molecule import embedded_ribosome, molecule_to_map
from cesped_stream.settings import RealismSettings

from .replay_command import refuse_used_output, stream_and_report
from .stream_outcome import STATED_NAME
from .stream_progress import Stages, progress_bars
from .stream_settings import DemoCommand, EntrySettings, SimulateCommand

EMBEDDED_BOX_SIZE = 48
REAL_SNR = 0.15
REAL_SNR_PIXEL_SIZE_ANGSTROM = 8.0
"""About what a ribosome's images have, in its own circle, at 8 A/px: 0.05 at 1.5 A/px."""


def simulate_command(settings: SimulateCommand, console: Console) -> int:
    """Write a simulated entry; say what it is."""
    if any(settings.output.glob("particles_*")) and not (settings.output / STATED_NAME).exists():
        raise InvalidSettingsError(
            f"output: {settings.output} holds an entry that is not simulated; give another folder"
        )
    output_folder(settings.output)
    with progress_bars(console) as bars:
        stated = simulate(settings.simulate, settings.output, bars, for_simulation(settings.realism))
    console.print(f"{settings.output}: {stated}")
    return 0


def demo_command(settings: DemoCommand, console: Console) -> int:
    """Simulate the embedded entry, stream it, and tell what came of it."""
    stages = Stages()
    start = time.monotonic()
    refuse_used_output(settings.output)
    in_images, in_labels = for_demo(settings.realism)
    folder = settings.output / "entry"
    with progress_bars(console) as bars:
        with stages.stage("simulate"):
            stated = simulate(settings.simulate, folder, bars, in_images)
        console.print(stated)
        stream_and_report(open_entry(folder), settings, in_labels, console, bars, stages, start)
    return 0


def simulate(settings: EntrySettings, folder: Path, bars: Progress, realism: RealismSettings) -> str:
    """Write a simulated entry into `folder`; return in words what it is, which also lies there as simulated.json."""
    volume, pixel_size = _volume(settings)
    task = bars.add_task("simulated", total=settings.num_particles)
    write_entry(
        folder, volume, pixel_size, settings, realism=realism,
        on_progress=lambda done: bars.update(task, completed=done),
    )  # fmt: skip
    comparable = settings.map is None and pixel_size == REAL_SNR_PIXEL_SIZE_ANGSTROM
    easy = f"; an easy stream, real images have about {REAL_SNR:g}" if comparable and settings.snr > REAL_SNR else ""
    name = f"Simulated particles of {settings.map.name if settings.map else 'a ribosome (PDB 6ZU5)'}"
    stated = (
        f"box {volume.shape[0]}, {pixel_size:g} Å/px, SNR {settings.snr:g} in the particle circle after "
        f"the CTF at this pixel size{easy}"
    )
    sampling = {"box_size": volume.shape[0], "pixel_size_angstrom": pixel_size, "snr": settings.snr}
    if not realism.is_clean:
        stated += f"; a session with realism ({realism.preset} preset; {save_examples(folder).name} shows its picks)"
    words = {"name": name, "stated": stated, **sampling}
    (folder / STATED_NAME).write_text(json.dumps(words) + "\n")
    return f"{name}: {stated}"


def _volume(settings: EntrySettings) -> tuple[NDArray[np.float32], float]:
    if settings.map is None:
        pixel_size = settings.pixel_size_angstrom
        resolution = settings.resolution_angstrom or 2 * pixel_size
        box_size = settings.box_size or EMBEDDED_BOX_SIZE
        return molecule_to_map(*embedded_ribosome(), box_size, pixel_size, resolution), pixel_size
    volume, pixel_size = read_map(settings.map)
    box_size = settings.box_size or volume.shape[0]
    if box_size == volume.shape[0]:
        return volume, pixel_size
    if box_size > volume.shape[0]:
        raise InvalidSettingsError(f"simulate.box_size {box_size}: {settings.map} has {volume.shape[0]}; take no more")
    return crop_map(volume, box_size), pixel_size * volume.shape[0] / box_size
