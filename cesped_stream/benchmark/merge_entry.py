"""Both half-sets of an entry as one star."""

from pathlib import Path
from typing import Final

from cesped_stream.benchmark.entries import Entry
from cesped_stream.benchmark.entry_folder import disk_errors
from cesped_stream.benchmark.output_folder import output_folder
from cesped_stream.errors import InvalidEntryError
from cesped_stream.particles.stacks import STACK_LABEL
from cesped_stream.particles.star import write_star

MERGED_NAME: Final = "particles_merged.star"


def merge_entry(entry: Entry) -> Path:
    """Write the rows of both half-sets, half 0 first, as `particles_merged.star` (RELION 3.1) beside them; return it.

    Columns are the union, filled with RELION's neutral values (angles that one half lacks are refused, not invented);
    each row has rlnRandomSubset; optics groups with equal values are one. Image names stay relative to the entry.
    Raises InvalidEntryError for an entry that is one star already, else as `Entry.particles`.
    """
    if len(entry.stars) != 2:
        raise InvalidEntryError(f"{entry.folder}: is one star, {entry.stars[0].name}; there is nothing to merge")
    path = output_folder(entry.folder) / MERGED_NAME
    with disk_errors(path):
        write_star(path, entry.particles().without([STACK_LABEL]))
    return path
