"""What a session's predicted poses say of themselves, for its status: how sure, at a search's edge, like noise."""

from typing import Final

from cesped_stream.particles.flags import Clipped
from cesped_stream.particles.own_columns import CALIBRATED, MASS
from cesped_stream.particles.pose_tally import MANY_AT_EDGE, NOISE_REACHES, PoseTally
from cesped_stream.settings import GallerySettings, RefinementSettings

from .status import ConfidenceStatus, PosesStatus

LEAST_ROWS: Final = 100
"""With fewer refined rows a share at the edge is chance."""


def poses_status(tally: PoseTally) -> PosesStatus:
    """Return the part of the status that a session's tally tells."""
    return PosesStatus(
        by_proposer=tally.by_proposer,
        confidence=tuple(found for kind in (CALIBRATED, MASS) if (found := _confidence(tally, kind)) is not None),
        num_refined=tally.num_refined,
        num_clipped_angle=_num_clipped_angle(tally),
        num_clipped_shift=tally.num_clipped_shift,
        num_against_noise=tally.num_against_noise,
        num_like_noise=tally.num_like_noise,
    )


def pose_problems(tally: PoseTally, gallery: GallerySettings, refinement: RefinementSettings) -> list[str]:
    """Return what is wrong with many of the poses, and what to do."""
    if tally.num_refined < LEAST_ROWS:
        return []
    return [*_clipped_shifts(tally, gallery), *_clipped_angles(tally, gallery, refinement)]


def _clipped_shifts(tally: PoseTally, gallery: GallerySettings) -> list[str]:
    clipped, refined = tally.num_clipped_shift, tally.num_refined
    if clipped <= MANY_AT_EDGE * refined:
        return []
    radius = gallery.shift_range_angstrom
    remedy = (
        f"raise gallery.shift_range_angstrom ({radius:g} now)"
        if radius
        else "give gallery.shift_range_angstrom a larger radius in angstrom than the automatic one"
    )
    return [
        f"{clipped:,} of {refined:,} refined poses ({100 * clipped / refined:.0f} %) ended at the edge of the shift "
        "search: these particles lie further off centre than is searched, or are junk; "
        f"{remedy} and `reinfer`, or centre the picks"
    ]


def _clipped_angles(tally: PoseTally, gallery: GallerySettings, refinement: RefinementSettings) -> list[str]:
    clipped, refined = _num_clipped_angle(tally), tally.num_refined
    if clipped <= MANY_AT_EDGE * refined:
        return []
    radius = refinement.radius_deg
    remedy = (
        f"raise refinement.radius_deg ({radius:g} now)"
        if radius
        else "set refinement.radius_deg to more degrees than the automatic one grid step"
    )
    if gallery.coarse_order < gallery.grid_order:
        remedy += f", or gallery.coarse_order to {gallery.grid_order} ({gallery.coarse_order} now): no view is left out"
    return [
        f"{clipped:,} of {refined:,} refined poses ({100 * clipped / refined:.0f} %) ended at the edge of the angle "
        "search: the best view lies farther from the proposed one than is searched. The reference may be too coarse "
        f"to propose well (see its resolution; `retrain` on more aligned rows), or the rows are junk; else {remedy}, "
        "and `reinfer`"
    ]


def _num_clipped_angle(tally: PoseTally) -> int:
    return tally.clipped(Clipped.ANGLE) + tally.clipped(Clipped.BOTH)


def pose_words(poses: PosesStatus) -> dict[str, str]:
    """Return the lines of the status that tell of poses, by name; none where no pose was predicted."""
    words = {}
    if poses.by_proposer:
        words["made by"] = ", ".join(f"{name} {rows:,}" for name, rows in sorted(poses.by_proposer.items()))
    if poses.confidence:
        words["confidence"] = "; ".join(map(_confidence_words, poses.confidence))
    if poses.num_refined:
        words["search edge"] = (
            f"shift {_part(poses.num_clipped_shift, poses.num_refined)}, angle "
            f"{_part(poses.num_clipped_angle, poses.num_refined)} of {poses.num_refined:,} refined"
        )
    if poses.num_against_noise:
        words["like noise"] = (
            f"{_part(poses.num_like_noise, poses.num_against_noise)} of {poses.num_against_noise:,} fit less than "
            f"{NOISE_REACHES:g} standard deviations above noise: junk, or too little signal"
        )
    return words


def _confidence(tally: PoseTally, kind: str) -> ConfidenceStatus | None:
    number, median = tally.num_with_confidence(kind), tally.median_confidence(kind)
    if median is None:
        return None
    share = tally.num_at_least(kind, 0.5) / number if kind == CALIBRATED else None
    return ConfidenceStatus(kind=kind, num_rows=number, median=median, share_at_least_half=share)


def _confidence_words(found: ConfidenceStatus) -> str:
    if found.share_at_least_half is None:
        return f"median {found.median:.2f} of {found.num_rows:,}, not calibrated: a rank"
    return f"median {found.median:.2f}, {100 * found.share_at_least_half:.0f} % at least 0.5 of {found.num_rows:,}"


def _part(rows: int, whole: int) -> str:
    return f"{rows:,} ({100 * rows / whole:.0f} %)"
