"""Which particles a checkpoint's references are made of, by half-set and by whose reference scores whom."""

from pathlib import Path

import numpy as np
import pytest

from cesped_stream.particles.identities import particle_digests
from cesped_stream.particles.reference_members import ReferenceMembers
from cesped_stream.particles.table import OpticsGroup, ParticleTable


def particles() -> ParticleTable:
    """Six particles, the half-sets 0, 1, 0, 1, 0, 1."""
    labels = ("rlnImageName", "rlnRandomSubset", "cestreamStack")
    rows = [(f"{k + 1:06d}@s.mrcs", str(1 + k % 2), "/data/s.mrcs") for k in range(6)]
    return ParticleTable(labels, rows, (OpticsGroup(()),), np.zeros(6, np.int64))


def write_members(folder: Path, made_of: list[list[int]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for half, rows in enumerate(made_of):
        digests = np.sort(particle_digests(particles().select(rows)))
        (folder / f"reference_{half}.members").write_bytes(digests.astype("<u8").tobytes())


@pytest.mark.parametrize("inside", [".", "references"])
def test_a_particle_is_among_the_members_of_its_own_half_sets_reference(tmp_path: Path, inside: str) -> None:
    write_members(tmp_path / inside, [[0, 4], [1]])
    members = ReferenceMembers.of(tmp_path)
    assert len(members) == 3
    assert members.among(particles(), "gold_standard").tolist() == [True, True, False, False, True, False]
    assert not members.among(particles(), "cross_half").any(), "each half-set is scored by the other's reference"


def test_networks_and_given_maps_are_made_of_no_particle(tmp_path: Path) -> None:
    assert not ReferenceMembers.of(tmp_path).among(particles(), "gold_standard").any()
    write_members(tmp_path, [[], []])
    assert len(ReferenceMembers.of(tmp_path)) == 0
