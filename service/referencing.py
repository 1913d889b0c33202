"""What a trainer makes of an order for references: of aligned rows, of a given map, of predicted poses."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from cesped_stream.errors import InvalidCheckpointError, UnreachableFileError
from cesped_stream.imaging.maps import read_map
from cesped_stream.particles.own_columns import CHECKPOINT
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.table import ParticleTable
from cesped_stream.reference_pair import ReferenceManifest, publish_map, publish_references
from cesped_stream.settings import TrainingSettings

from .independence import independence_of
from .messages import MAP, POSES, TrainingOrder
from .settings import SessionSettings
from .worker import matching_settings

ALIGNED_AND_PREDICTED = "aligned and predicted rows"


def publish_ordered(
    order: TrainingOrder, table: ParticleTable, settings: SessionSettings, on_half: Callable[[int], None]
) -> tuple[Path, ReferenceManifest]:
    """Make and publish both references that an order asks for. The same order gives the same bytes.

    Raises what `publish_references` and `publish_map` raise; UnreachableFileError or InvalidCheckpointError where the
    session's copy of a given map is gone or was changed.
    """
    training, matching, reader = settings.training, matching_settings(settings), StackReader()
    work_folder = Path(order.work_folder)
    checkpoints = work_folder.parent
    if order.source == MAP:
        volume, pixel_size = read_map(kept_map(Path(order.reference)))
        return publish_map(
            volume, pixel_size, table, reader, training, matching,
            work_folder=work_folder, checkpoints_folder=checkpoints, on_half=on_half,
        )  # fmt: skip
    origin = "aligned rows"
    if order.source == POSES:
        training, origin = for_rebuilding(training, table, checkpoints, settings.checkpoint), ALIGNED_AND_PREDICTED
    return publish_references(
        table, reader, training, matching,
        work_folder=work_folder, checkpoints_folder=checkpoints, origin=origin, on_half=on_half,
    )  # fmt: skip


def kept_map(path: Path) -> Path:
    """Return the path of a session's copy of a given map, once its content is what its name says."""
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UnreachableFileError(f"{path}: {error.strerror}; start the session again with its reference") from None
    if not path.stem.endswith(found[:16]):
        raise InvalidCheckpointError(f"{path}: not the map that was kept; start the session again with its reference")
    return path


def for_rebuilding(training: TrainingSettings, table: ParticleTable, checkpoints: Path, given: str) -> TrainingSettings:
    """Return how references are made of predicted poses: no row is held out, since the poses are no truth to measure
    by, and the halves are as independent as the least independent checkpoint that posed a row."""
    alignment = independence_of(table.column(CHECKPOINT), checkpoints, given, training.alignment)
    return TrainingSettings.model_validate(training.model_dump() | {"alignment": alignment, "validation_fraction": 0.0})
