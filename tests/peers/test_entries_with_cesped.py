"""Entries that we made or downloaded are entries for the public cesped package: the same images and poses."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from samples.record_server import Archive, half_files, serving, table_of

from cesped_stream.benchmark.add_entry import NewEntry, add_entry, add_entry_of_one_star
from cesped_stream.benchmark.catalogue import CATALOGUE
from cesped_stream.benchmark.demo_entry import DEMO_SETTINGS, make_demo_entry
from cesped_stream.benchmark.download import RecordServer
from cesped_stream.benchmark.download_entry import download_entry
from cesped_stream.benchmark.entries import find_entry
from cesped_stream.benchmark.merge_entry import merge_entry
from cesped_stream.particles.stacks import StackReader, read_images, write_stack
from cesped_stream.particles.star import write_star
from cesped_stream.particles.table import ParticleTable

from .conftest import Peer

OPEN = """
from cesped.particlesDataset import ParticlesDataset
import cesped.particlesDataset as module
def refuse(*args, **kwargs):
    raise AssertionError("it wanted to download what is there")
module.download_record = refuse
for half in (0, 1):
    dataset = ParticlesDataset(arguments["target"], half, benchmarkDir=arguments["root"], image_size=None,
                               apply_perImg_normalization=False, ctf_correction=arguments["ctf"],
                               image_size_factor_for_crop=0.0)
    items = [dataset[k] for k in range(len(dataset))]
    result[f"ids_{half}"] = [item[0] for item in items]
    result[f"symmetry_{half}"] = dataset.symmetry
    result[f"pixel_size_{half}"] = float(dataset.sampling_rate)
    arrays[f"images_{half}"] = np.stack([item[1].numpy()[0] for item in items])
    arrays[f"rotations_{half}"] = np.stack([np.asarray(item[2][0]) for item in items])
    arrays[f"shifts_{half}"] = np.stack([np.asarray(item[2][1]) for item in items])
result["available"] = ParticlesDataset.getLocallyAvailableEntries(arguments["root"])
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """One star of 12 rows, both half-sets, in two stacks, out of order."""
    folder = tmp_path / "project"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for name in ("a.mrcs", "b.mrcs"):
        write_stack(folder / name, rng.standard_normal((8, 24, 24)).astype(np.float32), 1.5)
    order = rng.permutation(12)
    table = table_of(0, 12, 24, "a.mrcs").with_columns(
        {
            "rlnImageName": [f"{k % 8 + 1:06d}@{'ab'[k // 8]}.mrcs" for k in order],
            "rlnRandomSubset": [str(k % 2 + 1) for k in order],
            "rlnMaxValueProbDistribution": [f"{0.05 * (k + 1):.2f}" for k in order],
        }
    )
    write_star(folder / "run_data.star", table)
    return folder


def assert_same(peer: Peer, target: str, root: Path, ctf: str = "none") -> None:
    """Assert that cesped gives each row of our table: its name, image, rotation and shift."""
    result, arrays = peer(OPEN, target=target, root=root, ctf=ctf)
    entry = find_entry(target, root)
    whole = entry.particles()
    for half in (0, 1):
        table = whole.select(np.flatnonzero(whole.half_sets() == half))
        assert result[f"ids_{half}"] == table.column("rlnImageName")
        assert result[f"symmetry_{half}"] == entry.symmetry
        assert result[f"pixel_size_{half}"] == pytest.approx(float(table.pixel_sizes_angstrom()[0]))
        np.testing.assert_allclose(arrays[f"rotations_{half}"], table.rotations(), atol=1e-5)
        np.testing.assert_allclose(arrays[f"shifts_{half}"], table.shifts_angstrom(), atol=1e-5)
        if ctf == "none":
            np.testing.assert_allclose(arrays[f"images_{half}"], images_of(table), atol=1e-6)
        else:
            assert np.isfinite(arrays[f"images_{half}"]).all()


def images_of(table: ParticleTable) -> np.ndarray:
    with StackReader() as reader:
        (group,) = read_images(table, reader)
    return group.images


@pytest.mark.parametrize("copy", [False, True])
def test_an_added_entry_gives_cesped_the_same_images_and_poses(
    peer: Peer, project: Path, tmp_path: Path, copy: bool
) -> None:
    root = tmp_path / "root"
    added = add_entry_of_one_star(project / "run_data.star", NewEntry("mine", "C2", project, root, copy=copy))
    assert added.num_particles[0] + added.num_particles[1] == 12
    assert added.warnings == []
    assert_same(peer, "mine", root)


def test_halves_that_share_one_linked_stack_are_read(peer: Peer, project: Path, tmp_path: Path) -> None:
    whole = table_of(0, 8, 24, "a.mrcs").without(["rlnRandomSubset"])
    for half, rows in enumerate(([6, 1, 3], [0, 7])):
        write_star(project / f"h{half}.star", whole.select(rows))
        add_entry(project / f"h{half}.star", half, NewEntry("shared", "D2", project, tmp_path / "root"))
    assert_same(peer, "shared", tmp_path / "root")


def test_the_embedded_entry_is_read_and_its_ctf_corrected(peer: Peer, tmp_path: Path) -> None:
    make_demo_entry(tmp_path, settings=DEMO_SETTINGS.model_copy(update={"num_particles": 40}))
    assert_same(peer, "DEMO", tmp_path)
    assert_same(peer, "DEMO", tmp_path, ctf="phase_flip")


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    source = tmp_path / "source"
    source.mkdir()
    records = {record: half_files(source, half) for half, record in enumerate(CATALOGUE["TEST"].records)}
    with serving(Archive(records)) as archive:
        yield archive


def test_a_downloaded_entry_is_available_to_cesped_as_its_own(peer: Peer, archive: Archive, tmp_path: Path) -> None:
    with RecordServer(archive.base_url) as server:
        download_entry("TEST", tmp_path / "root", server=server)
    assert_same(peer, "TEST", tmp_path / "root")


def test_what_cesped_downloaded_is_complete_to_us(peer: Peer, archive: Archive, tmp_path: Path) -> None:
    script = """
import builtins
import cesped.zenodo.downloadFromZenodo as module
asked = module.requests.get
def on_loopback(url, **kwargs):
    return asked(url.replace("https://zenodo.org", arguments["server"]), **kwargs)
module.requests.get = on_loopback
for record in arguments["records"]:
    module.download_record(record, arguments["folder"], root_url=arguments["server"] + "/api/records")
"""
    records = list(CATALOGUE["TEST"].records)
    peer(script, server=archive.base_url, records=records, folder=tmp_path / "root" / "TEST")
    archive.requests.clear()
    with RecordServer(archive.base_url) as server:
        assert download_entry("TEST", tmp_path / "root", server=server).checks == ()
    assert not archive.requests
    assert len(find_entry("TEST", tmp_path / "root").particles()) == 12


def test_records_and_masks_are_those_of_the_public_package(peer: Peer) -> None:
    script = """
from cesped.zenodo.bechmarkUrls import NAME_PARTITION_TO_RECORID, NAME_TO_MASK_URL
result["records"] = [[name, half, record] for (name, half), record in NAME_PARTITION_TO_RECORID.items()]
result["masks"] = {name: url.rpartition("/")[2] for name, url in NAME_TO_MASK_URL.items()}
"""
    result, _ = peer(script)
    ours = sorted(
        [entry.name, half, record] for entry in CATALOGUE.values() for half, record in enumerate(entry.records)
    )
    assert sorted(result["records"]) == ours
    assert {entry.name: entry.mask_name for entry in CATALOGUE.values()}.items() <= result["masks"].items()


def test_a_merged_star_has_the_rows_that_cesped_merges(peer: Peer, project: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    add_entry_of_one_star(project / "run_data.star", NewEntry("mine", "C2", project, root, copy=True))
    folder = root / "mine"
    merged = merge_entry(find_entry("mine", root))
    script = """
import starfile
from cesped.particlesDataset import _merge_star_files
_merge_star_files([arguments["half_0"], arguments["half_1"]], arguments["theirs"])
for name in ("theirs", "ours"):
    blocks = starfile.read(arguments[name])
    particles = blocks["particles"][sorted(blocks["particles"].columns)]
    result[name] = [list(particles.columns), particles.astype(str).values.tolist()]
"""
    halves = {f"half_{half}": folder / f"particles_{half}.star" for half in (0, 1)}
    result, _ = peer(script, **halves, theirs=tmp_path / "theirs.star", ours=merged)
    assert result["ours"] == result["theirs"]
