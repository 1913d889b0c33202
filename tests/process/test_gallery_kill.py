"""Sessions that references answer: killed trainers and workers leave the same canonical bytes, shifts included."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from support.matching import PIXEL_SIZE, molecule

from cesped_stream.benchmark.entries import open_entry
from cesped_stream.imaging.entry import write_entry
from cesped_stream.imaging.maps import write_map
from cesped_stream.particles.stacks import STACK_LABEL
from cesped_stream.particles.star import read_star, star_bytes, write_star
from cesped_stream.settings import SimulationSettings
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations
from cesped_stream_service.messages import Control
from cesped_stream_service.request import request

from .conftest import QUICK_SERVICE, TINY_TRAINING, MakeSession, TinySession, wait_until
from .in_process import exported_bytes, undisturbed_export

TOTAL, ALIGNED, UNALIGNED = 340, 280, 100
PATIENCE_SECONDS = 180.0
"""References and tiny networks take seconds where the machine is not shared."""
POSE = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")
SETTINGS = {
    "proposer": "gallery",
    "training": TINY_TRAINING | {"symmetry": "D2"},
    "gallery": {"grid_order": 2, "coarse_order": 1, "keep_fraction": 0.2, "batch_size": 8},
    "referencing": {"mask_lowpass_angstrom": 20.0},
    # Leases of eight rows, each committed before the next is asked for: there is a middle to kill a worker in.
    "inference": {"batch_size": 8, "device": "cpu", "threads": 1},
    "service": QUICK_SERVICE | {"lease_seconds": 0.001},
}


@pytest.fixture(scope="module")
def landing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Aligned rows of a molecule's images, then others without poses."""
    entry, folder = tmp_path_factory.mktemp("entry"), tmp_path_factory.mktemp("landing")
    settings = SimulationSettings(num_particles=TOTAL, snr=0.5, symmetry="D2", seed=5, particles_per_micrograph=20)
    write_entry(entry, molecule("D2"), PIXEL_SIZE, settings)
    for stack in entry.glob("*.mrcs"):
        shutil.copy(stack, folder)
    for half in (0, 1):
        table = read_star(entry / f"particles_{half}.star")
        write_star(folder / f"aligned_{half}.star", table.select(np.arange(ALIGNED // 2)))
        write_star(folder / f"later_{half}.star", table.select(np.arange(ALIGNED // 2, len(table))).without(POSE))
    for star in folder.glob("*.star"):
        Path(f"{star}.done").touch()
    truth = open_entry(entry).particles()
    write_star(folder.parent / "truth.star", truth)
    return folder


@pytest.fixture(scope="module")
def unaligned(landing: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first of the same particles, all without poses."""
    folder = tmp_path_factory.mktemp("unaligned") / "landing"
    folder.mkdir()
    for stack in landing.glob("*.mrcs"):
        shutil.copy(stack, folder)
    truth = read_star(landing.parent / "truth.star")
    for half in (0, 1):
        own = truth.select(np.flatnonzero(truth.half_sets() == half)[: UNALIGNED // 2]).without([*POSE, STACK_LABEL])
        write_star(folder / f"half_{half}.star", own)
        (folder / f"half_{half}.star.done").touch()
    shutil.copy(landing.parent / "truth.star", folder.parent)
    return folder


def end(session: TinySession, role: str) -> None:
    process = next(p for p in session.processes if role in p.args and p.poll() is None)
    assert session.stop(process, signal.SIGKILL) == -signal.SIGKILL


def end_trainer_at_publication(session: TinySession) -> None:
    """Kill the trainer as its references are made and being written; now and then just after, on a busy machine."""
    checkpoints = session.folder / "checkpoints"
    patterns = ("*.work/references.*", ".ref-*.tmp", "ref-*")
    wait_until(
        lambda: any(any(checkpoints.glob(pattern)) for pattern in patterns),
        "references are written",
        PATIENCE_SECONDS,
        poll_seconds=0.002,
    )
    end(session, "trainer")


def predicted(session: TinySession) -> int:
    """Return how many predicted rows are on disk."""
    files = (session.folder / "poses").glob("poses*.star")
    return sum(read_star(file).column("cestreamStatus").count("predicted") for file in files)


def test_kills_of_trainer_and_worker_leave_the_canonical_export_equal(
    make_session: MakeSession, landing: Path, tmp_path: Path
) -> None:
    calm = make_session("calm", landing, **SETTINGS)
    expected = undisturbed_export(calm.settings, TOTAL, tmp_path / "calm.star")
    check_poses(tmp_path / "calm.star", landing.parent / "truth.star")

    session = make_session("killed", landing, **SETTINGS)
    session.start("coordinator")
    session.start("trainer", "--name", "trainer")
    end_trainer_at_publication(session)
    session.start("trainer", "--name", "trainer")
    session.start("worker", "--name", "worker-1")
    wait_until(lambda: predicted(session) > 0, "a first pose", PATIENCE_SECONDS)
    end(session, "worker")
    assert predicted(session) < TOTAL - ALIGNED, "too late to show anything"
    session.start("worker", "--name", "worker-1")
    session.wait_for(f"{TOTAL} rows posed", lambda status: status["posed"] == TOTAL)
    for process in session.processes[::-1]:
        if process.poll() is None:
            assert session.stop(process) == 0
    assert exported_bytes(session.settings, tmp_path / "killed.star") == expected


def test_a_session_of_a_given_map_survives_sigterm_and_kills_of_trainer_and_worker(
    make_session: MakeSession, unaligned: Path, tmp_path: Path
) -> None:
    write_map(tmp_path / "map.mrc", molecule("D2"), PIXEL_SIZE)
    settings = SETTINGS | {"reference": tmp_path / "map.mrc", "noise_rows_per_half": 40}
    calm = make_session("calm", unaligned, **settings)
    expected = undisturbed_export(calm.settings, UNALIGNED, tmp_path / "calm.star")
    check_poses(tmp_path / "calm.star", unaligned.parent / "truth.star", many=UNALIGNED)

    session = make_session("killed", unaligned, **settings)
    session.start("coordinator")
    checkpoints = session.folder / "checkpoints"
    trainer = session.start("trainer", "--name", "trainer")
    wait_until(lambda: list(checkpoints.glob("*.work/lock")), "the noise is being learned")
    assert session.stop(trainer) == 0
    assert not list(checkpoints.glob("ref-*")), "too late to show anything"
    session.start("trainer", "--name", "trainer")
    end_trainer_at_publication(session)
    (tmp_path / "map.mrc").unlink()  # the session has its own
    session.start("trainer", "--name", "trainer")
    session.start("worker", "--name", "worker-1")
    wait_until(lambda: predicted(session) > 0, "a first pose", PATIENCE_SECONDS)
    end(session, "coordinator")
    end(session, "worker")
    assert predicted(session) < UNALIGNED, "too late to show anything"
    session.start("coordinator")
    session.start("worker", "--name", "worker-1")
    session.wait_for(f"{UNALIGNED} rows posed", lambda status: status["posed"] == UNALIGNED)
    assert session.status()["checkpoint"]["independence"] == "shared_reference"
    for process in session.processes[::-1]:
        if process.poll() is None:
            assert session.stop(process) == 0
    assert exported_bytes(session.settings, tmp_path / "killed.star") == expected


def test_kills_of_all_roles_of_both_leave_the_canonical_export_equal_once_redone(
    make_session: MakeSession, landing: Path, tmp_path: Path
) -> None:
    settings = SETTINGS | {"proposer": "both"}
    calm = make_session("calm", landing, **settings)
    undisturbed_export(calm.settings, TOTAL, tmp_path / "calm.star")
    check_poses(tmp_path / "calm.star", landing.parent / "truth.star", "network+gallery+refinement")

    session = make_session("killed", landing, **settings)
    session.start("coordinator")
    checkpoints = session.folder / "checkpoints"
    session.start("worker", "--name", "worker-1")
    session.start("trainer", "--name", "trainer")
    end_trainer_at_publication(session)
    session.start("trainer", "--name", "trainer")
    wait_until(lambda: predicted(session) > 0, "a first pose, by references", PATIENCE_SECONDS)
    end(session, "coordinator")
    end(session, "worker")
    assert predicted(session) < TOTAL - ALIGNED, "too late to show anything"
    assert not list(checkpoints.glob("fus-*")), "too late to show anything"
    session.start("coordinator")
    session.start("worker", "--name", "worker-1")
    wait_until(lambda: list(checkpoints.glob("i2s-*")), "networks are published", PATIENCE_SECONDS)
    end(session, "trainer")
    assert not list(checkpoints.glob("fus-*")), "too late to show anything"
    session.start("trainer", "--name", "trainer")
    session.wait_for("the order is done", lambda status: status["training"]["state"] == "done", PATIENCE_SECONDS)
    session.wait_for(f"{TOTAL} rows posed", lambda status: status["posed"] == TOTAL)
    assert request(session.settings, Control(action="reinfer")).ok
    session.wait_for("all is redone", lambda status: status["reinfer_shards_left"] == 0, PATIENCE_SECONDS)
    for process in session.processes[::-1]:
        if process.poll() is None:
            assert session.stop(process) == 0
    exported_bytes(session.settings, tmp_path / "killed.star")
    revisions = read_star(tmp_path / "killed.star").column("cestreamRevision")
    assert 0 < revisions.count("1") <= TOTAL - ALIGNED, "no row was posed by references first"
    assert without_revision(tmp_path / "killed.star") == without_revision(tmp_path / "calm.star")


def without_revision(star: Path) -> bytes:
    """Return a star's bytes but for how often a row was redone, which says what was posed before the networks came."""
    return star_bytes(read_star(star).without(["cestreamRevision"]))


def check_poses(star: Path, truth: Path, proposer: str = "gallery+refinement", many: int = TOTAL - ALIGNED) -> None:
    """The poses are the particles' own, and none came from a checkpoint of networks alone."""
    table, true = read_star(star), read_star(truth)
    rows = table.select(np.flatnonzero(np.array(table.column("cestreamStatus")) == "predicted"))
    assert len(rows) == many
    assert set(rows.column("cestreamProposer")) == {proposer}
    place = {name.split("/")[-1]: k for k, name in enumerate(true.column("rlnImageName"))}
    own = true.select([place[name.split("/")[-1]] for name in rows.column("rlnImageName")])
    errors = angular_error_deg(own.rotations(), rows.rotations(), group_rotations("D2"))
    assert np.median(errors) < 2.5
    assert np.sqrt(((own.shifts_angstrom() - rows.shifts_angstrom()) ** 2).mean()) < 0.4 * PIXEL_SIZE
