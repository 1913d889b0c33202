"""A whole RELION project as landing folder: what holds no particles is counted and read once, the rest is taken."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from samples.relion_project import RelionProject
from support.session_bench import Bench, fake_checkpoint, turn

from cesped_stream_service import ingest as ingest_module
from cesped_stream_service.coordinator import Coordinator


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, checkpoint=str(fake_checkpoint(tmp_path / "given")))


@pytest.fixture
def project(bench: Bench) -> RelionProject:
    return RelionProject(bench.landing)


@pytest.fixture
def kinds_looked_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    looked_at: list[str] = []
    kind = ingest_module.star_kind
    monkeypatch.setattr(ingest_module, "star_kind", lambda path: (looked_at.append(path.name), kind(path))[1])
    return looked_at


def of_stars(problems: tuple[str, ...]) -> list[str]:
    """Return the problems but what is told of half-sets."""
    return [problem for problem in problems if "rlnRandomSubset" not in problem]


def turns(core: Coordinator, bench: Bench, many: int = 12) -> None:
    for _ in range(many):
        turn(core, bench.clock, [])


def test_only_the_stars_with_particles_are_taken_and_the_others_are_counted_in_one_line(
    bench: Bench, project: RelionProject
) -> None:
    core = bench.open()
    turns(core, bench)
    status = core.status()
    assert (status.landed, status.stars, status.quarantined_stars) == (project.num_particles, 3, 0)
    assert (status.stars_waiting, status.refused_rows, of_stars(status.problems)) == (0, 0, [])
    assert status.stars_left == project.kinds
    assert list((bench.session / "quarantine").iterdir()) == []
    (note,) = [note for note in status.notes if "no inputs" in note]
    assert f"{sum(project.kinds.values())} stars are no inputs" in note and "4 coordinates" not in note
    assert "5 coordinates" in note and "doctor" in note
    core.close()


def test_a_star_without_particles_is_read_once_also_after_a_restart_and_again_when_it_changed(
    bench: Bench, project: RelionProject, kinds_looked_at: list[str]
) -> None:
    core = bench.open()
    turns(core, bench)
    without = [name for name in kinds_looked_at if "autopick" in name]
    assert len(without) == len(set(without)) == 5
    core.close()
    kinds_looked_at.clear()
    core = bench.open()
    turns(core, bench)
    assert kinds_looked_at == [] and core.status().stars_left == project.kinds
    bench.land_stack("late", 3)
    bench.land_star("late", [1, 2, 3])
    text = (bench.landing / "late.star").read_text()
    (bench.landing / "late.star").unlink()
    project.write("default_pipeline.star", text)
    turns(core, bench)
    assert core.status().landed == project.num_particles + 3
    assert core.status().stars_left["pipeline"] == project.kinds["pipeline"] - 1
    core.close()


def test_the_setting_names_the_stars_that_are_taken(tmp_path: Path) -> None:
    bench = Bench(tmp_path, landing={"inputs": "Select/*"}, checkpoint=str(fake_checkpoint(tmp_path / "given")))
    project = RelionProject(bench.landing)
    core = bench.open()
    turns(core, bench)
    status = core.status()
    assert (status.landed, status.stars) == (project.num_particles / 2, 1)
    assert status.stars_left["class averages"] == 1 and status.stars_left["not named by landing.inputs"] > 10
    core.close()


def test_many_stars_without_particles_cost_few_transactions(bench: Bench) -> None:
    RelionProject(bench.landing, micrographs=2, jobs=40)
    names: list[str] = []
    core = bench.open(step=names.append)
    turns(core, bench)
    assert names.count("stars without particles noted: committed") <= 10
    core.close()


def test_a_complete_star_without_rows_is_no_problem(bench: Bench, project: RelionProject) -> None:
    text = (bench.landing / "Extract/job005/particles.star").read_text()
    project.write("Select/job011/particles.star", text[: text.index("  400.000000")] + " \n")
    core = bench.open()
    turns(core, bench)
    assert of_stars(core.status().problems) == [] and core.status().stars_waiting == 0
    core.close()
