"""Which way of making poses wins: each answers the same streamed rows of one entry, and the truth measures them.

The ways: the network alone; its candidates refined against the half-set's reference; the gallery alone; the gallery's
refined; both fused, then refined; and the true poses refined, which is the limit that noise sets.
"""

import os
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from cesped_stream.benchmark.metrics import shift_rmse_angstrom
from cesped_stream.benchmark.pose_answers import AnsweringWays, Answers, Made, OnProgress
from cesped_stream.benchmark.ways_stream import LandedRows
from cesped_stream.calibration.metrics import area_under_curve
from cesped_stream.conventions import SHIFT_LABELS
from cesped_stream.model.device import pick_device
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations


class WayFigures(BaseModel):
    """What one way reached on the streamed particles; junk and rows without a usable image are not measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    way: str
    num_particles: int
    median_deg: float
    mean_deg: float
    within_5_deg: float
    within_15_deg: float
    shift_rmse_angstrom: float | None
    """None where the way gives no shifts, or the truth has none."""
    junk_auc: float | None
    """How well the way's confidence tells particles from junk; None without junk."""
    particles_per_second: float | None
    """None for what is no way of its own."""
    cpu_ms_per_particle: float | None
    first_pose_seconds: float | None


class ProposersFigures(BaseModel):
    """All ways on one stream, one seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_aligned: int
    num_streamed: int
    num_junk: int
    """Among the streamed."""
    symmetry: str
    device: str
    threads: int
    load_average: float
    """Of the machine over the last minute of the measurement: what else ran slows the rates."""
    training_steps: tuple[int, int]
    """Of the networks of half-sets 0 and 1."""
    training_stopped_by: str
    ways: tuple[WayFigures, ...]


def bench_proposers(
    ways: AnsweringWays,
    *,
    on_stage: Callable[[str], None] = lambda stage: None,
    on_progress: OnProgress = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> ProposersFigures:
    """Make the checkpoints that are not made yet, let every way answer, and return the figures.

    TrainingStopped where `should_stop` became true; else what training, publishing and reading raise.
    """
    on_stage("references")
    references = ways.make_references()
    on_stage("networks")
    networks = ways.make_networks(on_progress, should_stop)
    on_stage("network's answers")
    answered = [*ways.of_network(networks, references)]
    on_stage("gallery's answers")
    answered += ways.of_gallery(references)
    on_stage("both fused")
    answered.append(ways.of_both(ways.make_fused(networks, references)))
    on_stage("limit of the noise")
    answered.append(ways.of_truth(references))
    return _measured(ways, networks, answered)


def figures_table(figures: ProposersFigures) -> str:
    """Return the figures as text, a row a way."""
    junk = f", {figures.num_junk} of them junk" if figures.num_junk else ""
    steps = " and ".join(map(str, dict.fromkeys(figures.training_steps)))
    head = (
        f"{figures.num_aligned} aligned, {figures.num_streamed} streamed{junk}; {figures.symmetry}; networks of "
        f"{steps} steps (stopped by {figures.training_stopped_by}); {figures.device}, {figures.threads} threads, "
        f"load {figures.load_average:.1f}"
    )
    titles = (
        "way",
        "median",
        "mean",
        "< 5 deg",
        "< 15 deg",
        "shift, A",
        "junk AUC",
        "particles/s",
        "CPU ms",
        "first pose, s",
    )
    rows = [titles, *map(_cells, figures.ways)]
    return "\n".join([head, *(f"{row[0]:<24}" + "".join(f"{cell:>14}" for cell in row[1:]) for row in rows)])


def _cells(way: WayFigures) -> tuple[str, ...]:
    return (
        way.way,
        f"{way.median_deg:.2f}",
        f"{way.mean_deg:.2f}",
        f"{100 * way.within_5_deg:.1f} %",
        f"{100 * way.within_15_deg:.1f} %",
        _optional(way.shift_rmse_angstrom, "{:.1f}"),
        _optional(way.junk_auc, "{:.2f}"),
        _optional(way.particles_per_second, "{:.0f}"),
        _optional(way.cpu_ms_per_particle, "{:.1f}"),
        _optional(way.first_pose_seconds, "{:.0f}"),
    )


def _optional(value: float | None, text: str) -> str:
    return "-" if value is None else text.format(value)


def _measured(ways: AnsweringWays, networks: Made, answered: list[Answers]) -> ProposersFigures:
    rows = ways.rows
    return ProposersFigures(
        num_aligned=len(rows.aligned),
        num_streamed=len(rows.streamed),
        num_junk=int((~rows.are_particles()).sum()),
        symmetry=rows.symmetry,
        device=str(pick_device(ways.inference.device)),
        threads=torch.get_num_threads(),
        load_average=os.getloadavg()[0],
        training_steps=networks.steps,
        training_stopped_by=networks.stopped_by,
        ways=tuple(way_figures(answers, rows) for answers in answered),
    )


def way_figures(answers: Answers, rows: LandedRows) -> WayFigures:
    """Measure one way's answers of the streamed rows against their truth."""
    particles = rows.are_particles()
    posed = np.isfinite(answers.rotation).all((1, 2))
    measured = np.flatnonzero(posed & particles)
    group = group_rotations(rows.symmetry)
    errors = angular_error_deg(rows.truth.select(measured).rotations(), answers.rotation[measured], group)
    return WayFigures(
        way=answers.way,
        num_particles=len(measured),
        median_deg=float(np.median(errors)),
        mean_deg=float(errors.mean()),
        within_5_deg=float((errors <= 5).mean()),
        within_15_deg=float((errors <= 15).mean()),
        shift_rmse_angstrom=_shift_error(answers, rows, measured),
        junk_auc=area_under_curve(answers.confidence[posed], particles[posed]),
        particles_per_second=answers.particles_per_second,
        cpu_ms_per_particle=answers.cpu_ms_per_particle,
        first_pose_seconds=answers.first_pose_seconds,
    )


def _shift_error(answers: Answers, rows: LandedRows, measured: NDArray[np.int64]) -> float | None:
    known = all(label in rows.truth for label in SHIFT_LABELS)
    if not known or not np.isfinite(answers.shift_angstrom[measured]).all():
        return None
    return shift_rmse_angstrom(rows.truth.select(measured).shifts_angstrom(), answers.shift_angstrom[measured])
