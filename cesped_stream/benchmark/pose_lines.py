"""Lines of a replay's table on how poses were made, how sure they are and what clipped."""

from collections.abc import Mapping
from typing import Any, Final

from cesped_stream.benchmark.sureness import kind_words

Line = tuple[str, str]
_SHOWN: Final = (
    ("network", "network alone"),
    ("gallery", "gallery alone"),
    ("refined", "refined"),
    ("limit", "from the true poses"),
)


def way_lines(summary: Mapping[str, Any]) -> list[Line]:
    """Return a line for each way that made poses in this run, and when the first pose was there."""
    lines = []
    if summary.get("first_pose_seconds") is not None:
        lines.append(("first pose after the last aligned row", f"{summary['first_pose_seconds']:,.1f} s"))
    if summary.get("num_redone"):
        lines.append(("redone since; latencies are of first poses", f"{summary['num_redone']:,}"))
    measured = sum(half["num_particles"] for half in summary.get("per_half", ()))
    for way, words in _SHOWN:
        median = summary.get(f"{way}_median_angular_error_deg")
        if median is None:
            continue
        number = summary.get(f"{way}_num_particles", measured)
        part = "" if number == measured else f" ({number:,} of {measured:,})"
        share = summary[f"{way}_fraction_within_5_deg"]
        lines.append((f"  {words}: median / within 5°", f"{median:.1f}° / {percent(share)}{part}"))
        shift = summary.get(f"{way}_shift_error_angstrom")
        if shift is not None:
            lines.append(("  its shift error, root mean square", f"{shift:.1f} Å"))
    return lines


def sureness_lines(summary: Mapping[str, Any]) -> list[Line]:
    """Return lines of confidence, junk and searches that ended at an edge; none where the rows tell nothing."""
    sureness = summary.get("sureness")
    if not sureness:
        return []
    lines = []
    for kind, found in sureness["confidence"].items():
        figures = found["particles"]
        if figures is None:
            continue
        error, chance = figures["expected_calibration_error"], figures["expected_noise"]
        lines.append((f"confidence ({kind_words(kind)})", f"{figures['num_particles']:,} particles"))
        lines.append(("  calibration error, ECE (by chance alone)", f"{error:.3f} ({chance:.3f})"))
        auc = decimals(figures["area_under_curve"])
        lines.append(("  Brier score / AUC of right against wrong", f"{figures['brier_score']:.3f} / {auc}"))
    junk = sureness["junk"]
    if junk["num_junk"]:
        aucs = [decimals(junk["above_noise_area_under_curve"])]
        aucs += [decimals(found["junk_area_under_curve"]) for found in sureness["confidence"].values()]
        lines.append(("junk, AUC: by fit above noise / by confidence", " / ".join(aucs)))
    clipped = sureness["clipped"]
    if clipped["num_refined"]:
        edges = " / ".join(f"{clipped[edge]:,}" for edge in ("angle", "shift", "both"))
        lines.append(("at the search's edge: angle / shift / both", f"{edges} ({percent(clipped['share'])})"))
    return lines


def percent(share: float | None) -> str:
    """Return a share in whole per cent, "-" for None."""
    return "-" if share is None else f"{100 * share:.0f} %"


def decimals(value: float | None) -> str:
    """Return a figure from 0 to 1 with two decimals, "-" for None."""
    return "-" if value is None else f"{value:.2f}"
