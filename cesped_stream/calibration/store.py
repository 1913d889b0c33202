"""Calibrations as JSON in a checkpoint's folder, named by their content. No pickle."""

import hashlib
import json
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cesped_stream.calibration.calibrator import Calibrator
from cesped_stream.calibration.fusion_fit import FusionFit
from cesped_stream.conventions import HALVES
from cesped_stream.durable import write_whole
from cesped_stream.errors import InvalidCheckpointError, UnreachableFileError

HalfMode = Literal["gold_standard", "cross_half"]


class HalfCalibration(BaseModel):
    """What turns the answers of one half-set's models into one pose with a confidence."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fusion: FusionFit | None = None
    """None: the gallery's answer stands as it is."""
    calibrator: Calibrator | None = None
    """None: confidence stays a mass that ranks."""


class Calibration(BaseModel):
    """Both halves' fusion weights and calibrators, and whose answers they are for. It holds no clock time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    calibration_id: str = ""
    """Set by `save_calibration`: "cal-" and 12 hexadecimal digits of the hash of everything else here."""
    checkpoint_id: str
    """Of the networks; empty where the gallery alone proposes."""
    reference_ids: dict[int, str]
    """By half-set, of the gallery's references; empty where the network alone proposes."""
    symmetry: str
    halves: dict[int, HalfCalibration] = Field(min_length=2, max_length=2)

    @model_validator(mode="after")
    def _halves_share_nothing(self) -> Self:
        if set(self.halves) != set(HALVES):
            raise ValueError(f"holds half-sets {sorted(self.halves)}, not 0 and 1")
        found = {half: part.calibrator for half, part in self.halves.items() if part.calibrator is not None}
        for half, calibrator in found.items():
            if calibrator.half_set != half:
                raise ValueError(f"half-set {half} has the calibrator of half-set {calibrator.half_set}")
        if len({calibrator.particles_sha256 for calibrator in found.values()}) != len(found):
            raise ValueError("both half-sets were calibrated on the same particles; halves share nothing")
        if len(set(self.reference_ids.values())) != len(self.reference_ids):
            raise ValueError("both half-sets have one reference; halves share nothing")
        return self

    def for_half(self, half_set: int, half_mode: HalfMode) -> HalfCalibration:
        """Return what belongs to the models that answer for particles of `half_set`.

        `gold_standard`: the same half's; `cross_half`: the other's, as with the models. ValueError for a half-set
        other than 0 and 1.
        """
        if half_set not in HALVES:
            raise ValueError(f"half_set is {half_set}; there are 0 and 1")
        return self.halves[half_set if half_mode == "gold_standard" else 1 - half_set]

    def content_id(self) -> str:
        """Return the id that these contents have."""
        content = self.model_dump(mode="json", exclude={"calibration_id"})
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        return f"cal-{hashlib.sha256(canonical).hexdigest()[:12]}"

    def with_id(self) -> Self:
        """Return the calibration that names its own content."""
        return self.model_copy(update={"calibration_id": self.content_id()})

    @property
    def file_name(self) -> str:
        """Name of its file, once it names its content."""
        return f"{self.calibration_id}.json"

    def file_bytes(self) -> bytes:
        """Return the content of its file."""
        return self.model_dump_json(indent=1).encode() + b"\n"


def save_calibration(folder: Path, calibration: Calibration) -> tuple[Path, Calibration]:
    """Write `<calibration_id>.json` into a checkpoint's folder, whole and durable; return its path and what it holds.

    A folder's other files stay as they are: a later calibration has a name of its own, and the same one writes the
    same bytes. Raises OSError where the folder cannot be written.
    """
    named = calibration.with_id()
    path = folder / named.file_name
    write_whole(path, named.file_bytes())
    return path, named


def load_calibration(path: Path, *, checkpoint_id: str, symmetry: str) -> Calibration:
    """Return the calibration in a file, for answers of the networks of `checkpoint_id` under `symmetry`.

    Raises UnreachableFileError where it cannot be read, InvalidCheckpointError where it was changed, is none, or is for
    other networks or another symmetry.
    """
    try:
        calibration = Calibration.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UnreachableFileError(f"{path}: cannot be read ({error.strerror}); calibrate again") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidCheckpointError(f"{path}: {where}: {first['msg']}; calibrate again") from error
    if calibration.calibration_id != calibration.content_id():
        raise InvalidCheckpointError(
            f"{path}: names itself {calibration.calibration_id}, its contents are {calibration.content_id()}; it was "
            "edited, calibrate again"
        )
    if (calibration.checkpoint_id, calibration.symmetry) != (checkpoint_id, symmetry):
        raise InvalidCheckpointError(
            f"{path}: is for checkpoint {calibration.checkpoint_id!r} and {calibration.symmetry}, not for "
            f"{checkpoint_id!r} and {symmetry}; calibrate this one"
        )
    return calibration
