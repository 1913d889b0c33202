"""A reference knows which particles are in it, and comes back from its files as it was."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.matching import flat_noise, reference

from cesped_stream.errors import InvalidCheckpointError, PermanentError, UnreachableFileError
from cesped_stream.imaging.noise_model import NoiseScores
from cesped_stream.imaging.reference import Reference, load_reference, reference_id, save_reference
from cesped_stream.imaging.shift_prior import fit_shift_prior
from cesped_stream.particles.identities import particle_digests
from cesped_stream.particles.table import OpticsGroup, ParticleTable

OPTICS = (OpticsGroup((("rlnOpticsGroupName", "one"),)),)


def table(names: list[str], stack: str | None = "/data/a.mrcs", subset: int = 1, source: str = "") -> ParticleTable:
    rows = [(name, str(subset)) for name in names]
    found = ParticleTable(("rlnImageName", "rlnRandomSubset"), rows, OPTICS, np.zeros(len(rows), np.int64), source)
    return found if stack is None else found.with_columns({"cestreamStack": [stack] * len(rows)})


@pytest.fixture
def own() -> Reference:
    members = np.sort(particle_digests(table(["1@a.mrcs", "3@a.mrcs"])))
    prior = fit_shift_prior(np.array([[3.0, 4.0], [0.0, 40.0]]), 5.0, 60.0)
    of_noise = NoiseScores(mean=-3.5, std=2.0)
    return replace(
        reference("D2"), members=members, noise=flat_noise(), shift_prior=prior, of_noise=of_noise, num_left_out=1
    )


def test_a_particle_in_the_reference_is_refused_whatever_its_row_is_called(own: Reference) -> None:
    own.check_holds_none_of(table(["2@a.mrcs", "4@a.mrcs"]))
    own.check_holds_none_of(table(["1@a.mrcs"], stack="/data/b.mrcs"))
    with pytest.raises(PermanentError, match=r"1 of 2 particles, first 000003@elsewhere/a\.mrcs"):
        own.check_holds_none_of(table(["2@a.mrcs", "000003@elsewhere/a.mrcs"]))


def test_a_particle_of_the_other_half_is_refused_but_not_by_a_shared_map(own: Reference) -> None:
    with pytest.raises(PermanentError, match="not of half-set 0"):
        own.check_holds_none_of(table(["2@a.mrcs"], subset=2))
    shared = replace(own, shared=True, members=np.empty(0, np.uint64))
    shared.check_holds_none_of(table(["2@a.mrcs"], subset=2))
    assert shared.alignment == "shared_reference" and own.alignment == "unknown"


def test_identity_is_the_resolved_stack_also_without_its_column(tmp_path: Path) -> None:
    resolved = table(["5@a.mrcs"], stack=str(tmp_path / "a.mrcs"))
    relative = table(["000005@a.mrcs"], stack=None, source=str(tmp_path / "x.star"))
    np.testing.assert_array_equal(particle_digests(resolved), particle_digests(relative))
    (tmp_path / "deeper").mkdir()
    other = table(["5@a.mrcs"], stack=None, source=str(tmp_path / "deeper" / "x.star"))
    assert particle_digests(other) != particle_digests(resolved)


def test_it_comes_back_from_its_files_and_equal_ones_have_equal_bytes(own: Reference, tmp_path: Path) -> None:
    first, second = (save_reference(tmp_path / name, own) for name in ("one", "two"))
    assert first == second
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
    again = load_reference(tmp_path / "one", 0)
    np.testing.assert_array_equal(again.volume, own.volume)
    np.testing.assert_array_equal(again.members, own.members)
    assert (again.symmetry, again.resolution_angstrom, again.shared) == ("D2", own.resolution_angstrom, False)
    assert again.noise is not None and again.shift_prior is not None and own.shift_prior is not None
    np.testing.assert_array_equal(again.shift_prior.log_density, own.shift_prior.log_density)
    assert (again.of_noise, again.num_left_out) == (own.of_noise, 1)
    assert save_reference(tmp_path / "three", replace(own, resolution_angstrom=12.0)) != first


def test_a_reference_of_before_noise_was_measured_for_all_ctfs_keeps_its_id(own: Reference, tmp_path: Path) -> None:
    old = save_reference(tmp_path / "old", own)
    described = json.loads((tmp_path / "old" / "reference_0.json").read_bytes())
    assert described["of_noise"] == {"mean": -3.5, "std": 2.0}
    assert reference_id(load_reference(tmp_path / "old", 0)) == old
    now = replace(own, of_noise=NoiseScores(mean=-3.5, std=2.0, hardest=True))
    assert save_reference(tmp_path / "now", now) != old
    assert load_reference(tmp_path / "now", 0).of_noise == now.of_noise


@pytest.mark.parametrize("file", ["reference_0.mrc", "reference_0.members", "reference_0.json"])
def test_a_changed_or_missing_file_is_told(own: Reference, tmp_path: Path, file: str) -> None:
    save_reference(tmp_path, own)
    data = bytearray((tmp_path / file).read_bytes())
    position = len(data) - 5 if file != "reference_0.json" else data.index(b'"symmetry": "D2"') + 13
    data[position] ^= 1
    (tmp_path / file).write_bytes(data)
    with pytest.raises(InvalidCheckpointError, match="write the reference again"):
        load_reference(tmp_path, 0)
    (tmp_path / file).unlink()
    with pytest.raises(UnreachableFileError):
        load_reference(tmp_path, 0)


def test_its_radius_is_the_root_mean_square_of_its_density() -> None:
    volume = np.zeros((32, 32, 32), np.float32)
    volume[16, 16, 16 + 4] = volume[16, 16 - 2, 16] = 1.0
    one = replace(reference(), volume=volume, pixel_size_angstrom=5.0)
    assert one.rms_radius_angstrom() == pytest.approx(5 * ((16 + 4) / 2) ** 0.5)
