"""Whether confidences of what is posed now still look like those of the particles of their fit. No torch here."""

from collections import deque
from pathlib import Path
from typing import Final

from cesped_stream.calibration.drift import Drift, FittedConfidences, confidence_drift, read_fitted_confidences
from cesped_stream.settings import CalibrationSettings

from .finished import Finished

RECENT_PARTICLES: Final = 2000


class CalibrationWatch:
    """Keeps the latest calibrated confidences of one checkpoint; another checkpoint begins anew, a restart too."""

    def __init__(self, settings: CalibrationSettings) -> None:
        self._settings = settings
        self._checkpoint = ""
        self._fitted: FittedConfidences | None = None
        self._recent: deque[float] = deque(maxlen=RECENT_PARTICLES)

    def look_at(self, checkpoint_id: str, folder: Path) -> None:
        """Watch this checkpoint from now on; where its calibration cannot be read, none and InvalidCheckpointError."""
        if checkpoint_id != self._checkpoint:
            self._recent.clear()
            self._checkpoint, self._fitted = "", None
            self._fitted = read_fitted_confidences(folder)
            self._checkpoint = checkpoint_id

    def see(self, finished: Finished) -> None:
        """Take note of a result's calibrated confidences, if it is of the checkpoint that is watched."""
        if finished.poses is not None and self._checkpoint == finished.checkpoint_id:
            chosen = (finished.poses.flag == 0) & (finished.poses.calibrated == 1)
            self._recent.extend(finished.poses.confidence[chosen].tolist())

    def drift(self) -> Drift | None:
        """Return how far the latest confidences have moved; None where the checkpoint has no calibration."""
        return confidence_drift(list(self._recent), self._fitted, self._settings) if self._fitted else None
