"""How well two maps agree: correlation, FSC and its resolutions, masked and unmasked apart (paper, section 2.3)."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cesped_stream.reconstruction.correlation import pearson
from cesped_stream.reconstruction.fsc import fsc, masked_fsc, postprocess_fsc, resolution_angstrom

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

RADIAL_SHELLS = 16


@dataclass(frozen=True, eq=False)
class RegionAgreement:
    """Two maps held against one another, both masked or both not."""

    pearson: float
    """PCC, eq. 6, over all voxels; of masked maps, of both after they were multiplied by the mask."""
    fsc: Float64
    """`(box // 2 + 1,)`, eq. 7; shell k is k cycles a box."""
    resolution_0143_angstrom: float
    """FSCR: where the curve first falls below 0.143, interpolated; infinite where shell 1 is already below."""
    resolution_05_angstrom: float

    @property
    def resolution_0143_at_nyquist(self) -> bool:
        """Whether the curve never falls below 0.143: the pixel size limits the resolution, not the map."""
        return not (self.fsc[1:] < 0.143).any()

    @property
    def resolution_05_at_nyquist(self) -> bool:
        """Whether the curve never falls below 0.5."""
        return not (self.fsc[1:] < 0.5).any()


@dataclass(frozen=True, eq=False)
class MapAgreement:
    """Two maps held against one another, in each region by itself."""

    unmasked: RegionAgreement
    masked: RegionAgreement | None
    """None without a mask."""
    corrected_fsc: Float64 | None = None
    """Of masked half maps: the masked curve less what the mask alone correlates (phases randomised, RELION's rule)."""
    corrected_resolution_0143_angstrom: float | None = None


@dataclass(frozen=True)
class Deltas:
    """What the predicted poses cost: the truth's own level against that of the map, of one region."""

    pearson: float
    """PCC(GT_0, GT_1) - PCC(GT, V), eq. 8: positive is worse."""
    resolution_0143_angstrom: float
    """FSCR(GT, V) - FSCR(GT_0, GT_1): positive is worse (the reverse of eq. 9's sign); NaN where neither is finite."""
    resolution_05_angstrom: float


@dataclass(frozen=True, eq=False)
class RadialProfile:
    """Agreement in shells of radius around the centre of the box, in real space (the paper's Appendix E)."""

    radius_angstrom: Float64
    """`(shells,)`: the middle of each shell."""
    pearson_to_truth: Float64
    """PCC of the map and the truth's over the voxels of the shell; NaN where either is flat."""
    pearson_of_truth_halves: Float64
    """The same of the truth's two half maps: what is there to be reached."""
    truth_rms: Float64
    """The root mean square of the truth's density: where there is any."""


@dataclass(frozen=True, eq=False)
class MapScores:
    """The maps of the predicted poses and what they are worth beside the truth's."""

    weighted_by: str
    """Column that weighed the particles; empty for equal weights."""
    effective_number: float
    halves: tuple[Float32 | None, Float32 | None] = field(repr=False)
    """V_0 and V_1 `(box, box, box)`; None for a half without predictions."""
    combined: Float32 = field(repr=False)
    """V: the mean of the halves."""
    half_to_half: MapAgreement | None
    """V_0 against V_1; None where there is one half only."""
    to_truth: MapAgreement
    """V against GT. The two share their images, and so their noise."""
    halves_to_truth: tuple[MapAgreement | None, MapAgreement | None]
    """V_h against GT."""
    halves_to_other_truth: tuple[MapAgreement | None, MapAgreement | None]
    """V_h against the truth's map of the other half: no image, and no noise, is in both."""
    deltas_unmasked: Deltas
    deltas_masked: Deltas | None
    radial: RadialProfile


def compare_maps(
    a: Float32, b: Float32, pixel_size_angstrom: float, mask: Float32 | None = None, *, halves: bool = False
) -> MapAgreement:
    """Compare two maps `(box, box, box)`, as they are and, where there is a mask of that shape, multiplied by it.

    `halves`: they are half maps, whose masked FSC is also corrected for what the mask adds.
    """
    box = a.shape[0]
    unmasked = _region(pearson(a, b), fsc(a, b), box, pixel_size_angstrom)
    if mask is None:
        return MapAgreement(unmasked, None)
    masked = _region(pearson(a, b, mask), masked_fsc(a, b, mask), box, pixel_size_angstrom)
    if not halves:
        return MapAgreement(unmasked, masked)
    corrected = postprocess_fsc(a, b, mask).corrected
    return MapAgreement(unmasked, masked, corrected, resolution_angstrom(corrected, box, pixel_size_angstrom))


def deltas(truth_halves: RegionAgreement, map_to_truth: RegionAgreement) -> Deltas:
    """Return what the map lost against the truth's own half maps, both of one region."""
    return Deltas(
        pearson=delta_pearson(truth_halves.pearson, map_to_truth.pearson),
        resolution_0143_angstrom=delta_resolution_angstrom(
            truth_halves.resolution_0143_angstrom, map_to_truth.resolution_0143_angstrom
        ),
        resolution_05_angstrom=delta_resolution_angstrom(
            truth_halves.resolution_05_angstrom, map_to_truth.resolution_05_angstrom
        ),
    )


def delta_pearson(truth_half_to_half: float, map_to_truth: float) -> float:
    """Return Delta PCC, eq. 8: PCC(GT_0, GT_1) - PCC(GT, V); positive is worse."""
    return truth_half_to_half - map_to_truth


def delta_resolution_angstrom(truth_half_to_half: float, map_to_truth: float) -> float:
    """Return Delta FSCR in angstrom: FSCR(GT, V) - FSCR(GT_0, GT_1); positive is worse.

    Eq. 9 has the other sign, for FSC values; the paper's tables are in angstrom and positive. NaN where both are
    infinite.
    """
    if np.isinf(truth_half_to_half) and np.isinf(map_to_truth):
        return float("nan")
    return map_to_truth - truth_half_to_half


def radial_profile(
    volume: Float32, truth: Float32, truth_halves: tuple[Float32, Float32], pixel_size_angstrom: float
) -> RadialProfile:
    """Return agreement in at most `RADIAL_SHELLS` shells of equal thickness from the centre to the box's edge."""
    box = volume.shape[0]
    count = min(RADIAL_SHELLS, box // 4)
    axis = np.arange(box) - box // 2
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).ravel()
    shell = (radius * count / (box / 2)).astype(np.int64)
    density = np.sqrt(_shell_means(np.asarray(truth, np.float64).ravel() ** 2, shell, count))
    return RadialProfile(
        radius_angstrom=(np.arange(count) + 0.5) * (box / 2) / count * pixel_size_angstrom,
        pearson_to_truth=_shell_pearson(volume, truth, shell, count),
        pearson_of_truth_halves=_shell_pearson(*truth_halves, shell, count),
        truth_rms=density,
    )


def _region(correlation: float, curve: Float64, box: int, pixel_size_angstrom: float) -> RegionAgreement:
    return RegionAgreement(
        pearson=correlation,
        fsc=curve,
        resolution_0143_angstrom=resolution_angstrom(curve, box, pixel_size_angstrom, 0.143),
        resolution_05_angstrom=resolution_angstrom(curve, box, pixel_size_angstrom, 0.5),
    )


def _shell_means(values: Float64, shell: NDArray[np.int64], count: int) -> Float64:
    sums, voxels = np.bincount(shell, values), np.bincount(shell)
    return np.asarray(sums[:count] / voxels[:count], np.float64)


def _shell_pearson(a: Float32, b: Float32, shell: NDArray[np.int64], count: int) -> Float64:
    first, second = (np.asarray(volume, np.float64).ravel() for volume in (a, b))

    def covariance(x: Float64, y: Float64) -> Float64:
        return _shell_means(x * y, shell, count) - _shell_means(x, shell, count) * _shell_means(y, shell, count)

    power = np.sqrt(np.maximum(covariance(first, first) * covariance(second, second), 0))
    correlation = np.divide(covariance(first, second), power, out=np.full(count, np.nan), where=power > 0)
    return np.asarray(correlation, np.float64)
