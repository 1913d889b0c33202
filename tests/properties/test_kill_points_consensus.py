"""A session in RELION's own order, killed at any step: half-sets, consensus and redone rows end as without a kill."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.kills import first_and_last, played_through
from support.relion_layout import Consensus, ProjectFolder, check_references, check_rows
from support.session_bench import Bench, FakeReferenceTrainer, FakeWorker, KillAt, Killed, is_done, tell, turn

from cesped_stream.export.star import export_star
from cesped_stream.imaging.maps import write_map
from cesped_stream_service.coordinator import Coordinator
from cesped_stream_service.messages import Control

FIRST, ALL = 16, 18
"""Micrographs extracted before the aligned star lands, and at the end."""
PER_MICROGRAPH = 6


def run_session(root: Path, step: Callable[[str], None]) -> tuple[bytes, Bench, int]:
    """Run a session through every kill that `step` raises; return the export and the kills.

    Extract lands without half-sets and is posed by a given map, in half-sets by micrograph; job010 comes back with a
    split of its own; Extract grows; job020, of more particles and with another split, is the newer consensus, and
    references are made of it, asked for where they are not made at once.
    """
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    write_map(root / "map.mrc", np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32), 10.0)
    parts = {"batch_rows": 20, "shard_rows": 30}
    bench = Bench(root, proposer="gallery", reference=root / "map.mrc", noise_rows_per_half=20, service=parts)
    ProjectFolder(bench.landing).extract(FIRST)
    kills = played_through(bench, step, _play)
    return export_star(bench.session / "poses", root / "export.star")[0].read_bytes(), bench, kills


def _play(bench: Bench, core: Coordinator, life: int) -> None:
    project = ProjectFolder(bench.landing, set(range(1, ALL + 1)))
    job010, job020 = (bench.landing / f"Refine3D/{job}/run_data.star" for job in ("job010", "job020"))
    roles = [FakeReferenceTrainer(bench.session / "checkpoints"), FakeWorker(incarnation=f"w{life}")]
    quiet = 0
    for _ in range(400):
        turn(core, bench.clock, roles, 1.5)
        has_all = (bench.landing / "Extract/job005/Micrographs" / f"mic_{ALL:04d}.mrcs").exists()
        in_use = core.status().checkpoint
        quiet = quiet + 1 if is_done(core, PER_MICROGRAPH * (ALL if has_all else FIRST)) and in_use else 0
        if quiet < 4:
            continue
        assert in_use is not None
        training = core.status().training
        if in_use.checkpoint_id == "ref-map-1" and not job010.exists():
            project.refine("job010", range(1, 5), seed=10)
        elif in_use.checkpoint_id == "ref-aligned-2" and not has_all:
            project.made = set(range(1, FIRST + 1))
            project.extract(ALL)
        elif in_use.checkpoint_id == "ref-aligned-2" and not job020.exists():
            project.refine("job020", range(1, 8), seed=20)
        elif training is not None and training.training_id == 2:
            assert tell(core, b"cli", Control(action="train"))[0].ok  # type: ignore[union-attr]
        elif in_use.checkpoint_id == "ref-aligned-3":
            return
        else:
            continue
        quiet = 0
    raise AssertionError(f"not done: {core.status()}")


def consensus_of(bench: Bench) -> Consensus:
    """Return what job020 says, written beside the session once more."""
    return ProjectFolder(bench.root / "again").refine("job020", range(1, 8), seed=20)


def test_kills_at_the_first_and_last_step_of_each_kind_in_relions_order_end_in_the_same_export(
    memory_folder: Path,
) -> None:
    root = memory_folder / "consensus"
    count = KillAt()
    expected, bench, _ = run_session(root, count)
    consensus = consensus_of(bench)
    names = ProjectFolder(bench.landing).names(ALL)
    check_references(bench, 3, consensus)
    check_rows(bench, names, consensus)
    for at in first_and_last(count.names):
        found, bench, kills = run_session(root, KillAt(at))
        assert kills == 1, f"step {at}, {count.names[at - 1]}: no kill"
        assert found == expected, f"killed after step {at}, {count.names[at - 1]}"


def test_kills_after_any_part_of_a_star_end_in_the_same_export(memory_folder: Path) -> None:
    """A consensus of which only a part was read when the coordinator died is taken as a whole by the next one."""
    root = memory_folder / "consensus"
    count = KillAt()
    expected, _, _ = run_session(root, count)
    for at in [k for k, name in enumerate(count.names, 1) if name == "rows accepted: committed"]:
        found, _, kills = run_session(root, KillAt(at))
        assert kills == 1
        assert found == expected, f"killed after step {at}"


@pytest.mark.parametrize("seed", range(6))
def test_many_kills_in_relions_order_end_in_the_same_export(memory_folder: Path, seed: int) -> None:
    root = memory_folder / "consensus"
    expected, _, _ = run_session(root, lambda name: None)
    random = np.random.default_rng(seed)

    def step(name: str) -> None:
        if random.random() < 0.05:
            raise Killed(name)

    found, _, kills = run_session(root, step)
    assert kills >= 3
    assert found == expected


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_kill_point_in_relions_order_ends_in_the_same_export(memory_folder: Path) -> None:
    root = memory_folder / "consensus"
    count = KillAt()
    expected, _, _ = run_session(root, count)
    for at in range(1, count.count + 1):
        found, _, _ = run_session(root, KillAt(at))
        assert found == expected, f"killed after step {at}, {count.names[at - 1]}"
