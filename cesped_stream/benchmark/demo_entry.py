"""The embedded simulated entry, DEMO: what TEST is online, without a network."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cesped_stream.benchmark.catalogue import DEFAULT_ROOT, DEMO_NAME
from cesped_stream.benchmark.entry_folder import (
    EntryState,
    disk_errors,
    entry_folder,
    entry_lock,
    entry_state,
    mark_added,
)
from cesped_stream.conventions import HALVES
from cesped_stream.durable import rename_durably
from cesped_stream.imaging.entry import write_entry
from cesped_stream.imaging.molecule import embedded_ribosome, molecule_to_map
from cesped_stream.settings import OpticsSettings, SimulationSettings

BOX_SIZE: Final = 48
PIXEL_SIZE_ANGSTROM: Final = 8.0
DEMO_SETTINGS: Final = SimulationSettings(
    num_particles=4000, snr=0.15, particle_radius_angstrom=157.0, optics=(OpticsSettings(),)
)
"""A ribosome's SNR at this pixel size, as in real images; one optics group, which cesped reads too."""


def make_demo_entry(
    root: Path = DEFAULT_ROOT,
    *,
    settings: SimulationSettings = DEMO_SETTINGS,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Path:
    """Return the folder of the embedded entry under `root`, simulated now where it is not there.

    4,000 particles of the ribosome of PDB 6ZU5, 48 px at 8 A/px (38 MB), with their true poses; the same
    `settings` give the same bytes. It appears whole. BusyEntryError where another process makes it.
    """
    folder = entry_folder(DEMO_NAME, root)
    if entry_state(folder) is EntryState.COMPLETE:
        return folder
    with entry_lock(DEMO_NAME, root), disk_errors(folder):
        if entry_state(folder) is EntryState.COMPLETE:
            return folder
        making = folder.with_name(f".{DEMO_NAME}.making")
        shutil.rmtree(making, ignore_errors=True)
        volume = molecule_to_map(*embedded_ribosome(), BOX_SIZE, PIXEL_SIZE_ANGSTROM, 2 * PIXEL_SIZE_ANGSTROM)
        write_entry(making, volume, PIXEL_SIZE_ANGSTROM, settings, on_progress=on_progress)
        for half in HALVES:
            mark_added(making, half, DEMO_NAME)
        rename_durably(making, folder)
    return folder
