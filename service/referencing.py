"""What a trainer makes of an order on more than aligned rows: references of a given map, or of predicted poses."""

import hashlib
from pathlib import Path

import numpy as np

from cesped_stream.errors import InvalidCheckpointError, UnreachableFileError
from cesped_stream.imaging.maps import read_map
from cesped_stream.model.device import intra_op_threads
from cesped_stream.particles.own_columns import CHECKPOINT
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.table import ParticleTable
from cesped_stream.reference_pair import ReferenceManifest, publish_map, publish_references
from cesped_stream.settings import TrainingSettings
from cesped_stream.training.fit import sole_trainer

from .finished import NO_CHECKPOINT
from .independence import independence_of
from .messages import MAP, TrainingOrder
from .publishing import Published, Publisher
from .settings import SessionSettings
from .worker import matching_settings

ALIGNED_AND_PREDICTED = "aligned and predicted rows"


def published_of(order: TrainingOrder, publisher: Publisher) -> Published:
    """Make and publish both references of a given map, or of aligned and predicted rows. The same order gives the same
    bytes.

    Raises what `publish_references` and `publish_map` raise; UnreachableFileError or InvalidCheckpointError where the
    session's copy of a given map is gone or was changed; TrainingStopped.
    """
    with sole_trainer(publisher.work_folder), intra_op_threads(1):
        folder, manifest = _of_map(order, publisher) if order.source == MAP else _of_poses(publisher)
    return Published(folder, manifest.checkpoint_id)


def _of_map(order: TrainingOrder, publisher: Publisher) -> tuple[Path, ReferenceManifest]:
    volume, pixel_size = read_map(kept_map(Path(order.reference)))
    return publish_map(
        volume,
        pixel_size,
        publisher.table,
        StackReader(),
        publisher.settings.training,
        matching_settings(publisher.settings),
        work_folder=publisher.work_folder,
        checkpoints_folder=publisher.checkpoints_folder,
        on_stage=publisher.on_stage,
    )


def _of_poses(publisher: Publisher) -> tuple[Path, ReferenceManifest]:
    """Confidence is fitted on the aligned rows among them: a predicted pose is no truth."""
    settings, table, checkpoints = publisher.settings, publisher.table, publisher.checkpoints_folder
    given = settings.checkpoint if isinstance(settings, SessionSettings) else ""
    aligned = np.array([name == NO_CHECKPOINT for name in table.column(CHECKPOINT)], np.bool_)
    return publish_references(
        table,
        StackReader(),
        for_rebuilding(settings.training, table, checkpoints, given),
        matching_settings(settings),
        work_folder=publisher.work_folder,
        checkpoints_folder=checkpoints,
        origin=ALIGNED_AND_PREDICTED,
        alignment=publisher.alignment,
        labelled=table.select(np.flatnonzero(aligned)),
        on_stage=publisher.on_stage,
    )


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
