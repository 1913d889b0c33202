"""Parts of a stream's page: each way of making poses, how sure the rows are, and what clipped."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from cesped_stream.benchmark import html
from cesped_stream.benchmark.pose_lines import decimals, percent
from cesped_stream.benchmark.stream_charts import distribution_chart, reliability_chart
from cesped_stream.benchmark.sureness import ConfidenceFigures, Sureness, kind_words
from cesped_stream.calibration.metrics import ADVISED_PARTICLES, ProbabilityFigures
from cesped_stream.particles.flags import Clipped
from cesped_stream.particles.own_columns import CALIBRATED
from cesped_stream.particles.pose_tally import MANY_AT_EDGE, NOISE_REACHES

_SVG = "image/svg+xml"
_WAYS = (
    ("network", "the network's own best pose"),
    ("gallery", "the gallery's own best pose, not refined"),
    ("refined", "refined, as written"),
    ("limit", "refined from the true poses: what the noise allows"),
)


def ways_section(ways: Mapping[str, Any]) -> list[str]:
    """Return the errors of each way of making poses in this run; nothing where only one way is known."""
    rows = [
        [words, *(_cell(ways.get(f"{way}_{figure}"), show) for figure, show in _WAY_COLUMNS)]
        for way, words in _WAYS
        if ways.get(f"{way}_median_angular_error_deg") is not None
    ]
    if len(rows) < 2:
        return []
    columns = ("way", "particles", "median", "mean", "within 5°", "shift error")
    redone = ways.get("num_redone") or 0
    words = f"{redone:,} rows were redone with a later checkpoint; latencies are those of their first poses."
    said = [html.bullets([words])] if redone else []
    return [html.heading("Each way of making poses"), *said, html.table(columns, rows)]


def sureness_section(sureness: Sureness | None) -> list[str]:
    """Return what the rows say of how sure they are against what is true, junk and searches' edges."""
    if sureness is None:
        return []
    told = [(figures, figures.particles) for figures in sureness.confidence if figures.particles is not None]
    return [
        html.heading("How sure, and what clipped"),
        html.bullets([*_confidence_words(sureness), *_junk_words(sureness), *_edge_words(sureness)]),
        _table(told),
        html.charts(_pictures(sureness)),
    ]


def _pictures(sureness: Sureness) -> list[str]:
    pictures = []
    curves = [(kind_words(found.kind), found.curve) for found in sureness.confidence if found.curve is not None]
    if curves:
        caption = "Share of right poses against confidence; bins of equal number, bars: 95 % intervals."
        pictures.append(html.picture(reliability_chart(curves, sureness.within_deg), _SVG, caption))
        first = sureness.confidence[0]
        groups = list(zip(("right", "wrong", "junk"), first.values, strict=True))
        caption = f"Confidence ({kind_words(first.kind)}) of right and of wrong poses, and of junk where it is stated."
        pictures.append(html.picture(distribution_chart(groups, "confidence"), _SVG, caption))
    if any(map(len, sureness.above_noise)):
        groups = list(zip(("particles", "junk"), sureness.above_noise, strict=True))
        caption = f"How far images fit the reference better than noise does; {NOISE_REACHES:g}, noise itself may reach."
        chart = distribution_chart(groups, "standard deviations above what noise gets", NOISE_REACHES)
        pictures.append(html.picture(chart, _SVG, caption))
    return pictures


def _confidence_words(sureness: Sureness) -> list[str]:
    said = []
    for figures in sureness.confidence:
        if figures.kind != CALIBRATED:
            said.append("Where the confidence is not calibrated it ranks poses and is no probability: judge its AUC.")
            continue
        said.append(
            f"Calibrated confidence is the chance that a pose lies within {sureness.within_deg:g}° of the truth."
        )
        if figures.particles is not None and figures.particles.num_particles < ADVISED_PARTICLES:
            said.append(f"Fewer than {ADVISED_PARTICLES:,} particles: hold the calibration error against chance alone.")
    return said


def _junk_words(sureness: Sureness) -> list[str]:
    tally = sureness.tally
    said = []
    if tally.num_against_noise:
        share = percent(tally.num_like_noise / tally.num_against_noise)
        said.append(
            f"{tally.num_like_noise:,} of {tally.num_against_noise:,} rows ({share}) fit less than "
            f"{NOISE_REACHES:g} standard deviations better than noise, as noise itself may: junk, or too little signal."
        )
    if sureness.num_junk:
        told = sureness.above_noise_auc
        aucs = [] if told is None else [f"{decimals(told)} by how far the image fits above noise"]
        aucs += [f"{decimals(one.junk_auc)} by confidence ({kind_words(one.kind)})" for one in sureness.confidence]
        said.append(f"{sureness.num_junk:,} rows are junk. Told from particles, AUC: {', '.join(aucs)}.")
    return said


def _edge_words(sureness: Sureness) -> list[str]:
    tally = sureness.tally
    if not tally.num_refined:
        return []
    angle, shift, both = (tally.clipped(edge) for edge in (Clipped.ANGLE, Clipped.SHIFT, Clipped.BOTH))
    said = [
        f"Of {tally.num_refined:,} refined poses {angle:,} ended at the edge of the angles searched, {shift:,} at that "
        f"of the shifts, {both:,} at both."
    ]
    if tally.num_clipped_shift > MANY_AT_EDGE * tally.num_refined:
        said.append(
            "Many particles lie further off centre than was searched, or are none: give "
            "`gallery.shift_range_angstrom` a larger radius in angstrom than was searched, or centre the picks."
        )
    return said


def _table(told: list[tuple[ConfidenceFigures, ProbabilityFigures]]) -> str:
    rows = []
    for found, particles in told:
        rows.append([f"{kind_words(found.kind)}; particles", *_figures(particles)])
        if found.with_junk is not None:
            rows.append([f"{kind_words(found.kind)}; junk too, as wrong", *_figures(found.with_junk)])
    columns = ("confidence", "rows", "right", "ECE", "ECE by chance", "Brier", "Brier of the base rate", "AUC")
    return html.table(columns, rows) if rows else ""


def _figures(figures: ProbabilityFigures) -> list[str]:
    rate = figures.base_rate
    return [
        f"{figures.num_particles:,}",
        percent(rate),
        f"{figures.expected_calibration_error:.3f}",
        f"{figures.expected_noise:.3f}",
        f"{figures.brier_score:.3f}",
        f"{rate * (1 - rate):.3f}",
        decimals(figures.area_under_curve),
    ]


_WAY_COLUMNS: Final[tuple[tuple[str, Callable[[Any], str]], ...]] = (
    ("num_particles", "{:,}".format),
    ("median_angular_error_deg", "{:.1f}°".format),
    ("mean_angular_error_deg", "{:.1f}°".format),
    ("fraction_within_5_deg", percent),
    ("shift_error_angstrom", "{:.1f} Å".format),
)


def _cell(value: float | None, show: Callable[[Any], str]) -> str:
    return "–" if value is None else show(value)
