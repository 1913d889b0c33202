"""Where particles stand in their images: a density over shifts, learned from the origins of aligned rows."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ive

from cesped_stream.errors import PermanentError

LEAST_RANGE_ANGSTROM: Final = 15.0
"""Shifts up to here are possible whatever the aligned rows say, and searched where there are none."""
COVERED_SHARE: Final = 0.99
ELSEWHERE: Final = 0.05
"""Share of the particles that may stand anywhere in range: rows that were re-extracted say too little."""
_KNOTS_PER_SPREAD: Final = 2.0

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ShiftPrior:
    """A density over shifts that is the same in all directions."""

    radii_angstrom: Float64
    """`(k,)` from 0 to the range, ascending."""
    log_density: Float64
    """`(k,)`: natural logarithm of the density a square angstrom at each, linear between them."""

    @property
    def range_angstrom(self) -> float:
        """The longest shift that is likely enough to be searched."""
        return float(self.radii_angstrom[-1])

    @property
    def even_log_density(self) -> float:
        """Log density of a shift that is anywhere in range."""
        return -float(np.log(np.pi * self.range_angstrom**2))

    def log_density_at(self, shifts_angstrom: ArrayLike) -> Float64:
        """Return the log density `(...)` of shifts `(..., 2)`, beyond the range that of its end."""
        length = np.linalg.norm(np.asarray(shifts_angstrom, np.float64), axis=-1)
        return np.asarray(np.interp(length, self.radii_angstrom, self.log_density), np.float64)

    def to_json(self) -> dict[str, Any]:
        """Return the density as plain values."""
        return {"radii_angstrom": self.radii_angstrom.tolist(), "log_density": self.log_density.tolist()}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "ShiftPrior":
        """Return the density of `to_json`; PermanentError where it is none."""
        try:
            radii, density = (np.array(values[name], np.float64) for name in ("radii_angstrom", "log_density"))
        except (KeyError, TypeError, ValueError) as error:
            raise PermanentError(f"shift prior: {error!r}; write it again") from error
        if radii.ndim != 1 or radii.shape != density.shape or len(radii) < 2 or not (np.diff(radii) > 0).all():
            raise PermanentError(f"shift prior: radii {radii.shape}, density {density.shape}; write it again")
        return ShiftPrior(radii, density)


def fit_shift_prior(shifts_angstrom: ArrayLike, spread_angstrom: float, largest_angstrom: float) -> ShiftPrior:
    """Return the density of shifts `(n, 2)`, each smeared by a Gaussian of `spread_angstrom` and turned to all angles.

    It reaches as far as 99 % of the shifts do and a spread more, at least 15 and at most `largest_angstrom`. A share of
    0.05 lies evenly in that circle: picks elsewhere than the aligned ones are unlikely, not impossible.
    """
    length = np.linalg.norm(np.asarray(shifts_angstrom, np.float64), axis=-1)
    covered = float(np.quantile(length, COVERED_SHARE)) + spread_angstrom if len(length) else 0.0
    reach = max(LEAST_RANGE_ANGSTROM, min(covered, largest_angstrom))
    radii = np.linspace(0, reach, 1 + int(np.ceil(_KNOTS_PER_SPREAD * reach / spread_angstrom)))
    density = np.full(len(radii), ELSEWHERE if len(length) else 1.0) / (np.pi * reach**2)
    if len(length):
        # a Gaussian about a point at distance r, averaged over the angle: exp(-(q - r)^2 / 2 s^2) I0(q r / s^2) e^-..
        scaled = radii[:, None] / spread_angstrom, length / spread_angstrom
        smeared = np.exp(-((scaled[0] - scaled[1]) ** 2) / 2) * ive(0, scaled[0] * scaled[1])
        density += (1 - ELSEWHERE) * smeared.mean(1) / (2 * np.pi * spread_angstrom**2)
    return ShiftPrior(radii, np.log(density))
