"""How sure rows are against how right they are, how well they tell junk, and what ended at a search's edge."""

from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cesped_stream.benchmark.predictions import has_angles
from cesped_stream.calibration.metrics import (
    ProbabilityFigures,
    ReliabilityCurve,
    area_under_curve,
    probability_figures,
    reliability_curve,
)
from cesped_stream.conventions import ANGLE_LABELS
from cesped_stream.imaging.junk import is_particle
from cesped_stream.particles.flags import Clipped
from cesped_stream.particles.own_columns import (
    ABOVE_NOISE,
    CALIBRATED,
    CLIPPED,
    CONFIDENCE,
    CONFIDENCE_KIND,
    MASS,
    PREDICTED,
    PROPOSER,
    STATUS,
    numbers_of,
)
from cesped_stream.particles.pose_tally import PoseTally
from cesped_stream.particles.stacks import parse_image_name
from cesped_stream.particles.table import ParticleTable
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations

Float64 = NDArray[np.float64]
Flags = NDArray[np.bool_]

RIGHT_WITHIN_DEG: Final = 5.0
COLUMNS: Final = (STATUS, PROPOSER, CONFIDENCE, CONFIDENCE_KIND, ABOVE_NOISE, CLIPPED)
"""What rows must have to be measured here."""


@dataclass(frozen=True, eq=False)
class ConfidenceFigures:
    """Confidences of one kind against what came true: the pose is within so many degrees of the truth."""

    kind: str
    """`CALIBRATED`: a probability. `MASS`: a rank, whose calibration error says only how far from one it is."""
    particles: ProbabilityFigures | None
    """Junk left out; None where the truth has no poses, or no particle."""
    with_junk: ProbabilityFigures | None
    """Junk counted as wrong; None where the stream states none."""
    curve: ReliabilityCurve | None
    """Of particles."""
    junk_auc: float | None
    """Chance that a particle has a higher confidence than junk; None without both."""
    values: tuple[Float64, Float64, Float64] = field(repr=False)
    """Confidences of right poses `(r,)`, of wrong ones `(w,)` and of junk `(m,)`; wrong where nothing is known."""

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON can hold them."""
        curve = None
        if self.curve is not None:
            curve = {name: values.tolist() for name, values in vars(self.curve).items()}
        return {
            "calibrated": self.kind == CALIBRATED,
            "particles": _figures(self.particles),
            "with_junk": _figures(self.with_junk),
            "junk_area_under_curve": self.junk_auc,
            "reliability": curve,
        }


@dataclass(frozen=True, eq=False)
class Sureness:
    """What predicted rows of a stream say of themselves, held against the truth."""

    within_deg: float
    """A pose is right where it is within so much of the truth."""
    confidence: tuple[ConfidenceFigures, ...]
    """Of each kind that there is, calibrated before mass."""
    num_particles: int
    num_junk: int
    above_noise_auc: float | None
    """Chance that a particle fits the reference further above noise than junk does; None without both."""
    tally: PoseTally
    above_noise: tuple[Float64, Float64] = field(repr=False)
    """Of particles `(n,)` and of junk `(m,)`, standard deviations; rows without the figure left out."""

    def to_json(self) -> dict[str, Any]:
        """Return everything but the rows' own values as JSON can hold it."""
        tally = self.tally
        return {
            "right_within_deg": self.within_deg,
            "confidence": {figures.kind: figures.to_json() for figures in self.confidence},
            "junk": {
                "num_junk": self.num_junk,
                "num_particles": self.num_particles,
                "above_noise_area_under_curve": self.above_noise_auc,
                "num_against_noise": tally.num_against_noise,
                "num_like_noise": tally.num_like_noise,
            },
            "clipped": {
                "num_refined": tally.num_refined,
                "angle": tally.clipped(Clipped.ANGLE),
                "shift": tally.clipped(Clipped.SHIFT),
                "both": tally.clipped(Clipped.BOTH),
                "share": share_clipped(tally),
            },
        }


def how_sure(
    predicted: ParticleTable, truth: ParticleTable, symmetry: str, *, within_deg: float = RIGHT_WITHIN_DEG
) -> Sureness | None:
    """Measure the rows of `predicted` with a predicted pose whose images are in `truth`, the first row of each.

    `predicted`: any rows, image names as they landed. `truth`: the streamed rows, junk named by `cestreamKind`.
    None where the rows have not the columns of a session's, or none of them is predicted.
    """
    if any(label not in predicted for label in (*COLUMNS, *ANGLE_LABELS)):
        return None
    rows, places = _matched(predicted, truth)
    if not rows:
        return None
    own, known = predicted.select(rows), truth.select(places)
    particle = is_particle(known)
    right = _right(own, known, symmetry, within_deg)
    above = numbers_of(own.column(ABOVE_NOISE))
    told = np.isfinite(above)
    kinds = np.array(own.column(CONFIDENCE_KIND))
    return Sureness(
        within_deg=within_deg,
        confidence=tuple(
            _confidence(kind, numbers_of(own.column(CONFIDENCE)), right, particle, kinds == kind)
            for kind in (CALIBRATED, MASS)
            if (kinds == kind).any()
        ),
        num_particles=int(particle.sum()),
        num_junk=int((~particle).sum()),
        above_noise_auc=area_under_curve(above[told], particle[told]),
        tally=PoseTally.of(own),
        above_noise=(above[told & particle], above[told & ~particle]),
    )


def share_clipped(tally: PoseTally) -> float | None:
    """Return the share of refined rows that ended at any edge; None where nothing was refined."""
    edges = sum(tally.clipped(edge) for edge in (Clipped.ANGLE, Clipped.SHIFT, Clipped.BOTH))
    return edges / tally.num_refined if tally.num_refined else None


def _matched(predicted: ParticleTable, truth: ParticleTable) -> tuple[list[int], list[int]]:
    """Rows of `predicted` and of `truth` of the same images, in the order of `predicted`."""
    place = {parse_image_name(name): row for row, name in enumerate(truth.column("rlnImageName"))}
    posed = has_angles(predicted, ANGLE_LABELS)
    rows, places = [], []
    for row, (name, status) in enumerate(zip(*map(predicted.column, ("rlnImageName", STATUS)), strict=True)):
        found = place.pop(parse_image_name(name), None) if status == PREDICTED and posed[row] else None
        if found is not None:
            rows.append(row)
            places.append(found)
    return rows, places


def _right(own: ParticleTable, known: ParticleTable, symmetry: str, within_deg: float) -> Flags | None:
    if not all(label in known for label in ANGLE_LABELS) or not known.has_poses().all():
        return None
    errors = angular_error_deg(known.rotations(), own.rotations(), group_rotations(symmetry))
    return np.asarray(errors <= within_deg, np.bool_)


def _confidence(
    kind: str, confidence: Float64, right: Flags | None, particle: Flags, of_kind: Flags
) -> ConfidenceFigures:
    """Figures of the rows `of_kind`; rows whose confidence is no number from 0 to 1 are left out."""
    of_kind = of_kind & (confidence >= 0) & (confidence <= 1)
    values, real = confidence[of_kind], particle[of_kind]
    junk_auc = area_under_curve(values, real)
    outcome = np.zeros(len(values), np.bool_) if right is None else right[of_kind] & real
    groups = (values[outcome], values[real & ~outcome], values[~real])
    if right is None or not real.any():
        return ConfidenceFigures(kind, None, None, None, junk_auc, groups)
    return ConfidenceFigures(
        kind,
        probability_figures(values[real], outcome[real]),
        None if real.all() else probability_figures(values, outcome),
        reliability_curve(values[real], outcome[real]),
        junk_auc,
        groups,
    )


def _figures(figures: ProbabilityFigures | None) -> dict[str, Any] | None:
    return None if figures is None else asdict(figures)


def kind_words(kind: str) -> str:
    """Return what a kind of confidence is called beside its figures."""
    return "calibrated" if kind == CALIBRATED else "not calibrated: a rank"
