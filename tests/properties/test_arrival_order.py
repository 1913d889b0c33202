"""The canonical export does not know in which order, in which pieces or through how many workers rows came."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.session_bench import Bench, FakeTrainer, FakeWorker, run_until, star_text, turn

from cesped_stream.export.star import export_star

NAMES = ("aligned", "s1", "s2", "s3", "growing")
LANDED = 12 + 10 + 9 + 6 + 8


def land(bench: Bench, name: str) -> None:
    match name:
        case "aligned":
            bench.land(name, 12, aligned=True)
        case "s1":
            bench.land(name, 10, flagged=[3, 4])
        case "s2":
            bench.land(name, 9, extra=["rlnCoordinateX", "rlnCoordinateY"], optics="B", voltage=200.0)
        case "s3":
            bench.land_star(name, range(6, 0, -1))
            bench.land_stack(name, 6)
        case "growing":
            bench.land(name, 8)
        case "refined":
            (bench.landing / "refined.star").write_text(star_text("s1", range(1, 10), aligned=True))


def export(root: Path, order: list[str], seed: int) -> list[bytes]:
    shutil.rmtree(root, ignore_errors=True)
    random = np.random.default_rng(seed)
    bench = Bench(root, service={"batch_rows": int(random.integers(3, 9)), "shard_rows": int(random.integers(5, 30))})
    core = bench.open()
    workers = [FakeWorker(f"worker {k}", f"w{k}") for k in range(int(random.integers(1, 4)))]
    roles = [FakeTrainer(bench.session / "checkpoints"), *workers]
    for name in order:
        if name == "growing":
            cut = int(random.integers(1, 8))
            bench.land_stack(name, 8)
            (bench.landing / "growing.star").write_text(star_text(name, range(1, cut + 1)).rstrip("\n") + "\n")
            for _ in range(int(random.integers(1, 8))):
                turn(core, bench.clock, roles)
        if name == "refined":
            for _ in range(10):
                turn(core, bench.clock, roles)
        land(bench, name)
        for _ in range(int(random.integers(0, 6))):
            turn(core, bench.clock, roles)
    run_until(core, bench.clock, roles, LANDED)
    assert core.status().duplicates == core.status().conflicts == 0
    assert sum(core.status().references_per_half) == (9 if "refined" in order else 0)
    core.close()
    return [path.read_bytes() for path in export_star(bench.session / "poses", root / "export.star")]


@pytest.fixture(scope="module")
def root(memory_folder: Path) -> Path:
    return memory_folder / "arrival_order"


@pytest.fixture(scope="module")
def expected(root: Path) -> list[bytes]:
    return export(root, list(NAMES), 1000)


@pytest.mark.parametrize("seed", range(20))
def test_any_arrival_order_gives_the_same_export(root: Path, expected: list[bytes], seed: int) -> None:
    assert export(root, [str(name) for name in np.random.default_rng(seed).permutation(NAMES)], seed) == expected


@pytest.fixture(scope="module")
def expected_with_refined(root: Path) -> list[bytes]:
    return export(root, [*NAMES, "refined"], 1000)


@pytest.mark.parametrize("seed", range(8))
def test_aligned_rows_of_particles_that_landed_before_give_the_same_export_whenever_they_come(
    root: Path, expected_with_refined: list[bytes], seed: int
) -> None:
    random = np.random.default_rng(seed)
    order = [str(name) for name in random.permutation(NAMES)]
    order.insert(int(random.integers(order.index("s1") + 1, len(order) + 1)), "refined")
    assert export(root, order, seed) == expected_with_refined
