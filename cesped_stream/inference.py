"""Prediction: network inputs in, poses with confidence and further candidates out; deterministic."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cesped_stream.conventions import HALVES
from cesped_stream.model.checkpoint import HalfMode, load_checkpoint
from cesped_stream.model.device import pick_device
from cesped_stream.model.image2sphere import Image2Sphere
from cesped_stream.particles.flags import ImageFlag
from cesped_stream.settings import InferenceSettings
from cesped_stream.so3.distribution import SparseDistribution, sparse_distribution, top_poses
from cesped_stream.so3.grids import grid_step_deg, num_rotations
from cesped_stream.so3.symmetry import group_rotations

logger = logging.getLogger(__name__)

T = TypeVar("T")

SEPARATION_IN_GRID_STEPS = 2.0
BATCH_MULTIPLE = 16


@dataclass(frozen=True)
class PoseBatch:
    """Poses of n particles, best of k candidates first; NaN and confidence 0 where `flag` is not 0."""

    rotation: NDArray[np.float64]
    """`(n, 3, 3)`, image xyz to map xyz."""
    confidence: NDArray[np.float64]
    """`(n,)`: where `calibrated`, the probability of being right (`CalibrationSettings.within_deg`); else the mass of
    `top_probability` at the pose, which ranks particles only: the network's within two grid steps of the best pose or
    of its symmetry mates."""
    top_rotation: NDArray[np.float64]
    """`(n, k, 3, 3)`."""
    top_probability: NDArray[np.float64]
    """`(n, k)`."""
    flag: NDArray[np.uint8]
    """`(n,)`, `particles.flags.ImageFlag`."""
    digest: NDArray[np.uint8]
    """`(n, 16)`: blake2b of the image's bytes in its file; zeros where no file was read."""
    shift_angstrom: NDArray[np.float64]
    """`(n, 2)` (x, y) that centre the image; NaN where the proposer gives none, as the network does."""
    calibrated: NDArray[np.bool_]
    """`(n,)`: what `confidence` is."""
    above_noise: NDArray[np.float64]
    """`(n,)`: how far the image fits the reference better than noise ever does, in standard deviations; NaN where
    no reference was asked."""
    network_rotation: NDArray[np.float64]
    """`(n, 3, 3)`: the network's own best pose; NaN where it was not asked."""
    gallery_rotation: NDArray[np.float64]
    """`(n, 3, 3)`: the gallery's own best pose, not refined; NaN where it was not asked."""
    apart_deg: NDArray[np.float64]
    """`(n,)`: angle between those two, under the group; NaN without both."""
    clipped: NDArray[np.uint8]
    """`(n,)`, `particles.flags.Clipped`: which of the refinement's searches ended at its edge."""

    def __len__(self) -> int:
        return len(self.confidence)

    @classmethod
    def empty(cls, n: int, k: int) -> "PoseBatch":
        """Return n particles without a pose, flag 0."""
        return cls(
            rotation=np.full((n, 3, 3), np.nan),
            confidence=np.zeros(n),
            top_rotation=np.full((n, k, 3, 3), np.nan),
            top_probability=np.zeros((n, k)),
            flag=np.zeros(n, np.uint8),
            digest=np.zeros((n, 16), np.uint8),
            shift_angstrom=np.full((n, 2), np.nan),
            calibrated=np.zeros(n, np.bool_),
            above_noise=np.full(n, np.nan),
            network_rotation=np.full((n, 3, 3), np.nan),
            gallery_rotation=np.full((n, 3, 3), np.nan),
            apart_deg=np.full(n, np.nan),
            clipped=np.zeros(n, np.uint8),
        )

    @classmethod
    def joined(cls, parts: Sequence["PoseBatch"]) -> "PoseBatch":
        """Return the rows of all parts, at least one, in order; they have equally many candidates."""
        return cls(**{field.name: np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(cls)})

    def without_failed(self) -> "PoseBatch":
        """Return the batch with rows whose pose is no number flagged FAILED, without pose; flagged rows stay so."""
        numbers = (self.rotation.reshape(len(self), 9), self.top_probability, self.confidence[:, None])
        is_number = np.logical_and.reduce([np.isfinite(part).all(1) for part in numbers])
        failed = np.flatnonzero((self.flag == 0) & ~is_number)
        if not len(failed):
            return self
        kept, none = PoseBatch.joined([self]), PoseBatch.empty(len(failed), self.top_probability.shape[1])
        none.flag[:], none.digest[:] = ImageFlag.FAILED, self.digest[failed]
        kept.put(failed, none)
        return kept

    def put(self, index: NDArray[np.int64], part: "PoseBatch") -> None:
        """Overwrite the rows at `index` with `part`, in that order."""
        for field in fields(self):
            getattr(self, field.name)[index] = getattr(part, field.name)


class Predictor:
    """Both half-models of a checkpoint, ready to predict.

    Each forward pass holds exactly `batch_size` images of one half-set, the last one padded with zeros, so a
    particle's bits depend neither on its neighbours nor on its place. They do depend on the device, the batch size,
    the number of threads and the version of torch. `batch_size` is the setting rounded up to a multiple of 16: with
    two threads MKL rounds differently from place to place in batches of 2 to 11.
    """

    def __init__(
        self, checkpoint_folder: Path, settings: InferenceSettings, half_mode: HalfMode = "gold_standard"
    ) -> None:
        self.settings = settings
        self.half_mode: HalfMode = half_mode
        self.device = pick_device(settings.device)
        self.batch_size = -(-settings.batch_size // BATCH_MULTIPLE) * BATCH_MULTIPLE
        loaded = load_checkpoint(checkpoint_folder, device=self.device)
        self.manifest = loaded.manifest
        self._models = {half: loaded.model_for(half, half_mode) for half in HALVES}
        self._group = group_rotations(self.manifest.symmetry)
        order = self.manifest.model.grid_order
        self._separation_deg = SEPARATION_IN_GRID_STEPS * grid_step_deg(order)

    def model_for(self, half_set: int) -> Image2Sphere:
        """Return the model that predicts the particles of a half-set, in eval mode on `device`."""
        return self._models[half_set]

    def predict(self, images: Tensor, half_sets: Sequence[int] | NDArray[np.int64]) -> PoseBatch:
        """Return the poses of network inputs `(n, 1, s, s)` float32 of particles of `half_sets` `(n,)`.

        Flags and digests are 0. Raises ValueError for a half-set other than 0 and 1. Where CUDA memory runs out the
        batch is halved, for good; that is logged, since the last bits may change.
        """
        poses = PoseBatch.empty(len(images), self.settings.top_k)
        for batch, part in self._of_batches(images, half_sets, self._poses_of):
            poses.put(batch, part)
        return poses

    def distribution(self, images: Tensor, half_sets: Sequence[int] | NDArray[np.int64], k: int) -> SparseDistribution:
        """Return the k likeliest rotations of network inputs `(n, 1, s, s)` float32, as `predict` sees them."""
        order = self.manifest.model.grid_order
        width = min(k, num_rotations(order))
        indices, log_weights = np.zeros((len(images), width), np.int64), np.zeros((len(images), width), np.float32)
        for batch, part in self._of_batches(images, half_sets, lambda logits: sparse_distribution(logits, order, k)):
            indices[batch], log_weights[batch] = part.indices, part.log_weights
        return SparseDistribution(order, False, indices, log_weights)

    def _of_batches(
        self, images: Tensor, half_sets: Sequence[int] | NDArray[np.int64], make: Callable[[Tensor], T]
    ) -> Iterator[tuple[NDArray[np.int64], T]]:
        """Yield the places of each batch's images and what `make` makes of their logits."""
        halves = np.asarray(half_sets, np.int64)
        if halves.shape != (len(images),) or not np.isin(halves, HALVES).all():
            raise ValueError(f"{len(images)} images need as many half-sets, each 0 or 1; got {half_sets!r}")
        for half, model in self._models.items():
            index = np.flatnonzero(halves == half)
            done = 0
            while done < len(index):
                batch = index[done : done + self.batch_size]
                try:
                    part = self._of_batch(model, images[torch.from_numpy(batch)], make)
                except torch.cuda.OutOfMemoryError:
                    if self.batch_size == 1:
                        raise
                    self._halve_batch()
                    continue
                yield batch, part
                done += len(batch)

    def _of_batch(self, model: Image2Sphere, images: Tensor, make: Callable[[Tensor], T]) -> T:
        n = len(images)
        padded = images.new_zeros(self.batch_size, *images.shape[1:])
        padded[:n] = images
        with torch.no_grad(), _reproducible(self.device, bfloat16=self.settings.precision == "bfloat16"):
            return make(model(padded.to(self.device))[:n])

    def _poses_of(self, logits: Tensor) -> PoseBatch:
        rotations, probabilities = top_poses(
            logits, self.manifest.model.grid_order, self._group, self.settings.top_k, self._separation_deg
        )
        confidences = probabilities.astype(np.float64)
        return replace(
            PoseBatch.empty(len(logits), self.settings.top_k),
            rotation=rotations[:, 0],
            confidence=confidences[:, 0],
            top_rotation=rotations,
            top_probability=confidences,
            network_rotation=rotations[:, 0].copy(),
        )

    def _halve_batch(self) -> None:
        self.batch_size //= 2
        torch.cuda.empty_cache()
        logger.warning("CUDA memory ran out; batch halved", extra={"batch_size": self.batch_size})


@contextmanager
def _reproducible(device: torch.device, *, bfloat16: bool) -> Iterator[None]:
    """Run the block with reproducible float32 kernels (no TF32), the backbone in bfloat16 where asked for."""
    with (
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        torch.autocast(device.type, torch.bfloat16, enabled=bfloat16),
    ):
        yield
