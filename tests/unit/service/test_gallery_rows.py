"""Rows that a reference answers: shifts travel and are written, particles that come back aligned keep that pose."""

from pathlib import Path

import numpy as np
import pytest
from support.session_bench import (
    Bench,
    FakeReferenceTrainer,
    FakeWorker,
    fake_checkpoint,
    result_of,
    run_until,
    star_text,
    tell,
    turn,
)

from cesped_stream.export.star import export_star
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.star import read_star
from cesped_stream.particles.table import ParticleTable
from cesped_stream_service.messages import Ack, Control, Lease
from cesped_stream_service.settings import SessionSettings, inference_sha256

ORIGINS = ("rlnOriginXAngst", "rlnOriginYAngst")
PRIORS = ("rlnOriginXPriorAngst", "rlnOriginYPriorAngst")
REFERENCES, NETWORKS = "ref-000000000001", "i2s-000000000002"


def land_with_origins(bench: Bench) -> None:
    """Land five particles whose origins are (0.5, 1.5)."""
    bench.land_stack("s", 5)
    (bench.landing / "s.star").write_text(star_text("s", range(1, 6), extra=(*ORIGINS, *PRIORS)))


def exported(bench: Bench) -> ParticleTable:
    return read_star(export_star(bench.session / "poses", bench.root / "all.star")[0])


def test_predicted_shifts_become_the_origins_and_their_priors(tmp_path: Path) -> None:
    bench = Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given", REFERENCES)))
    land_with_origins(bench)
    core = bench.open()
    run_until(core, bench.clock, [FakeWorker()], 5)
    core.close()
    table = exported(bench)
    assert set(table.column("cestreamProposer")) == {"gallery+refinement"}
    shifts = table.shifts_angstrom()
    assert len(np.unique(shifts)) == 10 and np.abs(shifts).max() > 2
    for prior, origin in zip(PRIORS, ORIGINS, strict=True):
        assert table.column(prior) == table.column(origin)


def test_a_redo_without_shifts_gives_back_the_origins_that_landed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given", REFERENCES)))
    land_with_origins(bench)
    fake_checkpoint(bench.session / "checkpoints", NETWORKS)
    core = bench.open()
    worker = FakeWorker()
    run_until(core, bench.clock, [worker], 5)
    assert tell(core, b"cli", Control(action="reinfer", argument=NETWORKS))[0].ok  # type: ignore[union-attr]
    run_until(core, bench.clock, [worker], 5)
    core.close()
    table = exported(bench)
    assert set(table.column("cestreamProposer")) == {"image2sphere"}
    np.testing.assert_array_equal(table.shifts_angstrom(), [[0.5, 1.5]] * 5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_shift_that_is_no_number_among_shifts_is_refused(tmp_path: Path, value: float) -> None:
    bench = Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given", REFERENCES)))
    bench.land("s", 4)
    core = bench.open()
    worker = FakeWorker()
    while worker.lease is None:
        turn(core, bench.clock, [worker])
    lease: Lease = worker.lease
    result, frames = result_of(lease, "w1", StackReader())
    frames["shift_angstrom"][1, 0] = value
    reply = core.handle(worker.peer, result, frames)[0].message
    assert isinstance(reply, Ack) and not reply.accepted and "shift_angstrom" in reply.reason
    assert core.status().posed == 0
    core.close()


@pytest.mark.parametrize("proposer", ["gallery", "both"])
def test_particles_that_come_back_aligned_make_the_reference_and_keep_their_aligned_pose(
    tmp_path: Path, proposer: str
) -> None:
    bench = Bench(tmp_path, proposer=proposer)
    bench.land("s", 20)
    core = bench.open()
    for _ in range(8):
        turn(core, bench.clock, [])
    refined = star_text("s", range(1, 11), aligned=True, extra=ORIGINS)
    (bench.landing / "refined.star").write_text(refined)
    trainer = FakeReferenceTrainer(bench.session / "checkpoints")
    run_until(core, bench.clock, [trainer, FakeWorker()], 20)
    status = core.status()
    assert (status.landed, status.given, status.predicted, status.unposed, status.quarantined) == (20, 10, 10, 0, 0)
    assert status.aligned_per_half == status.references_per_half == (5, 5)
    core.close()
    rows = exported(bench)
    index = np.array([int(name.split("@")[0]) for name in rows.column("rlnImageName")])
    given = np.array(rows.column("cestreamStatus")) == "given"
    assert sorted(index) == list(range(1, 21)) and sorted(index[given]) == list(range(1, 11))
    aligned = read_star(bench.landing / "refined.star")
    own = aligned.select(index[given] - 1)
    np.testing.assert_allclose(rows.select(np.flatnonzero(given)).rotations(), own.rotations(), atol=1e-6)
    np.testing.assert_allclose(rows.select(np.flatnonzero(given)).shifts_angstrom(), own.shifts_angstrom(), atol=1e-6)


def test_a_session_begun_again_gives_the_same_aligned_poses(tmp_path: Path) -> None:
    bench = Bench(tmp_path, proposer="gallery")
    bench.land("s", 20)
    core = bench.open()
    for _ in range(8):
        turn(core, bench.clock, [])
    (bench.landing / "refined.star").write_text(star_text("s", range(1, 11), aligned=True))
    trainer = FakeReferenceTrainer(bench.session / "checkpoints")
    for _ in range(8):
        turn(core, bench.clock, [trainer])
    core.close()
    core = bench.open()
    run_until(core, bench.clock, [FakeWorker()], 20)
    assert (core.status().given, core.status().predicted) == (10, 10)
    core.close()


def test_a_role_with_other_gallery_settings_would_make_other_poses(tmp_path: Path) -> None:
    def sha256(**changes: object) -> str:
        values: dict[str, object] = {"session": tmp_path, "landing": {"folder": tmp_path}}
        return inference_sha256(SessionSettings(**(values | changes)))  # type: ignore[arg-type]

    assert sha256() == sha256()
    assert sha256() == sha256(inference={"device": "cpu"})
    assert sha256() != sha256(gallery={"num_modes": 5})
    assert sha256() != sha256(refinement={"stages": 3})
    assert sha256() != sha256(referencing={"finest_angstrom": 8.0})
