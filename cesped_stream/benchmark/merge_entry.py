"""Both half-sets of an entry as one star."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from cesped_stream.benchmark.entries import Entry
from cesped_stream.benchmark.entry_folder import disk_errors
from cesped_stream.benchmark.output_folder import output_folder
from cesped_stream.errors import InvalidEntryError
from cesped_stream.particles.missing_columns import shared_optics
from cesped_stream.particles.stacks import STACK_LABEL
from cesped_stream.particles.star import iter_star, write_star

MERGED_NAME: Final = "particles_merged.star"


def merge_entry(
    entry: Entry, *, on_left_out: Callable[[Path, tuple[str, ...]], None] = lambda path, labels: None
) -> Path:
    """Write the rows of both half-sets, half 0 first, as `particles_merged.star` (RELION 3.1) beside them; return it.

    Columns are those of both, or that RELION has a neutral value for (angles that one half lacks are refused, not
    invented); `on_left_out` gets the others. Each row has rlnRandomSubset; optics groups with equal values are one.
    Image names stay relative to the entry.
    Raises InvalidEntryError for an entry that is one star already, else as `Entry.particles`.
    """
    if len(entry.stars) != 2:
        raise InvalidEntryError(f"{entry.folder}: is one star, {entry.stars[0].name}; there is nothing to merge")
    path = output_folder(entry.folder) / MERGED_NAME
    rows = entry.particles().without([STACK_LABEL])
    landed = {label for star in entry.stars for label in next(iter_star(star, rows_per_table=1)).labels}
    if left_out := tuple(sorted((landed - set(rows.labels)) | set(shared_optics(rows.optics).left_out))):
        on_left_out(path, left_out)
    with disk_errors(path):
        write_star(path, rows)
    return path
