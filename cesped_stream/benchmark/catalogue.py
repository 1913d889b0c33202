"""The published entries of CESPED: names, records and what is known of each before it is downloaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEFAULT_ROOT: Final = Path("~/cesped_stream_entries")
"""Folder that holds entries where nothing else is said; `~` is expanded where it is used."""

DEMO_NAME: Final = "DEMO"
"""The embedded simulated entry: made on first use, offline."""

MASK_RECORD: Final = "11092291"


@dataclass(frozen=True)
class CatalogueEntry:
    """A published entry. None: not stated in public before download; `info_0.json` and the star then say it."""

    name: str
    records: tuple[str, str]
    """Zenodo records of half-set 0 and 1."""
    composition: str
    symmetry: str | None = None
    box_size: int | None = None
    num_particles: int | None = None
    """Particles of both half-sets together."""
    pixel_size_angstrom: float | None = None
    paper_name: str | None = None
    """The name under which the paper's Supplementary Table 1 has it; None: not in the paper."""
    mask_of: str = ""
    """The entry whose mask serves this one; "" where that is its own."""
    images_of: str | None = None
    """The entry whose stacks this one's stars point to: it has stars only."""

    @property
    def in_paper(self) -> bool:
        """Whether the paper's tables hold this entry under this name."""
        return self.paper_name == self.name

    @property
    def in_paper_words(self) -> str:
        """Return "yes", "no", or under which other name: "as 10647"."""
        if self.in_paper:
            return "yes"
        return "no" if self.paper_name is None else f"as {self.paper_name}"

    @property
    def mask_name(self) -> str:
        """Return the file name of the entry's mask in the record of masks."""
        return f"{self.mask_of or self.name}_mask.mrc"


def _of_paper(
    name: str, records: tuple[str, str], composition: str, symmetry: str, box_size: int, num_particles: int
) -> CatalogueEntry:
    return CatalogueEntry(name, records, composition, symmetry, box_size, num_particles, 1.5, paper_name=name)


# Supplementary Table 1 of the paper; 10648 (which took 10647's place) and TEST: README of cesped 25.12.0 on PyPI.
_ENTRIES: Final = (
    CatalogueEntry(
        name="TEST",
        records=("10998049", "10998591"),
        composition="Small subset of 11120, for a quick try",
        symmetry="C1",
        box_size=232,
        pixel_size_angstrom=1.5,
        mask_of="11120",
    ),
    _of_paper("10166", ("8353634", "8353702"), "Human 26S proteasome with oprozomib", "C1", 284, 238_631),
    _of_paper("10786", ("8352275", "8352281"), "Substance P-NK1R-miniGs399 complex", "C1", 184, 288_659),
    _of_paper("10280", ("8353722", "8353737"), "Calcium-bound TMEM16F in nanodisc with PIP2", "C2", 182, 459_504),
    _of_paper("11120", ("8352296", "8352300"), "M22-bound TSHR Gs 7TM G protein", "C1", 232, 244_973),
    CatalogueEntry(
        name="10648",
        records=("8387534", "8390711"),
        composition="PKM2 with compound 5, in the place of the paper's 10647",
        symmetry="D2",
        box_size=222,
        num_particles=234_956,
        pixel_size_angstrom=1.5,
        paper_name="10647",
    ),
    _of_paper("10409", ("8386582", "8386660"), "Replicating SARS-CoV-2 polymerase, map 1", "C1", 240, 406_001),
    _of_paper("10374", ("8386774", "8386881"), "Human ABCG2 transporter with MZ29 and 5D3-Fab", "C2", 216, 323_681),
    CatalogueEntry(name="10399", records=("11099225", "11093190"), composition="EMPIAR-10399"),
    CatalogueEntry(
        name="consensus_10648",
        records=("11092025", "11092048"),
        composition="Stars only, for the images of 10648",
        box_size=222,
        pixel_size_angstrom=1.5,
        mask_of="10648",
        images_of="10648",
    ),
    CatalogueEntry(
        name="simulated_10648",
        records=("11098206", "11098270"),
        composition="Simulated counterpart of 10648",
        mask_of="10648",
    ),
)

CATALOGUE: Final = {entry.name: entry for entry in _ENTRIES}
"""The published entries by name, in the order in which they are listed."""
