"""From rows of a star to poses: read, flag, preprocess, predict, in bounded memory."""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from cesped_stream.fused_pair import FusedProposer
from cesped_stream.imaging.preprocess import Preprocessor, row_flags
from cesped_stream.inference import PoseBatch, Predictor
from cesped_stream.model.checkpoint import HalfMode
from cesped_stream.particles.flags import ImageFlag
from cesped_stream.particles.stacks import StackReader, read_images
from cesped_stream.particles.table import ParticleTable
from cesped_stream.reference_pair import MatchingSettings, checkpoint_kind
from cesped_stream.reference_proposer import ReferenceProposer
from cesped_stream.settings import InferenceSettings

NETWORK_PROPOSER = "image2sphere"
ROWS_READ_AT_ONCE = 64
BATCHES_HELD = 8


class Proposer(Protocol):
    """What gives the rows of a table their poses, from one checkpoint."""

    @property
    def checkpoint_id(self) -> str:
        """Of the checkpoint, as its manifest names it."""

    @property
    def proposer(self) -> str:
        """What `cestreamProposer` says of its rows."""

    @property
    def rows_at_once(self) -> int:
        """Rows of a call that fill its memory; more take no less time each."""

    def poses(self, table: ParticleTable, reader: StackReader) -> PoseBatch:
        """Return the poses of a table's rows, in their order."""


class NetworkProposer:
    """Poses by both half-models of a checkpoint of networks: rotations without shifts, the paper's way."""

    proposer = NETWORK_PROPOSER

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.checkpoint_id = predictor.manifest.checkpoint_id
        self.rows_at_once = BATCHES_HELD * predictor.settings.batch_size

    def poses(self, table: ParticleTable, reader: StackReader) -> PoseBatch:
        """Return `infer_table`'s poses."""
        return infer_table(self.predictor, table, reader)


def open_proposer(
    folder: Path, inference: InferenceSettings, matching: MatchingSettings, half_mode: HalfMode
) -> Proposer:
    """Return what a checkpoint folder holds, ready to give poses: its networks, its references, or both.

    UnreachableFileError where a file is missing, InvalidCheckpointError where one is not what the manifest says.
    """
    kind = checkpoint_kind(folder)
    if kind == "reference":
        return ReferenceProposer(folder, matching, half_mode)
    if kind == "fused":
        return FusedProposer(folder, inference, matching, half_mode)
    return NetworkProposer(Predictor(folder, inference, half_mode))


def infer_table(
    predictor: Predictor, table: ParticleTable, reader: StackReader, *, root: Path | None = None
) -> PoseBatch:
    """Return the poses of a table's rows, in their order, each from the model that its half-set may see.

    Rows whose image is unusable (`ImageFlag`) get that flag, their digest and no pose. `root` is what relative
    rlnImageName are relative to. At most 64 raw images and 8 batches of network inputs are in memory. Raises what
    reading raises: InvalidStarError, InvalidStackError, UnreachableFileError.
    """
    manifest = predictor.manifest
    preprocessor = Preprocessor(manifest.preprocess, manifest.network_pixel_size_angstrom)
    poses = PoseBatch.empty(len(table), predictor.settings.top_k)
    half_sets = table.half_sets()
    rows_held = BATCHES_HELD * predictor.batch_size
    for start in range(0, len(table), rows_held):
        index = np.arange(start, min(start + rows_held, len(table)))
        images = _network_inputs(table.select(index), preprocessor, reader, poses, index, root, predictor.device)
        usable = poses.flag[index] == ImageFlag.OK
        part = predictor.predict(images[torch.from_numpy(usable)], half_sets[index[usable]])
        part.digest[:] = poses.digest[index[usable]]
        poses.put(index[usable], part.without_failed())
    return poses


def _network_inputs(
    table: ParticleTable,
    preprocessor: Preprocessor,
    reader: StackReader,
    poses: PoseBatch,
    rows: np.ndarray[tuple[int], np.dtype[np.int64]],
    root: Path | None,
    device: torch.device,
) -> torch.Tensor:
    """Return network inputs `(n, 1, s, s)` of the table, zero where flagged; flags and digests go to `poses[rows]`."""
    size = preprocessor.settings.image_size
    inputs = torch.zeros(len(table), 1, size, size, device=device)
    ctf = table.ctf_parameters()
    for start in range(0, len(table), ROWS_READ_AT_ONCE):
        chunk = np.arange(start, min(start + ROWS_READ_AT_ONCE, len(table)))
        for group in read_images(table.select(chunk), reader, root=root):
            index = chunk[group.index]
            raw = torch.from_numpy(group.images)
            flags = row_flags(raw, ctf.select(index))
            poses.flag[rows[index]] = flags
            poses.digest[rows[index]] = group.digests
            usable = np.flatnonzero(flags == ImageFlag.OK)
            if len(usable):
                images = raw[torch.from_numpy(usable)].to(device)
                inputs[torch.from_numpy(index[usable])] = preprocessor(images, ctf.select(index[usable]))
    return inputs
