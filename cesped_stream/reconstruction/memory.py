"""How much memory a map of our own backprojection needs, said before the work begins where it is much."""

import logging
import re
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

LARGE_BYTES: Final = 4_000_000_000
"""From here on it is said."""
_BYTES_A_VOXEL: Final = 24
"""Of the sums: complex numerator and denominator in float64."""
_WHILE_MAPPED: Final = (2.5, 2.7)
"""What `Backprojector.map` needs beside the sums, in units of them: without and with a symmetry."""
_MEMORY_INFO: Final = Path("/proc/meminfo")


def map_memory_bytes(box_size: int, *, padding: int = 2, symmetric: bool = True, num_maps: int = 1) -> int:
    """Return the peak memory of maps `(box, box, box)`: the sums of `num_maps` at once, and one of them being made."""
    reach = padding * (box_size // 2) + 1
    sums = _BYTES_A_VOXEL * (2 * reach + 1) ** 2 * (reach + 1)
    return round(sums * (num_maps + _WHILE_MAPPED[symmetric]))


def available_bytes() -> int | None:
    """Return the memory that this machine can give away now; None where it does not say."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", _MEMORY_INFO.read_text())
    except OSError:
        return None
    return None if found is None else int(found.group(1)) * 1024


def memory_words(box_size: int, needed: int, available: int | None) -> str:
    """Return what there is to say of maps that need so many bytes; empty where it is little and there is more."""
    if needed < LARGE_BYTES and (available is None or needed < available):
        return ""
    said = f"maps of {box_size} px need {needed / 1e9:.1f} GB of memory"
    if available is None:
        return said
    said += f", {available / 1e9:.1f} GB are free"
    return said if needed < available else f"{said}: bin or crop the particles, or score their poses without maps"


def warn_of_memory(box_size: int, *, symmetric: bool = True, num_maps: int = 1) -> None:
    """Log a warning where maps of this box need much memory, or more than there is."""
    needed, available = map_memory_bytes(box_size, symmetric=symmetric, num_maps=num_maps), available_bytes()
    if words := memory_words(box_size, needed, available):
        logger.warning("%s", words, extra={"needed_bytes": needed, "available_bytes": available})
