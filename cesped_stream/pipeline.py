"""From rows of a star to poses: read, flag, preprocess, predict, in bounded memory."""

from pathlib import Path

import numpy as np
import torch

from cesped_stream.imaging.preprocess import Preprocessor, image_flags
from cesped_stream.inference import PoseBatch, Predictor
from cesped_stream.particles.flags import ImageFlag
from cesped_stream.particles.stacks import StackReader, read_images
from cesped_stream.particles.table import ParticleTable

ROWS_READ_AT_ONCE = 64
BATCHES_HELD = 8


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
        poses.put(index[usable], part)
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
            flags = np.asarray(image_flags(raw), np.uint8)
            poses.flag[rows[index]] = flags
            poses.digest[rows[index]] = group.digests
            usable = np.flatnonzero(flags == ImageFlag.OK)
            if len(usable):
                images = raw[torch.from_numpy(usable)].to(device)
                inputs[torch.from_numpy(index[usable])] = preprocessor(images, ctf.select(index[usable]))
    return inputs
