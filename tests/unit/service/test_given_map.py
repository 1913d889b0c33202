"""Sessions that begin with a map of an earlier one: ordered once, kept, and replaced when aligned rows are complete."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.session_bench import (
    Bench,
    FakeReferenceTrainer,
    FakeWorker,
    crash,
    run_until,
    star_text,
    tell,
    turn,
)

from cesped_stream.errors import CespedStreamError, InvalidSettingsError
from cesped_stream.export.star import export_star
from cesped_stream.imaging.maps import write_map
from cesped_stream.particles.star import read_star
from cesped_stream.particles.table import ParticleTable
from cesped_stream_service.cli import main
from cesped_stream_service.coordinator import Coordinator
from cesped_stream_service.given_map import check_before_start, check_map
from cesped_stream_service.messages import Control, Failure, Hello, Ready, TrainingOrder
from cesped_stream_service.status import SessionState
from cesped_stream_service.toml import toml_text


def blob(seed: int = 0, box: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(box, box, box)).astype(np.float32)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A session that a map is given to; the noise beside it is learned from 20 rows a half-set."""
    write_map(tmp_path / "map.mrc", blob(), 5.0)
    return with_map(tmp_path)


def with_map(root: Path, **changes: Any) -> Bench:
    changes = {"proposer": "gallery", "reference": root / "map.mrc", "noise_rows_per_half": 20} | changes
    return Bench(root / "bench", **changes)


def turns(core: Coordinator, bench: Bench, many: int = 12) -> None:
    for _ in range(many):
        turn(core, bench.clock, [])


def asked(core: Coordinator) -> TrainingOrder | None:
    tell(core, b"t", Hello(role="trainer", name="t", incarnation="t", pid=1, device="cpu"))
    reply = tell(core, b"t", Ready(incarnation="t"))[0]
    return reply if isinstance(reply, TrainingOrder) else None


def exported(bench: Bench) -> ParticleTable:
    return read_star(export_star(bench.session / "poses", bench.root / "all.star")[0])


def test_a_map_is_ordered_on_the_first_rows_of_each_half_as_soon_as_they_are_enough(bench: Bench) -> None:
    core = bench.open()
    bench.land("s1", 39)
    turns(core, bench)
    assert asked(core) is None and core.status().state is SessionState.COLLECTING_ROWS
    assert any("20 particles of each half-set have landed, so far 19 + 20" in note for note in core.status().notes)
    bench.land("s2", 9)
    turns(core, bench)
    order = asked(core)
    assert order is not None and order.source == "map"
    assert Path(order.reference).read_bytes() == (bench.root.parent / "map.mrc").read_bytes()
    assert Path(order.reference).is_relative_to(bench.session)
    learned_from = read_star(Path(order.aligned_star))
    assert np.bincount(learned_from.half_sets()).tolist() == [20, 20]
    assert learned_from.column("rlnImageName")[:39] == [f"{k:06d}@s1.mrcs" for k in range(1, 40)]
    core.close()


def test_rows_that_taught_the_noise_get_poses_too_and_the_status_says_that_the_map_is_shared(bench: Bench) -> None:
    bench.land("s1", 44)
    core = bench.open()
    run_until(core, bench.clock, [FakeReferenceTrainer(bench.session / "checkpoints"), FakeWorker()], 44)
    status = core.status()
    assert (status.predicted, status.unposed, status.quarantined) == (44, 0, 0)
    assert status.checkpoint is not None and status.checkpoint.independence == "shared_reference"
    assert status.training is not None and status.training.source == "map"
    assert any("shared_reference" in note for note in status.notes)
    core.close()
    assert set(exported(bench).column("cestreamCheckpoint")) == {"ref-map-1"}


def test_references_of_aligned_rows_take_the_maps_place_for_what_lands_later(bench: Bench) -> None:
    bench.land("s1", 44)
    core = bench.open()
    roles = [FakeReferenceTrainer(bench.session / "checkpoints"), FakeWorker()]
    run_until(core, bench.clock, roles, 44)
    bench.land("aligned", 8, aligned=True)
    for _ in range(12):
        turn(core, bench.clock, roles)
    bench.land("s2", 6)
    run_until(core, bench.clock, roles, 58)
    status = core.status()
    assert status.checkpoint is not None and status.checkpoint.checkpoint_id == "ref-aligned-2"
    assert (status.checkpoint.rows, status.checkpoint.independence) == (6, "independent")
    core.close()
    assert len(read_star(bench.session / "batches" / "training_000002.star")) == 8


def test_poses_by_the_shared_map_are_told_until_they_are_redone(bench: Bench, capsys: pytest.CaptureFixture) -> None:
    bench.land("s1", 44)
    core = bench.open()
    roles = [FakeReferenceTrainer(bench.session / "checkpoints"), FakeWorker()]
    run_until(core, bench.clock, roles, 44)
    bench.land("aligned", 8, aligned=True)
    run_until(core, bench.clock, roles, 52)
    for _ in range(12):
        turn(core, bench.clock, roles)
    status = core.status()
    assert status.checkpoint is not None and status.checkpoint.independence == "independent"
    told = "44 poses come from one map for both half-sets (shared_reference: ref-map-1)"
    assert any(told in note for note in status.notes)
    assert told in export_words(bench, capsys)
    assert tell(core, b"cli", Control(action="reinfer"))[0].ok  # type: ignore[union-attr]
    run_until(core, bench.clock, roles, 52)
    assert not any("shared_reference" in note for note in core.status().notes)
    core.close()
    assert "shared_reference" not in export_words(bench, capsys)


def export_words(bench: Bench, capsys: pytest.CaptureFixture) -> str:
    """Return what `export star` tells beside the files' names."""
    (bench.session / "session.toml").write_text(toml_text(bench.settings.model_dump(mode="json", exclude_none=True)))
    assert main(["export", "star", str(bench.session), "--output", str(bench.root / "out.star")]) == 0
    said = capsys.readouterr()
    assert said.out == f"{bench.root / 'out.star'}\n"
    return " ".join(said.err.split())


def test_late_aligned_rows_of_particles_that_the_map_posed_make_the_reference(bench: Bench) -> None:
    bench.land("s1", 44)
    core = bench.open()
    roles = [FakeReferenceTrainer(bench.session / "checkpoints"), FakeWorker()]
    run_until(core, bench.clock, roles, 44)
    (bench.landing / "refined.star").write_text(star_text("s1", range(1, 31), aligned=True))
    for _ in range(12):
        turn(core, bench.clock, roles)
    status = core.status()
    assert status.checkpoint is not None and status.checkpoint.checkpoint_id == "ref-aligned-2"
    assert len(read_star(bench.session / "batches" / "training_000002.star")) == 30
    assert not any("in no reference" in note for note in status.notes)
    core.close()


def test_particles_in_the_new_reference_that_wait_for_a_pose_get_their_consensus_pose(bench: Bench) -> None:
    bench.land("s1", 44)
    core = bench.open()
    trainer, worker = FakeReferenceTrainer(bench.session / "checkpoints"), FakeWorker()
    for _ in range(12):
        turn(core, bench.clock, [trainer])  # nobody scores yet
    (bench.landing / "refined.star").write_text(star_text("s1", range(1, 31), aligned=True))
    for _ in range(12):
        turn(core, bench.clock, [trainer])
    assert [order.source for order in trainer.orders] == ["map", "aligned"]
    run_until(core, bench.clock, [trainer, worker], 44)
    core.close()
    table = exported(bench)
    index = [int(name[:6]) for name in table.column("rlnImageName")]
    made_by = dict(zip(index, table.column("cestreamCheckpoint"), strict=True))
    assert {made_by[k] for k in range(1, 31)} == {"none"}
    assert {made_by[k] for k in range(31, 45)} == {"ref-aligned-2"}
    status = dict(zip(index, table.column("cestreamStatus"), strict=True))
    assert [k for k in sorted(status) if status[k] == "given"] == list(range(1, 31))


def test_a_restart_gives_the_same_order_though_the_map_is_gone(bench: Bench) -> None:
    bench.land("s1", 44)
    core = bench.open()
    turns(core, bench)
    before = asked(core)
    content = Path(before.aligned_star).read_bytes() if before else b""
    crash(core)
    (bench.root.parent / "map.mrc").unlink()
    core = bench.open()
    after = asked(core)
    assert after == before and after is not None and Path(after.aligned_star).read_bytes() == content
    core.close()


def test_another_map_is_refused_once_a_reference_was_ordered_and_taken_before(bench: Bench) -> None:
    core = bench.open()
    core.close()
    write_map(bench.root.parent / "map.mrc", blob(1), 5.0)
    bench.land("s1", 44)
    core = bench.open()
    turns(core, bench)
    order = asked(core)
    assert order is not None
    assert Path(order.reference).read_bytes() == (bench.root.parent / "map.mrc").read_bytes()
    core.close()
    write_map(bench.root.parent / "map.mrc", blob(2), 5.0)
    with pytest.raises(InvalidSettingsError, match="not the map that this session's reference was made of"):
        bench.open()
    bench.settings = bench.settings.model_copy(update={"reference": None})
    bench.open().close()


def given_up(bench: Bench) -> None:
    """Land rows, and let the map's order fail until it is given up."""
    bench.land("s1", 44)
    core = bench.open()
    for _ in range(80):
        turns(core, bench, 2)
        if (order := asked(core)) is not None:
            why = {"error": "PermanentError", "message": "the given map is 80 A wide", "retry_can_help": False}
            tell(core, b"t", Failure(incarnation="t", lease_id=order.training_id, **why))  # type: ignore[arg-type]
    assert any("the given map is 80 A wide" in problem for problem in core.status().problems)
    assert core.status().predicted == 0
    core.close()


def test_a_map_that_was_given_up_is_tried_again_by_the_next_start_and_told_until_then(bench: Bench) -> None:
    given_up(bench)
    core = bench.open()
    (problem,) = core.status().problems
    assert "80 A wide; given up: the next start tries it again" in problem
    trainer = FakeReferenceTrainer(bench.session / "checkpoints")
    run_until(core, bench.clock, [trainer, FakeWorker()], 44)
    assert [order.training_id for order in trainer.orders] == [2]
    assert not core.status().problems and core.status().predicted == 44
    core.close()
    bench.open().close()


def test_a_map_that_fails_for_good_is_told_and_another_one_may_be_given(bench: Bench) -> None:
    given_up(bench)
    write_map(bench.root.parent / "map.mrc", blob(1), 6.0)
    core = bench.open()
    trainer = FakeReferenceTrainer(bench.session / "checkpoints")
    run_until(core, bench.clock, [trainer, FakeWorker()], 44)
    assert [order.training_id for order in trainer.orders] == [2]
    core.close()


def test_a_copy_that_was_changed_is_written_again(bench: Bench) -> None:
    bench.open().close()
    copy = next((bench.session / "state").glob("given_map_*.mrc"))
    content = copy.read_bytes()
    copy.write_bytes(b"torn")
    bench.open().close()
    assert copy.read_bytes() == content


@pytest.mark.filterwarnings("ignore:Data array contains NaN values")
@pytest.mark.parametrize(
    ("volume", "pixel_size", "why"),
    [
        (blob()[:8], 5.0, "cubic"),
        (np.full((8, 8, 8), np.nan, np.float32), 5.0, "NaN"),
        (blob(), 0.0, "pixel size"),
        (np.ones((8, 8, 8), np.float32), 5.0, "same density"),
        (blob(), 0.01, "is the pixel size in its header right"),
    ],
)
def test_an_odd_map_is_refused_at_start(tmp_path: Path, volume: np.ndarray, pixel_size: float, why: str) -> None:
    write_map(tmp_path / "map.mrc", volume, pixel_size)
    bench = with_map(tmp_path)
    with pytest.raises(CespedStreamError, match=why):
        check_before_start(bench.settings)
    with pytest.raises(CespedStreamError, match=why):
        bench.open()


def test_a_missing_map_and_settings_that_contradict_each_other_are_refused(bench: Bench) -> None:
    with pytest.raises(CespedStreamError, match=r"nowhere\.mrc"):
        check_map(bench.root / "nowhere.mrc", 20.0)
    for changes, why in (
        ({"proposer": "network"}, "take gallery"),
        ({"checkpoint": "/ref-1"}, "leave out one"),
        ({"proposer": "both", "referencing": {"rebuild_rows": 100}}, "only with proposer gallery"),
        ({"half_mode": "cross_half", "referencing": {"rebuild_rows": 100}}, "take gold_standard"),
    ):
        settings = with_map(bench.root / why, **({"reference": bench.settings.reference} | changes)).settings
        with pytest.raises(InvalidSettingsError, match=why):
            check_before_start(settings)
