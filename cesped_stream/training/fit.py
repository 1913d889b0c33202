"""Both half-models of a session, trained in one job and published together."""

import fcntl
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from cesped_stream.conventions import HALVES
from cesped_stream.errors import CespedStreamError, InvalidSettingsError, TransientError
from cesped_stream.imaging.preprocess import Preprocessor
from cesped_stream.model.checkpoint import CheckpointManifest, HalfRecord, load_checkpoint, publish_checkpoint
from cesped_stream.model.device import intra_op_threads, pick_device
from cesped_stream.model.image2sphere import Image2Sphere
from cesped_stream.model.imagenet import imagenet_weights
from cesped_stream.particles.aligned_rows import Alignment, least_independent
from cesped_stream.particles.stacks import StackReader, read_images
from cesped_stream.particles.table import ParticleTable
from cesped_stream.settings import InferenceSettings, PreprocessSettings, TrainingSettings
from cesped_stream.training.half import HalfTraining
from cesped_stream.training.rows import AlignedImages, rows_of_half, split_by_micrograph, usable_rows


class TrainingStopped(CespedStreamError):
    """Training was asked to stop; its resume points are on disk and the next start goes on from them."""


@dataclass(frozen=True)
class Progress:
    """How far one half's training is, after one of its steps or epochs."""

    half_set: int
    step: int
    max_steps: int
    loss: float
    validation_error_deg: tuple[float | None, float | None]
    """Mean angular error of the held-out rows at the last validation, for half-sets 0 and 1."""
    stage: str = ""
    """What else than training begins for this half: no steps are counted then."""


def fit_pair(
    table: ParticleTable,
    reader: StackReader,
    settings: TrainingSettings,
    inference: InferenceSettings,
    *,
    root: Path | None = None,
    work_folder: Path,
    checkpoints_folder: Path,
    trained_on: str = "",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    alignment: Alignment | None = None,
) -> tuple[Path, CheckpointManifest]:
    """Train one model on each half-set's aligned rows and publish both as one checkpoint.

    Each half runs in a thread of its own with one intra-op thread on a CPU, so the result's bits do not depend on the
    number of cores; a run killed at any moment and started again with the same arguments ends with the same bits
    (unless a time budget cut it). `root` is what relative rlnImageName are relative to. `trained_on` names the data in
    the manifest. `alignment` is what the rows make of the stated independence (`alignment_of_rows`); none: what
    `settings` state. `on_progress` is called from either thread, one at a time. Raises TrainingStopped
    where `should_stop` became true, PermanentError where a half has no usable row.
    """
    alignment = alignment or Alignment(settings.alignment)
    with sole_trainer(work_folder):
        halves, manifest = _prepare(table, reader, settings, inference, root, work_folder)
        _run_both(halves, on_progress, should_stop, parallel=halves_side_by_side(inference))
        why = {half.run.over for half in halves}
        manifest = manifest.model_copy(
            update={
                "halves": {half.half_set: _record(half) for half in halves},
                "trained_on": trained_on,
                "independence": least_independent(manifest.independence, alignment.independence),
                "doubts": alignment.doubts,
                "initialised_from_own_predictions": alignment.initialised_from_own_predictions,
                "stopped_by": why.pop() if len(why) == 1 else "minutes",
            }
        )
        return publish_checkpoint(checkpoints_folder, manifest, {half.half_set: half.weights() for half in halves})


def halves_side_by_side(inference: InferenceSettings) -> bool:
    """Return whether `fit_pair` trains both halves at once: on a CPU, where this thread has more than one core."""
    return pick_device(inference.device).type == "cpu" and torch.get_num_threads() > 1


def resume_file(work_folder: Path, half_set: int) -> Path:
    """Return where a half's resume point lies."""
    return work_folder / f"resume_half_{half_set}.safetensors"


@contextmanager
def sole_trainer(work_folder: Path) -> Iterator[None]:
    """Hold the work folder: an orphan that still writes its last epoch must not share it with the next trainer."""
    work_folder.mkdir(parents=True, exist_ok=True)
    with open(work_folder / "lock", "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TransientError(f"{work_folder}: another trainer works here; try again when it has ended") from None
        yield


def _prepare(
    table: ParticleTable,
    reader: StackReader,
    settings: TrainingSettings,
    inference: InferenceSettings,
    root: Path | None,
    work_folder: Path,
) -> tuple[list[HalfTraining], CheckpointManifest]:
    """Return both halves, resumed where there is a resume point, and the manifest but for what training brings."""
    device = pick_device(inference.device)
    halves = []
    with intra_op_threads(1):  # also what is prepared: a sum over two threads has other bits than one over one
        table = usable_rows(table, reader, root=root)
        preprocess, pixel_size = network_frame(table, reader, settings.preprocess_settings, root=root)
        start = _start(settings)
        for half_set in HALVES:
            rows = rows_of_half(table, half_set)
            images = AlignedImages(rows, reader, Preprocessor(preprocess, pixel_size), root=root)
            halves.append(
                HalfTraining(
                    half_set,
                    _seeded_model(settings, half_set, start),
                    rows,
                    images,
                    split_by_micrograph(rows.micrographs(), settings.validation_fraction, settings.seed),
                    settings,
                    device=device,
                    resume_file=resume_file(work_folder, half_set),
                    fingerprint=_fingerprint(rows, settings, start.origin),
                )
            )
    manifest = CheckpointManifest(
        preset=settings.preset,
        model=settings.model_settings,
        preprocess=preprocess,
        network_pixel_size_angstrom=pixel_size,
        symmetry=settings.symmetry,
        halves={},
        origin=start.origin,
        independence=start.independence,
        stopped_by="steps",
        training=settings,
    )
    return halves, manifest


def network_frame(
    table: ParticleTable, reader: StackReader, preprocess: PreprocessSettings, *, root: Path | None = None
) -> tuple[PreprocessSettings, float]:
    """Return preprocessing settings with the crop resolved, and the network's pixel size in angstrom.

    `crop_angstrom` 0 becomes the smallest field of view among the rows' optics groups: box size x pixel size.
    """
    crop = preprocess.crop_angstrom
    if crop == 0:
        pixel_sizes = table.pixel_sizes_angstrom()
        first_rows = np.unique(table.optics_index, return_index=True)[1]
        fields = []
        for row in first_rows:
            (group,) = read_images(table.select([int(row)]), reader, root=root)
            fields.append(group.images.shape[-1] * float(pixel_sizes[row]))
        crop = min(fields)
    return preprocess.model_copy(update={"crop_angstrom": crop}), crop / preprocess.image_size


def _run_both(
    halves: list[HalfTraining],
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    *,
    parallel: bool,
) -> None:
    lock = threading.Lock()
    failed = threading.Event()
    latest: list[float | None] = [None, None]

    def run(half: HalfTraining) -> bool:
        def on_step(step: int, loss: float) -> None:
            with lock:
                progress = Progress(half.half_set, step, half.max_steps, loss, (latest[0], latest[1]))
                on_progress(progress)

        with intra_op_threads(1):
            while not half.run.over:
                if not half.run_epoch(on_step, lambda: failed.is_set() or should_stop()):
                    return False
                latest[half.half_set] = half.run.history[-1].get("mean_error_deg")
        return True

    def run_or_fail(half: HalfTraining) -> bool:
        try:
            return run(half)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(max_workers=len(HALVES) if parallel else 1) as pool:
        finished = list(pool.map(run_or_fail, halves))
    if not all(finished):
        raise TrainingStopped("training stopped on request; its resume points are kept, start it again to go on")


@dataclass(frozen=True)
class Start:
    """Where both halves' weights start from, and what that makes of their independence."""

    origin: str
    independence: Literal["independent", "shared_reference", "unknown"]
    checkpoint: dict[str, torch.Tensor] | None = None
    imagenet: dict[str, torch.Tensor] | None = None


def _start(settings: TrainingSettings) -> Start:
    """Return the start: an earlier checkpoint where one is named, else ImageNet weights, else random ones."""
    if settings.init_from:
        given = load_checkpoint(Path(settings.init_from), device=torch.device("cpu"))
        if given.manifest.model != settings.model_settings:
            raise InvalidSettingsError(
                f"init_from {settings.init_from}: its model settings differ from this training's; use its preset "
                f"({given.manifest.preset!r}), or leave init_from out"
            )
        # One model for both halves: taking each half's own would not undo what the other session shared.
        weights = given.models[0].state_dict()
        return Start(f"checkpoint {given.manifest.checkpoint_id}", "shared_reference", checkpoint=weights)
    imagenet = imagenet_weights(settings.model_settings, settings.imagenet_weights)
    return Start("random" if imagenet is None else "imagenet", settings.alignment, imagenet=imagenet)


def _seeded_model(settings: TrainingSettings, half_set: int, start: Start) -> Image2Sphere:
    """Return a model whose random initial weights depend on the seed and the half-set only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2 * settings.seed + half_set)
        model = Image2Sphere(settings.model_settings)
    if start.checkpoint is not None:
        model.load_state_dict(start.checkpoint)
    elif start.imagenet is not None:
        model.encoder.load_weights(start.imagenet)
    return model


def _fingerprint(rows: ParticleTable, settings: TrainingSettings, origin: str) -> str:
    """Return a hash of all that a resume point depends on; another fingerprint starts training anew."""
    digest = hashlib.sha256(json.dumps([settings.model_dump(mode="json"), origin, rows.labels]).encode())
    for row in rows.rows:
        digest.update("\t".join(row).encode())
    return digest.hexdigest()


def _record(half: HalfTraining) -> HalfRecord:
    last = half.run.history[-1]
    return HalfRecord(
        num_training=len(half.split.training),
        num_validation=len(half.split.validation),
        steps=half.run.step,
        validation_loss=last.get("validation_loss"),
        mean_error_deg=last.get("mean_error_deg"),
        median_error_deg=last.get("median_error_deg"),
    )
