"""What a replay tells of each way of making poses, and of how sure they are: for summary.json and the table."""

from pathlib import Path
from typing import Any

from cesped_stream.benchmark.compare import Comparison
from cesped_stream.benchmark.pose_ways import errors_of_ways, limit_of_noise, references_of
from cesped_stream.benchmark.predictions import read_predictions
from cesped_stream.benchmark.stream_report import streamed, with_landed_stacks
from cesped_stream.benchmark.sureness import how_sure
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.table import ParticleTable
from cesped_stream.reference_proposer import ReferenceProposer

from .settings import SessionSettings
from .status import CheckpointStatus
from .worker import matching_settings


def pose_errors(
    comparison: Comparison, rows: ParticleTable | None, session: SessionSettings, in_use: CheckpointStatus | None
) -> dict[str, Any]:
    """Return the errors of each way of making poses, and what refinement reaches from the true poses.

    `rows`: `inferred_rows`. The limit is that of the references that the checkpoint `in_use` is or holds; None without.
    """
    return errors_of_ways(comparison, rows) | _limit(comparison, session, in_use)


def sureness_of(poses: Path, truth: ParticleTable, session: SessionSettings, within_deg: float) -> dict[str, Any]:
    """Return `Sureness.to_json` of the streamed rows of a star; nothing where they say nothing of it.

    `within_deg`: what a calibrated confidence is the probability of.
    """
    found = how_sure(
        read_predictions([poses]),
        truth.select(streamed(truth)),
        session.training.symmetry,
        within_deg=within_deg,
    )
    return {} if found is None else found.to_json()


def _limit(
    comparison: Comparison, session: SessionSettings, in_use: CheckpointStatus | None
) -> dict[str, float | None]:
    folder = None if in_use is None else references_of(Path(in_use.folder))
    if folder is None or comparison.metrics is None:
        return limit_of_noise(comparison, None, comparison.truth)
    proposer = ReferenceProposer(folder, matching_settings(session), session.half_mode)
    reader = StackReader()
    landed = with_landed_stacks(comparison.truth, session.landing.folder)
    return limit_of_noise(comparison, lambda table: proposer.refined(table, reader), landed)
