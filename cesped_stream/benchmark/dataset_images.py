"""Images of a data set's items: read by box size, then preprocessed to one side and pixel size."""

from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cesped_stream.imaging.cesped_steps import CespedSteps
from cesped_stream.imaging.preprocess import Preprocessor, image_flags
from cesped_stream.particles.flags import ImageFlag
from cesped_stream.particles.stacks import StackReader, read_images
from cesped_stream.particles.table import CtfParameters, Float64, Int64, ParticleTable
from cesped_stream.settings import CtfCorrection, PreprocessSettings

Compatibility = Literal["cesped", "cesped_exact"] | None


@dataclass(frozen=True, eq=False)
class BoxImages:
    """Raw images `(n, box, box)` float32 of one box size, of rows `index` `(n,)`, with their CTF."""

    index: Int64
    images: NDArray[np.float32]
    ctf: CtfParameters


def read_boxes(rows: ParticleTable, reader: StackReader, *, with_ctf: bool = True) -> list[BoxImages]:
    """Read the images of all rows, grouped by box size; errors as `read_images` and `ctf_parameters`.

    Without CTF a star needs no defocus; only the pixel sizes are right then.
    """
    ctf = rows.ctf_parameters() if with_ctf else _pixel_sizes_alone(rows)
    return [BoxImages(group.index, group.images, ctf.select(group.index)) for group in read_images(rows, reader)]


class ImageSteps:
    """From raw images to `(n, 1, image_size, image_size)`, with `cesped`'s steps or this project's."""

    def __init__(
        self,
        first: BoxImages,
        *,
        image_size: int | None,
        normalise: bool,
        ctf_correction: CtfCorrection,
        crop_fraction: float,
        compatible: Compatibility,
        wiener_regulariser: float,
    ) -> None:
        """`first`, the first particle, gives the field of view and with it the one pixel size of all outputs."""
        if not 0 <= crop_fraction <= 0.5:
            raise ValueError(f"crop fraction {crop_fraction}; it is the share of the side that is cut, 0 to 0.5")
        if compatible not in ("cesped", "cesped_exact", None):
            raise ValueError(f"compatible {compatible!r}; it is 'cesped', 'cesped_exact' or None")
        if ctf_correction not in get_args(CtfCorrection):
            raise ValueError(f"ctf_correction {ctf_correction!r}; it is one of {', '.join(get_args(CtfCorrection))}")
        if image_size is not None and (not isinstance(image_size, Integral) or image_size < 1):
            raise ValueError(f"image size {image_size!r}; it is a whole number of pixels, at least 1, or None")
        box = first.images.shape[-1]
        self.image_size: int = box if image_size is None else int(image_size)
        kept = int(box * (1 - crop_fraction))
        self.pixel_size_angstrom = float(first.ctf.pixel_size_angstrom[0] * kept / self.image_size)
        self._steps: CespedSteps | Preprocessor
        if compatible is None:
            settings = PreprocessSettings(
                image_size=self.image_size,
                ctf_correction=ctf_correction,
                wiener_regulariser=wiener_regulariser,
                normalise=normalise,
            )
            self._steps = Preprocessor(settings, self.pixel_size_angstrom)
        else:
            self._steps = CespedSteps(
                self.image_size,
                self.pixel_size_angstrom,
                normalise=normalise,
                ctf_correction=ctf_correction,
                wiener_regulariser=wiener_regulariser,
                exact=compatible == "cesped_exact",
            )

    def __call__(self, boxes: list[BoxImages], device: torch.device) -> tuple[Tensor, NDArray[np.bool_], Float64]:
        """Return images `(n, 1, S, S)` on `device`, which are good `(n,)`, and the pixel `(n,)` of the particles'
        origin. Images with NaN, infinite or all equal pixels are 0."""
        count = sum(len(box.index) for box in boxes)
        images = torch.zeros(count, 1, self.image_size, self.image_size, device=device)
        good, origin = np.zeros(count, np.bool_), np.zeros(count)
        for box in boxes:
            raw = torch.from_numpy(box.images).to(device)
            fine = image_flags(raw) == ImageFlag.OK
            rows = np.flatnonzero(fine)
            good[box.index] = fine
            origin[box.index] = self._origin(box)
            if len(rows):
                kept = torch.from_numpy(rows).to(device)
                target = torch.from_numpy(box.index[rows]).to(device)
                images[target] = self._steps(raw if fine.all() else raw[kept], box.ctf.select(rows))
        return images, good, origin

    def _origin(self, box: BoxImages) -> Float64:
        if isinstance(self._steps, CespedSteps):
            return self._steps.origin_pixel(box.images.shape[-1], box.ctf.pixel_size_angstrom)
        return np.full(len(box.index), float(self.image_size // 2))


def _pixel_sizes_alone(rows: ParticleTable) -> CtfParameters:
    numbers = {name: np.zeros(len(rows)) for name in CtfParameters.__dataclass_fields__}
    flags = np.zeros(len(rows), np.bool_)
    return CtfParameters(
        **{
            **numbers,
            "pixel_size_angstrom": rows.pixel_sizes_angstrom(),
            "premultiplied": flags,
            "phase_flipped": flags,
        }  # type: ignore[arg-type]
    )
