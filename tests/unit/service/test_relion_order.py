"""RELION's own order of events: Extract without half-sets grows, Refine3D brings them; and every other order."""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.relion_layout import (
    Consensus,
    ProjectFolder,
    check_references,
    check_rows,
    exported,
    last_training,
    trained_on,
)
from support.session_bench import Bench, FakeReferenceTrainer, FakeTrainer, FakeWorker, is_done, run_until, tell, turn

from cesped_stream.conventions import ANGLE_LABELS
from cesped_stream.export.star import export_star
from cesped_stream.imaging.maps import write_map
from cesped_stream.particles.own_rows import PoseSource, pose_sources
from cesped_stream.particles.star import read_star, write_star
from cesped_stream_service.coordinator import Coordinator
from cesped_stream_service.messages import Control

MICROGRAPHS = 8
LANDED = 48
MANY = 16
"""Micrographs of which each half-set gets the 20 particles that the noise beside a given map is learned from."""
MANNERS = ("replaced", "appended", "a star each")
Event = Callable[[ProjectFolder, str], Consensus | None]

JOB010: Event = lambda project, manner: project.refine("job010", range(1, 5), seed=10)  # noqa: E731
HALF: Event = lambda project, manner: project.extract(4, manner)  # type: ignore[func-returns-value]  # noqa: E731
ALL: Event = lambda project, manner: project.extract(8, manner)  # type: ignore[func-returns-value]  # noqa: E731
ORDERS: dict[str, tuple[Event, ...]] = {
    "aligned last": (HALF, ALL, JOB010),
    "aligned in the middle": (HALF, JOB010, ALL),
    "aligned first": (JOB010, HALF, ALL),
}


class Session:
    """A session on a project folder, with fake roles; time passes as `settle` takes turns."""

    def __init__(self, root: Path, **changes: Any) -> None:
        self.bench = Bench(root, **({"proposer": "gallery"} | changes))
        self.project = ProjectFolder(self.bench.landing)
        self.trainer = FakeReferenceTrainer(self.bench.session / "checkpoints")
        self.roles: list[FakeWorker | FakeTrainer] = [self.trainer, FakeWorker()]
        self.core: Coordinator = self.bench.open()
        self.heard: set[str] = set()
        """Every note that the status has shown so far."""

    def settle(self, many: int = 15) -> None:
        for _ in range(many):
            turn(self.core, self.bench.clock, self.roles)
            self.heard.update(self.core.status().notes)

    def finish(self, landed: int = LANDED) -> None:
        """Take turns until all that landed has its row, and nothing is to be redone any more."""
        run_until(self.core, self.bench.clock, self.roles, landed)
        self.settle()
        assert is_done(self.core, landed)

    def says(self, pattern: str) -> list[str]:
        """Return the notes in which the pattern is found."""
        return [note for note in self.core.status().notes if re.search(pattern, note)]

    def train(self) -> None:
        """Ask for references of all aligned rows so far."""
        assert tell(self.core, b"cli", Control(action="train"))[0].ok  # type: ignore[union-attr]
        self.settle()


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path)


@pytest.fixture
def with_map(tmp_path: Path) -> Session:
    """A session that a map is given to, which poses all that landed before any aligned row has come."""
    write_map(tmp_path / "map.mrc", np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32), 10.0)
    session = Session(tmp_path / "bench", reference=tmp_path / "map.mrc", noise_rows_per_half=20)
    session.project.extract(MANY)
    session.finish(6 * MANY)
    assert (session.core.status().predicted, session.core.status().given) == (6 * MANY, 0)
    return session


def assert_nothing_refused(session: Session) -> None:
    status = session.core.status()
    assert (status.conflicts, status.refused_rows, status.quarantined, status.quarantined_stars) == (0, 0, 0, 0)
    assert status.problems == ()


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("order", ORDERS)
def test_in_every_order_aligned_rows_are_given_and_all_others_predicted(
    session: Session, order: str, manner: str
) -> None:
    found: list[Consensus] = []
    for event in ORDERS[order]:
        consensus = event(session.project, manner)
        found += [consensus] if consensus is not None else []
        session.settle()
    session.finish()
    (consensus,) = found
    assert_nothing_refused(session)
    status = session.core.status()
    assert (status.given, status.predicted) == (24, 24)
    assert status.aligned_per_half == consensus.per_half()
    session.core.close()
    assert len(session.trainer.orders) == 1
    check_references(session.bench, 1, consensus)
    check_rows(session.bench, session.project.names(MICROGRAPHS), consensus)


def test_half_sets_by_micrograph_give_way_to_the_aligned_stars_and_the_status_says_how_many(session: Session) -> None:
    session.project.extract(MICROGRAPHS)
    session.settle()
    consensus = session.project.refine("job010", range(1, 5), seed=10)
    session.finish()
    (note,) = session.says("took the half-set of the aligned star")
    many = int(note.split()[0].replace(",", ""))
    assert 0 < many <= len(consensus.subset)
    session.core.close()


def test_rows_that_are_leased_when_the_aligned_star_comes_are_neither_lost_nor_doubled(session: Session) -> None:
    """A worker holds rows while their particles change their half-sets, and answers then."""
    (worker,) = (role for role in session.roles if isinstance(role, FakeWorker))
    before = session.project.refine("job009", range(7, 9), seed=9)
    session.settle()
    session.project.extract(MICROGRAPHS)
    for _ in range(30):
        turn(session.core, session.bench.clock, session.roles)
        if session.core.status().leased:
            break
    assert worker.lease is not None
    consensus = session.project.refine("job010", range(1, 5), seed=10)
    for _ in range(5):
        turn(session.core, session.bench.clock, [session.trainer])
    assert worker.lease is not None, "the worker has not answered yet"
    session.finish()
    session.train()
    session.finish()
    assert_nothing_refused(session)
    session.core.close()
    both = Consensus(before.euler_deg | consensus.euler_deg, before.subset | consensus.subset)
    check_references(session.bench, 2, both)
    check_rows(session.bench, session.project.names(MICROGRAPHS), both)


def test_a_network_is_trained_on_the_aligned_stars_half_sets_too(tmp_path: Path) -> None:
    session = Session(tmp_path, proposer="network")
    session.roles[0] = FakeTrainer(session.bench.session / "checkpoints")
    session.project.extract(MICROGRAPHS)
    session.settle()
    consensus = session.project.refine("job010", range(1, 5), seed=10)
    session.finish()
    assert_nothing_refused(session)
    assert session.core.status().aligned_per_half == consensus.per_half()
    session.core.close()
    check_references(session.bench, 1, consensus)
    table = exported(session.bench)
    assert sorted(table.column("rlnImageName")) == sorted(session.project.names(MICROGRAPHS))
    subsets = dict(zip(table.column("rlnImageName"), table.column("rlnRandomSubset"), strict=True))
    assert {name: subsets[name] for name in consensus.subset} == consensus.subset


def test_a_second_refinement_of_further_particles_adds_to_the_first(session: Session) -> None:
    session.project.extract(MICROGRAPHS)
    first = session.project.refine("job010", range(1, 5), seed=10)
    session.finish()
    second = session.project.refine("job011", range(5, 8), seed=11)
    session.settle()
    session.train()
    session.finish()
    assert_nothing_refused(session)
    both = Consensus(first.euler_deg | second.euler_deg, first.subset | second.subset)
    session.core.close()
    check_references(session.bench, 2, both)
    rows = check_rows(session.bench, session.project.names(MICROGRAPHS), both)
    assert {row["cestreamStatus"] for row in rows.values()} == {"given", "predicted"}


def test_after_a_given_map_the_particles_that_come_back_aligned_are_given(with_map: Session) -> None:
    consensus = with_map.project.refine("job010", range(1, 5), seed=10)
    with_map.finish(6 * MANY)
    assert_nothing_refused(with_map)
    status = with_map.core.status()
    assert (status.given, status.predicted) == (24, 6 * MANY - 24)
    assert status.checkpoint is not None and status.checkpoint.checkpoint_id == "ref-aligned-2"
    assert with_map.says("took the half-set of the aligned star")
    with_map.core.close()
    check_references(with_map.bench, 2, consensus)
    check_rows(with_map.bench, with_map.project.names(MANY), consensus)


def test_given_rows_stay_given_when_everything_is_redone(with_map: Session) -> None:
    consensus = with_map.project.refine("job010", range(1, 5), seed=10)
    with_map.finish(6 * MANY)
    assert tell(with_map.core, b"cli", Control(action="reinfer"))[0].ok  # type: ignore[union-attr]
    with_map.finish(6 * MANY)
    with_map.core.close()
    rows = check_rows(with_map.bench, with_map.project.names(MANY), consensus)
    others = {row["cestreamCheckpoint"] for row in rows.values() if row["cestreamStatus"] == "predicted"}
    assert others == {"ref-aligned-2"}


@pytest.mark.parametrize("split", [10, 20], ids=["same split", "another split"])
def test_a_newer_consensus_replaces_the_poses_and_the_references_follow(session: Session, split: int) -> None:
    """Refine3D draws its half-sets anew, unless it starts from the former job's star."""
    session.project.extract(MICROGRAPHS)
    session.project.refine("job010", range(1, 5), seed=10)
    session.finish()
    newer = session.project.refine("job020", range(1, 7), seed=20, split=split)
    session.settle()
    assert any(re.search(r"\b24 rows have a newer consensus", note) for note in session.heard), session.heard
    session.train()
    session.finish()
    assert_nothing_refused(session)
    status = session.core.status()
    assert (status.given, status.predicted) == (36, 12)
    session.core.close()
    check_references(session.bench, last_training(session.bench), newer)
    check_rows(session.bench, session.project.names(MICROGRAPHS), newer)


def test_a_newer_consensus_with_the_same_half_sets_leaves_the_references_until_they_are_asked_for(
    session: Session,
) -> None:
    session.project.extract(MICROGRAPHS)
    session.project.refine("job010", range(1, 5), seed=10)
    session.finish()
    newer = session.project.refine("job020", range(1, 5), seed=20, split=10)
    session.finish()
    assert session.says(r"\b24 rows have a newer consensus"), session.core.status().notes
    assert len(session.trainer.orders) == 1
    session.core.close()
    check_rows(session.bench, session.project.names(MICROGRAPHS), newer)


def test_where_a_newer_consensus_changes_half_sets_no_pose_by_the_former_references_is_left(session: Session) -> None:
    """References of job010's half-sets hold particles of both of job020's: none of them may score the other half."""
    session.project.extract(MICROGRAPHS)
    session.project.refine("job010", range(1, 5), seed=10)
    session.finish()
    newer = session.project.refine("job020", range(1, 5), seed=20)
    session.finish()
    session.core.close()
    rows = check_rows(session.bench, session.project.names(MICROGRAPHS), newer)
    check_references(session.bench, last_training(session.bench), newer)
    made_by = {row["cestreamCheckpoint"] for row in rows.values() if row["cestreamStatus"] == "predicted"}
    assert made_by == {f"ref-aligned-{last_training(session.bench)}"}
    assert last_training(session.bench) > 1


def test_where_the_first_consensus_is_kept_a_newer_one_is_only_told(tmp_path: Path) -> None:
    session = Session(tmp_path, landing={"consensus": "first"})
    session.project.extract(MICROGRAPHS)
    first = session.project.refine("job010", range(1, 5), seed=10)
    session.finish()
    newer = session.project.refine("job020", range(1, 7), seed=20)
    session.settle()
    session.train()
    session.finish()
    assert session.says(r"\b24 rows have a newer consensus")
    assert_nothing_refused(session)
    session.core.close()
    expected = Consensus(newer.euler_deg | first.euler_deg, newer.subset | first.subset)
    check_references(session.bench, 2, expected)
    check_rows(session.bench, session.project.names(MICROGRAPHS), expected)


def test_the_same_refinement_landing_twice_is_no_newer_consensus(session: Session) -> None:
    session.project.extract(MICROGRAPHS)
    consensus = session.project.refine("job010", range(1, 5), seed=10)
    session.finish()
    job = session.bench.landing / "Refine3D"
    shutil.copytree(job / "job010", job / "copy")
    session.finish()
    assert not session.says("newer consensus")
    assert session.core.status().duplicates == 24
    session.core.close()
    check_rows(session.bench, session.project.names(MICROGRAPHS), consensus)


def test_a_particle_whose_numbers_relion_rewrote_is_the_same_particle(session: Session) -> None:
    """RELION 3.1 writes negative numbers with five decimals, whatever digits another program gave."""
    session.project.extract(MICROGRAPHS)
    star = session.bench.landing / "Extract/job005/particles.star"
    star.write_text(star.read_text().replace("44.070340", "-27.372625"))
    session.settle()
    consensus = session.project.refine("job010", range(1, 5), seed=10)
    refined = session.bench.landing / "Refine3D/job010/run_data.star"
    refined.write_text(refined.read_text().replace("44.070340", "-27.37262"))
    session.finish()
    assert_nothing_refused(session)
    session.core.close()
    check_rows(session.bench, session.project.names(MICROGRAPHS), consensus)


@pytest.mark.parametrize("late", [True, False], ids=["particles first", "classes first"])
def test_classes_without_half_sets_leave_their_independence_unknown(tmp_path: Path, late: bool) -> None:
    landing = {"aligned": "Class3D/*/run_it025_data.star"}
    session = Session(tmp_path, landing=landing, training={"symmetry": "C1", "alignment": "independent"})
    if late:
        session.project.extract(MICROGRAPHS)
        session.settle()
    consensus = session.project.classify("job008", range(1, 7), seed=8)
    session.settle()
    assert [note for note in session.says("rlnRandomSubset") if "unknown" in note], session.core.status().notes
    session.project.extract(MICROGRAPHS)
    session.finish()
    assert_nothing_refused(session)
    session.core.close()
    check_references(session.bench, 1, consensus)
    rows = check_rows(session.bench, session.project.names(MICROGRAPHS), consensus)
    assert {row["rlnRandomSubset"] for row in rows.values()} == {"1", "2"}


def test_half_sets_that_a_refinement_gave_are_not_said_to_be_unknown(session: Session) -> None:
    session.project.extract(MICROGRAPHS)
    session.project.refine("job010", range(1, 5), seed=10)
    session.finish()
    assert not session.says("rlnRandomSubset.*unknown|unknown.*rlnRandomSubset")
    session.core.close()


def own_shard(session: Session, target: Path) -> None:
    shutil.copy(session.bench.session / "poses" / "poses_000001.star", target)


def own_export(session: Session, target: Path) -> None:
    """Write an export elsewhere and move it into the landing folder, as a person might."""
    outside = session.bench.root / "outside.star"
    shutil.move(export_star(session.bench.session / "poses", outside)[0], target)


@pytest.mark.parametrize("write", [own_shard, own_export])
def test_own_predictions_that_land_are_never_aligned_rows(
    session: Session, write: Callable[[Session, Path], None]
) -> None:
    session.project.extract(MICROGRAPHS)
    consensus = session.project.refine("job010", range(1, 5), seed=10)
    session.finish()
    write(session, session.bench.landing / "own.star")
    session.finish()
    assert session.core.status().aligned_per_half == consensus.per_half()
    assert not session.says("newer consensus")
    session.train()
    session.finish()
    assert_nothing_refused(session)
    session.core.close()
    check_references(session.bench, 2, consensus)
    check_rows(session.bench, session.project.names(MICROGRAPHS), consensus)


def test_own_predictions_that_land_in_another_session_are_particles_without_a_pose(
    session: Session, tmp_path: Path
) -> None:
    session.project.extract(MICROGRAPHS)
    session.project.refine("job010", range(1, 5), seed=10)
    session.finish()
    session.core.close()
    other = Session(tmp_path / "other")
    other.project.extract(MICROGRAPHS)
    (other.bench.landing / "Extract/job005/particles.star").unlink()
    own_export(session, other.bench.landing / "own.star")
    other.settle()
    status = other.core.status()
    assert (status.landed, sum(status.aligned_per_half), status.given) == (LANDED, 24, 24)
    other.core.close()
    aligned = trained_on(other.bench, 1)
    assert sorted(aligned.column("rlnImageName")) == sorted(other.project.names(4))


def refined_from_own(session: Session, images: Sequence[str]) -> Consensus:
    """Write what RELION makes of our export: its columns stay, angles and fit are RELION's."""
    table = read_star(export_star(session.bench.session / "poses", session.bench.root / "outside.star")[0])
    names = table.column("rlnImageName")
    table = table.select([names.index(image) for image in images])
    angles = np.random.default_rng(30).uniform((-180, 1, -180), (180, 179, 180), (len(images), 3))
    subset = [str(1 + k // 3 % 2) for k in range(len(images))]
    columns = {label: [f"{a:.6f}" for a in angles[:, axis]] for axis, label in enumerate(ANGLE_LABELS)}
    columns |= {"rlnRandomSubset": subset, "rlnNrOfSignificantSamples": ["3"] * len(images)}
    star = session.bench.landing / "Refine3D" / "job030" / "run_data.star"
    star.parent.mkdir()
    write_star(star, table.with_columns(columns | {"rlnMaxValueProbDistribution": ["0.5"] * len(images)}))
    euler_deg = {image: (a[0], a[1], a[2]) for image, a in zip(images, angles.tolist(), strict=True)}
    return Consensus(euler_deg, dict(zip(images, subset, strict=True)))


def test_what_relion_refined_from_our_predictions_is_a_consensus(session: Session) -> None:
    session.project.extract(MICROGRAPHS)
    first = session.project.refine("job010", range(1, 5), seed=10)
    session.finish()
    newer = refined_from_own(session, session.project.names(MICROGRAPHS)[24:])
    session.settle()
    assert sum(session.core.status().aligned_per_half) == LANDED
    session.train()
    session.finish()
    assert_nothing_refused(session)
    session.core.close()
    both = Consensus(first.euler_deg | newer.euler_deg, first.subset | newer.subset)
    check_references(session.bench, 2, both)
    check_rows(session.bench, session.project.names(MICROGRAPHS), both)


@pytest.mark.parametrize("first", ["extract", "select"])
def test_selected_2d_classes_are_no_alignment_and_our_poses_of_them_are_known_as_ours(
    session: Session, first: str
) -> None:
    """Class2D leaves psi, rot 0 and tilt 0, and RELION's count of significant samples, in every row."""
    jobs = [lambda: session.project.extract(MICROGRAPHS), lambda: session.project.select("job007", range(1, 9))]
    for job in jobs if first == "extract" else jobs[::-1]:
        job()
        session.settle()
    assert session.core.status().aligned_per_half == (0, 0)
    consensus = session.project.refine("job010", range(1, 5), seed=10)
    session.finish()
    assert_nothing_refused(session)
    session.core.close()
    check_references(session.bench, 1, consensus)
    check_rows(session.bench, session.project.names(MICROGRAPHS), consensus)
    table = exported(session.bench)
    sources = dict(zip(table.column("cestreamStatus"), pose_sources(table).tolist(), strict=True))
    assert sources == {"given": PoseSource.FOREIGN, "predicted": PoseSource.OWN}
