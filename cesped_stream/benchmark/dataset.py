"""`ParticlesDataset`: an entry of the benchmark, or any star, as a torch data set (the paper's Listings 1 and 2)."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from cesped_stream.benchmark.cesped_names import CespedNames
from cesped_stream.benchmark.dataset_images import BoxImages, Compatibility, ImageSteps, read_boxes
from cesped_stream.benchmark.dataset_source import (
    Source,
    entry_source,
    local_halves,
    published_halves,
    star_source,
)
from cesped_stream.benchmark.metadata import Metadata, read_rows
from cesped_stream.benchmark.saved_predictions import AnglesFormat, prediction_columns, save_predictions
from cesped_stream.imaging.augment import Augmenter
from cesped_stream.model.device import pick_device
from cesped_stream.particles.stacks import StackReader
from cesped_stream.particles.table import Int64
from cesped_stream.settings import AUGMENT_PRESETS, CtfCorrection, Device
from cesped_stream.so3.symmetry import group_rotations, reduced_rotations

Item = tuple[str, Tensor, tuple[Tensor, Tensor, Tensor], dict[str, Any]]
Batch = tuple[list[str], Tensor, tuple[Tensor, Tensor, Tensor], dict[str, Any]]


class ParticlesDataset(CespedNames, Dataset[Item]):
    """Particles of one half-set of an entry: `iid, img, (rotMat, xyShiftAngs, confidence), metadata = dataset[i]`.

    - `iid`: rlnImageName; `metadata`: every column of the star, by name.
    - `img` `(1, S, S)` float32: normalised to a background of mean 0 and std 1, then CTF corrected, cut and resized to
      S = `image_size`. What that leaves of the std depends on both: `cesped`'s bilinear resize takes a third of white
      noise's away, ours (`compatible=None`) none; `multiply` and `wiener` scale it (`corrected_noise_std`). A
      particle whose pixels are NaN, infinite or all equal is all 0 and has confidence 0.
    - `rotMat` `(3, 3)` float32 left-multiplies image xyz and gives map xyz; of the poses that the symmetry makes equal
      (g @ rotMat) it is the one nearest to the identity. NaN, with confidence 0, where the star has no pose.
    - `xyShiftAngs` `(2,)` float32: the shift (x, y) in angstrom that centres the image; 0 where the star has none.
    - `confidence` `(1,)` float32: rlnMaxValueProbDistribution, 1 where the star has no such column.

    Names, units and conventions are `cesped`'s, and so are the images where it is right (to 1e-3: one optics group, no
    astigmatism); several optics groups, boxes and pixel sizes are brought to the first particle's field of view and one
    pixel size. Goes to DataLoader workers by fork and by spawn; each opens at most `max_open_files` stacks.
    """

    def __init__(
        self,
        targetName: str | int | os.PathLike[str],
        halfset: Literal[0, 1],
        benchmarkDir: str | os.PathLike[str] | None = None,
        image_size: int | None = None,
        apply_perImg_normalization: bool = True,
        ctf_correction: CtfCorrection = "phase_flip",
        image_size_factor_for_crop: float = 0.25,
        *,
        compatible: Compatibility = "cesped",
        wiener_regulariser: float = 0.1,
        augmenter: Augmenter | str | None = None,
        seed: int = 0,
        max_open_files: int = 32,
    ) -> None:
        """Open half-set 0 or 1 of an entry under `benchmarkDir` (none: ~/cesped_stream_entries), downloading it where
        it is not there.

        `image_size`: S in pixels; none: the acquired box's, which the rest of the box is enlarged to.
        `image_size_factor_for_crop`: share of the box's side that is cut away, 0 to 0.5. The keywords after it: see
        `from_star`.
        Raises InvalidSettingsError for a name that is none or a half-set other than 0 and 1, UnreachableFileError or
        InvalidStarError for files that cannot be used; and what a download raises.
        """
        self._open(
            entry_source(
                str(targetName) if isinstance(targetName, int) else os.fspath(targetName), halfset, benchmarkDir
            ),
            image_size=image_size,
            normalise=apply_perImg_normalization,
            ctf_correction=ctf_correction,
            crop_fraction=image_size_factor_for_crop,
            compatible=compatible,
            wiener_regulariser=wiener_regulariser,
            augmenter=augmenter,
            seed=seed,
            max_open_files=max_open_files,
        )

    @classmethod
    def from_star(
        cls,
        star: str | os.PathLike[str],
        *,
        symmetry: str = "C1",
        image_root: str | os.PathLike[str] | None = None,
        image_size: int | None = None,
        normalise: bool = True,
        ctf_correction: CtfCorrection = "phase_flip",
        crop_fraction: float = 0.25,
        compatible: Compatibility = "cesped",
        wiener_regulariser: float = 0.1,
        augmenter: Augmenter | str | None = None,
        seed: int = 0,
        max_open_files: int = 32,
    ) -> "ParticlesDataset":
        """Return the data set of any particle star, 3.0 or 3.1, with or without poses; stacks are looked for under
        `image_root`, else beside the star and in its parent folders.

        `compatible` "cesped" (default): its steps, corrected; "cesped_exact": with its faults, for published numbers;
        None: this project's steps, those of `cesped-stream train` (Fourier resize, the origin exactly at pixel S // 2).
        `wiener_regulariser` 0.1: w of ctf_correction="wiener". `augmenter`: see the property. `seed` 0: of the
        augmentations. `max_open_files` 32. ValueError names an argument that is
        none of what it may be.
        """
        self = cls.__new__(cls)
        source = star_source(Path(star), symmetry, None if image_root is None else Path(image_root))
        self._open(
            source,
            image_size=image_size,
            normalise=normalise,
            ctf_correction=ctf_correction,
            crop_fraction=crop_fraction,
            compatible=compatible,
            wiener_regulariser=wiener_regulariser,
            augmenter=augmenter,
            seed=seed,
            max_open_files=max_open_files,
        )
        return self

    def _open(
        self,
        source: Source,
        *,
        image_size: int | None,
        normalise: bool,
        ctf_correction: CtfCorrection,
        crop_fraction: float,
        compatible: Compatibility,
        wiener_regulariser: float,
        augmenter: Augmenter | str | None,
        seed: int,
        max_open_files: int,
    ) -> None:
        self._source = source
        self._max_open_files = max_open_files
        self._readers: dict[int, StackReader] = {}
        self._table = read_rows(source.star, source.image_root)
        self.md = Metadata(self._table)
        self._group = group_rotations(source.symmetry)
        self._with_ctf = ctf_correction != "none"
        with StackReader() as reader:
            first = read_boxes(self._table.select([0]), reader, with_ctf=self._with_ctf)[0]
        self._box_size = int(first.images.shape[-1])
        self._steps = ImageSteps(
            first,
            image_size=image_size,
            normalise=normalise,
            ctf_correction=ctf_correction,
            crop_fraction=crop_fraction,
            compatible=compatible,
            wiener_regulariser=wiener_regulariser,
        )
        self._seed = seed
        self.augmenter = augmenter

    @property
    def symmetry(self) -> str:
        """The point group, in RELION's orientation."""
        return self._source.symmetry

    @property
    def image_size(self) -> int:
        """S, the side of `img` in pixels."""
        return self._steps.image_size

    @property
    def sampling_rate(self) -> float:
        """The pixel size of `img` in angstrom, after cut and resize. `cesped`'s property gives the acquired one."""
        return self._steps.pixel_size_angstrom

    @property
    def datadir(self) -> str:
        """The folder of the star."""
        return str(self._source.star.parent)

    @property
    def starFname(self) -> str:
        """The star file."""
        return str(self._source.star)

    @property
    def stackFname(self) -> str:
        """The stack beside the star that has its name; the star's rows may point to others."""
        return str(self._source.star.with_suffix(".mrcs"))

    @property
    def has_poses(self) -> np.ndarray:
        """`(n,)` bool: the particle has a pose, given or updated."""
        return self.md.has_poses(np.arange(len(self)))

    @property
    def augmenter(self) -> Augmenter | None:
        """What is done to images and labels at each access: an `Augmenter`, the name of one of `AUGMENT_PRESETS`
        ("paper", "cesped"), or None.

        Its draws begin anew from `seed` when it is set. In a DataLoader each worker and each epoch has draws of its
        own, that follow from the loader's generator: the same torch.manual_seed, the same images.
        """
        return self._augmenter

    @augmenter.setter
    def augmenter(self, augmenter: "Augmenter | str | None") -> None:
        if isinstance(augmenter, str):
            if augmenter not in AUGMENT_PRESETS:
                raise ValueError(f"augmenter {augmenter!r}; presets are {', '.join(AUGMENT_PRESETS)}")
            augmenter = Augmenter(AUGMENT_PRESETS[augmenter])
        if augmenter is not None and not isinstance(augmenter, Augmenter):
            raise ValueError(f"augmenter is a {type(augmenter).__name__}; give an Augmenter or the name of a preset")
        self._augmenter = augmenter
        self._draws: tuple[int | None, torch.Generator] | None = None

    def __repr__(self) -> str:
        """Return what it is: target, half-set, particles, box, pixel size, symmetry, and its star."""
        source = self._source
        name = source.target or source.star.name
        half = "" if source.half_set is None else f", half-set {source.half_set}"
        posed = "" if self.has_poses.all() else f" ({int(self.has_poses.sum())} with poses)"
        return (
            f"ParticlesDataset({name}{half}: {len(self)} particles{posed}, images of {self.image_size} px at "
            f"{self.sampling_rate:.3f} A, box {self._box_size} px at {float(self._table.pixel_sizes_angstrom()[0]):.3f}"
            f" A, {self.symmetry}, {self.starFname})"
        )

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, item: int) -> Item:
        """Return particle `item`; IndexError beyond the last, TypeError for what is no whole number."""
        if not isinstance(item, (int, np.integer)):
            hint = "torch.utils.data.Subset takes several" if isinstance(item, slice) else "give a whole number"
            hint = "md.rows_of([id])[0] is the number of an id" if isinstance(item, str) else hint
            raise TypeError(f"{self.starFname}: particle {item!r}; particles are numbered from 0, {hint}")
        if not -len(self) <= item < len(self):
            raise IndexError(f"{self.starFname}: particle {item} of {len(self)}")
        return self.__getitems__([int(item) % len(self)])[0]

    def __getitems__(self, items: Sequence[int]) -> list[Item]:
        """Return several particles, read and preprocessed together; a DataLoader asks for its batches here."""
        rows = np.asarray(items, np.int64)
        boxes = self._read(rows, self._reader())
        images, (rotations, shifts, confidences) = self._processed(rows, boxes, torch.device("cpu"))
        ids = self.md.rows(rows)["rlnImageName"]
        return [
            (str(iid), *labelled, self.md.row(int(row)))
            for iid, row, labelled in zip(
                ids,
                rows,
                zip(images, zip(rotations, shifts, confidences, strict=True), strict=True),
                strict=True,
            )
        ]

    def batches(
        self,
        batch_size: int,
        *,
        device: Device = "auto",
        shuffle_seed: int | None = None,
        drop_last: bool = False,
        read_ahead: int = 2,
    ) -> Iterator[Batch]:
        """Yield what a DataLoader would, with images and labels on `device`; one pass over the particles.

        A thread reads up to `read_ahead` batches while earlier ones are preprocessed, on the device, and used: no
        worker processes, no copies between them. In the star's order, or shuffled by `shuffle_seed`; take another seed
        for each epoch. Other errors than of arguments are those of reading a stack.
        """
        if batch_size < 1 or read_ahead < 1:
            raise ValueError(f"batch_size {batch_size}, read_ahead {read_ahead}; both are at least 1")
        target = pick_device(device)
        order = np.arange(len(self))
        if shuffle_seed is not None:
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(shuffle_seed)).numpy()
        last = len(self) - len(self) % batch_size if drop_last else len(self)
        return self._batches([order[i : i + batch_size] for i in range(0, last, batch_size)], target, read_ahead)

    def _batches(self, batches: list[Int64], device: torch.device, read_ahead: int) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(1, thread_name_prefix="particles")
        reader = StackReader(self._max_open_files)
        try:
            pending = [pool.submit(self._read, rows, reader) for rows in batches[:read_ahead]]
            for number, rows in enumerate(batches):
                boxes = pending.pop(0).result()
                if number + read_ahead < len(batches):
                    pending.append(pool.submit(self._read, batches[number + read_ahead], reader))
                images, labels = self._processed(rows, boxes, device)
                metadata = self.md.rows(rows)
                ids = list(metadata["rlnImageName"])
                yield ids, images, labels, {k: _collated(column) for k, column in metadata.items()}
        finally:
            pool.shutdown(cancel_futures=True)
            reader.close()

    def _processed(
        self, rows: Int64, boxes: list[BoxImages], device: torch.device
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Return images `(n, 1, S, S)`, rotations `(n, 3, 3)`, shifts `(n, 2)` and confidences `(n, 1)`, float32."""
        images, good, origin = self._steps(boxes, device)
        rotations = torch.from_numpy(self.md.rotations(rows))
        shifts = torch.from_numpy(self.md.shifts_angstrom(rows))
        if self._augmenter is not None:
            images, rotations, shifts = self._augmenter(
                images,
                rotations,
                self._generator(),
                shifts_angstrom=shifts,
                pixel_size_angstrom=self.sampling_rate,
                origin_pixel=torch.from_numpy(origin),
            )
        confidences = np.where(good, self.md.confidences(rows), 0.0)[:, None]
        reduced = torch.from_numpy(reduced_rotations(rotations.numpy(), self._group))
        labels = (reduced, shifts, torch.from_numpy(confidences))
        return images, tuple(label.float().to(device) for label in labels)  # type: ignore[return-value]

    def update_poses(
        self,
        ids: Sequence[str],
        angles: Any = None,
        shifts: Any = None,
        confidence: Any = None,
        angles_format: AnglesFormat = "rotmat",
    ) -> None:
        """Write predictions over the poses of the particles `ids` (each rlnImageName).

        `angles`: `(n, 3, 3)` rotations, image to map, or `(n, 3)` rot, tilt, psi in degrees ("zyzEulerDegs"); `shifts`
        `(n, 2)` angstrom; `confidence` `(n,)` or `(n, 1)`, to rlnParticleFigureOfMerit. Arrays or tensors on any
        device; what is None stays. Raises InvalidStarError naming ids that are not in the star or stand in several of
        its rows, ValueError for other
        shapes, ids given twice, numbers that are not finite, matrices that are no rotations and a confidence beyond
        0 to 1; nothing is written then.
        """
        columns = prediction_columns(len(ids), angles, shifts, confidence, angles_format)
        rows = self.md.rows_of(list(ids))
        if repeated := [text for text, first in zip(ids, _is_first(rows), strict=True) if not first]:
            raise ValueError(f"{len(repeated)} of {len(ids)} ids stand twice, {repeated[0]!r} for one; give each once")
        self.md.update(rows, columns)

    def save_poses(self, path: str | os.PathLike[str], *, overwrite: bool = True, only_updated: bool = False) -> None:
        """Write the star with its updates as RELION 3.1, whole or not at all; image names stay as they are.

        Rows that were not updated keep the poses that they came with, in an entry the true ones; `only_updated` leaves
        them out. Raises InvalidSettingsError for a path that does not end in .star, that is the data set's own star, or
        that exists where `overwrite` is false; InvalidStarError where rows of a star without angles have got none, or
        where an image stands in several rows.
        """
        table = self.md.table(only_updated=only_updated)
        save_predictions(Path(path), table, self._source.star, overwrite=overwrite)

    @classmethod
    def published_entries(cls) -> list[tuple[str, int]]:
        """Return (name, half-set) of every published entry, as `ParticlesDataset` takes them."""
        return published_halves()

    @classmethod
    def local_entries(cls, root: str | os.PathLike[str] | None = None) -> list[tuple[str, int]]:
        """Return (name, half-set) of the entries under `root`, by name; none where there is no such folder."""
        return local_halves(root)

    def _read(self, rows: Int64, reader: StackReader) -> list[BoxImages]:
        return read_boxes(self._table.select(rows), reader, with_ctf=self._with_ctf)

    def _reader(self) -> StackReader:
        """Return this process's reader: files that a parent opened are its own."""
        process = os.getpid()
        if process not in self._readers:
            self._readers[process] = StackReader(self._max_open_files)
        return self._readers[process]

    def _generator(self) -> torch.Generator:
        """Return this worker's draws of this epoch."""
        worker = get_worker_info()
        stream = None if worker is None else worker.seed
        if self._draws is None or self._draws[0] != stream:
            words = [self._seed] if stream is None else [self._seed, stream]
            seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
            self._draws = stream, torch.Generator().manual_seed(seed)
        return self._draws[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}, "_draws": None}


def _is_first(rows: Int64) -> np.ndarray:
    """Return `(n,)` bool: no earlier place holds the same row."""
    first = np.zeros(len(rows), np.bool_)
    first[np.unique(rows, return_index=True)[1]] = True
    return first


def _collated(column: Any) -> Any:
    return torch.from_numpy(column) if isinstance(column, np.ndarray) else column
