"""Predictions of a target scored from its files: the entry's truth, its symmetry, a mask, the cached truth maps."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from cesped_stream import __version__
from cesped_stream.benchmark.entries import Entry
from cesped_stream.benchmark.entry_folder import mask_path
from cesped_stream.benchmark.evaluation import Evaluation, PredictionType, evaluate_poses
from cesped_stream.benchmark.predictions import read_predictions
from cesped_stream.benchmark.truth_maps import OnProgress, TruthMaps, truth_maps
from cesped_stream.errors import InvalidSettingsError
from cesped_stream.reconstruction.engine import Engine
from cesped_stream.reconstruction.mask import read_mask, soft_mask
from cesped_stream.settings import EngineSettings

Float32 = NDArray[np.float32]

CACHE_FOLDER: Final = ".truth_maps"
"""Under the root of the entries: the truth maps of all of them, by content."""
LOWPASS_ANGSTROM: Final = 15.0
LOWPASS_PIXELS: Final = 5.0

AUTO_MASK: Final = "auto"
NO_MASK: Final = "none"


@dataclass(frozen=True, eq=False)
class TargetEvaluation:
    """An evaluation, and what was scored against what."""

    target: str
    evaluation: Evaluation
    mask: Float32 | None = field(repr=False)
    context: dict[str, Any]
    """For metrics.json: target, files, engine, where the mask is from."""
    notes: tuple[str, ...]
    """For the report."""


def evaluate_target(
    entry: Entry,
    prediction_stars: Sequence[Path],
    *,
    prediction_type: PredictionType,
    engine: Engine | None,
    symmetry: str | None = None,
    mask: str = AUTO_MASK,
    use_confidence: bool = True,
    cache: Path | None = None,
    notes: Sequence[str] = (),
    on_progress: OnProgress = lambda what, done, total: None,
) -> TargetEvaluation:
    """Score prediction stars (one with both halves, or one for each) against an entry.

    `symmetry`: the entry's own where None. `mask`: a file, "none", or "auto": the entry's published mask
    (`<target>_mask.mrc` in its folder) where it is there, else one made of the truth's map. Raises
    InvalidSettingsError where no symmetry is known, and as `read_predictions`, `evaluate_poses`, `read_mask`.
    """
    group = symmetry or entry.symmetry
    if group is None:
        raise InvalidSettingsError(
            f"symmetry: {entry.folder} has no info_0.json that says it; give the point group, C1 where there is none"
        )
    predicted = read_predictions(prediction_stars)
    truth = entry.particles()
    known = None if engine is None else truth_maps(truth, group, engine, cache=cache, on_progress=on_progress)
    chosen, words = (None, "none") if known is None else chosen_mask(entry, known, mask)
    evaluation = evaluate_poses(
        truth,
        predicted,
        symmetry=group,
        prediction_type=prediction_type,
        engine=engine,
        mask=chosen,
        use_confidence=use_confidence,
        truth_maps=known,
        on_progress=on_progress,
    )
    context = {
        "target": entry.name,
        "truth": [str(star) for star in entry.stars],
        "predictions": [str(star) for star in prediction_stars],
        "mask": words,
        "notes": list(notes),
        "version": __version__,
    }
    said = [*notes, *([] if known is None else [f"Mask: {words}."])]
    return TargetEvaluation(entry.name, evaluation, chosen, context, tuple(said))


def checked_engine_settings(**values: object) -> EngineSettings:
    """Return engine settings; InvalidSettingsError names each value that is not allowed."""
    try:
        return EngineSettings.model_validate(values)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, one['loc']))}: got {one['input']!r}: {one['msg']}" for one in error.errors()]
        raise InvalidSettingsError(f"engine: {'; '.join(wrong)}") from None


def chosen_mask(entry: Entry, known: TruthMaps, mask: str) -> tuple[Float32 | None, str]:
    """Return the mask `(box, box, box)` for these maps, and in words where it is from."""
    box, pixel_size = known.halves[0].shape[0], known.pixel_size_angstrom
    if mask == NO_MASK:
        return None, "none"
    published = mask_path(entry.folder)
    if mask != AUTO_MASK or published.is_file():
        file = published if mask == AUTO_MASK else Path(mask)
        return read_mask(file, box, pixel_size), str(file)
    lowpass = max(LOWPASS_ANGSTROM, LOWPASS_PIXELS * pixel_size)
    made = soft_mask(known.combined, pixel_size, lowpass_angstrom=lowpass)
    return made, f"made of the truth's map, low-passed at {lowpass:.0f} A; not the published one"
